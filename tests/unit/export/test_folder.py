"""Inspecting and exporting artifacts: a results folder made by hand, loaders that run without the package, one-sentence errors."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mkdt
from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.cli.inspection import describe
from mkdt.cli.main import main
from mkdt.config.methods import SET_RULES, made_by
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.evaluate.pretraining import pretrain_grid, snapshots
from mkdt.export.card import of_set
from mkdt.export.folder import export
from mkdt.export.standalone import standalone
from mkdt.jobs.lineage import Family, place_of
from mkdt.networks.backbones import build_backbone

TEACHER = {"architecture": "resnet", "blocks": [1], "width": 4}
SET, STUDENT = "study/sets/mkdt/4img/0.safetensors", "study/pretrain/convnet/mkdt/4img/0/1.safetensors"


@pytest.fixture
def tiny(make_set: Callable[..., SyntheticSet]) -> SyntheticSet:
    """What was distilled: four images."""
    return make_set(4)


@pytest.fixture
def results(tmp_path: Path, spec: dict[str, Any], tiny: SyntheticSet) -> Path:
    """A results folder with a data set, a teacher, a distilled set and a student, each made from those before."""
    folder = tmp_path / "results"
    (folder / ".experiments").mkdir(parents=True)
    (folder / ".experiments" / "study.json").write_text(json.dumps({"digits": {}, "digits/bt": {}}))
    images = {"train_images": torch.zeros(30, 1, 8, 8, dtype=torch.uint8), "mean": tiny.mean, "std": tiny.std}
    inputs: dict[str, str] = {}

    def save(role: str, path: str, tensors: dict[str, torch.Tensor], **rest: Any) -> None:
        artifacts.save(folder / path, tensors, inputs=dict(inputs), **rest)
        inputs[role] = Artifact(folder / path).identity

    save("data", "digits/data.safetensors", images, stage="data", parameters={"kind": "digits"})
    teacher = build_backbone(TEACHER, 1, 8).state_dict()
    trained = {"backbone": TEACHER, "method": "simclr", "epochs": 3}
    save("teacher", "digits/bt/teacher.safetensors", teacher, stage="teacher", parameters=trained)
    save("set", SET, tiny.tensors(), stage="distill", parameters={"student": spec})
    settings = {"batch": 2, "momentum": 0.9, "weight_decay": 0.0}
    grid = pretrain_grid(tiny.images, tiny.targets, spec, settings, rates=[0.01, 0.1], steps=[1, 2], seed=0)
    grid["valid"][1, 0] = False
    save("student", STUDENT, grid, stage="pretrain", parameters={"student": spec}, rows=["snapshots"])
    probe = folder / "study/probe/convnet/mkdt/4img.csv"
    points = [
        {"rate": 0.01, "steps": 1, "distill_seed": 0, "seed": 1, "chosen": False},
        {
            "rate": 0.3,
            "steps": 2,
            "distill_seed": 1,
            "seed": 1,
            "chosen": True,
        },  # of another set, by the protocol `paper`
        {"rate": 0.1, "steps": 2, "distill_seed": 0, "seed": 1, "chosen": True},
    ]
    artifacts.write_table(probe, points)
    return folder


def alone(folder: Path, code: str) -> str:
    """Run Python in a folder, where mkdt cannot be imported, and return what it printed."""
    blocked = "import sys; sys.modules['mkdt'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippet(folder: Path, number: int) -> str:
    """A Python block of a folder's card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[number]


def test_an_exported_set_works_alone(results: Path, tmp_path: Path, tiny: SyntheticSet) -> None:
    """The card's snippets run, one without the package; both spaces are those of the set, and the file its own bytes."""
    out = tmp_path / "out"
    export(results / SET, out)
    assert {path.name for path in out.iterdir()} == {"README.md", "images.png", "load.py", "set.safetensors"}
    assert (out / "set.safetensors").read_bytes() == (results / SET).read_bytes()
    printed = alone(out, snippet(out, 0) + "print(float(images.sum()), float(pixels.sum()), targets.shape)")
    pixels = tiny.images * tiny.std[:, None, None] + tiny.mean[:, None, None]
    assert printed.split()[:2] == [str(float(tiny.images.sum())), str(float(pixels.sum()))]
    there = snippet(out, 1) + "print(features.shape)"
    done = subprocess.run([sys.executable, "-c", there], cwd=out, capture_output=True, text=True, check=True)
    assert "torch.Size([4, 16])" in done.stdout
    card = (out / "README.md").read_text()
    for words in ("CC BY 4.0", "archive.ics.uci.edu", "simclr for 3 epochs", "Not measured", "2410.02116"):
        assert words in card


def test_an_exported_student_is_the_snapshot_that_validation_chose(
    results: Path, tmp_path: Path, tiny: SyntheticSet
) -> None:
    """Its features, computed without the package, are those of the snapshot; another point can be asked for."""
    out = tmp_path / "out"
    export(results / STUDENT, out)
    images = torch.randn(3, 1, 8, 8)
    save_file({"images": images}, out / "in.safetensors")
    printed = alone(
        out,
        "from load import load\nfrom safetensors.torch import load_file, save_file\n"
        "encoder, view = load()\nsave_file({'f': encoder(load_file('in.safetensors')['images'])}, 'out.safetensors')\n"
        "print(view['mean'].tolist())",
    )
    backbone = snapshots(Artifact(results / STUDENT))(1, 1)
    assert backbone is not None
    torch.testing.assert_close(load_file(out / "out.safetensors")["f"], backbone(images), rtol=0, atol=1e-6)
    assert json.loads(printed) == tiny.mean.tolist()
    alone(out, snippet(out, 0))
    encoder, view = mkdt.load_encoder(out / "encoder.safetensors")
    torch.testing.assert_close(encoder(images), backbone(images), rtol=0, atol=1e-6)
    assert view["size"] == 8
    with pytest.raises(ValueError, match="no exported encoder"):
        mkdt.load_encoder(results / SET)
    other = tmp_path / "other"
    export(results / STUDENT, other, rate=0.01, steps=2)
    assert not torch.equal(
        load_file(other / "encoder.safetensors")["blocks.0.weight"],
        load_file(out / "encoder.safetensors")["blocks.0.weight"],
    )


def test_an_exported_teacher_has_its_own_view(results: Path, tmp_path: Path, tiny: SyntheticSet) -> None:
    """One that was brought sees images with its own statistics and size, not with the source's."""
    path = results / "digits/bt/teacher.safetensors"
    export(path, tmp_path / "trained")
    _, view = mkdt.load_encoder(tmp_path / "trained/encoder.safetensors")
    assert view["mean"].tolist() == tiny.mean.tolist()
    file = Artifact(path)
    seen = {"channels": 3, "size": 16, "mean": [0.1, 0.2, 0.3], "std": None, "interpolation": "bilinear"}
    weights = build_backbone(TEACHER, 3, 16).state_dict()
    parameters = {"backbone": TEACHER, "format": "solo_learn", "view": seen}
    artifacts.save(path, weights, stage="teacher", parameters=parameters, inputs=file.header["inputs"])
    export(path, tmp_path / "brought")
    encoder, view = mkdt.load_encoder(tmp_path / "brought/encoder.safetensors")
    assert view["mean"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert encoder(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
    assert "brought as a checkpoint" in (tmp_path / "brought/README.md").read_text()


def test_the_loader_knows_every_network(tmp_path: Path) -> None:
    """The text that an exported folder carries builds each architecture as this package does."""
    specs: list[dict[str, Any]] = [
        {"architecture": "convnet", "depth": 2, "width": 4, "norm": "group"},
        {"architecture": "torchvision_resnet", "name": "resnet18", "kernel": 3, "padding": 2, "max_pool": False},
        *({"architecture": name} for name in ("resnet10", "vgg11", "alexnet", "mobilenet")),
        TEACHER,
    ]
    (tmp_path / "network.py").write_text(standalone("networks.backbones", "build_backbone"))
    count = "[sum(p.numel() for p in build_backbone(spec, 3, 32).parameters()) for spec in specs]"
    printed = alone(tmp_path, f"from network import build_backbone\nspecs = {specs}\nprint({count})")
    assert json.loads(printed) == [sum(p.numel() for p in build_backbone(spec, 3, 32).parameters()) for spec in specs]


def test_a_folder_of_images_has_no_terms_that_we_know(results: Path, tiny: SyntheticSet) -> None:
    """The card leaves the terms to the owner; a set outside of any results has a card too."""
    path = results / "digits/data.safetensors"
    file = Artifact(path)
    artifacts.save(path, {name: file.tensor(name) for name in file.names}, stage="data", parameters={"kind": "folder"})
    inputs = {"data": Artifact(path).identity}
    artifacts.save(results / SET, tiny.tensors(), stage="subset", parameters={}, inputs=inputs)
    file = Artifact(results / SET)
    assert "its owner decides" in of_set(tiny, file, place_of(results / SET), Family(results))
    assert "Not known" in of_set(tiny, file, None, None)


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("digits/data.safetensors", {}, "rule 'data'"),
        (SET, {"rate": 0.1, "steps": 2}, "--rate and --steps"),
        (STUDENT, {"rate": 0.5, "steps": 2}, "rates 0.01, 0.1 and steps 1, 2"),
        (STUDENT, {"rate": 0.1}, "rates 0.01, 0.1"),
        (STUDENT, {"rate": 0.1, "steps": 1}, "diverged at the rate 0.1"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    results: Path, tmp_path: Path, path: str, options: dict[str, Any], words: str
) -> None:
    """Nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=re.escape(words)):
        export(results / path, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_overwrites_nothing_and_needs_the_data(results: Path, tmp_path: Path) -> None:
    """A folder that is there is refused, an encoder without its data set has no normalisation."""
    export(results / SET, tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        export(results / SET, tmp_path / "out")
    (results / "study/probe/convnet/mkdt/4img.csv").unlink()
    with pytest.raises(UserError, match="give --rate and --steps"):
        export(results / STUDENT, tmp_path / "other")
    (results / "digits/data.safetensors").unlink()
    with pytest.raises(UserError, match=r"make data\.safetensors there again"):
        export(results / STUDENT, tmp_path / "other")


def test_inspect_says_what_a_file_is_and_what_it_was_made_from(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kind, tensors with ranges, place, inputs found by identity; outside of the results what the header knows."""
    assert main(["inspect", str(results / STUDENT)]) == 0
    text = capsys.readouterr().out
    for words in ("a pre-trained student", "experiment    study", "distill seed  0", "Intact"):
        assert words in text
    assert f"set: results/{SET}" in text
    assert "teacher: results/digits/bt/teacher.safetensors" in text
    assert re.search(r"losses +float32 +\[2, 2\]", text)
    assert "with the config of study" in text
    copy = results.parent / "elsewhere.safetensors"
    copy.write_bytes((results / SET).read_bytes())
    assert "outside of a results folder" in describe(copy)


def test_inspect_finds_a_flipped_bit_and_foreign_files(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and an exit code for a missing, truncated, altered, foreign or senseless file."""
    whole = (results / SET).read_bytes()
    cases = {
        "truncated": whole[:-5],
        "altered": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "text": b"no tensors",
        "empty": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    for name in (*cases, "foreign", "missing"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        printed = capsys.readouterr()
        assert not printed.out
        assert printed.err.startswith("mkdt: ")
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize("rule", SET_RULES)
def test_a_set_of_every_rule_is_taken_away(results: Path, tmp_path: Path, tiny: SyntheticSet, rule: str) -> None:
    """Whatever made it: inspected with its kind, exported with a card that names its start."""
    start = results / "study/sets/random/4img/0.safetensors"
    artifacts.save(start, tiny.tensors(), stage="subset", parameters={}, inputs={})
    (method, *_) = made_by(rule)
    path = results / f"study/sets/{method}/4img/9.safetensors"
    inputs = {"initial": Artifact(start).identity, "data": Artifact(results / "digits/data.safetensors").identity}
    artifacts.save(path, tiny.tensors(), stage=rule, parameters={"count": 4}, inputs=inputs)
    assert "a real subset" in describe(path) if rule == "subset" else "a distilled set (" in describe(path)
    export(path, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert ("Distillation started from a subset of them (`random`)" in card) == (rule != "subset")


def test_experts_of_both_kinds_are_one_input(results: Path, tiny: SyntheticSet) -> None:
    """A set names them by one digest; they are shown as so many, and each says what it is."""
    folder = results / "study/ssl_experts"
    for expert in range(2):
        trajectory = {"trajectory": torch.full((3, 5), float(expert))}
        artifacts.save(folder / f"{expert:03d}.safetensors", trajectory, stage="sslexperts", parameters={}, inputs={})
    identities = [Artifact(folder / f"{expert:03d}.safetensors").identity for expert in range(2)]
    path = results / "study/sets/mtt_ssl/4img/0.safetensors"
    inputs = {"experts": artifacts.digest(identities)}
    artifacts.save(path, tiny.tensors(), stage="mtt", parameters={}, inputs=inputs)
    assert "study/ssl_experts, 2 experts" in describe(path)
    text = describe(folder / "001.safetensors")
    assert "an expert of SSL: 3 times its 5 weights" in text
    assert "with the config of study" in text


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("cifar/data", {"dataset": "cifar"}),
        ("cifar/bt/targets", {"source": "cifar", "teacher": "bt"}),
        ("cifar/bt/net/experts/012", {"source": "cifar", "teacher": "bt", "student": "net", "expert": "012"}),
        ("e/ssl_experts/003", {"experiment": "e", "expert": "003"}),
        ("e/sets/random/1pct/3", {"experiment": "e", "method": "random", "budget": "1pct", "distill_seed": "3"}),
        ("e/report/summary", None),
    ],
)
def test_a_path_says_what_a_file_is(tmp_path: Path, path: str, names: dict[str, str] | None) -> None:
    """As docs/artifacts.md has it; other paths say nothing."""
    (tmp_path / ".experiments").mkdir()
    place = place_of(tmp_path / f"{path}.safetensors")
    assert (place and place.names) == names


@pytest.mark.parametrize(
    ("students", "words"),
    [(["convnet"], "steps=20, rate=0.57)"), (["alexnet", "convnet"], "steps=80)")],
    ids=["this set's own rate", "two students have two points"],
)
def test_the_cards_example_trains_at_the_point_that_was_measured(
    results: Path, tmp_path: Path, students: list[str], words: str
) -> None:
    """Of this set: by the protocol `paper` each has its own rate. Whose point is meant must be clear."""
    rows = [
        {"source": "digits", "budget": "4img", "method": "mkdt", "student": student, "downstream": "digits"}
        | {"evaluation": "linear", "label_fraction": 0.1, "distill_seed": seed, "seed": 0, "label_draw": 0}
        | {"rate": rate, "steps": 20, "accuracy": 80.0}
        for student in students
        for seed, rate in ((1, 0.5), (0, 0.57))
    ]
    artifacts.write_table(results / "study/report/accuracy.csv", rows)
    export(results / SET, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert words in card
    assert "| convnet | digits | linear | 10 % | 0.57, 20 | 80.0 |" in card

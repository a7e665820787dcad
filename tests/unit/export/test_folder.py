"""Export: folders whose loader runs without the package, one-sentence errors."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from made_results import SET, STUDENT, TEACHER
from safetensors.torch import load_file, save_file
from without_mkdt import alone

import mkdt
from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.cli.inspection import describe
from mkdt.config.methods import SET_STAGES, methods_that
from mkdt.distill.storage import bytes_of, stored
from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
from mkdt.errors import UserError
from mkdt.evaluate.pretraining import snapshots
from mkdt.export.folder import export
from mkdt.networks.backbones import build_backbone
from mkdt.teacher.target_space import fit_space


def snippet(folder: Path, number: int) -> str:
    """A Python block of a folder's card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[number]


def test_an_exported_set_needs_no_mkdt(results: Path, tmp_path: Path, tiny: SyntheticSet) -> None:
    """The card's snippets run, one without the package; images and pixels are those of the set, and the file is a copy."""
    out = tmp_path / "out"
    export(results / SET, out)
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "images.png", "load.py", "set.safetensors", "train.parquet")
    }
    assert (out / "set.safetensors").read_bytes() == (results / SET).read_bytes()
    printed = alone(out, snippet(out, 0) + "print(float(images.sum()), float(pixels.sum()), targets.shape)")
    pixels = tiny.images * tiny.std[:, None, None] + tiny.mean[:, None, None]
    assert printed.split()[:2] == [str(float(tiny.images.sum())), str(float(pixels.sum()))]
    before = "import torch; seen = torch.empty(0)\n"
    after = (
        "with torch.no_grad(): assert F.mse_loss(head(encoder(images)), targets) < 0.9 * targets.var(correction=0)\n"
    )
    alone(out, before + snippet(out, 0) + snippet(out, 1) + after)
    there = snippet(out, 2) + "print(features.shape)"
    done = subprocess.run([sys.executable, "-c", there], cwd=out, capture_output=True, text=True, check=True)
    assert "torch.Size([4, 16])" in done.stdout
    card = (out / "README.md").read_text()
    for words in ("CC BY 4.0", "archive.ics.uci.edu", "simclr for 3 epochs", "Not measured", "2410.02116"):
        assert words in card


def test_an_exported_set_is_a_dataset_repository(
    results: Path, tmp_path: Path, tiny: SyntheticSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's head is YAML that names the table; the table has an image and its targets a row, views together."""
    more = replace(tiny, views=("identity", "mirror"), targets=torch.cat([tiny.targets, -tiny.targets]))
    artifacts.save(results / SET, more.tensors(), stage="distill", parameters={}, notes=more.notes())
    out = tmp_path / "out"
    export(results / SET, out)
    _, head, _ = (out / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["configs"] == [{"config_name": "default", "data_files": "train.parquet"}]
    assert about["license"] == "other"
    table = pq.read_table(out / "train.parquet").to_pydict()
    assert torch.equal(torch.tensor(table["image"]), tiny.images)
    assert torch.equal(torch.tensor(table["targets"]), torch.stack([tiny.targets, -tiny.targets], 1))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"].with_format("torch")
    assert torch.equal(rows["image"][:], tiny.images)


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8"])
def test_an_exported_set_is_decoded_to_all_its_views(
    results: Path, tmp_path: Path, tiny: SyntheticSet, precision: str
) -> None:
    """Without the package, from any storage; rows of images and targets belong together."""
    names = ("identity", "mirror", "shift 1 0", "rotate 30", "crop 0.5 centre", "colour 0.1")
    more = replace(tiny, views=names, targets=torch.randn(6 * len(tiny), tiny.targets.shape[1]))
    kept = stored(more.tensors(), {"pixels": precision, "targets": precision}, real=False)
    artifacts.save(results / SET, kept, stage="distill", parameters={}, notes=more.notes())
    read = load_synthetic(results / SET)
    export(results / SET, tmp_path / "out")
    torch.save([read.decoded(), read.targets], tmp_path / "expected.pt")
    alone(
        tmp_path / "out",
        snippet(tmp_path / "out", 0)
        + f"import torch; expected = torch.load('{tmp_path / 'expected.pt'}')\n"
        + "assert torch.equal(images, expected[0]); assert torch.equal(targets, expected[1])\n"
        + f"assert len(pixels) == {len(tiny)}",
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mirror" in card
    assert f"{bytes_of(artifacts.Artifact(results / SET)):,} bytes" in card
    assert f"`targets` | {precision} [" in card


def test_a_card_names_the_space_of_the_targets(results: Path, tmp_path: Path, tiny: SyntheticSet) -> None:
    """Components, settings, and the file that maps a head back; nothing of it where there is no space."""
    export(results / SET, tmp_path / "raw")
    assert "components of its" not in (tmp_path / "raw" / "README.md").read_text()
    settings = {"center": True, "components": 2, "scale": "none"}
    space = fit_space(torch.randn(30, 5), settings)
    targets = results / "digits/bt+centred_2/targets.safetensors"
    targets.parent.mkdir()
    tensors = {"targets": torch.randn(30, 2)} | space.tensors()
    artifacts.save(targets, tensors, stage="targets", parameters=settings)
    inputs = dict(Artifact(results / SET).header["inputs"]) | {"targets": Artifact(targets).identity}
    artifacts.save(results / SET, tiny.tensors(), stage="distill", parameters={}, inputs=inputs)
    export(results / SET, tmp_path / "mapped")
    card = (tmp_path / "mapped" / "README.md").read_text()
    for words in ("2 components of its 5 dimensions", '"center": true', "bt+centred_2", "space_inverse"):
        assert words in card


def test_an_exported_student_is_the_snapshot_that_validation_chose(
    results: Path, tmp_path: Path, tiny: SyntheticSet
) -> None:
    """Its features, computed without the package, are those of the snapshot; another point can be chosen."""
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
    with pytest.raises(ValueError, match=r"0\.safetensors"):
        mkdt.load_encoder(results / SET)
    other = tmp_path / "other"
    export(results / STUDENT, other, rate=0.01, steps=2)
    assert not torch.equal(
        load_file(other / "encoder.safetensors")["blocks.0.weight"],
        load_file(out / "encoder.safetensors")["blocks.0.weight"],
    )


def test_an_exported_teacher_has_its_own_view(results: Path, tmp_path: Path, tiny: SyntheticSet) -> None:
    """A teacher from a checkpoint has its own statistics and image size, not those of the source."""
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
def test_what_cannot_be_exported_is_refused(
    results: Path, tmp_path: Path, path: str, options: dict[str, Any], words: str
) -> None:
    """The error names the value, and no folder is written."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=re.escape(words)):
        export(results / path, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_overwrites_nothing_and_needs_the_data(results: Path, tmp_path: Path) -> None:
    """An existing folder is refused; without the data set the normalisation of an encoder is not known."""
    export(results / SET, tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        export(results / SET, tmp_path / "out")
    (results / "study/select/convnet/mkdt/4img.csv").unlink()
    with pytest.raises(UserError, match=r"4img\.csv.*--rate and --steps"):
        export(results / STUDENT, tmp_path / "other")
    (results / "digits/data.safetensors").unlink()
    with pytest.raises(UserError, match=r"data\.safetensors"):
        export(results / STUDENT, tmp_path / "other")


@pytest.mark.parametrize("stage", SET_STAGES)
def test_a_set_of_every_rule_is_exported(results: Path, tmp_path: Path, tiny: SyntheticSet, stage: str) -> None:
    """It is inspected with its kind, and exported with a card that names its start."""
    start = results / "study/sets/random/4img/0.safetensors"
    artifacts.save(start, tiny.tensors(), stage="subset", parameters={}, inputs={})
    (method, *_) = methods_that(stage=stage)
    path = results / f"study/sets/{method}/4img/9.safetensors"
    inputs = {"initial": Artifact(start).identity, "data": Artifact(results / "digits/data.safetensors").identity}
    artifacts.save(path, tiny.tensors(), stage=stage, parameters={"count": 4}, inputs=inputs)
    assert "a real subset" in describe(path) if stage == "subset" else "a distilled set" in describe(path)
    export(path, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert ("Distillation started from a subset of them (`random`)" in card) == (stage != "subset")

"""Extensions: what a file declares is read without running it; whatever cannot be read is named."""

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configs import settings_of

import mkdt.config.loading as cfg
import mkdt.extensions
from mkdt.config import extensions, methods, network_sizes, plan
from mkdt.config.architectures import ARCHITECTURES
from mkdt.config.catalogue import Dataset
from mkdt.config.extensions import Architecture, declared, is_extension
from mkdt.config.methods import METHODS, Method
from mkdt.config.resource_needs import LINE
from mkdt.config.stages import STAGES
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet, check_distilled
from mkdt.errors import UserError

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of extensions."""
    monkeypatch.setattr(extensions, "FOLDER", tmp_path)
    return tmp_path


def test_a_declaration_is_read_without_running_the_file(folder: Path) -> None:
    """By kind and file name; the file's code, which would fail, is not run."""
    (folder / "mine.py").write_text("METHOD = Method(seeded=True, teacher=True)\nraise RuntimeError\n")
    (folder / "net.py").write_text('import nowhere\nARCHITECTURE = extensions.Architecture(arguments=("depth",))\n')
    (folder / "_draft.py").write_text("not python (")
    assert declared(Method, ["random"]) == {"mine": Method(seeded=True, teacher=True)}
    assert declared(Architecture, []) == {"net": Architecture(("depth",))}
    assert declared(Dataset, []) == {}
    assert is_extension("net")
    assert not is_extension("convnet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "declares nothing"),
        ("METHOD = Method(seeded=choose())\n", "cannot be read"),
        ("METHOD = Method(True)\n", "declares nothing"),
        ("METHOD = (\n", "cannot be read"),
        ("METHOD = Method(seeds=True)\n", "unexpected keyword argument 'seeds'"),
    ],
)
def test_a_bad_file_is_one_sentence(folder: Path, text: str, words: str) -> None:
    """It names the file."""
    (folder / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        declared(Method, [])
    assert "mine.py" in str(caught.value)


def test_a_name_that_is_taken_is_refused(folder: Path) -> None:
    """An extension replaces nothing silently."""
    (folder / "random.py").write_text("METHOD = Method()\n")
    with pytest.raises(UserError, match="'random' is taken"):
        declared(Method, ["random"])


PERCEPTRON = """from torch import nn

from mkdt.config.extensions import Architecture

ARCHITECTURE = Architecture(arguments=("width",))


def build(channels, size, width):
    network = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, width), nn.ReLU())
    network.dimension = width
    return network
"""


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an architecture of one's own, which can be imported."""
    network_sizes.forget_built()
    monkeypatch.setattr(mkdt.extensions, "__path__", [str(folder)])
    monkeypatch.setitem(ARCHITECTURES, "mine", ("width",))
    monkeypatch.delitem(sys.modules, "mkdt.extensions.mine", raising=False)
    return folder / "mine.py"


def test_a_student_of_ones_own_is_counted_by_building_it(own: Path) -> None:
    """Weights, operations and what backward keeps; what the entry has for other architectures is no argument."""
    own.write_text(PERCEPTRON)
    size = network_sizes.backbone_size({"architecture": "mine", "width": 5, "depth": 3}, 2, 4)
    assert size == network_sizes.Size(5 * 32 + 5, 5, 32 + 5 + 5, 32)


def test_a_layer_that_gives_several_tensors_is_counted(own: Path) -> None:
    """A recurrent one: its outputs and its last state."""
    text = (
        PERCEPTRON.replace("return network", "return Own(channels * size, width)")
        + """

class Own(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.dimension, self.cell = width, nn.GRU(inputs, width, batch_first=True)

    def forward(self, images):
        return self.cell(images.flatten(2).transpose(1, 2).reshape(len(images), 4, -1))[0][:, -1]
"""
    )
    own.write_text(text)
    size = network_sizes.backbone_size({"architecture": "mine", "width": 5}, 2, 4)
    assert (size.features, size.activations, size.largest) == (5, 4 * 5 + 5, 4 * 5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("size**2, width", "size, width", "RuntimeError: mat1 and mat2"),
        ("nn.ReLU", "nn.Relu", "AttributeError: .*Relu"),
        ("import nn", "import nowhere", "ImportError: .*nowhere"),
        ("dimension = width", "size = width", "AttributeError: .*dimension"),
        ("dimension = width", "dimension = 7", r"ValueError: of one image it makes \[1, 5\], expected \[1, 7\]"),
        ("nn.ReLU()", "nn.Unflatten(1, (5, 1, 1))", r"ValueError: of one image it makes \[1, 5, 1, 1\]"),
    ],
)
def test_a_student_that_cannot_be_built_is_one_sentence_before_any_job(
    own: Path, old: str, new: str, words: str
) -> None:
    """Whatever its code raises; hours of teacher and experts are not spent before."""
    own.write_text(PERCEPTRON.replace(old, new))
    with pytest.raises(
        UserError, match=rf"^the student of architecture 'mine' cannot be used for images of 2x4x4: {words}"
    ):
        network_sizes.backbone_size({"architecture": "mine", "width": 5}, 2, 4)


DISTILS = 'METHOD = Method(distilled=True, seeded=True, options={"iterations": 50, "pictures": 4, "lr": 0.1, "why": "so"})\ndef mine_set(): ...\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DISTILS.replace("distilled=True", "distilled=1"), "a distilled that is neither True nor False"),
        ('METHOD = Method(distilled=True, options={"pictures": 1})\n', "its options need 'iterations'"),
        (DISTILS.replace('"lr": 0.1', '"seed": 1'), "option 'seed', which is a setting of all methods"),
        (DISTILS.replace("0.1", "None"), "option 'lr' that is no number"),
        (DISTILS.replace("mine_set", "mine_subset"), "has no function mine_set"),
        (DISTILS.replace("seeded=True", 'seeded="no"'), "neither True nor False"),
        (DISTILS.replace("seeded=True", "own_experts=True"), "has no function mine_expert"),
        ("METHOD = Method(options=5)\n", "expected names with their defaults"),
        (DISTILS.replace("seeded=True", 'init="mkdt"'), "init 'mkdt', which is no subset method"),
    ],
)
def test_a_method_that_cannot_be_made_is_one_sentence(folder: Path, text: str, words: str) -> None:
    """It names the file."""
    (folder / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        methods.extension_methods()
    assert "mine.py" in str(caught.value)


@pytest.fixture
def default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The default config with a method that distils, which starts from another extension's subset."""
    monkeypatch.chdir(REPOSITORY)
    (folder / "far.py").write_text('METHOD = Method(options={"power": 2})\ndef far_subset(): ...\n')
    (folder / "mine.py").write_text(DISTILS.replace("seeded", 'init="far", seeded'))
    for name, method in methods.extension_methods().items():
        monkeypatch.setitem(METHODS, name, method)
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    return config | {"methods": ["random", "mine"]}


def test_options_are_settings_of_their_method_alone(default: dict[str, Any]) -> None:
    """From the file, over it from the config, also as the command line gives them; scaled down with the rest."""
    config = cfg.load(default | {"options": {"mine": {"iterations": "20", "lr": "1e0"}, "far": {"power": 3}}})
    settings = settings_of(config, "distill", method="mine")
    assert {key: settings[key] for key in METHODS["mine"].options} == {
        "iterations": 20,
        "pictures": 4,
        "lr": 1.0,
        "why": "so",
    }
    assert isinstance(settings["lr"], float)
    assert settings["student"]["architecture"] == "convnet"
    assert settings_of(config, "subset", method="far", budget="1pct")["power"] == 3
    assert "power" not in settings_of(config, "subset", method="random", budget="1pct")
    assert plan.initial_method(config, "mine") == "far"
    small = cfg.load(default | {"scale": "smoke"})
    assert plan.own_options(small, "mine") == {"iterations": 4, "pictures": 2, "lr": 0.1, "why": "so"}


def test_a_job_of_a_method_of_ones_own_is_planned(default: dict[str, Any]) -> None:
    """More iterations write longer metrics; its subset is made too."""
    names = {"method": "mine", "budget": "1pct", "distill_seed": "0"}
    jobs = plan.jobs(cfg.load(default))
    assert plan.Job("distill", names) in jobs
    assert sum(job.stage == "subset" for job in jobs) == len(default["distill_seeds"]) + 1
    few, many = (
        STAGES["distill"].need(cfg.load(default | {"options": {"mine": {"iterations": n}}}), names) for n in (10, 1000)
    )
    assert many.disk - few.disk == 990 * LINE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random": {"x": 1}}, "options.random: no method of this name declares options"),
        ({"mine": {"rate": 1}}, "unknown key 'options.mine.rate'; known here are iterations, pictures, lr, why"),
        ({"mine": {"lr": "fast"}}, "options.mine.lr must be of type float, got 'fast'"),
        ({"mine": {"why": 3}}, "options.mine.why must be of type str, got 3"),
        ({"mine": {"iterations": 0}}, "options.mine.iterations must be a whole number from 1 on, got 0"),
        ({"mine": {"iterations": True}}, "options.mine.iterations must be of type int"),
        ({"mine": {"lr": "2024-13-45"}}, "options.mine.lr must be of type float"),
        ({"mine": {"lr": "9" * 400}}, "options.mine.lr must be"),
        ({"mine": {"lr": "nan"}}, "options.mine.lr must be finite"),
        ({"mine": 3}, "options.mine must be of type object"),
    ],
)
def test_bad_options_are_one_sentence(default: dict[str, Any], options: Any, words: str) -> None:
    """The key, what was expected, the value."""
    with pytest.raises(UserError) as caught:
        cfg.load(default | {"options": options})
    assert words in str(caught.value)


def test_what_a_method_returns_is_checked_before_it_is_saved() -> None:
    """Each tensor as the subset's, finite; a history that pictures can be made of."""
    rows = torch.arange(3)
    mean, std = torch.full((1,), 0.5), torch.full((1,), 0.3)
    start = SyntheticSet(torch.zeros(3, 1, 8, 8), torch.zeros(3, 4), torch.tensor(0.1), mean, std, rows)
    history = torch.zeros(2, 3, 1, 8, 8)
    check_distilled("mine", start, start, history)
    faults = {
        "images are torch.float64": {"images": start.images.double()},
        r"targets are torch.float32 \[3, 5\]": {"targets": torch.zeros(3, 5)},
        r"step_size are .* or not finite": {"step_size": torch.tensor(float("nan"))},
    }
    for words, changed in faults.items():
        with pytest.raises(UserError, match=f"^mine: its {words}"):
            check_distilled("mine", start, replace(start, **changed), history)
    for bad in (history[:0], history[:, :0], history[0], history[..., 1:], [history]):
        with pytest.raises(UserError, match=r"^mine: its history is .* expected a tensor \[k,m',1,8,8\]"):
            check_distilled("mine", start, start, bad)  # type: ignore[arg-type]


def test_a_start_that_needs_the_teacher_is_refused_where_there_is_none(
    default: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where targets are brought, a set that starts from SAS cannot be made either."""
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["mine"], init="sas"))
    (folder / "targets.npy").touch()
    cfg.load(default | {"methods": ["mine"]})
    with pytest.raises(UserError, match="'mine' needs the teacher itself"):
        cfg.load(default | {"methods": ["mine"], "targets": default["targets"] | {"file": str(folder / "targets.npy")}})


def test_the_distillation_of_the_page_goes_on_with_the_same_bits(spec: dict[str, Any]) -> None:
    """CONTRIBUTING.md's example, from each of its states."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (text,) = re.findall(r"extensions/mean_match\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    module: dict[str, Any] = {}
    exec(text, module)
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (30, 1, 8, 8), generator=stream, dtype=torch.uint8)
    targets, mean, std = torch.randn(30, 3, generator=stream), torch.full((1,), 0.5), torch.full((1,), 0.3)
    rows = torch.arange(5)
    start = SyntheticSet((pixels[:5] / 255 - 0.5) / 0.3, targets[:5], torch.tensor(0.1), mean, std, rows)
    losses: list[float] = []
    states: list[dict[str, Any]] = []

    def run(state: dict[str, Any] | None) -> tuple[SyntheticSet, torch.Tensor]:
        found: tuple[SyntheticSet, torch.Tensor] = module["mean_match_set"](
            start, Source(pixels, mean, std, targets), spec, module["METHOD"].options | {"iterations": 6, "batch": 30},
            seed=0, distill_seed=1, device=torch.device("cpu"), state=state,
            report=lambda step, values, pictures: losses.append(values["loss"]),
            checkpoint=lambda make: states.append(copy.deepcopy(make())),
        )  # fmt: skip
        return found

    straight, history = run(None)
    assert len(losses) == 6
    assert not torch.equal(straight.images, start.images)
    for state in states[:6]:
        again, pictures = run(state)
        assert torch.equal(again.images, straight.images)
        assert torch.equal(pictures, history)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("data=False", "data=False"),
        ("distilled=True, data=False, teacher=True", "data=False"),
        ("distilled=True, experts=True, own_experts=True", "own_experts=True"),
        ("own_experts=True", "own_experts=True"),
        ('section="distill"', "section"),
        ('function="distill.sas.sas_subset"', "function"),
    ],
)
def test_inputs_that_cannot_be_had_together_are_refused(folder: Path, flags: str, words: str) -> None:
    """Before any job, not after the teacher was trained."""
    options = 'options={"iterations": 1, "pictures": 1}' if "distilled" in flags else "options={}"
    functions = "def mine_set(): ...\ndef mine_subset(): ...\ndef mine_expert(): ...\n"
    (folder / "mine.py").write_text(f"METHOD = Method({flags}, {options})\n{functions}")
    with pytest.raises(UserError, match=words) as caught:
        methods.extension_methods()
    assert "mine.py" in str(caught.value)

"""`mkdt doctor` finds what would stop a run, and says what to do; the rest is only noted."""

import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from brought_sets import tensors_of_a_set, write_set
from PIL import Image
from torchvision.models import resnet18

from mkdt import artifacts
from mkdt.cli import doctor
from mkdt.cli.main import main
from mkdt.config import registry
from mkdt.config.loading import load
from mkdt.config.result_folders import REGISTRY, RESULTS
from mkdt.config.stages import STAGES

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that counts as the project's, on a machine without SLURM and MLflow server."""
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    return tmp_path


def findings(settings: dict[str, Any] | None = None) -> dict[str, doctor.Finding]:
    """The doctor's findings for the default with other settings, by subject."""
    Path("mine.yaml").write_text(yaml.safe_dump(settings or {}))
    return {finding.subject: finding for finding in doctor.examine([Path("mine.yaml")])}


def test_a_healthy_machine_can_run_the_default(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, nothing marked, every subject once."""
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "FAIL" not in text
    assert "A run can start." in text
    subjects = [line[6:].split(":")[0] for line in text.splitlines()[:-1]]
    expected = ["libraries", "config", "GPU", "data digits", "disk", "memory", "SLURM", "MLflow"]
    assert subjects == expected


@pytest.mark.parametrize(
    ("settings", "subject", "words"),
    [
        ({"teacher": {"epoch": 3}}, "config", "did you mean 'epochs'"),
        ({"datasets": {"digits": {"kind": "folder", "path": "nowhere"}}}, "config", "nowhere"),
        (
            {"datasets": {"digits": {"kind": "fashion_mnist", "test": None}}, "data": {"download": False}},
            "data digits",
            "put http",
        ),
    ],
)
def test_what_would_stop_a_run_is_found(
    project: Path, settings: dict[str, Any], subject: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to do, and an exit code for scripts."""
    found = findings(settings)[subject]
    assert found.level == "FAIL"
    assert words in found.text
    for words_of_it in (["mine.yaml"], ["--configfile", "mine.yaml"]):
        assert main(["doctor", *words_of_it]) == 1
        assert f"FAIL  {subject}: " in capsys.readouterr().out


def test_a_name_whose_results_would_be_replaced(project: Path) -> None:
    """Another experiment under the name cannot run; a changed setting can, and is named."""
    given = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    registry.register(load(given), RESULTS / REGISTRY, given)
    made = Path("results/digits_1pct/sets/mkdt/1pct/0.safetensors")
    made.parent.mkdir(parents=True)
    made.touch()
    assert "results" not in findings()
    changed = findings({"distill": {"iterations": 500}})
    assert changed["config"].level == "ok"
    assert changed["results"].level == "note"
    assert "200 -> 500" in changed["results"].text
    other = findings({"teacher": {"name": "simclr"}})["config"]
    assert other.level == "FAIL"
    assert "results/digits_1pct" in other.text


def test_what_is_unusual_in_an_image_folder_is_noted(project: Path) -> None:
    """Its images are counted by split, and files that are no images by suffix."""
    for name in ("train/a", "train/b", "Test/a"):
        (project / "photos" / name).mkdir(parents=True)
        for k in range(30):
            Image.new("L", (8, 8)).save(project / "photos" / name / f"{k}.png")
    (project / "photos" / "train" / "clip.mp4").touch()
    entry = {"kind": "folder", "path": "photos", "validation": 4, "test": None, "image_size": 8}
    over = {"datasets": {"digits": entry}, "budgets": [4], "probe": {"label_fractions": [0.5]}}
    Path("mine.yaml").write_text(yaml.safe_dump(over))
    found = [one for one in doctor.examine([Path("mine.yaml")]) if one.subject == "data digits"]
    assert [one.level for one in found] == ["ok", "note", "note"]
    assert "60 training + 30 test images, 2 classes" in found[0].text
    assert "Test/ has no image of 1 of the 2 classes (b)" in found[1].text
    assert "1 .mp4" in found[2].text


def test_a_missing_library_or_file_or_folder_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything that needs the library is imported."""
    assert main(["doctor", "missing.yaml"]) == 1
    assert "missing.yaml" in capsys.readouterr().out
    (project / "Snakefile").unlink()
    assert findings()["folder"].level == "FAIL"
    (project / "broken.yaml").write_text("a: [")
    assert main(["doctor", "broken.yaml"]) == 1
    version = metadata.version

    def lacking(name: str) -> str:
        if name == "kornia":
            raise metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", lacking)
    found = findings()
    assert found["libraries"].text.startswith("kornia not installed")
    assert set(found) == {"libraries"}


def test_it_takes_the_words_of_config(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Snakemake does: what is wrong only then is found, and the right spelling is shown."""
    assert main(["doctor", "--config", "scale=smoke", "distill={iterations: 5}"]) == 0
    assert "digits_1pct_smoke" in capsys.readouterr().out
    assert main(["doctor", "--config", "experiment=mine_smoke"]) == 1
    assert "mine_smoke" in capsys.readouterr().out
    assert main(["doctor", "--config", "distill.iterations=5"]) == 1
    assert "distill={iterations: 5}" in capsys.readouterr().out


def test_nothing_is_written(project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Neither in the project's folder nor elsewhere, where nothing but the folder is looked at."""
    assert findings()["disk"].level == "ok"
    assert not Path("results").exists()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert set(findings()) == {"libraries", "folder"}
    assert [path.name for path in Path().iterdir()] == ["mine.yaml"]


def test_a_lock_is_explained(project: Path) -> None:
    """With the command that removes it."""
    lock = Path(".snakemake/locks/0.input.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert "mkdt run" in findings()["lock"].text


def test_a_teacher_that_its_job_would_refuse_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no checkpoint, a model of timm without timm; one that fits is described."""
    Path("weights.pt").write_bytes(b"no weights")
    found = findings({"teacher": {"checkpoint": {"file": "weights.pt"}}})["teacher"]
    assert found.level == "FAIL"
    assert "weights.pt" in found.text
    monkeypatch.setitem(sys.modules, "timm", None)
    found = findings({"teacher": {"checkpoint": {"model": "timm:resnet18"}}})["teacher"]
    assert found.level == "FAIL"
    assert "timm" in found.text
    network = resnet18()
    network.conv1 = torch.nn.Conv2d(3, 64, 3, bias=False)
    torch.save(network.state_dict(), "weights.pt")
    found = findings({"teacher": {"checkpoint": {"file": "weights.pt"}}})["teacher"]
    assert found.level == "ok"
    assert "resnet18" in found.text
    assert "teacher" not in findings()


def test_targets_that_their_job_would_refuse_are_found(project: Path) -> None:
    """Of another shape; with the config's data decoded, of another number of images."""
    settings = {"targets": {"file": "targets.npy"}, "methods": ["random"]}
    np.save("targets.npy", np.zeros(5, "float32"))
    assert findings(settings)["targets"].level == "FAIL"
    np.save("targets.npy", np.zeros((5, 3), "float32"))
    assert findings(settings)["targets"].level == "ok"
    tensors = {"train_images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "train_index": torch.arange(4)}
    data = Path("results/digits/data.safetensors")
    artifacts.save(data, tensors, stage="data", parameters={"seed": 7}, inputs={})
    assert findings(settings)["targets"].level == "ok"  # of other settings: these will be decoded anew
    given = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    current = STAGES["data"].slice(load(given), {"dataset": "digits"})
    artifacts.save(data, tensors, stage="data", parameters=current, inputs={})
    found = findings(settings)["targets"]
    assert found.level == "FAIL"
    assert "5 rows" in found.text
    np.save("targets.npy", np.zeros((4, 3), "float32"))
    assert findings(settings)["targets"].level == "ok"


def test_a_brought_set_that_looks_wrong_is_noted_and_one_that_cannot_be_meant_fails(project: Path) -> None:
    """A job would say the first in its log, hours later, and refuse the second."""
    path, tensors = project / "theirs.safetensors", tensors_of_a_set()
    write_set(path, tensors | {"targets": torch.eye(12)})
    found = findings({"methods": ["random", f"file:{path}"]})
    assert found["set file-theirs"].level == "note"
    write_set(path, tensors | {"images": tensors["images"].clamp(0, 1)})
    found = findings({"methods": ["random", f"file:{path}"]})
    assert found["config"].level == "FAIL"
    assert "theirs.safetensors" in found["config"].text
    content = write_set(path, tensors).read_bytes()
    assert findings({"methods": ["random", f"file:{path}"]})["config"].level == "ok"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert findings({"methods": ["random", f"file:{path}"]})["config"].level == "FAIL"


def test_devices(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is asked for must be there, or on the nodes of a cluster."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = {"compute": {"device": "cuda"}}
    assert findings(wanted)["GPU"].level == "FAIL"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "sbatch" else None)
    assert findings(wanted)["GPU"].level == "note"
    assert findings({"compute": {"device": "cpu"}})["GPU"].level == "ok"


def test_room(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too small a disk fails; too little memory is a note, since its estimate is generous."""
    usage = doctor.shutil.disk_usage(project)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert findings()["disk"].level == "FAIL"
    huge = {"students": {"convnet": {"width": 4096}}, "experts": {"batch": 1024}}
    assert findings(huge)["memory"].level == "note"


def test_tracking_is_never_fatal(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down, with a password in its address; a damaged store; none wanted."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush@127.0.0.1:9")
    found = findings()["MLflow"]
    assert found.level == "note"
    assert "hush" not in found.text
    assert "mkdt track sync" in found.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    os.makedirs("results", exist_ok=True)
    Path("results/mlflow.db").write_bytes(b"no database" * 100)
    assert findings()["MLflow"].level == "note"
    assert findings({"tracking": {"enabled": False}})["MLflow"].level == "ok"


def test_slurm(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its partitions are compared with the profile's."""
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor, "SLURM_PROFILE", ROOT / doctor.SLURM_PROFILE)
    version = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2" if name == doctor.SLURM_PLUGIN else version(name))
    answers = {"there": "cpu\ngpu\n", "other": "long\nshort\n"}
    levels = {}
    for name, partitions in answers.items():
        done = doctor.subprocess.CompletedProcess([], 0, partitions)
        monkeypatch.setattr(doctor.subprocess, "run", lambda *words, done=done, **options: done)
        levels[name] = findings()["SLURM"]
    assert levels["there"].level == "ok"
    assert levels["other"].level == "note"
    assert "name one of long, short" in levels["other"].text


def test_the_environment_of_a_run_can_write_snakemakes_report() -> None:
    """The requirements of Snakemake's extra `reports` are ours too: the tests' tools may bring them, a run's do not."""
    ours = {
        name.split(">")[0].lower()
        for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    wanted = [words for words in metadata.requires("snakemake") or [] if 'extra == "reports"' in words]
    assert wanted
    assert {re.split(r"[^\w-]", words)[0].lower() for words in wanted} <= ours

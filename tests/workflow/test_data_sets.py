"""Image files through the real workflow: an unlabelled source, a published downstream set, kills and bad files."""

import os
import signal
import time
from pathlib import Path

import archives
import numpy as np
import pandas as pd
import pytest
import yaml
from project import COLD, Project

from mkdt.artifacts import Artifact

pytestmark = pytest.mark.slow

IMAGES = 300


@pytest.fixture
def pictures(project: Project) -> Path:
    """An unlabelled folder as the source; digits choose, small archives of two published sets are downstream too."""
    folder = project.folder / "my pictures"
    (folder / "größe").mkdir(parents=True)
    stream = np.random.default_rng(0)
    for k in range(IMAGES):
        picture = archives.jpeg(stream.integers(0, 256, 3, np.uint8), 20 + k % 7, 30)
        (folder / "größe" / f"{k}.jpg").write_bytes(picture)
    (folder / "größe" / "clip.mp4").touch()
    config = yaml.safe_load((project.folder / "tiny.yaml").read_text())
    entry = {"train": None, "validation": 20, "test": None, "image_size": 8}
    config["datasets"] |= {
        "mine": {"kind": "folder", "path": "my pictures", "labelled": False, **entry},
        "birds": {"kind": "cub200", **entry, "validation": 0, "image_size": 12},
        "stl": {"kind": "stl10", **entry, "validation": 3},
    }
    config |= {"source": "mine", "methods": ["random", "mkdt"], "distill_seeds": [0]}
    config["probe"] |= {"downstream": ["digits", "birds", "stl"], "label_fractions": [0.25], "label_draws": 1}
    config["probe"]["selection_draws"] = 1
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    for kind in ("cub200", "stl10"):
        made = archives.make(kind)
        made.write(project.folder / "data")
        archives.append_to(project.folder / "src", made)
    return folder / "größe"


def test_an_unlabelled_source_and_image_files_downstream(project: Project, pictures: Path) -> None:
    """Every stage works without labels; sets of other sizes and channels are brought to the source's shape."""
    project.run()
    data = Artifact(project.folder / "results/mine/data.safetensors", "data")
    assert data.shape("train_images") == (IMAGES - 20, 3, 8, 8)
    assert not [name for name in data.names if "labels" in name]
    accuracy = pd.read_csv(project.folder / "results/tiny/report/accuracy.csv")
    assert set(accuracy["downstream"]) == {"digits", "birds", "stl"}
    assert accuracy["accuracy"].between(0, 100).all()
    monitored = (project.folder / "results/mine/tiny_teacher/teacher.jsonl").read_text()
    assert "representation_std" in monitored
    assert "knn" not in monitored
    for said in ("logs/mine/data.log", "tiny/report/index.html"):
        assert "1 .mp4" in (project.folder / "results" / said).read_text()


@pytest.mark.counts("kills survived")
def test_decoding_goes_on_after_a_kill_and_bad_files_are_named(project: Project, pictures: Path) -> None:
    """Killed in the middle, then stopped by a bad file that is repaired, then skipped: the bytes are what they should."""
    target = "results/mine/data.safetensors"
    images, log = project.folder / "src/mkdt/data/pictures.py", project.folder / "results/logs/mine/data.log"
    # Long enough to be killed in, as long as there is a file of that name.
    line, pause = "    name, read = file\n", "    Path('slow').exists() and __import__('time').sleep(0.03)\n"
    (project.folder / "slow").touch()
    text = images.read_text()
    assert line in text
    images.write_text(text.replace("CHUNK = 256", "CHUNK = 10").replace(line, line + pause))
    project.snakemake = COLD
    started = project.start(target)
    state = project.folder / "results/.resume/mine/data.safetensors"
    deadline = time.monotonic() + 60
    while not list(state.glob("*/data.state.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (project.folder / target).exists()
    project.run("--unlock")
    (project.folder / "slow").unlink()
    project.snakemake = Project.snakemake

    content = (pictures / "7.jpg").read_bytes()
    (pictures / "7.jpg").write_bytes(content[:100])
    printed = project.run(target, "--rerun-incomplete", fails=True)
    assert "resuming from" in log.read_text()
    assert "1 of 300 images in my pictures cannot be read (größe/7.jpg" in printed
    (pictures / "7.jpg").write_bytes(content)
    project.run(target)
    assert "resuming from" in log.read_text()
    assert not list(state.glob("*/scratch"))
    resumed = (project.folder / target).read_bytes()

    (pictures / "7.jpg").write_bytes(content[:100])
    project.run(target, "--forcerun", "data", "--config", "data={on_error: skip}")
    assert Artifact(project.folder / target, "data").header["notes"]["skipped"] == ["größe/7.jpg"]
    (pictures / "7.jpg").write_bytes(content)
    project.run(target, "--forcerun", "data", cores=1)
    assert (project.folder / target).read_bytes() == resumed

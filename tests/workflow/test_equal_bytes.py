"""Budgets of bytes, storage, a target space, views and unrolled distillation together, through the real workflow."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from project import Project

from mkdt.artifacts import Artifact
from mkdt.distill.storage import bytes_of
from mkdt.distill.synthetic_set import load_synthetic

BPTT = {"iterations": 3, "steps": 3, "outer_batch": 32, "batch": 16, "retain": 1, "pictures": 2}
CONFIG = {
    "budgets": ["1KB"],
    "targets": {"space": {"center": True, "components": 4, "scale": "none"}},
    "views": ["identity", "shift 1 0"],
    "storage": {"pixels": "float16", "targets": "uint8"},
    "methods": ["none", "random", "kmeans", "bptt_kmeans", "full"],
    "distill_seeds": [0],
    "bptt": BPTT,
}
SETS = "results/tiny/sets"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run of all of it."""
    project = Project.fresh(tmp_path_factory.mktemp("bytes") / "project")
    (project.folder / "bytes.yaml").write_text(yaml.safe_dump(CONFIG))
    project.configfiles = (*project.configfiles, "bytes.yaml")
    project.run()
    return project


def test_each_set_has_as_many_images_as_fit(run: Project) -> None:
    """Real pixels take one byte, synthetic ones two; tables say so, and a distilled set starts from as many real images."""
    counts = {"random": (1000 - 4 - 8 - 32) // (64 + 2 * 4), "bptt_kmeans": (1000 - 4 - 32) // (128 + 2 * 4)}
    summary = pd.read_csv(run.folder / "results/tiny/report/summary.csv").set_index("method")
    for method, count in counts.items():
        file = Artifact(run.folder / SETS / method / "1KB" / "0.safetensors")
        assert len(load_synthetic(file)) == count
        assert bytes_of(file) <= 1000
        assert set(summary.loc[[method], "bytes"]) == {bytes_of(file)}
        assert set(summary.loc[[method], "images"]) == {count}
        assert file.tensor("targets").dtype == torch.uint8
        assert file.header["notes"]["views"] == ["identity", "shift 1 0"]
    start = load_synthetic(run.folder / SETS / f"kmeans/{counts['bptt_kmeans']}img/0.safetensors")
    assert len(start.targets) == 2 * counts["bptt_kmeans"]
    assert start.targets.shape[1] == 4
    assert set(summary.loc[["full"], "images"]) == {200}
    assert run.planned() == Counter()


@pytest.mark.parametrize(
    ("change", "again", "kept"),
    [
        ("storage={pixels: uint8}", {"distill bptt_kmeans"}, {"subset random", "experts", "target_space"}),
        ("storage={targets: float16}", {"subset random", "distill bptt_kmeans"}, {"target_space", "teacher"}),
        ("views=[identity]", {"subset random", "pretrain random"}, {"target_space", "pretrain full"}),
        (
            "targets={space: {components: 5}}",
            {"target_space", "subset random", "pretrain full"},
            {"targets", "teacher"},
        ),
        ("bptt={steps: 4}", {"distill bptt_kmeans", "pretrain bptt_kmeans"}, {"subset kmeans", "pretrain kmeans"}),
    ],
)
def test_a_changed_key_reruns_what_depends_on_it(run: Project, change: str, again: set[str], kept: set[str]) -> None:
    """And leaves the rest."""
    planned = set(run.planned("--config", change))
    assert again <= planned
    assert not kept & planned


def test_an_exported_set_is_what_students_saw(run: Project, tmp_path: Path) -> None:
    """The command line exports it with its card."""
    run.mkdt("export", f"{SETS}/bptt_kmeans/1KB/0.safetensors", "--to", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("shift 1 0", "4 components of its", "bytes"):
        assert words in card

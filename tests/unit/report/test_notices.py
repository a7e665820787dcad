"""Notices above the results: smoke scale, labels that nothing predicts, brought sets and image folders that look wrong."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from brought_sets import tensors_of_a_set, write_set
from configs import DEFAULT, merged
from PIL import Image

from mkdt.artifacts import Artifact, save, write_jsonl
from mkdt.config.loading import load, read
from mkdt.config.sections import Config
from mkdt.errors import UserError
from mkdt.report.notices import notices

CHANCE = {"label_fraction": 0.1, "labels": 60, "chance": 12.5, "scored": 200}


def of(folder: Path, config: Config, *rows: dict[str, float]) -> list[str]:
    """The notices of an experiment whose targets' probe found ``rows``."""
    file = folder / "targets_probe.jsonl"
    write_jsonl(file, list(rows))
    return notices(config, file)


def test_a_smoke_report_says_that_its_numbers_mean_nothing(tmp_path: Path) -> None:
    """At full size, or where the source has no labels, there is nothing to say."""
    assert of(tmp_path, read([])) == []
    (notice,) = of(tmp_path, load(merged(DEFAULT, {"scale": "smoke"})))
    assert "smoke" in notice
    assert "mean nothing" in notice


def test_labels_that_nothing_predicts_are_named(tmp_path: Path) -> None:
    """One accuracy clearly above chance is enough: 17 % of 200 images is not, 18 % is."""
    config = read([])
    (notice,) = of(tmp_path, config, CHANCE | {"targets": 11.0, "pixels": 17.0}, CHANCE | {"targets": 9, "pixels": 14})
    assert "digits" in notice
    assert "12.5 %" in notice
    for better in ("targets", "pixels"):
        row = CHANCE | {"targets": 11.0, "pixels": 11.0}
        assert of(tmp_path, config, row, row | {better: 18.0}) == []


def test_labels_that_nothing_predicts_are_not_named_at_scale_smoke(tmp_path: Path) -> None:
    """Its teacher has learned nothing, whatever the labels are."""
    config = load(merged(DEFAULT, {"scale": "smoke"}))
    (notice,) = of(tmp_path, config, CHANCE | {"targets": 11.0, "pixels": 11.0})
    assert "Scale: smoke" in notice


def test_a_brought_set_and_an_image_folder_that_look_wrong_are_named(tmp_path: Path) -> None:
    """The set by the name of its method, the folder by that of its data set."""
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(30):
            Image.new("L", (8, 8)).save(tmp_path / "photos" / name / f"{k}.png")
    path = write_set(tmp_path / "theirs.safetensors", tensors_of_a_set() | {"targets": torch.eye(12)})
    entry = {
        "kind": "folder",
        "path": str(tmp_path / "photos"),
        "channels": 1,
        "validation": 4,
        "test": None,
        "image_size": 8,
    }
    over = {
        "datasets": {"digits": entry},
        "budgets": [4],
        "probe": {"label_fractions": [0.5]},
        "methods": ["random", f"file:{path}"],
    }
    brought, folder = of(tmp_path, load(merged(DEFAULT, over)))
    assert "file-theirs" in brought
    assert "one-hot" in brought
    assert "digits: test/ has no image of 1 of the 2 classes (b)" in folder


def test_numbers_of_several_precisions_are_named(tmp_path: Path) -> None:
    """Of students and scores by the table of the probe, of sets by their headers; a file that says nothing is left out."""
    table, paths = tmp_path / "targets_probe.jsonl", [tmp_path / "sets/mkdt/1pct/0.safetensors", tmp_path / "a/b/c/old"]
    write_jsonl(table, [])
    save(paths[0], {"images": torch.ones(1)}, stage="distill", notes={"precision": "tf32"})
    save(paths[1], {"images": torch.ones(1)}, stage="distill")
    sets = [Artifact(path) for path in paths]
    scores = pd.DataFrame({"method": ["none", "random", "random"], "precision": "tf32"})
    assert notices(read([]), table, (), scores, sets) == []
    (notice,) = notices(read([]), table, (), scores.assign(precision=["tf32", "bf16 and tf32", None]), sets)
    assert "compute.precision" in notice
    assert "tf32: mkdt, none, random" in notice
    assert "bf16: random" in notice
    # All methods alike, but each of several: trained in one precision and encoded in another.
    assert len(notices(read([]), table, (), scores.assign(precision="bf16 and tf32"))) == 1


def test_probes_that_ended_before_their_optimum_are_named(tmp_path: Path) -> None:
    """By their number and their methods; rounding at the tolerance is none, and k-NN has no gradient."""
    table = tmp_path / "targets_probe.jsonl"
    write_jsonl(table, [])
    scores = pd.DataFrame({"method": ["none", "mkdt", "mkdt", "full"], "gradient": [1e-6, 3e-4, 1e-8, None]})
    (notice,) = notices(read([]), table, (), scores)
    assert "1 of 3" in notice
    assert "mkdt" in notice
    assert "0.0003" in notice
    assert notices(read([]), table, (), scores.assign(gradient=1e-6)) == []


def test_a_missing_table_of_the_targets_probe_is_named(tmp_path: Path) -> None:
    """So is the rule that makes it."""
    with pytest.raises(UserError, match=r"none\.jsonl does not exist.*'targets_probe'"):
        notices(read([]), tmp_path / "none.jsonl")


def test_held_out_images_that_are_training_images_are_named_in_proportion(tmp_path: Path) -> None:
    """The data's header has their number, and the files that were left out; a set without any says nothing."""
    tensors = {f"{split}_images": torch.zeros(20, 1, 2, 2, dtype=torch.uint8) for split in ("validation", "test")}
    files = []
    for name, notes in (
        ("photos", {"copies": {"test": 3}, "skipped": ["a/1.jpg", "a/2.jpg"]}),
        ("clean", {"place": "clean/data.safetensors"}),
    ):
        save(tmp_path / name / "data.safetensors", tensors, stage="data", notes=notes)
        files.append(Artifact(tmp_path / name / "data.safetensors", "data"))
    (tmp_path / "none").touch()
    left_out, notice = notices(read([]), tmp_path / "none", files)
    assert "photos: 2 image files" in left_out
    assert "a/1.jpg, a/2.jpg" in left_out
    assert notice.startswith("photos: 3 of the 20 test images (15 %) equal a training image exactly")

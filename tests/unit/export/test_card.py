"""The card: terms of the data, and accuracies at the point of the set."""

import json
from pathlib import Path

import pytest
from configs import DEFAULT
from made_results import SET

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
from mkdt.export.card import of_set
from mkdt.export.folder import export
from mkdt.jobs.lineage import Family, place_of


def test_the_owner_decides_the_terms_of_a_folder_of_images(results: Path, tiny: SyntheticSet) -> None:
    """A set outside of any results folder has a card too."""
    path = results / "digits/data.safetensors"
    file = Artifact(path)
    artifacts.save(
        path,
        {name: file.tensor(name) for name in file.names},
        stage="data",
        parameters={"kind": "folder"},
        notes={"skipped": ["a/torn.jpg"], "classes": ["cat", "dog"]},
    )
    inputs = {"data": Artifact(path).identity}
    artifacts.save(results / SET, tiny.tensors(), stage="subset", parameters={}, inputs=inputs)
    file = Artifact(results / SET)
    card = of_set(tiny, file, place_of(results / SET), Family(results))
    assert "its owner decides" in card
    assert "a/torn.jpg" in card
    assert "cat, dog" in card
    assert "Not known" in of_set(tiny, file, None, None)


def note_origin(results: Path, sets: dict[str, str]) -> None:
    """Write what a report of the experiment notes."""
    noted = {"config": DEFAULT, "code": "abc", "data": {}, "sets": sets}
    artifacts.write_text(results / "study/report/origin.json", json.dumps(noted))


def test_accuracies_of_another_set_in_the_same_place_are_not_shown(results: Path, tmp_path: Path) -> None:
    """The report names the set that it measured; one that was put back since has none."""
    row = {"source": "digits", "budget": "4img", "method": "mkdt", "student": "convnet", "downstream": "digits"}
    row |= {"evaluation": "linear", "label_fraction": 0.1, "distill_seed": 0, "seed": 0, "label_draw": 0}
    artifacts.write_table(results / "study/report/accuracy.csv", [row | {"rate": 0.1, "steps": 20, "accuracy": 80.0}])
    for sets, shown in (({}, True), ({SET: Artifact(results / SET).identity}, True), ({SET: "another"}, False)):
        note_origin(results, sets)
        card = of_set(load_synthetic(results / SET), Artifact(results / SET), place_of(results / SET), None)
        assert ("| 80.0 |" in card) == shown
    (results / "study/report/origin.json").unlink()
    assert "Not measured" in of_set(
        load_synthetic(results / SET), Artifact(results / SET), place_of(results / SET), None
    )


@pytest.mark.parametrize(
    ("students", "words"),
    [(["convnet"], "steps=20, rate=0.57, batch=64)"), (["alexnet", "convnet"], "steps=80, rate=0.1, batch=256)")],
    ids=["the set's own rate", "two students have two points"],
)
def test_the_cards_example_trains_at_the_point_that_was_measured(
    results: Path, tmp_path: Path, students: list[str], words: str
) -> None:
    """It is the point of this set (under the protocol `paper` each has its own rate), if there is one student only."""
    rows = [
        {"source": "digits", "budget": "4img", "method": "mkdt", "student": student, "downstream": "digits"}
        | {"evaluation": "linear", "label_fraction": 0.1, "distill_seed": seed, "seed": 0, "label_draw": 0}
        | {"rate": rate, "steps": 20, "accuracy": 80.0}
        for student in students
        for seed, rate in ((1, 0.5), (0, 0.57))
    ]
    artifacts.write_table(results / "study/report/accuracy.csv", rows)
    note_origin(results, {SET: Artifact(results / SET).identity})
    export(results / SET, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert words in card
    assert "| convnet | digits | linear | 10 % | 0.57, 20 | 80.0 |" in card

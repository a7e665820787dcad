"""The card: terms of the data, and accuracies at the point of the set."""

from pathlib import Path

import pytest
from made_results import SET

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.distill.synthetic_set import SyntheticSet
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


@pytest.mark.parametrize(
    ("students", "words"),
    [(["convnet"], "steps=20, rate=0.57, batch=256)"), (["alexnet", "convnet"], "steps=80, rate=0.1, batch=256)")],
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
    export(results / SET, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert words in card
    assert "| convnet | digits | linear | 10 % | 0.57, 20 | 80.0 |" in card

"""Slices in canonical form: the order of keys and the ways of writing a number or a path change none of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from configs import DEFAULT, merged
from hypothesis import given
from hypothesis import strategies as st

from mkdt.config.loading import load
from mkdt.config.plan import jobs
from mkdt.config.stages import STAGES


def slices(raw: dict[str, Any]) -> list[str]:
    """The text of the settings of every job, as Snakemake compares it."""
    config = load(raw)
    names = [job.wildcards for job in jobs(config)]
    return [repr(STAGES[job.stage].slice(config, one)) for job, one in zip(jobs(config), names, strict=True)]


WRITTEN = slices(DEFAULT)


def rewritten(value: Any, draw: Any) -> Any:
    """The same value in another order of keys, or another way of writing a number."""
    if isinstance(value, dict):
        return {key: rewritten(value[key], draw) for key in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [rewritten(item, draw) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return draw(st.sampled_from([value, float(value), repr(value), repr(float(value))]))


@given(st.data())
def test_order_of_keys_and_forms_of_numbers_change_nothing(data: st.DataObject) -> None:
    """Swapped keys, ``1`` for ``1.0``, ``1e-4`` for ``0.0001``, numbers from the command line as text."""
    assert slices(rewritten(DEFAULT, data.draw)) == WRITTEN


@pytest.mark.parametrize("form", ["{absolute}", "{relative}", "./{relative}", "{relative}/", "{relative}/../{name}"])
def test_forms_of_a_path_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Of a folder beside the project, and of one in it."""
    project = tmp_path / "project"
    for folder in (project / "inside", tmp_path / "beside"):
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            for i in range(20):
                (folder / name / f"{i}.png").write_bytes(b"")
    monkeypatch.chdir(project)
    for folder, relative in ((project / "inside", "inside"), (tmp_path / "beside", "../beside")):
        path = form.format(absolute=folder, relative=relative, name=folder.name)
        entry = {"kind": "folder", "train": None, "validation": 0.2, "test": 0.2, "image_size": 8}
        settings = [
            STAGES["data"].slice(load(merged(DEFAULT, {"datasets": {"mine": entry | {"path": one}}, "source": "mine", "budgets": [2]})), {"dataset": "mine"})
            for one in (path, str(folder))
        ]  # fmt: skip
        assert json.dumps(settings[0]) == json.dumps(settings[1])

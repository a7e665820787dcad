"""Messages about keys and values, and the one form of a path."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from configs import merged

from mkdt.config import schema
from mkdt.config.loading import DEFAULT
from mkdt.config.schema import PATTERNS, SCHEMA, canonical_path, conform
from mkdt.errors import UserError


def message(changes: dict[str, Any]) -> str:
    """What is said about the default config with other top-level keys."""
    with pytest.raises(UserError) as caught:
        conform(yaml.safe_load(DEFAULT.read_text()) | changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"budgets": 0.01}, "[0.01]"),
        ({"budgets": True}, "[0.01]"),
        ({"budgets": "0.01, 0.02"}, "[0.01, 0.02]"),
        ({"budgets": "[0.01"}, "[0.01]"),
        ({"methods": "mkdt"}, "[mkdt]"),
        ({"methods": {"mkdt": 1}}, "["),
        ({"distill": 5}, "{key: value}"),
    ],
)
def test_a_list_or_a_group_of_keys_is_shown_as_it_is_written(changes: dict[str, Any], shown: str) -> None:
    """The name of the type alone helps nobody who does not know YAML."""
    text = message(changes)
    assert next(iter(changes)) in text
    assert shown in text


@pytest.mark.parametrize(
    "changes",
    [
        {"distill.iterations": 5},
        {"distill:iterations": 5},
        {"distill.iterations:5": None},
        {"distill": {"iterations:5": ""}},
        {"distill": {"iterations=5": None}},
    ],
)
def test_a_nested_key_in_another_spelling_is_shown_in_the_right_one(changes: dict[str, Any]) -> None:
    """Dots as in documentation, equals signs as on the command line, a colon without a space."""
    text = message(changes)
    assert "iterations: 5" in text
    assert ("{iterations: 5}" in text) == (next(iter(changes)) != "distill")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"distill.iterations": None}, "'distill: {iterations: null}'"),
        ({"distill.iterations": ""}, "'distill: {iterations: null}'"),
        ({"distill.learn_targets": False}, "'distill: {learn_targets: false}'"),
        ({"students.mine": {"depth": 2, "norm": None}}, "'students: {mine: {depth: 2, norm: null}}'"),
        ({"pretrain.rates": [0.1, 0.3]}, "'pretrain: {rates: [0.1, 0.3]}'"),
        ({"distill.image_lr:0.5": None}, "'distill: {image_lr: 0.5}'"),
        ({"distill": {"image_lr=0.5": None}}, "'image_lr: 0.5'"),
    ],
)
def test_the_value_of_a_nested_key_is_shown_as_yaml(changes: dict[str, Any], shown: str) -> None:
    """Null is a value like any other where the key holds none; a point in a number separates no keys."""
    assert f"write {shown}" in message(changes)


@pytest.mark.parametrize("value", [None, True, False])
def test_what_is_no_text_is_promised_no_quotes(value: bool | None) -> None:
    """As names they are refused in quotes too."""
    assert "quotes" not in message({"experiment": value})
    assert "choose another" in message({"experiment": value})


@pytest.mark.parametrize("value", [0, 1, 1.5])
def test_numbers_that_equal_a_truth_value_are_numbers(value: float) -> None:
    """In Python 1 is True."""
    assert "quotes" in message({"experiment": value})


def test_a_path_may_start_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a config no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert canonical_path("~/photos") == str(tmp_path / "photos")
    assert schema.coerce("~", {"type": ["string", "null"], "format": "path"}, {}) is None


def test_every_pattern_of_the_schema_is_said_in_words() -> None:
    """A regular expression tells a newcomer nothing."""
    patterns: set[str] = set()

    def collect(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "pattern" and isinstance(value, str):
                patterns.add(value)
            elif isinstance(value, dict | list):
                collect(value)

    collect(yaml.safe_load(SCHEMA.read_text()))
    assert patterns == set(PATTERNS)
    assert not re.search(r"[\^$*\\]", " ".join(PATTERNS.values()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": ["5%"]}, ": write 0.05, got"),
        ({"budgets": "5 %"}, "such as [0.05]"),
        ({"budgets": "[2.5%]"}, "such as [0.025]"),
        ({"probe": {"label_fractions": ["10%"]}}, ": write 0.1, got"),
        ({"teacher": {"name": "a/b"}}, "teacher.name must be letters (a-z, A-Z), digits, - and _"),
        ({"datasets": {"a/b": {}}}, "a name in datasets must be letters (a-z, A-Z), digits, - and _"),
    ],
)
def test_percentages_and_names_are_answered_in_words(changes: dict[str, Any], words: str) -> None:
    """A fraction is a number below 1; a name goes into paths."""
    with pytest.raises(UserError) as caught:
        conform(merged(yaml.safe_load(DEFAULT.read_text()), changes))
    assert words in str(caught.value)

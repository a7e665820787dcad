"""The report's page: it needs no other file, escapes names, and is equal for equal runs."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from score_tables import runs

from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.report import page
from mkdt.report import tables as report
from mkdt.report.costs import COLUMNS

TEMPLATE = Path(__file__).parents[3] / "workflow" / "report" / "index.html.jinja"
HOSTILE = 'file-<img src="http://x" onerror=alert(1)>&$\\frac$'
VOID = {"meta", "img", "path", "use", "rect", "line", "br"}


class Document(HTMLParser):
    """Parses a page as a browser would.

    Attributes:
        tags: all tags with their attributes.
        words: the text of each element.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def content(methods: list[str], seeds: int = 2, downstream: tuple[str, ...] = ("d",), **more: Any) -> dict[str, Any]:
    """Arguments of ``render`` for a made-up experiment."""
    rng = np.random.default_rng(0)
    values = rng.normal(70, 3, (1, seeds, 2))
    parts = [
        runs(
            method, [0], values + k + 10 * d, downstream=name, label_fraction=fraction, steps=steps, chosen=steps == 20
        )
        for k, method in enumerate(methods)
        for d, name in enumerate(downstream)
        for fraction in (0.02, 0.1)
        for steps in (10, 20)
    ]
    scores = pd.concat(parts).assign(split="test", chosen_at_steps=True)
    accuracy = report.accuracies(scores, ["1pct"])
    one = SyntheticSet(
        torch.linspace(0, 1, 192).reshape(3, 1, 8, 8), torch.zeros(3, 4), torch.tensor(0.1), torch.tensor([0.5]), torch.tensor([0.5]),
        torch.tensor([5, 7, 1234]), {"parameters": {"pictures": 2, "iterations": 4}},
    )  # fmt: skip
    return {
        "title": "<script>alert(1)</script>",
        "notices": [],
        "settings": {"source": "s", "protocol": "fair", "methods": methods, "budgets": ["1pct"]},
        "accuracy": accuracy,
        "summary": report.summarise(accuracy, methods),
        "points": report.curve(scores, ["1pct"]),
        "sets": [page.ShownSet("mkdt", "1pct", "0", one, one, b"png")],
        "matching": {
            "mkdt/1pct/0": pd.DataFrame({"step": [1, 2], "loss": [1, 0.5], "step_size": [0.1, 0.2], "image_gradient": [1, 2]})
        },
        "costs": pd.DataFrame([["distill", 1, 90.0, 90.0, 300.0, 4096, "cpu"]], columns=COLUMNS),
        "origin": {"code": "abc", "folder": "<i>"},
        "command": "snakemake --config 'a=<b>'",
        "config": "a: </pre><script>",
    } | more  # fmt: skip


def test_the_page_needs_no_other_file_and_escapes_names() -> None:
    """Names with markup are shown as text."""
    text = page.render(TEMPLATE, **content(["random", "mkdt", HOSTILE]))
    document = Document(text)
    tags = {tag for tag, _ in document.tags}
    assert not tags & {"script", "link", "iframe", "i", "b object"}
    for _, attributes in document.tags:
        assert not any(key.startswith("on") for key in attributes)
        for key in {"src", "href", "xlink:href"} & attributes.keys():
            assert (attributes[key] or "").startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\((?!#)|@import", text)
    assert "http" not in re.sub(r'http-equiv|"http://x"|&#34;http://x&#34;|&quot;http://x&quot;', "", text)
    words = "\n".join(document.words)
    for shown in (
        "<script>alert(1)</script>",
        HOSTILE,
        "snakemake --config 'a=<b>'",
        "a: </pre><script>",
        "1 min 30 s",
    ):
        assert shown in words
    names = {attributes["id"] for _, attributes in document.tags if "id" in attributes}
    assert len(names) == sum("id" in attributes for _, attributes in document.tags), "names are unique in the page"
    used = {(attributes.get("xlink:href") or "").removeprefix("#") for tag, attributes in document.tags if tag == "use"}
    assert used <= names
    assert {"result", "images", "labels", "steps", "evolution", "matching", "cost", "origin"} <= names
    alternatives = [attributes["alt"] for tag, attributes in document.tags if tag == "img"]
    assert "real image 1234" in alternatives
    assert len(alternatives) == 7


def test_equal_runs_give_equal_pages_except_for_cost_and_origin() -> None:
    """Cost and origin are separate sections, so that pages can be compared without them."""
    methods = ["random", "mkdt"]
    other = {"command": "snakemake --cores 9", "origin": {"device": "cuda"}, "costs": pd.DataFrame([], columns=COLUMNS)}
    pages = [page.render(TEMPLATE, **content(methods, **more)) for more in ({}, {}, other)]
    assert pages[0] == pages[1]
    assert pages[0] != pages[2]
    rest = [re.sub(r'<section id="(cost|origin)">.*?</section>', "", text, flags=re.DOTALL) for text in pages]
    assert rest[0] == rest[2]


def test_notices_and_chance_are_shown() -> None:
    """Notices stand above all sections, as text; every table ends with chance, where it is known."""
    arguments = content(["random", "mkdt"], notices=["These numbers mean <nothing>."])
    text = page.render(TEMPLATE, **arguments)
    assert text.index("These numbers mean &lt;nothing&gt;.") < text.index("<section")
    assert "chance" not in text
    chance = report.summarise(arguments["accuracy"], ["random", "mkdt"], {"d": 10.25})
    text = page.render(TEMPLATE, **arguments | {"summary": chance})
    assert len(re.findall(r"<td>chance.*?</td><td>10\.2</td>", text)) == 2  # label fractions


def test_the_page_begins_with_the_distilled_sets_on_the_source() -> None:
    """Of many tables the first few are shown, the others on demand."""
    text = page.render(TEMPLATE, **content(["random", "mkdt"], downstream=("d", "s", "t")))
    cards = re.findall(r'<div class="card">\s*<small>(.*?)</small>\s*<b>(.*?) %</b>', text)
    assert [words for words, _ in cards] == [
        f"mkdt, 1%: s, linear probe with {share} % of the labels" for share in (2, 10)
    ]
    assert all(78 < float(accuracy) < 84 for _, accuracy in cards)
    assert text.index("<summary>2 more tables</summary>") < text.index("<h3>t, linear probe, 2 % of the labels")


def test_a_page_of_one_run() -> None:
    """Without distilled sets and a second method there is no interval, no chart and no empty section."""
    text = page.render(TEMPLATE, **content(["none"], seeds=1, sets=[], matching={}))
    assert "nan" not in text
    assert 'id="images"' not in text
    assert 'href="#matching"' not in text


@pytest.mark.parametrize("methods", [["full"], ["teacher"], ["full", "teacher"]])
def test_a_page_with_ceilings_only(methods: list[str]) -> None:
    """No method is marked as the best."""
    text = page.render(TEMPLATE, **content(methods, seeds=1, sets=[], matching={}))
    assert "nan" not in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.31, "7.3 s"), (59.96, "1 min 0 s"), (245, "4 min 5 s"), (7800, "2 h 10 min")]
)
def test_times_in_words(seconds: float, words: str) -> None:
    """60 s are a minute, also after rounding."""
    assert page.duration(seconds) == words


def test_sizes_in_words() -> None:
    """Units are multiples of 1000."""
    assert [page.size(count) for count in (0, 999, 146_000, 3.2e9, 5e12)] == ["0 B", "999 B", "146 kB", "3.2 GB", "5e+03 GB"]  # fmt: skip


def test_the_config_in_the_page_is_for_the_same_experiment() -> None:
    """The tracking address, which may hold a password, is left out. One that is scaled down refers to the original."""
    config = {"scale": "full", "tracking": {"uri": "http://me:hush@host"}, "experts": {"count": 4}}
    text = page.config_text(config)
    assert yaml.safe_load(text) == {"scale": "full", "experts": {"count": 4}}
    assert "smoke" not in text
    first = page.config_text(config | {"scale": "smoke"}).splitlines()[0]
    assert first.startswith("#")
    assert "scale=smoke" in first

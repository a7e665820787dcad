"""Budgets: those of the config, all images, and as many images as fit into a number of bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from configs import DEFAULT, merged, with_sections

from mkdt import artifacts
from mkdt.config import loading as cfg
from mkdt.config import plan
from mkdt.config.budgets import budget_images, budget_words, image_bytes, initial_label, set_bytes
from mkdt.config.views import expand
from mkdt.distill.storage import bytes_of, stored
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError

VIEWS = ["identity", "shifts 1"]
SPACE = {"center": True, "components": 16, "scale": "none"}


def loaded(**over: Any) -> cfg.Config:
    """The default config with other keys, checked."""
    return cfg.load(merged(DEFAULT, over))


def test_a_budget_that_the_config_does_not_have_is_refused() -> None:
    """Asked for by a path, it must not become all images."""
    config = with_sections(budgets=[0.01, 20])
    assert [budget_images(config, label, "mkdt") for label in ("1pct", "20img", "all")] == [14, 20, 1300]
    for label in ("7pct", "21img"):
        with pytest.raises(UserError, match=label):
            budget_images(config, label, "mkdt")
    config = loaded(budgets=["8KB"], methods=["mkdt_random"], targets={"space": SPACE})
    count = budget_images(config, "8KB", "mkdt_random")
    assert budget_images(config, f"{count}img", "random") == count
    for label in (f"{count + 1}img", "fooimg", "9KB"):
        with pytest.raises(UserError, match=label):
            budget_images(config, label, "random")


@pytest.mark.parametrize("pixels", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("targets", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("views", [["identity"], VIEWS])
def test_bytes_hold_as_many_images_as_the_file_has(pixels: str, targets: str, views: list[str], tmp_path: Path) -> None:
    """The set that is stored fits, one more image would not; real pixels take one byte whatever the key says."""
    storage = {"pixels": pixels, "targets": targets}
    config = loaded(budgets=["8064B"], views=views, storage=storage, targets={"space": SPACE}, methods=["bptt"])
    for method in ("kmeans", "bptt"):
        count = budget_images(config, "8064B", method)
        names = tuple(expand(views))
        made = SyntheticSet(
            torch.randn(count, 1, 8, 8),
            torch.randn(len(names) * count, 16),
            torch.tensor(0.1),
            torch.tensor([0.3]),
            torch.tensor([0.2]),
            torch.arange(count),
            views=names,
        )
        path = tmp_path / f"{method}.safetensors"
        artifacts.save(path, stored(made.tensors(), storage, real=method == "kmeans"), stage="x", parameters={})
        assert bytes_of(artifacts.Artifact(path)) == set_bytes(config, count, method)
        assert set_bytes(config, count, method) <= 8064 < set_bytes(config, count + 1, method)


def test_a_set_starts_from_as_many_real_images() -> None:
    """Where real images are smaller, their subset has a number for a name; where they are not, it is the compared one."""
    for pixels, label in (("uint8", "8KB"), ("float32", "24img")):
        storage = {"pixels": pixels, "targets": "float32"}
        config = loaded(budgets=["8KB"], storage=storage, targets={"space": SPACE}, methods=["kmeans", "bptt_kmeans"])
        assert initial_label(config, "8KB", "bptt_kmeans") == label
        made = plan.initial_set(config, {"method": "bptt_kmeans", "budget": "8KB", "distill_seed": "0"})
        assert budget_images(config, label, "kmeans") == budget_images(config, "8KB", "bptt_kmeans")
        assert made in plan.subsets(config)
        assert ({"method": "kmeans", "budget": "24img", "distill_seed": "0"} in plan.subsets(config)) == (
            label != "8KB"
        )
        assert image_bytes(config, "bptt_kmeans") == 64 * {"uint8": 1, "float32": 4}[pixels] + 64


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"budgets": ["10B"]}, "10B.*less than one image of 'random', .*588 bytes"),
        ({"budgets": ["10000KB"]}, "10000KB.*1300"),
        ({"budgets": ["8KB", "8000B"]}, "8KB and 8000B"),
        ({"budgets": [10, "8KB"], "methods": ["random", "mkdt_random"]}, "10 and 8KB"),
        ({"budgets": ["9" * 400 + "KB"]}, "budgets.*8KB"),
        ({"budgets": ["8KB"], "views": ["identity", "flip"]}, "config: views: 'flip'"),
        ({"budgets": ["8MB"]}, "budgets.*8KB"),
        ({"budgets": ["8 KB"]}, "budgets.*8KB"),
        ({"budgets": [1.5]}, "budgets: 1.5"),
        ({"budgets": ["8KB"], "teacher": {"checkpoint": {"model": "timm:resnet18"}}}, "targets.space.components"),
    ],
)
def test_bytes_that_hold_no_set_are_refused(over: dict[str, Any], words: str) -> None:
    """Too few, too many, twice the same, another unit, or of targets whose length is not known yet."""
    with pytest.raises(UserError, match=words):
        loaded(**over)


def test_only_compared_methods_limit_a_budget() -> None:
    """Real images would be more than there are, but no real subset is made."""
    config = loaded(budgets=["200KB"], methods=["none", "mkdt_random", "full"], targets={"space": SPACE})
    (start,) = {names["budget"] for names in plan.subsets(config)}
    assert start == f"{budget_images(config, '200KB', 'mkdt_random')}img"
    assert budget_images(config, start, "random") < 1300


def test_words_of_a_budget() -> None:
    """As a report shows them."""
    words = {"1pct": "1%", "14img": "14 images", "8KB": "8 KB", "8064B": "8064 bytes", "all": "all"}
    assert {label: budget_words(label) for label in words} == words

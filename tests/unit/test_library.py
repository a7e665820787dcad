"""The package in one's own code: the examples of docs/library.md, and what they cannot show."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from project import REPOSITORY
from torch import nn

import mkdt
from mkdt.errors import UserError
from mkdt.networks.divergence import Diverged
from mkdt.networks.flat import flatten

STUDENT: dict[str, Any] = {"architecture": "convnet", "depth": 2, "width": 4, "norm": "instance"}


def images(count: int = 24) -> torch.Tensor:
    """Noise of 8x8."""
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example prints what stands below it."""
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(REPOSITORY / "docs/library.md"), module_relative=False)
    assert found.attempted > 20
    assert not found.failed


def test_public_names_are_listed_before_they_are_imported() -> None:
    """Tab completion shows them."""
    assert set(mkdt.__all__) <= set(dir(mkdt))
    assert all(callable(getattr(mkdt, name)) for name in mkdt.__all__)


def test_a_set_with_views_learns_a_target_for_each() -> None:
    """The teacher encodes them; without it there are none."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    mean, std = images().float().div(255).mean(), images().float().div(255).std(correction=0)
    with torch.no_grad():
        targets = teacher((images().float() / 255 - mean) / std)
    settings: dict[str, Any] = {"iterations": 2, "steps": 3, "pictures": 1, "init": "random"}
    views = ["identity", "shift 1 0"]
    tiny = mkdt.distill_images(images(), targets, 5, STUDENT, views=views, teacher=teacher, **settings)
    assert tiny.targets.shape == (10, 3)
    assert "2 views" in repr(tiny)
    again = mkdt.distill_images(images(), targets, 5, STUDENT, views=views, teacher=teacher, **settings)
    assert torch.equal(tiny.images, again.images)
    with pytest.raises(UserError, match="teacher"):
        mkdt.distill_images(images(), targets, 5, STUDENT, views=views)


@pytest.mark.parametrize(
    ("over", "word"),
    [
        ({"images": images().float()}, "uint8"),
        ({"targets": torch.zeros(3, 2)}, "24 images"),
        ({"targets": torch.full((24, 2), torch.nan)}, "not finite"),
        ({"student": STUDENT | {"norm": "batch"}}, "batch"),
        ({"losses_at": [500]}, "losses_at"),
        ({"curriculum": True}, "curriculum"),
        ({"window": 500}, "window"),
        ({"iterations": "many"}, "iterations"),
        ({"count": 25}, "count is 25"),
        ({"step": 3}, "step"),
        ({"init": "sas"}, "'sas'"),
        ({"views": ["flip"]}, "'flip'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(over: dict[str, Any], word: str) -> None:
    """Before anything is computed."""
    arguments: dict[str, Any] = {"images": images(), "targets": torch.zeros(24, 2), "count": 3, "student": STUDENT}
    with pytest.raises(UserError, match=word):
        mkdt.distill_images(**(arguments | over))


def test_a_module_of_ones_own_is_trained_itself(make_set: Any) -> None:
    """With the seed only its head and the order of images change; what returns no vectors is refused."""
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Flatten(), nn.Linear(64, 5)) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    before = flatten(made[0])
    students = [mkdt.pretrain(make_set(), module, steps=3, rate=0.1) for module in made]
    assert students[0].backbone is made[0]
    assert not torch.equal(flatten(made[0]), before)
    assert torch.equal(flatten(made[0]), flatten(made[1]))
    with pytest.raises(UserError, match=r"\[1, 4, 6, 6\]"):
        mkdt.pretrain(make_set(), nn.Conv2d(1, 4, 3), steps=1, rate=0.1)


def test_a_training_that_diverges_is_no_student(make_set: Any) -> None:
    """Weights of NaN would be probed without a word."""
    with pytest.raises(Diverged, match="50"):
        mkdt.pretrain(make_set(), STUDENT, steps=30, rate=50)


def test_the_probe_names_what_does_not_fit() -> None:
    """Lengths that differ, and features that overflow."""
    labels = torch.arange(24) % 2
    with pytest.raises(UserError, match="24 images, but 3 labels"):
        mkdt.probe(nn.Flatten(), (images().float(), labels[:3]), (images().float(), labels))
    mine = (images().float(), labels)
    for over, word in (({"label_fractions": [2.0]}, "2.0"), ({"label_fractions": [0.01]}, "0.01"), ({"l2": 0.0}, "l2")):
        with pytest.raises(UserError, match=word):
            mkdt.probe(nn.Flatten(), mine, mine, **over)
    with pytest.raises(UserError, match=r"\[1, 4, 6, 6\]"):
        mkdt.probe(nn.Conv2d(1, 4, 3), mine, mine)
    with pytest.raises(UserError, match="not finite"):
        mkdt.probe(nn.Flatten(), (images() / 0.0, labels), (images().float(), labels))

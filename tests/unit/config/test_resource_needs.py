"""Memory and disk of stages: figures that grow with what they are made from."""

import pytest
from configs import with_sections as config
from hypothesis import given
from hypothesis import strategies as st

from mkdt.config import resource_needs
from mkdt.config.resource_needs import Need, memory_mb
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.evaluate import features, targets_probe
from mkdt.networks import batching

CASES = [
    ("teacher", ""),
    ("targets", ""),
    ("experts", ""),
    ("method_experts", "mtt_ssl"),
    ("subset", "kmeans"),
    ("distill", "mkdt"),
    ("distill", "mtt_ssl"),
    ("distill", "krr_st"),
    ("pretrain", "mkdt"),
    ("select", "mkdt"),
    ("probe", "mkdt"),
]


def need(settings: Config, stage: str, method: str = "mkdt", student: str = "convnet", budget: str = "all") -> Need:
    """What the stage needs."""
    return STAGES[stage].need(settings, {"student": student, "method": method, "budget": budget})


@given(st.sampled_from(CASES), st.integers(200, 1000), st.integers(1, 300))
def test_more_images_never_need_less(case: tuple[str, str], images: int, more: int) -> None:
    """A larger training set asks for at least as much memory and disk."""
    small, large = (
        need(config(datasets={"digits": {**config()["datasets"]["digits"], "train": count}}), *case)
        for count in (images, images + more)
    )
    for gpus in (0, 1):
        assert memory_mb(small, gpus) <= memory_mb(large, gpus)
    assert small.disk <= large.disk


@pytest.mark.parametrize("stage", ["pretrain", "select", "probe"])
def test_large_students_ask_for_more(stage: str) -> None:
    """A ResNet-18 among the students: its snapshots and graphs are counted."""
    students = config()["students"] | {"large": {"architecture": "resnet18"}}
    settings = config(students=students)
    small, large = (need(settings, stage, student=name, budget="1pct") for name in ("convnet", "large"))
    snapshots = 9 * 4 * 11_000_000  # at least three rates, three numbers of steps
    assert large.host - small.host > snapshots


def test_kept_graphs_count_in_distillation() -> None:
    """Each graph that is kept adds one step's activations."""
    none, some, every = (need(config(distill={"retain": kept}), "distill", budget="1pct") for kept in (0, 10, "auto"))
    assert some.device - none.device == pytest.approx((every.device - none.device) / 2)


def test_the_probe_of_a_brought_teachers_targets_asks_for_the_teacher() -> None:
    """It encodes some images again, with other statistics."""
    teacher = config()["teacher"]
    brought = config(teacher={"checkpoint": {**teacher["checkpoint"], "model": "timm:test_vit"}})
    assert need(brought, "targets_probe").host - need(config(), "targets_probe").host > 4 * 20_000_000


def test_the_paper_protocol_has_one_point() -> None:
    """Without a grid there is one snapshot a student."""
    fair, paper = (
        need(config(pretrain={"protocol": protocol, "seeds": [0]}), "pretrain", budget="all")
        for protocol in ("fair", "paper")
    )
    grid = len(config()["pretrain"]["rates"]) * len(config()["pretrain"]["steps"])
    assert fair.disk == pytest.approx(grid * paper.disk)


def test_sizes_that_the_needs_repeat_are_those_of_the_code() -> None:
    """The needs do without torch and cannot import these; a number that was changed on one side only is found here."""
    assert (resource_needs.GPU_PIXELS, resource_needs.GPU_IMAGES) == (batching.GPU_PIXELS, batching.GPU_IMAGES)
    assert resource_needs.STATISTICS_IMAGES == features.STATISTICS_IMAGES
    assert (resource_needs.ENCODED, resource_needs.TARGETS_PIXELS) == (targets_probe.ENCODED, targets_probe.PIXELS**2)

"""Precision: what a device has, what becomes bfloat16, and that nothing else changes. All on the CPU, which has bfloat16 too."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_settings import KRR_ST, TEACHER
from torch import Tensor, nn

from mkdt.data.readers.arrays import load_raw
from mkdt.distill.experts import train_expert
from mkdt.distill.krr_st import Pool
from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream
from mkdt.evaluate.pretraining import pretrain_grid
from mkdt.networks.flat import flatten, flatten_state
from mkdt.networks.precision import available, compute_in, current, forward
from mkdt.networks.students import build_student
from mkdt.teacher.encoding import represent
from mkdt.teacher.training import train_teacher

CPU = torch.device("cpu")
TRAINING: dict[str, Any] = {"epochs": 4, "batch": 8, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
Source = tuple[Tensor, Tensor]
Freeze = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    """Other tests compute in float32, with torch's own settings."""
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    compute_in("float32")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = cuda


def in_bf16(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function in bfloat16, then return to float32."""
    compute_in("bf16")
    try:
        return function(*arguments, **options)
    finally:
        compute_in("float32")


@pytest.mark.parametrize(
    ("wanted", "cpu", "old_gpu", "gpu"),
    [
        ("auto", "float32", "float32", "tf32"),
        ("float32", "float32", "float32", "float32"),
        ("tf32", "float32", "float32", "tf32"),
        ("bf16", "bf16", "float32", "bf16"),
    ],
)
def test_a_device_computes_in_what_it_has(
    wanted: str, cpu: str, old_gpu: str, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that lacks a precision computes in float32, as the CPU does."""
    assert available(wanted, CPU) == cpu
    for has, expected in ((False, old_gpu), (True, gpu)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert available(wanted, torch.device("cuda")) == expected


@pytest.mark.parametrize(("precision", "coarse"), [("float32", False), ("tf32", True), ("bf16", True)])
def test_one_key_decides_for_products_and_convolutions(precision: str, coarse: bool) -> None:
    """Torch's default has TF32 for convolutions alone."""
    compute_in(precision)
    assert current() == precision
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == coarse


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_a_forward_pass_in_bfloat16_is_near_and_its_gradient_is_float32(spec: dict[str, Any], norm: str) -> None:
    """Two to three digits agree; weights and their gradients stay in float32. In `tf32` the CPU computes in float32."""
    model = build_student(spec | {"norm": norm}, 1, 8, 3, 0, "test")
    images = torch.randn(32, 1, 8, 8)
    exact = model(images)
    compute_in("tf32")
    assert torch.equal(forward(model, images), exact)
    compute_in("bf16")
    coarse = forward(model, images)
    assert coarse.dtype == torch.float32
    assert 1e-4 < float(((coarse - exact).norm() / exact.norm()).detach()) < 2e-2
    coarse.square().mean().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}  # type: ignore[union-attr]


def test_an_experts_losses_are_near_and_a_resumed_one_has_the_same_bits(
    source: Source, spec: dict[str, Any], freeze: Freeze
) -> None:
    """The epochs' losses and those of single images, which choose the high-loss subset; from the state of each epoch."""
    states: list[dict[str, Any]] = []
    exact = train_expert(*source, spec, TRAINING, seed=0, expert=0)

    def coarse(**options: Any) -> dict[str, Tensor]:
        return in_bf16(train_expert, *source, spec, TRAINING, seed=0, expert=0, **options)

    straight = coarse(checkpoint=lambda make, now=False: states.append(freeze(make())))
    assert not torch.equal(straight["trajectory"], exact["trajectory"])
    torch.testing.assert_close(straight["epoch_losses"], exact["epoch_losses"], rtol=0.02, atol=0)
    torch.testing.assert_close(straight["losses"], exact["losses"], rtol=0.05, atol=0.01)
    for state in states:
        resumed = coarse(state=state)
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_pretraining_is_near_and_a_resumed_one_has_the_same_bits(
    source: Source, spec: dict[str, Any], freeze: Freeze, norm: str
) -> None:
    """At every point of the grid; the untrained student too, whose batch norms see the images."""
    settings = {"batch": 4, "momentum": 0.9, "weight_decay": 1e-4}
    states: list[dict[str, Any]] = []

    def grid(**options: Any) -> dict[str, Tensor]:
        made = {"rates": [0.02], "steps": [0, 3, 7], "seed": 0}
        return pretrain_grid(*source, spec | {"norm": norm}, settings, **made, **options)

    exact = grid()
    straight = in_bf16(grid, checkpoint=lambda make, now=False: states.append(freeze(make())))
    assert not torch.equal(straight["snapshots"], exact["snapshots"])
    torch.testing.assert_close(straight["losses"], exact["losses"], rtol=0.02, atol=0.005)
    for state in states[::3]:
        assert torch.equal(in_bf16(grid, state=state)["snapshots"], straight["snapshots"])


def test_the_pool_of_krr_st_is_near(source: Source, spec: dict[str, Any]) -> None:
    """Its students are trained in bfloat16; they stay float32."""

    def trained() -> Tensor:
        pool = Pool(lambda place, generation: build_student(spec, 1, 8, 3, 0, "pool", place), KRR_ST)
        pool.add(*source, 3)
        return flatten(pool.student(0))

    exact, coarse = trained(), in_bf16(trained)
    assert coarse.dtype == torch.float32
    assert 0 < float((coarse - exact).norm() / exact.norm()) < 1e-2


class _Probed(nn.Module):
    """Notes in which dtype its layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(16, 4), set[torch.dtype]()

    def forward(self, images: Tensor) -> Tensor:
        """Map [n,1,4,4] to [n,4]."""
        features: Tensor = self.layer(images.flatten(1))
        self.seen.add(features.dtype)
        return features


def test_targets_and_features_for_the_probe_are_encoded_in_it() -> None:
    """What comes out is float32 and float64, as ever."""
    images, labels, network = torch.rand(20, 1, 4, 4), torch.arange(20) % 2, _Probed()
    whole = images, labels
    data = Downstream("toy", whole, whole, whole)
    features = in_bf16(Features, network, data, CPU, torch.arange(20), False)
    assert network.seen == {torch.bfloat16}
    assert features.train(torch.arange(20)).dtype == "float64"
    network.seen.clear()
    targets = in_bf16(represent, network, (images * 255).byte(), torch.tensor([0.5]), torch.tensor([0.2]), CPU)
    assert (network.seen, targets.dtype) == ({torch.bfloat16}, torch.float32)


def test_a_teacher_is_as_good_and_a_resumed_one_has_the_same_bits(freeze: Freeze) -> None:
    """k-NN on 300 held-out digits differs by less than twice the deviation of a difference of two such accuracies."""
    images, labels = load_raw("digits", ".")["all"]
    assert labels is not None
    validation = labels[:600], images[600:900], labels[600:900]
    settings = TEACHER | {"epochs": 6, "batch": 64}
    states: list[dict[str, Any]] = []

    def train(**options: Any) -> tuple[float, float, Tensor]:
        seen: list[dict[str, float]] = []
        mean, std = torch.tensor([0.3]), torch.tensor([0.35])
        backbone = train_teacher(
            images[:600], mean, std, settings, seed=0, device=CPU, validation=validation,
            report=lambda epoch, values, pictures=None: seen.append(values), **options,
        )  # fmt: skip
        return seen[-1]["knn_accuracy"], seen[-1]["loss"], flatten_state(backbone)

    accuracy, loss, weights = train()
    coarse, coarse_loss, straight = in_bf16(train, checkpoint=lambda make, now=False: states.append(freeze(make())))
    assert not torch.equal(straight, weights)
    assert accuracy > 60
    assert coarse_loss == pytest.approx(loss, rel=0.02)
    deviation = (2 * accuracy * (100 - accuracy) / 300) ** 0.5
    assert abs(coarse - accuracy) < 2 * deviation
    for state in states[:-1:2]:
        assert torch.equal(in_bf16(train, state=state)[2], straight)

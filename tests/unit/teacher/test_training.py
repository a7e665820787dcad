"""SSL training of the teacher, and its representations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_settings import LOSSES, TEACHER
from torch import Tensor, nn

from mkdt.errors import UserError
from mkdt.networks.backbones import build_backbone
from mkdt.networks.flat import flatten_state
from mkdt.teacher.encoding import OwnView, represent
from mkdt.teacher.training import Lars, _monitor, train_teacher

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.4]), torch.tensor([0.2])
Freeze = Callable[[Any], Any]


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Real digits: SSL needs images with something in common."""
    from mkdt.data.preparation import load_raw

    return load_raw("digits", ".")["all"][0][:60]


def train(pixels: Tensor, seed: int = 0, **changes: Any) -> nn.Module:
    """A short training; keys of the settings and arguments of the function may be changed."""
    arguments = {
        key: changes.pop(key)
        for key in ("state", "report", "checkpoint", "validation", "monitor_every")
        if key in changes
    }
    return train_teacher(pixels, MEAN, STD, TEACHER | changes, seed=seed, device=CPU, **arguments)


@pytest.mark.parametrize("method", LOSSES)
def test_the_loss_falls_and_the_representation_does_not_collapse(pixels: Tensor, method: str) -> None:
    """Some epochs on digits must lower each loss; the monitor speaks at its interval and the end."""
    seen: dict[int, dict[str, float]] = {}
    labels = torch.arange(60) % 10
    backbone = train(
        pixels,
        method=method,
        loss=LOSSES[method],
        epochs=9,
        report=lambda epoch, values: seen.update({epoch: values}),
        validation=(labels, pixels[:20], labels[:20]),
        monitor_every=2,
    )
    assert list(seen) == list(range(1, 10))
    assert seen[9]["loss"] < 0.9 * seen[1]["loss"]
    assert [epoch for epoch in seen if "representation_std" in seen[epoch]] == [2, 4, 6, 8, 9]
    assert seen[9]["representation_std"] > 0.01
    assert 0 <= seen[9]["off_diagonal"] <= 1
    assert 20 < seen[9]["knn_accuracy"] <= 100  # a neighbour is the image itself: far above chance (10)
    assert not backbone.training


def test_the_learning_rate_warms_up_and_falls_to_nearly_zero(pixels: Tensor) -> None:
    """Reported after each epoch: full at the end of the warm-up, then a falling cosine."""
    rates: list[float] = []
    train(pixels, epochs=6, warmup_epochs=2, report=lambda epoch, values: rates.append(values["lr"]))
    top = TEACHER["lr"]
    assert rates[1] == pytest.approx(top)
    assert rates[0] == pytest.approx(top / 2)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0 < rates[-1] < 0.1 * top


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_resumed_training_equals_a_straight_one(pixels: Tensor, freeze: Freeze, optimizer: str) -> None:
    """Bit for bit, from the state after any epoch, including the running statistics."""
    options: dict[str, Any] = {"optimizer": optimizer, "epochs": 4}
    states: list[dict[str, Any]] = []
    straight = train(pixels, checkpoint=lambda make: states.append(freeze(make())), **options)
    assert [state["epoch"] for state in states] == [1, 2, 3, 4]
    for state in states:
        torch.manual_seed(state["epoch"])
        assert torch.equal(flatten_state(train(pixels, state=state, **options)), flatten_state(straight))


def test_the_seed_decides_the_teacher(pixels: Tensor) -> None:
    """Equal seeds give equal teachers whatever the global generators hold, other seeds another."""
    weights = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        weights.append(flatten_state(train(pixels, seed, epochs=1)))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_step_and_both_views_have_their_own_draw(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views that came again each epoch, or two equal views of a pair, would leave SSL little to learn."""
    drawn: list[float] = []

    class Recorder(nn.Module):
        """Notes the next number of the stream that the views would use."""

        def forward(self, images: Tensor, *part: int) -> Tensor:
            """The images as they are."""
            drawn.append(float(torch.rand((), dtype=torch.float64)))
            return images

    monkeypatch.setattr("mkdt.teacher.training.build_views", lambda *args: Recorder())
    for seed in (0, 1):
        train(pixels, seed)
    assert len(drawn) == 2 * 3 * (60 // 16) * 2  # seeds, epochs, full batches, views
    assert len(set(drawn)) == len(drawn)


def test_watching_changes_nothing(pixels: Tensor) -> None:
    """Monitoring at every epoch, with labels, must give the teacher that nobody watched."""
    labels = torch.arange(60) % 10
    watched = train(pixels, monitor_every=1, validation=(labels, pixels, labels))
    assert torch.equal(flatten_state(watched), flatten_state(train(pixels)))


def test_the_monitor_sees_all_classes_of_sets_that_are_published_class_by_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of more images than it looks at, evenly spaced ones: the first ones may be of few classes."""
    count = 12_000
    labels = torch.arange(count) // 1000
    pixels = (labels * 20).byte()[:, None, None, None].expand(-1, 1, 8, 8)
    monkeypatch.setattr("mkdt.teacher.encoding.represent", lambda backbone, images, *rest: images.flatten(1).float())
    values = _monitor(nn.Identity(), pixels, MEAN, STD, (labels, pixels, labels), CPU)
    assert values["knn_accuracy"] == 100


def test_a_loss_that_is_not_finite_is_a_user_error(pixels: Tensor) -> None:
    """Named with epoch and key, before a checkpoint of spoilt weights replaces the good one."""
    states: list[Any] = []
    with pytest.raises(UserError, match=r"teacher: diverged in epoch \d+.*: lower teacher\.lr"):
        train(pixels, optimizer="sgd", lr=1e30, warmup_epochs=0, checkpoint=lambda make: states.append(make()))
    assert all(bool(value.isfinite().all()) for state in states for value in state["model"].values())


def test_represent_in_batches_equals_one_by_one_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault of the public code: one image at a time. Batching must change no target and no statistic."""
    monkeypatch.setattr("mkdt.teacher.encoding.ENCODE_BATCH", 4)
    backbone = build_backbone(TEACHER["backbone"], 1, 8)
    backbone.train()(torch.randn(16, 1, 8, 8) * 2 + 1)  # running statistics that matter
    images = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    before = flatten_state(backbone)
    together = represent(backbone, images, MEAN, STD, CPU)
    one_by_one = torch.cat([represent(backbone, image[None], MEAN, STD, CPU) for image in images])
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-5)
    assert torch.equal(flatten_state(backbone), before)
    assert (together.shape, together.dtype) == ((10, backbone.dimension), torch.float32)
    with torch.no_grad():
        wanted = backbone.eval()((images.float() / 255 - 0.4) / 0.2)
    torch.testing.assert_close(together, wanted, rtol=1e-5, atol=1e-5)


def test_represent_encodes_many_images_a_call() -> None:
    """Fault of the public code: encoding one image at a time takes hours on a large set."""
    sizes: list[int] = []

    class Counting(nn.Module):
        """Notes how many images it is given."""

        def forward(self, images: Tensor) -> Tensor:
            """The first pixel."""
            sizes.append(len(images))
            return images[:, 0, 0, :1]

    represent(Counting(), torch.zeros(3000, 1, 2, 2, dtype=torch.uint8), MEAN, STD, CPU)
    assert sum(sizes) == 3000
    assert len(sizes) <= 3


def test_a_large_view_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand images at 224x224 in one piece would need gigabytes; the pieces change nothing."""
    backbone = build_backbone({"architecture": "resnet", "blocks": [1], "width": 4}, 3, 20).eval()
    images = torch.randn(7, 1, 8, 8)
    view = OwnView(backbone, 3, 20, "bicubic")
    with torch.no_grad():
        whole = view(images)
        monkeypatch.setattr(OwnView, "PIXELS", 2 * 20**2)
        sizes: list[int] = []
        backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        torch.testing.assert_close(view(images), whole)
    assert sizes == [2, 2, 2, 1]


def test_lars_equals_a_plain_transcription() -> None:
    """You et al. (2017): matrices move by trust * (gradient + decay * w), biases by the plain rate."""
    lr, momentum, decay, trust = 0.5, 0.9, 0.01, 0.001
    matrix, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))
    zero = nn.Parameter(torch.zeros(2, 2))  # no norm to scale by: the plain rate
    optimizer = Lars([matrix, bias, zero], lr, momentum=momentum, weight_decay=decay)
    values = [parameter.detach().clone() for parameter in (matrix, bias, zero)]
    speeds = [torch.zeros_like(value) for value in values]
    for _ in range(4):
        for k, parameter in enumerate((matrix, bias, zero)):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            update = gradient + decay * values[k]
            if values[k].ndim > 1 and values[k].norm() > 0:
                update = trust * math.sqrt(float((values[k] ** 2).sum()) / float((update**2).sum())) * update
            speeds[k] = momentum * speeds[k] + update
            values[k] = values[k] - lr * speeds[k]
        optimizer.step()
        for parameter, value in zip((matrix, bias, zero), values, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)

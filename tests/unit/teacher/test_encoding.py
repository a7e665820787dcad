"""Encoding images with a teacher."""

import pytest
import torch
from tiny_settings import TEACHER
from torch import Tensor, nn

from mkdt.networks.backbones import build_backbone
from mkdt.networks.flat import flatten_state
from mkdt.teacher.encoding import InputAdapter, represent

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.4]), torch.tensor([0.2])


def test_represent_in_batches_equals_one_by_one_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault of the public code: it encoded single images. Batching changes no target and no running statistic."""
    monkeypatch.setattr("mkdt.networks.batching.CPU_PIXELS", 4 * 8 * 8)
    backbone = build_backbone(TEACHER["backbone"], 1, 8)
    backbone.train()(torch.randn(16, 1, 8, 8) * 2 + 1)  # running statistics that differ from the initial ones
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


def test_represent_encodes_many_images_per_call() -> None:
    """Fault of the public code: encoding single images takes hours on a large data set."""
    sizes: list[int] = []

    class Counting(nn.Module):
        """Records the number of images in each call."""

        def forward(self, images: Tensor) -> Tensor:
            """Return the first pixel."""
            sizes.append(len(images))
            return images[:, 0, 0, :1]

    represent(Counting(), torch.zeros(3000, 1, 4, 4, dtype=torch.uint8), MEAN, STD, CPU)
    assert sum(sizes) == 3000
    assert len(sizes) <= 3


def test_large_inputs_are_encoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand images of 224x224 at once would need gigabytes; chunks do not change the features."""
    backbone = build_backbone({"architecture": "resnet", "blocks": [1], "width": 4}, 3, 20).eval()
    images = torch.randn(7, 1, 8, 8)
    adapter = InputAdapter(backbone, 3, 20, "bicubic")
    with torch.no_grad():
        whole = adapter(images)
        monkeypatch.setattr(InputAdapter, "PIXELS", 2 * 20**2)
        sizes: list[int] = []
        backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        torch.testing.assert_close(adapter(images), whole)
    assert sizes == [2, 2, 2, 1]

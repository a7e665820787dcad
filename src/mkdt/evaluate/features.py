"""Features of a data set from a frozen backbone."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mkdt.data.pixels import evenly_spaced_rows, in_batches
from mkdt.evaluate.labels import Downstream
from mkdt.networks.batching import images_at_once
from mkdt.networks.precision import forward

ENCODE_BATCH = 1024  # of fine-tuned networks
STATISTICS_IMAGES = 5000  # at most so many training images give the statistics that standardise features

Array = NDArray[np.float64]


class Features:
    """Features of a data set from a frozen backbone in eval mode; each image is encoded at most once.

    Attributes:
        device: where the images are encoded.
    """

    def __init__(
        self, backbone: nn.Module, data: Downstream, device: torch.device, rows: Tensor, standardise: bool
    ) -> None:
        """Encode the training images that are needed.

        Args:
            backbone: images [n,C,H,W] to features [n,D].
            data: the data set.
            device: where to encode.
            rows: int64, training images whose features ``train`` will be asked for.
            standardise: give each feature mean 0 and deviation 1 over (a sample of) the training images.

        Raises:
            FloatingPointError: features are not finite.
        """
        self._backbone, self._data, self.device = backbone.to(device).eval(), data, device
        sample = evenly_spaced_rows(torch.arange(len(data.train[1])), STATISTICS_IMAGES)
        needed = torch.cat([rows, sample]).unique() if standardise else rows.unique()
        images = data.train[0]
        features = self._encode(images[part] for part in needed.split(images_at_once(images.shape, device)))
        if standardise:
            sampled = features[torch.searchsorted(needed, sample).numpy()]
            self._mean, self._scale = sampled.mean(0), sampled.std(0)
            self._scale[self._scale < 1e-8] = 1.0  # a dead feature stays at zero instead of dividing by it
        else:
            self._mean, self._scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
        self._needed, self._train = needed, (features - self._mean) / self._scale

    def train(self, rows: Tensor) -> Array:
        """Return features float64 [len(rows),D] of training images."""
        return self._train[torch.searchsorted(self._needed, rows).numpy()]

    def held_out(self, split: str) -> Array:
        """Return features float64 [n,D] of the ``validation`` or ``test`` split.

        Raises:
            FloatingPointError: features are not finite.
        """
        images, _ = self._data.split(split)
        batches = images.split(images_at_once(images.shape, self.device))
        return (self._encode(batches) - self._mean) / self._scale

    def _encode(self, batches: Iterable[Tensor]) -> Array:
        encoded = in_batches(lambda batch: forward(self._backbone, batch.to(self.device)), batches)
        features: Array = encoded.double().numpy()
        if not np.isfinite(features).all():
            raise FloatingPointError("features are not finite")
        return features

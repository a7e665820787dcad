"""Plain implementations of the same computations, which the benchmarks compare with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def plain_unroll(
    loss_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    theta0: Tensor,
    target: Tensor,
    images: Tensor,
    targets: Tensor,
    lr: Tensor,
    batches: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the matching loss and its gradients by one call of autograd, which keeps all N graphs."""
    images, targets, lr = (value.detach().requires_grad_() for value in (images, targets, lr))
    theta = theta0.detach().requires_grad_()
    for rows in batches:
        loss = loss_fn(theta, images[rows], targets[rows])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * gradient
    matching = (theta - target).square().sum() / (theta0 - target).square().sum()
    return matching.detach(), *torch.autograd.grad(matching, (images, targets, lr))


def plain_targets(backbone: torch.nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute the teacher's representations, float32 [n,D], one image at a time."""
    with torch.no_grad():
        rows = [backbone(((image / 255 - mean[:, None, None]) / std[:, None, None])[None]) for image in images.float()]
    return torch.cat(rows)


def plain_epoch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, batch: int, workers: int
) -> Any:
    """Train an expert for one epoch with a DataLoader of single items."""
    loader = DataLoader(TensorDataset(images, targets), batch_size=batch, shuffle=True, num_workers=workers)
    for pixels, wanted in loader:
        loss = torch.nn.functional.mse_loss(model(pixels), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def plain_probe(features: Tensor, labels: Tensor, l2: float) -> list[Any]:
    """Fit the linear probe with scikit-learn, one label draw after the other, and compute the gradient that is left."""
    fitted = []
    for known, answers in zip(features.numpy(), labels.numpy(), strict=True):
        classifier = LogisticRegression(C=1 / (2 * l2 * len(answers)), tol=1e-6, max_iter=5000).fit(known, answers)
        residual = classifier.predict_proba(known) - (answers[:, None] == classifier.classes_)
        slope = residual.T @ known / len(answers) + 2 * l2 * classifier.coef_
        fitted.append((classifier, max(np.abs(slope).max(), np.abs(residual.mean(0)).max())))
    return fitted


def plain_clusters(features: Tensor, count: int) -> Any:
    """Run k-means with scikit-learn's default start, once."""
    return KMeans(count, n_init=1, random_state=0).fit(features.numpy())

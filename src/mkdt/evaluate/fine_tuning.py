"""Fine-tuning of a whole network on few labels, and its score."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkdt import seeding
from mkdt.data.pixels import in_batches
from mkdt.evaluate.features import ENCODE_BATCH
from mkdt.evaluate.labels import Downstream, LabelDraws

MOMENTUM = 0.9


def finetune(
    backbone: nn.Module,
    images: Tensor,
    labels: Tensor,
    classes: int,
    rate: float,
    settings: Mapping[str, Any],
    seed: int,
) -> nn.Module:
    """Train a copy of the backbone and a linear head on labelled images; all weights move.

    The recipe: cross-entropy, SGD with momentum 0.9, a cosine from ``rate`` to zero, no augmentation, head from zero.

    Args:
        backbone: [n,C,H,W] to [n,D]; it is not changed.
        images: float32 [n,C,H,W], normalised, on the backbone's device.
        labels: int64 [n], below ``classes``, on the same device.
        classes: how many.
        rate: peak learning rate.
        settings: ``steps``, ``batch`` (a smaller last batch of a pass is dropped), ``weight_decay``.
        seed: decides the order of images.

    Returns:
        the fine-tuned network in eval mode: images to logits [n, classes].
    """
    model = _with_head(backbone, images, classes)
    steps, batch = settings["steps"], min(settings["batch"], len(images))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=MOMENTUM, weight_decay=settings["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    done, epoch = 0, 0
    while done < steps:
        stream = seeding.generator(seed, "finetune order", epoch)
        for rows in list(seeding.batches(len(images), batch, stream))[: min(len(images) // batch, steps - done)]:
            rows = rows.to(images.device)
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
        epoch += 1
    return model.eval()


def _with_head(backbone: nn.Module, images: Tensor, classes: int) -> nn.Sequential:
    """Return a copy of the backbone in train mode with a linear head of zeros."""
    backbone = copy.deepcopy(backbone).train()
    with torch.no_grad():
        width = copy.deepcopy(backbone).eval()(images[:1]).shape[1]
    head = nn.Linear(width, classes).to(images.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(backbone, head)


def score_finetuned(
    backbone: nn.Module,
    data: Downstream,
    split: str,
    drawn: LabelDraws,
    rate: float,
    settings: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Score fine-tuning at one learning rate; the rows are those of ``linear_probe.score``.

    Non-finite predictions count as errors.

    Args:
        backbone: [n,C,H,W] to [n,D]; it is not changed.
        data: the labelled data set.
        split: ``validation`` or ``test``.
        drawn: the training rows whose labels are known.
        rate: peak learning rate.
        settings: as for ``finetune``.
        seed: decides, with the data set and the label draw, the order of images.
        device: where to train.
    """
    images, truth = data.split(split)
    classes = int(data.train[1].max()) + 1
    rows = []
    for (fraction, draw), labelled in drawn.items():
        order_seed = seeding.derive(seed, "finetune", data.name, f"{fraction:g}", draw)
        known, answers = data.train[0][labelled].to(device), data.train[1][labelled].to(device)
        network = finetune(backbone.to(device), known, answers, classes, rate, settings, order_seed)
        logits = in_batches(network, (batch.to(device) for batch in images.split(ENCODE_BATCH)))
        right = (logits.argmax(1) == truth) & logits.isfinite().all(1)
        accuracy = 100 * float(right.double().mean())
        row = {"label_fraction": fraction, "label_draw": draw, "accuracy": accuracy, "gradient": math.nan}
        rows.append({"evaluation": "finetune", **row, "finetune_rate": rate})
    return rows

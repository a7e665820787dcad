"""Evaluation beside the probe: fine-tuning of the whole network on the few labels."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkdt import seeding

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
        backbone: [n,C,H,W] to [n,D]; left as it is.
        images: float32 [n,C,H,W], normalised, on the backbone's device.
        labels: int64 [n], below ``classes``, on the same device.
        rate: peak learning rate.
        settings: ``steps``, ``batch`` (a smaller last batch of a pass is dropped), ``weight_decay``.
        seed: decides the order of images.

    Returns:
        the fine-tuned network in eval mode: images to logits [n, classes].
    """
    backbone = copy.deepcopy(backbone).train()
    with torch.no_grad():
        width = copy.deepcopy(backbone).eval()(images[:1]).shape[1]
    head = nn.Linear(width, classes).to(images.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(backbone, head)
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

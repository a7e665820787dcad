"""Trajectory matching: learn a synthetic set so that training on it follows the experts' trajectories."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.artifacts import Artifact
from mkdt.distill.hypergradient import Hypergradient, distance_to
from mkdt.distill.outer_loop import LearnedSet, learn_set
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.distill.unroller import Unroller, inner_batches
from mkdt.errors import UserError
from mkdt.networks.flat import LossFn
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

# (rows of each step, iteration) -> a function from the images to the views of all steps, and for each step the rows of
# its views.
ViewsFn = Callable[[list[Tensor], int], tuple[Callable[[Tensor], Tensor], list[Tensor]]]


class Draw(NamedTuple):
    """The random choices of one iteration: an expert, its start epoch, and the rows (int64) of each student step."""

    expert: int
    epoch: int
    rows: list[Tensor]


def start_epochs_at(iteration: int, settings: Mapping[str, Any]) -> int:
    """Return how many start epochs may be drawn: all, or with ``curriculum`` a number that grows linearly."""
    limit: int = settings["start_epochs"]
    if not settings["curriculum"]:
        return limit
    return min(limit, 1 + iteration * limit // max(1, settings["iterations"]))


def draw_iteration(
    experts: int, count: int, settings: Mapping[str, Any], iteration: int, stream: torch.Generator
) -> Draw:
    """Draw what one iteration uses, of so many experts and rows of the set."""
    expert = int(torch.randint(experts, (), generator=stream))
    epoch = int(torch.randint(start_epochs_at(iteration, settings), (), generator=stream))
    return Draw(expert, epoch, list(islice(inner_batches(count, settings["batch"], stream), settings["steps"])))


def _expert_weights(
    experts: Sequence[Artifact], draw: Draw, settings: Mapping[str, Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the drawn expert's weights at the start epoch and ``match_epochs`` later, float32 [P]."""
    epochs = draw.epoch, draw.epoch + settings["match_epochs"]
    theta0, target = (experts[draw.expert].row("trajectory", epoch).to(device) for epoch in epochs)
    if torch.equal(theta0, target):
        raise UserError(
            f"distill: the weights of expert {draw.expert} did not change after epoch {draw.epoch}: raise experts.lr "
            "or distill.match_epochs."
        )
    return theta0, target


def match_experts(
    initial: SyntheticSet,
    experts: Sequence[Artifact],
    loss_fn: LossFn,
    settings: Mapping[str, Any],
    *,
    seed: int,
    distill_seed: int,
    device: torch.device,
    views: ViewsFn | None = None,
    key: str = "distill.image_lr",
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[SyntheticSet, Tensor]:
    """Learn a synthetic set by trajectory matching (paper, algorithm 1).

    Each iteration draws an expert and a start epoch. A student takes N steps on the set from the expert's weights, and
    is compared with the expert M epochs later.

    Args:
        initial: the subset that the synthetic set starts from.
        experts: their files, each with ``trajectory`` [E+1,P]; each iteration reads two rows.
        loss_fn: the loss that the experts were trained by, ``loss_fn(theta, images, targets)``.
        settings: the ``distill`` section of the config.
        seed, distill_seed: with the settings they decide all draws.
        device: where to compute.
        views: makes random views of the images, which ``loss_fn`` then sees in their place. There are no targets to
            learn then (``learn_targets: false``). None for the fixed views of the set.
        key: the config key that a message about divergence names first.
        state: a state that was given to ``checkpoint``, to continue from.
        report: called after each iteration with ``loss``, ``step_size``, ``image_gradient`` (norm), ``expert`` and
            ``start_epoch``; at intervals also with the set as pictures.
        checkpoint: called before each update, after the loss was found good: the saved set has never diverged.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: loss, gradient or set is not finite, or the loss is ``divergence.EXPLODED`` times the first one (or 1,
            the loss of a student that does not move, if the first is less).
        UserError: an expert's weights did not change over the epochs to be matched.
    """
    unroller = Unroller(loss_fn, settings, settings["retain"])
    count = len(initial.targets) if views is None else len(initial)

    def gradient_at(iteration: int, learned: LearnedSet) -> tuple[Hypergradient, dict[str, float]]:
        stream = seeding.generator(seed, "distill", distill_seed, iteration)
        draw = draw_iteration(len(experts), count, settings, iteration, stream)
        theta0, target = _expert_weights(experts, draw, settings, device)
        rows = [batch.to(device) for batch in draw.rows]
        values: dict[str, float] = {"expert": draw.expert, "start_epoch": draw.epoch}
        decode: Callable[[Tensor], Tensor] = initial.decoded
        targets = learned.targets
        if views is not None:
            decode, rows = views(rows, iteration)
            targets = learned.targets.new_empty(sum(map(len, rows)), 0)
        outer = {len(rows): distance_to(target, theta0)}
        return unroller.gradient(theta0, outer, learned.images, targets, learned.step_size, rows, decode), values

    return learn_set(
        initial,
        settings,
        gradient_at,
        unroller,
        device=device,
        name="distill",
        keys=(key, "distill.step_size.lr"),
        least_loss=1.0,  # of a student that does not move
        state=state,
        report=report,
        checkpoint=checkpoint,
    )

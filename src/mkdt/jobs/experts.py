"""Train the experts of one job; those that an earlier job finished are taken over."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from mkdt import artifacts
from mkdt.config.result_folders import RESULTS
from mkdt.jobs.stage import StageJob


def train_batch(stage: StageJob, train: Callable[..., Mapping[str, Tensor]]) -> None:
    """Write the experts that are outputs of a job, and their losses as metrics.

    Args:
        stage: the job, its inputs open.
        train: makes an expert's tensors, ``trajectory`` and ``epoch_losses`` among them; called with its number, ``state``,
            ``report`` and ``checkpoint``.
    """
    paths = [Path(path) for path in stage.output.experts]
    state = stage.resume(shared=paths[0].parent.relative_to(RESULTS))
    missing = [path for path in paths if not stage.restore(path)]
    stage.expect(len(missing) * stage.settings["epochs"], "epoch")
    for path in missing:
        expert = int(path.stem)
        mine = state if state and state["expert"] == expert else None
        tensors = train(expert, state=mine, report=stage.report, checkpoint=stage.checkpoint)
        stage.save(path, tensors, rows=["trajectory"])
        stage.keep(path)
    rows = [
        {"step": epoch + 1, f"loss/{int(path.stem)}": loss}
        for path in paths
        for epoch, loss in enumerate(artifacts.Artifact(path).tensor("epoch_losses").tolist())
    ]
    stage.write_metrics(stage.output.metrics, rows)

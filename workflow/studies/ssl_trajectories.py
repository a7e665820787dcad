"""Study 3: noise share of SSL training, against regression to a teacher and supervised training.

First run `snakemake --configfile config/studies/ssl_trajectories.yaml`, which makes the data, teacher, experts and sets. This
script calls the stages' functions in one process and writes to docs/studies/ssl_trajectories/.
"""

import copy
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from variance import nested_shares, noise_share

from mkdt import seeding
from mkdt.artifacts import Artifact
from mkdt.config.budgets import budget_label
from mkdt.config.loading import read
from mkdt.config.plan import jobs
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES, files
from mkdt.data.pixels import normalise
from mkdt.distill.experts import record_trajectory
from mkdt.distill.mkdt import mkdt_set
from mkdt.distill.mtt_ssl import draw_views, mtt_ssl_set
from mkdt.distill.source import Source as MethodSource
from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
from mkdt.networks.backbones import build_backbone
from mkdt.networks.students import Projector
from mkdt.report.figures import save_figure
from mkdt.report.tables import save_table
from mkdt.teacher.ssl import LOSSES, build_views

CONFIG = Path("config/studies/ssl_trajectories.yaml")
PAGE = Path("docs/studies/ssl_trajectories")
RUNS, EPOCHS, BATCH = 10, 4, 64  # runs from one start that differ in the order of images
RATES, MOMENTUM = [0.1, 0.02], 0.9  # of the experts of mkdt and of mtt_ssl
BATCHES, VIEWS = 16, 4  # for the gradient's variance
SIZES = [16, 64, 256]
DRAWS = 20  # of the hypergradient
STYLES = {
    "supervised": ("#009E73", "^"),
    "kd": ("#D55E00", "D"),
    "kd_views": ("#E69F00", "s"),
    "barlow_twins": ("#0072B2", "o"),
    "simclr": ("#CC79A7", "v"),
}
NAMES = {
    "supervised": "supervised",
    "kd": "KD",
    "kd_views": "KD on views",
    "barlow_twins": "Barlow Twins",
    "simclr": "SimCLR",
}


class Source:
    """The artifacts of the workflow, and five objectives on one student's backbone with equal initial weights."""

    def __init__(self, config: Config) -> None:
        self.config, self.seed = config, config["seed"]
        data = Artifact(STAGES["data"].path(config, "data", {"dataset": config["source"]}))
        self.mean, self.std = data.tensor("mean"), data.tensor("std")
        self.images = normalise(data.tensor("train_images"), self.mean, self.std)
        self.labels = data.tensor("train_labels")
        self.targets = Artifact(STAGES["targets"].path(config, "targets")).tensor("targets")
        self.channels, self.size = self.images.shape[1:3]
        self.views = build_views(config["teacher"]["augment"], self.channels, self.size)
        self.options = {
            "barlow_twins": {"off_diagonal": config["teacher"]["off_diagonal"]},
            "simclr": {"temperature": config["teacher"]["temperature"]},
        }
        self.experts, self.ssl_experts = (
            [
                Artifact(path)
                for job in jobs(config)
                if job.stage == stage
                for path in files(config, job)
                if path.endswith(".safetensors")
            ]
            for stage in ("experts", "method_experts")
        )

    def model(self, objective: str) -> nn.Sequential:
        """Build the student with the objective's head; the backbone's weights are the same for all objectives."""
        spec = self.config["students"][self.config["student"]]
        with seeding.global_stream(self.seed, "variance backbone"):
            backbone: Any = build_backbone(spec, self.channels, self.size)
        with seeding.global_stream(self.seed, "variance head"):
            if objective in LOSSES:
                widths = [backbone.dimension, *self.config["mtt_ssl"]["projector"]]
                head: nn.Module = Projector(widths, running_statistics=False)
            else:
                outputs = len(self.labels.unique()) if objective == "supervised" else self.targets.shape[1]
                head = nn.Linear(backbone.dimension, outputs)
        return nn.Sequential(backbone, head)

    def loss(self, objective: str, model: nn.Module, rows: Tensor, *draw: int) -> Tensor:
        """Compute the objective's loss on rows of the training images; ``draw`` decides the views."""
        images = self.images[rows]
        if objective == "supervised":
            return F.cross_entropy(model(images), self.labels[rows])
        if objective == "kd":
            return F.mse_loss(model(images), self.targets[rows])
        with seeding.global_stream(self.seed, "variance views", *draw):
            first, second = draw_views(images, self.views, self.mean, self.std)
        if objective == "kd_views":
            return F.mse_loss(model(first), self.targets[rows])
        return LOSSES[objective](*model(torch.cat([first, second])).chunk(2), **self.options[objective])

    def weights(self, objective: str, lr: float) -> tuple[Tensor, list[nn.Sequential]]:
        """Train ``RUNS`` runs from one start: return backbones, float [RUNS,EPOCHS+1,P], and the first run's model at each epoch."""
        settings = {"epochs": EPOCHS, "batch": BATCH, "lr": lr, "momentum": MOMENTUM, "weight_decay": 0.0}
        rows, models = [], []
        for run in range(RUNS):
            model = self.model(objective)
            width = sum(parameter.numel() for parameter in model[0].parameters())

            def keep(make: object, now: bool = False, *, model: nn.Sequential = model, run: int = run) -> None:
                if run == 0:
                    models.append(copy.deepcopy(model))

            def loss(rows: Tensor, step: int, model: nn.Sequential = model, run: int = run) -> Tensor:
                return self.loss(objective, model, rows, run, step)

            keep(None)
            recorded = record_trajectory(
                model, loss, len(self.images), settings, seed=self.seed, expert=run, whole_batches=True, checkpoint=keep
            )
            rows.append(recorded["trajectory"][:, :width])
        return torch.stack(rows), models

    def gradients(self, objective: str, model: nn.Sequential, size: int) -> Tensor:
        """Compute gradients by the backbone, float [BATCHES,VIEWS,P]; an objective without views has one draw."""
        views = 1 if objective in {"supervised", "kd"} else VIEWS
        gradients = []
        for batch in range(BATCHES):
            stream = seeding.generator(self.seed, "variance batches", size, batch)
            rows = torch.randperm(len(self.images), generator=stream)[:size]
            for view in range(views):
                loss = self.loss(objective, model, rows, size, batch, view)
                parts = torch.autograd.grad(loss, list(model[0].parameters()))
                gradients.append(torch.cat([part.reshape(-1) for part in parts]))
        return torch.stack(gradients).view(BATCHES, views, -1)

    def hypergradients(self, method: str, initial: SyntheticSet, experts: int, start_epochs: int) -> Tensor:
        """Compute first gradients of the synthetic images, float [DRAWS,m*C*H*W], over draws of expert, epoch and views."""
        rate = 1e3  # pixels are about 0.1 to 1, the gradient 1e-2: with this rate the difference loses no digits
        ways: dict[str, tuple[Callable[..., tuple[SyntheticSet, Any]], list[Artifact]]] = {
            "mkdt": (mkdt_set, self.experts),
            "mtt_ssl": (mtt_ssl_set, self.ssl_experts),
        }
        run, experts_of = ways[method]
        settings = STAGES["distill"].slice(self.config, {"method": method}) | {
            "iterations": 1,
            "start_epochs": start_epochs,
            "image_optimizer": "sgd",
            "target_optimizer": "sgd",
            "schedule": "constant",
            "average": 0,
            "image_lr": rate,
        }
        gradients = []
        for draw in range(DRAWS):
            final, _ = run(
                initial,
                MethodSource(experts=experts_of[:experts]),
                settings["student"],
                settings,
                seed=self.seed,
                distill_seed=draw,
                device=torch.device("cpu"),
            )
            gradients.append(((initial.images - final.images) / rate).flatten())
        return torch.stack(gradients)


def measure(source: Source) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measure noise shares of weights, of gradients and of hypergradients, a table each."""
    weights, gradients = [], []
    for objective, lr in product(NAMES, RATES):
        runs, models = source.weights(objective, lr)
        for epoch in range(1, EPOCHS + 1):
            way, piece = runs[:, epoch] - runs[:, 0], runs[:, epoch] - runs[:, epoch - 1]
            weights.append(
                {
                    "objective": objective,
                    "lr": lr,
                    "epoch": epoch,
                    "noise_share": noise_share(way),
                    "noise_share_of_epoch": noise_share(piece),
                    "variance_per_weight": float(runs[:, epoch].var(0).mean()),
                    "length": float(way.norm(dim=1).mean()),
                }
            )
        for epoch in (0, 1, EPOCHS) if lr == RATES[0] else ():
            for size in SIZES:
                draws = source.gradients(objective, models[epoch], size)
                between, within = noise_share(draws[:, 0]), 0.0
                if draws.shape[1] > 1:
                    between, within = nested_shares(draws)
                gradients.append(
                    {"objective": objective, "epoch": epoch, "batch": size, "batches": between, "views": within}
                )
    budget, rows = budget_label(source.config["budgets"][0]), []
    for seed in source.config["distill_seeds"]:
        names = {"method": "random", "budget": budget, "distill_seed": str(seed)}
        path = STAGES["subset"].path(source.config, "set", names)
        initial = load_synthetic(path)
        for method in ("mkdt", "mtt_ssl"):
            for drawn, experts, epochs in [("views", 1, 1), ("experts and views", 10, 1), ("all", 10, 3)]:
                draws = source.hypergradients(method, initial, experts, epochs)
                row = {"method": method, "distill_seed": seed, "drawn": drawn, "noise_share": noise_share(draws)}
                rows.append(row | {"norm": float(draws.norm(dim=1).mean())})
    return pd.DataFrame(weights), pd.DataFrame(gradients), pd.DataFrame(rows)


def matching(source: Source) -> pd.DataFrame:
    """Read the matching loss of every distillation by iteration."""
    tables = []
    budget = budget_label(source.config["budgets"][0])
    for method in ("mkdt", "mtt_ssl"):
        for seed in source.config["distill_seeds"]:
            names = {"method": method, "budget": budget, "distill_seed": str(seed)}
            path = STAGES["distill"].path(source.config, "metrics", names)
            tables.append(pd.read_json(path, lines=True).assign(method=method, distill_seed=seed))
    columns = ["method", "distill_seed", "step", "expert", "start_epoch", "loss", "step_size", "image_gradient"]
    return pd.concat(tables)[columns]


def plot(weights: pd.DataFrame, gradients: pd.DataFrame) -> Figure:
    """Plot noise shares of weights over epochs, and of gradients over batch sizes, by objective."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for objective, (colour, marker) in STYLES.items():
        for lr, style, label in [(RATES[0], "-", NAMES[objective]), (RATES[1], "--", None)]:
            part = weights[(weights["objective"] == objective) & (weights["lr"] == lr)]
            left.plot(part["epoch"], part["noise_share"], style, color=colour, marker=marker, label=label)
        part = gradients[(gradients["objective"] == objective) & (gradients["epoch"] == 1)]
        right.plot(part["batch"], part["batches"] + part["views"], color=colour, marker=marker)
        if part["views"].any():
            right.plot(part["batch"], part["views"], color=colour, marker=marker, linestyle=":", linewidth=1)
    left.set(
        xlabel="epochs from one start",
        ylabel="noise share",
        title=f"weights (dashed: rate {RATES[1]:g})",
    )
    right.set(xlabel="batch", title="gradient after 1 epoch (dotted: by views alone)", xscale="log", ylim=(0, 1))
    left.set_xticks(range(1, EPOCHS + 1))
    right.set_xticks(SIZES, [str(size) for size in SIZES], minor=False)
    right.minorticks_off()
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_matching(table: pd.DataFrame) -> Figure:
    """Plot the mean matching loss by start epoch, averaged over 20 iterations; at 1 the student is no closer than at its start."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (method, part) in zip(figure.subplots(1, 2, sharey=True), table.groupby("method"), strict=True):
        for epoch, group in part.groupby("start_epoch"):
            mean = group.groupby(20 * ((group["step"] - 1) // 20) + 10)["loss"].mean()
            axes.plot(mean.index, mean, marker=".", label=f"from epoch {epoch}")
        axes.axhline(1, color="#666666", linewidth=0.8)
        axes.set(title=method, xlabel="iteration", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("matching loss")
    figure.axes[0].legend(frameon=False)
    return figure


def main() -> None:
    """Measure, and write the tables and figures."""
    torch.set_num_threads(1)
    source = Source(read([CONFIG]))
    PAGE.mkdir(parents=True, exist_ok=True)
    weights, gradients, hypergradients = measure(source)
    curves = matching(source)
    for name, table in [("weights", weights), ("gradients", gradients), ("hypergradients", hypergradients)]:
        save_table(PAGE / f"{name}.csv", table)
    save_table(PAGE / "matching.csv", curves)
    save_figure(PAGE / "variance.png", plot(weights, gradients))
    save_figure(PAGE / "matching.png", plot_matching(curves))
    report = Path(STAGES["report"].path(source.config, "summary_md")).parent
    for name in ("accuracy.csv", "summary.csv", "summary.md", "curve.csv", "curve.png", "sets.png"):
        shutil.copyfile(report / name, PAGE / name)


if __name__ == "__main__":
    main()

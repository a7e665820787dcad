"""Study 4: vary one factor of MKDT at a time, score on validation images only.

Every level of a factor is measured once and has its own file of results; several processes can share the work. The table and
the figure are made from the files that exist.

The functions of the stages run in one process: as jobs, some hundred small sets would take longer to start than to distil.
The settings come from config/studies/what_matters.yaml and pass the checks of a config.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from mkdt.artifacts import Artifact, digest, save, write_text
from mkdt.config.budgets import budget_label
from mkdt.config.loading import load, merge
from mkdt.config.methods import METHODS
from mkdt.config.result_folders import RESULTS
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.data.pixels import normalise
from mkdt.data.preparation import prepare
from mkdt.distill.experts import train_expert
from mkdt.distill.krr_st import krr_st_set
from mkdt.distill.mkdt import mkdt_set
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import STEP_SIZE, SyntheticSet, load_synthetic
from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, all_draws
from mkdt.evaluate.linear_probe import score
from mkdt.evaluate.pretraining import grid_points, pretrain_grid
from mkdt.networks.divergence import Diverged
from mkdt.networks.flat import load_state
from mkdt.networks.students import build_student
from mkdt.report.figures import draw_differences, save_figure
from mkdt.report.statistics import compare
from mkdt.report.tables import markdown, save_table, share, with_interval
from mkdt.seeding import derive
from mkdt.teacher.encoding import represent
from mkdt.teacher.training import train_teacher

STUDY = Path("config/studies/what_matters.yaml")
CACHE = RESULTS / "what_matters"
RUNS = Path("docs/studies/what_matters/runs")
CPU = torch.device("cpu")
WIDEST = 8.0  # percentage points to each side in the figure, so that one failed set does not hide the others
TUNED = ("mkdt", "krr_st", "sas")
Settings = dict[str, Any]


def kept(stage: str, settings: Settings, make: Callable[[], dict[str, Tensor]]) -> Artifact:
    """Return the artifact of ``make``, saved under the digest of its settings; an artifact that exists is not made again."""
    path = CACHE / stage / f"{digest(settings)[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            save(path, make(), stage=stage, parameters=settings, rows=["trajectory"] if stage == "experts" else [])
    return Artifact(path)


class Level:
    """One setting of all factors, and the results of the stages for it."""

    def __init__(self, config: Config) -> None:
        self.config, self.seed, self.source = config, config["seed"], config["source"]
        self.chosen = STAGES["data"].slice(config, {"dataset": self.source})
        self.data, _ = prepare(root=config["data"]["root"], **self.chosen)
        self.statistics = self.data["mean"], self.data["std"]
        self.images = normalise(self.data["train_images"], *self.statistics)

    @cached_property
    def backbone(self) -> nn.Module:
        """The teacher network; it is trained again where only its representations were saved."""
        settings = STAGES["teacher"].slice(self.config, {})
        return train_teacher(self.data["train_images"], *self.statistics, settings, seed=self.seed, device=CPU)

    @cached_property
    def teacher(self) -> Artifact:
        """Representations of the training and the validation images by the teacher."""

        def make() -> dict[str, Tensor]:
            parts = (self.data[f"{split}_images"] for split in ("train", "validation"))
            targets, held_out = (represent(self.backbone, part, *self.statistics, CPU) for part in parts)
            return {"targets": targets, "held_out": held_out}

        return kept("teacher", {"data": self.chosen} | STAGES["teacher"].slice(self.config, {}), make)

    @cached_property
    def targets(self) -> Tensor:
        """float32 [n,D]."""
        return self.teacher.tensor("targets")

    @cached_property
    def experts(self) -> list[Artifact]:
        """All experts."""
        settings = STAGES["experts"].slice(self.config, {})

        def make(expert: int) -> dict[str, Tensor]:
            return train_expert(self.images, self.targets, settings["student"], settings, seed=self.seed, expert=expert)

        made_from = settings | {"teacher": self.teacher.identity}
        numbers = range(self.config["experts"]["count"])
        return [kept("experts", made_from | {"expert": k}, partial(make, k)) for k in numbers]

    def subset(self, method: str, seed: int) -> SyntheticSet:
        """Select a real subset."""
        losses = [file.tensor("losses") for file in self.experts] if method == "high_loss" else []
        teacher = self.backbone if METHODS[method].teacher else None
        source = Source(self.data["train_images"], *self.statistics, self.targets, losses, teacher)
        budget = budget_label(self.config["budgets"][0])
        select = getattr(import_module(f"mkdt.{METHODS[method].module}"), f"{method}_subset")
        rows = select(
            source, STAGES["subset"].slice(self.config, {"method": method, "budget": budget}), self.seed, seed
        )
        return SyntheticSet(self.images[rows], self.targets[rows], torch.tensor(STEP_SIZE), *self.statistics, rows)

    def synthetic(self, method: str, init: str, seed: int) -> SyntheticSet:
        """Distil a set from a subset by ``mkdt`` or ``krr_st``."""
        section, budget = METHODS[method].section, budget_label(self.config["budgets"][0])
        settings = STAGES["distill"].slice(self.config, {"method": method, "budget": budget})
        whole = settings | {"init": init, "distill_seed": seed, "budget": self.config["budgets"][0]}
        if section == "distill":
            whole |= {"experts": [file.identity for file in self.experts]}
        elif section == "krr_st":
            whole |= {"teacher": self.teacher.identity}
        else:
            raise ValueError(f"this study does not distil by {method}")

        def make() -> dict[str, Tensor]:
            start = self.subset(init, seed)
            if section == "distill":
                distil, source = mkdt_set, Source(experts=self.experts)
            else:
                distil, source = krr_st_set, Source(self.data["train_images"], *self.statistics, self.targets)
            student = settings["student"]
            made, _ = distil(start, source, student, settings, seed=self.seed, distill_seed=seed, device=CPU)
            return made.tensors()

        file = kept("sets" if section == "distill" else section, whole, make)
        return load_synthetic(file)

    def students(self, method: str, images: Tensor, targets: Tensor) -> Iterator[tuple[int, float, int, nn.Module]]:
        """Pre-train students on a set; yield (seed, rate, steps, frozen backbone) of each that did not diverge."""
        settings = STAGES["pretrain"].slice(self.config, {"student": self.config["student"], "method": method})
        rates, steps = grid_points(settings, method, len(images), STEP_SIZE)
        shape = images.shape[1], images.shape[2], targets.shape[1]
        for seed in self.config["pretrain"]["seeds"]:
            made = pretrain_grid(
                images, targets, settings["student"], settings,
                rates=rates, steps=steps, seed=derive(self.seed, "student", seed),
            )  # fmt: skip
            model = build_student(settings["student"], *shape, 0, "template")
            for r, s in made["valid"].nonzero().tolist():
                load_state(model, made["snapshots"][r, s])
                yield seed, rates[r], steps[s], model.backbone

    def rows(self, method: str, init: str) -> list[Settings]:
        """Measure validation accuracies of a method, one row a set, student, point of the grid and label draw."""
        settings = STAGES["probe"].slice(self.config, {})
        pixels = [normalise(self.data[f"{split}_images"], *self.statistics) for split in ("train", "validation")]
        if method == "teacher":  # its representations are the features
            pixels = [self.targets, self.teacher.tensor("held_out")]
        train, held_out = ((pixels[k], self.data[f"{split}_labels"]) for k, split in enumerate(("train", "validation")))
        labelled = Downstream(self.source, train, held_out, held_out)  # the test images are not used
        drawn = all_draws(labelled, settings["label_fractions"], settings["label_draws"], self.seed)
        rows = []
        for set_seed in self.config["distill_seeds"] if METHODS[method].seeded else [0]:
            if method == "teacher":
                students = iter([(0, 0.0, 0, cast(nn.Module, nn.Identity()))])
            elif method in {"none", "full"}:
                students = self.students(method, self.images, self.targets)
            else:
                distilled = METHODS[method].distilled
                made = self.synthetic(method, init, set_seed) if distilled else self.subset(method, set_seed)
                students = self.students(method, made.images, made.targets)
            for seed, rate, steps, backbone in students:
                features = Features(backbone, labelled, CPU, torch.cat(list(drawn.values())), settings["standardise"])
                scored = score(features, labelled, "validation", drawn, settings["l2"])
                who = {"method": method, "distill_seed": set_seed, "seed": seed, "rate": rate, "steps": steps}
                rows += [
                    who | {key: row[key] for key in ("label_fraction", "label_draw", "accuracy")} for row in scored
                ]
        return rows


def measure(study: Settings) -> None:
    """Measure every level that has no file of results."""
    default = yaml.safe_load(Path("config/config.yaml").read_text())
    for entry in study["levels"]:
        path = run_file(entry)
        lock = FileLock((CACHE / path.name).with_suffix(".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:  # another process measures it
            continue
        if path.is_file():
            continue
        config = reduce(merge, [default, study["base"], study["defaults"], entry.get("config", {})])
        level, rows = Level(load(config)), []
        # The probe is small; more threads of BLAS, waiting for busy cores, made it many times slower.
        with threadpool_limits(1):
            for method in entry.get("methods", ["mkdt"]):
                outcome = "done"
                try:
                    rows += level.rows(method, entry.get("init", "random"))
                except Diverged as error:  # the method has no accuracy here; the file says why
                    outcome = str(error)
                    rows.append({"method": method, "diverged": outcome})
                print(f"{entry['factor']}, {entry['level']}: {method} {outcome}", flush=True)
        save_table(path, pd.DataFrame(rows))


def run_file(entry: Settings) -> Path:
    """Return the path of a level's results."""
    return RUNS / f"{entry['factor']} {entry['level']}.csv".replace(" ", "_").replace(",", "")


def chosen(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Select the rows of a method at the point with the best mean accuracy, among those at which no student diverged."""
    part = rows[rows["method"] == method]
    students = part.groupby(["rate", "steps"])["accuracy"].transform("size")
    part = part[students == students.max()]
    rate, steps = cast(tuple[float, int], part.groupby(["rate", "steps"])["accuracy"].mean().idxmax())
    return part[(part["rate"] == rate) & (part["steps"] == steps)]


def summarise(study: Settings) -> pd.DataFrame:
    """Summarise each level and method in one row: accuracy, differences to reference and random, share of the gain.

    The reference of a method of ``TUNED`` is the first level of the same budget that has it. `none` and `full`, which have no
    budget, are those of the first level of all, unless the level has its own. There is no difference to a level without
    results.
    """
    nothing, first = pd.DataFrame(columns=["method"]), None
    starts: dict[float, pd.DataFrame] = {}  # rows of the first level of a budget, whose random subset serves all others
    references: dict[tuple[str, float], pd.DataFrame] = {}  # rows of the first level that has a method
    lines = []
    for entry in study["levels"]:
        rows = pd.read_csv(run_file(entry)) if run_file(entry).is_file() else nothing
        rows = rows[rows["diverged"].isna()] if "diverged" in rows else rows
        budget = merge(study["base"], entry.get("config", {}))["budgets"][0]
        first, start = (rows if first is None else first), starts.setdefault(budget, rows)
        has = set(rows["method"])
        gain, subset = (rows if "full" in has else first), (rows if "random" in has else start)
        ends = [chosen(gain, name)["accuracy"].mean() for name in ("none", "full") if name in set(gain["method"])]
        for method in entry.get("methods", ["mkdt"]):
            reference = references.setdefault((method, budget), rows)
            if method not in has:
                continue
            part = chosen(rows, method)
            line = {"factor": entry["factor"], "level": entry["level"], "method": method}
            line |= {"rate": part["rate"].iloc[0], "steps": part["steps"].iloc[0], "accuracy": part["accuracy"].mean()}
            if len(ends) == 2:
                line["recovered"] = (line["accuracy"] - ends[0]) / (ends[1] - ends[0])
            compared = {"random": (subset, "random")} if method != "random" else {}
            if method in TUNED and reference is not rows:
                compared["reference"] = reference, method
            for name, (source, other) in compared.items():
                if other in set(source["method"]):
                    for end, value in compare(part, chosen(source, other)).items():
                        line[f"vs_{name}" if end == "difference" else f"vs_{name}_{end}"] = value
            lines.append(line)
    return pd.DataFrame(lines)


def as_text(table: pd.DataFrame) -> str:
    """Format the table of the page."""

    def difference_to(other: str, line: dict[Any, Any]) -> str:
        value, low, high = (line[f"vs_{other}{end}"] for end in ("", "_low", "_high"))
        return with_interval(value, low, high, sign="+")

    rows = []
    for line in table.to_dict("records"):
        point = f"{line['rate']:g}, {line['steps']:.0f}" if line["steps"] else "-"
        named = [str(line[key]) for key in ("factor", "level", "method")]
        differences = [difference_to(other, line) for other in ("random", "reference")]
        rows.append([*named, point, f"{line['accuracy']:.1f}", share(line["recovered"]), *differences])
    header = ["factor", "level", "method", "rate, steps", "accuracy", "recovered", "vs random", "vs the reference"]
    return markdown(header, rows) + "\n"


def plot(table: pd.DataFrame) -> Figure:
    """Plot each level's difference to its reference, with its interval."""
    names = {f"vs_reference{end}": name for end, name in (("", "difference"), ("_low", "low"), ("_high", "high"))}
    part = table[(table["method"] == "mkdt") & table["vs_reference"].notna()]
    part = (
        part.drop(columns="level").assign(level=part["factor"] + ": " + part["level"].astype(str)).rename(columns=names)
    )
    beyond = part[["low", "high"]].abs().max(axis=1) > WIDEST
    notes = [f" ({value:+.1f}, beyond the axis)" * wide for value, wide in zip(part["difference"], beyond, strict=True)]
    part = part.assign(level=part["level"] + notes)
    figure = Figure(figsize=(7, 0.8 + 0.32 * len(part)), layout="constrained")
    axis = figure.subplots()
    draw_differences(axis, part, ["mkdt"], by=["level"])
    if beyond.any():
        axis.set_xlim(-WIDEST, WIDEST)
    axis.set_xlabel("difference to the reference (points)")
    return figure


def main() -> None:
    """Measure, then write the table and the figure of the page."""
    torch.set_num_threads(1)
    study = yaml.safe_load(STUDY.read_text())
    CACHE.mkdir(parents=True, exist_ok=True)
    measure(study)
    table = summarise(study)
    save_table(RUNS.parent / "table.csv", table)
    write_text(RUNS.parent / "table.md", as_text(table))
    save_figure(RUNS.parent / "levels.png", plot(table))


if __name__ == "__main__":
    main()

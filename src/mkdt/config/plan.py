"""What an experiment consists of: its data sets, students, training sets and jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdt.config.architectures import halvings
from mkdt.config.budgets import budget_label, initial_label
from mkdt.config.machine_gpus import machine_gpus
from mkdt.config.methods import METHODS, has_budget, methods_that
from mkdt.config.schema import flat
from mkdt.config.sections import Config
from mkdt.config.sizes import image_shape
from mkdt.config.teacher_origin import teacher_origin


@dataclass(frozen=True)
class Job:
    """One job of an experiment.

    Attributes:
        stage: the stage that it runs.
        names: what the paths of its outputs say: ``dataset``, ``method``, ``budget``, ``distill_seed``, ``student``,
            ``seed``, ``expert``; several values of one name are several outputs.
    """

    stage: str
    names: Mapping[str, str | tuple[str, ...]]

    @property
    def wildcards(self) -> dict[str, str]:
        """The names that have one value, as the rule of the stage sees them."""
        return {name: value for name, value in self.names.items() if isinstance(value, str)}


def used_students(config: Config) -> list[str]:
    """Return the students that distil, are pre-trained, or make KRR-ST's pool."""
    krr = [config["krr_st"]["student"]] * ("krr_st" in config["methods"])
    return list(dict.fromkeys([config["student"], *config["pretrain"]["students"], *krr]))


def scored_datasets(config: Config) -> list[str]:
    """Return the selection set and the downstream sets, each once."""
    return list(dict.fromkeys([config["probe"]["selection"], *config["probe"]["downstream"]]))


def probed_datasets(config: Config) -> list[str]:
    """Return the data sets that the probe reads: the selection set where it chooses the learning rate of fine-tuning."""
    return config["probe"]["downstream"] if config["probe"]["finetune"] is None else scored_datasets(config)


def used_datasets(config: Config) -> list[str]:
    """Return the source and the scored data sets, each once."""
    return list(dict.fromkeys([config["source"], *scored_datasets(config)]))


def scored_name(row: Mapping[Any, Any]) -> str:
    """Name what an accuracy is of: ``{downstream}/{label fraction}``, and the evaluation if it is no linear probe."""
    other = f"/{row['evaluation']}" if row["evaluation"] != "linear" else ""
    return f"{row['downstream']}/{float(row['label_fraction']):g}{other}"


def parameters(config: Config) -> dict[str, Any]:
    """Return the settings by dotted key, without ``tracking`` and the data sets and students that are not used."""
    used = {"datasets": used_datasets(config), "students": used_students(config)}
    shown: dict[str, Any] = {key: value for key, value in config.items() if key != "tracking"}
    shown |= {section: {name: shown[section][name] for name in names} for section, names in used.items()}
    return dict(flat(shown))


def smallest_image(config: Config) -> int:
    """Return the least height and width of images that all networks of the config, and its sets from files, take."""
    if any(method.startswith("file:") for method in config["methods"]):
        return image_shape(config, config["source"])[1]
    networks = [config["teacher"]["backbone"], *(config["students"][name] for name in used_students(config))]
    return int(2 ** max(map(halvings, networks)))


def space_name(config: Config) -> str:
    """Return the space of the targets as it stands in a path; empty for the representations as they are."""
    space = config["targets"]["space"]
    if space == {"center": False, "components": None, "scale": "none"}:
        return ""
    parts = ["centred" if space["center"] else "uncentred", str(space["components"] or "all")]
    return "_".join(parts + ([] if space["scale"] == "none" else [str(space["scale"])]))


def targets_name(config: Config) -> str:
    """Return the folder of the targets in their space: the teacher, and the space where there is one."""
    return "+".join(filter(None, [config["teacher"]["name"], space_name(config)]))


def targets_stage(config: Config) -> str:
    """Return the stage that makes the targets that students are trained on."""
    return "target_space" if space_name(config) else "targets"


def method_name(method: str) -> str:
    """Return the method as it stands in a path: ``file:sets/mine.safetensors`` becomes ``file-mine``."""
    return f"file-{Path(method.removeprefix('file:')).stem}" if method.startswith("file:") else method


def initial_method(config: Config, method: str) -> str:
    """Return the method whose subset a distilled set starts from."""
    chosen = {"krr_st": config["krr_st"]["init"], "bptt": config["bptt"]["init"]}
    return METHODS[method].init or chosen.get(METHODS[method].section, config["distill"]["init"])


def own_options(config: Config, method: str) -> dict[str, Any]:
    """Return the options that an extension declares, with the config's values."""
    return {**METHODS[method].options, **config["options"].get(method, {})}


def variants(config: Config, method: str) -> list[tuple[str, int]]:
    """Return (budget label, distill seed) of every training set that a method makes."""
    budgets = [budget_label(budget) for budget in config["budgets"]] if has_budget(method) else ["all"]
    seeds = config["distill_seeds"] if has_budget(method) and METHODS[method].seeded else [0]
    return [(budget, seed) for budget in budgets for seed in seeds]


def training_sets(config: Config) -> list[dict[str, str]]:
    """Return method, budget and distill seed of every training set that students are pre-trained on."""
    return [
        {"method": method_name(method), "budget": budget, "distill_seed": str(seed)}
        for method in config["methods"]
        for budget, seed in variants(config, method)
    ]


def first_sets(config: Config) -> list[dict[str, str]]:
    """Return the names of the first training set of each method and budget; all images, which have no file, are left out."""
    first = {(names["method"], names["budget"]): names for names in reversed(training_sets(config))}
    return [names for names in reversed(first.values()) if names["method"] not in ("none", "full", "teacher")]


def distilled(config: Config) -> list[dict[str, str]]:
    """Return the names of the synthetic sets among ``training_sets``."""
    return [names for names in training_sets(config) if names["method"] in methods_that(stage="distill")]


def matched(config: Config) -> list[dict[str, str]]:
    """Return the names of the synthetic sets that are made by matching trajectories."""
    return [names for names in distilled(config) if METHODS[names["method"]].matches]


def initial_set(config: Config, names: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the subset that a distilled set starts from; a method without seeds has one for all of them."""
    method = initial_method(config, names["method"])
    seed = names["distill_seed"] if METHODS[method].seeded else "0"
    return {"method": method, "budget": initial_label(config, names["budget"], names["method"]), "distill_seed": seed}


def subsets(config: Config) -> list[dict[str, str]]:
    """Return the names of all real subsets: those that are compared, and those that distillation starts from."""
    real = [names for names in training_sets(config) if names["method"] in methods_that(stage="subset")]
    for names in distilled(config):
        initial = initial_set(config, names)
        real += [initial] * (initial not in real)
    return real


def jobs(config: Config) -> list[Job]:
    """Return every job of an experiment, in the order of the workflow."""
    found = [Job("data", {"dataset": name}) for name in used_datasets(config)]
    origin = teacher_origin(config)
    space = ["target_space"] * bool(space_name(config))
    found += [Job(stage, {}) for stage in [*_TEACHER_STAGES[origin], *space, "targets_probe"]]
    synthetic = distilled(config)
    real = subsets(config)
    methods = dict.fromkeys(names["method"] for names in [*real, *synthetic])
    if any(METHODS[method].experts for method in methods):
        found += [Job("experts", batch) for batch in expert_batches(config)]
    for method in methods:
        if METHODS[method].own_experts:
            found += [Job("method_experts", {"method": method, **batch}) for batch in expert_batches(config)]
    found += [Job("subset", names) for names in real] + [Job("distill", names) for names in synthetic]
    return found + _evaluation(config) + [Job("report", {})]


EXPERT_STAGES = ("experts", "method_experts")
_TEACHER_STAGES = {
    "trained": ["teacher", "targets"],
    "checkpoint": ["teacher_import", "targets"],
    "file": ["targets_import"],
}


def expert_batches(config: Config) -> list[dict[str, str | tuple[str, ...]]]:
    """Return the experts that each job trains: a job must be worth its start-up. Numbers have three digits."""
    count, size = config["experts"]["count"], config["experts"]["per_job"]
    batches = [[f"{expert:03d}" for expert in range(count)][first : first + size] for first in range(0, count, size)]
    return [{"first": batch[0], "last": batch[-1], "expert": tuple(batch)} for batch in batches]


def _evaluation(config: Config) -> list[Job]:
    """Return the jobs that pre-train and score students; the teacher is scored once, as it is."""
    students, seeds = config["pretrain"]["students"], tuple(map(str, config["pretrain"]["seeds"]))
    sets = training_sets(config)
    trained = [names for names in sets if names["method"] != "teacher"]
    pretrain = [Job("pretrain", {"student": name, **names, "seed": seeds}) for name in students for names in trained]
    scored: dict[tuple[str, str, str], None] = {}
    for student in students:
        for names in sets:
            if names["method"] != "teacher" or student == students[0]:
                scored[student, names["method"], names["budget"]] = None
    grids = [dict(zip(("student", "method", "budget"), one, strict=True)) for one in scored]
    return pretrain + [Job(stage, names) for stage in ("select", "probe") for names in grids]


def gpus_per_job(config: Config, cluster: bool = False) -> int:
    """Return 1 where the device is ``cuda``, or ``auto`` on a cluster or on a machine with an NVIDIA GPU; else 0."""
    device = config["compute"]["device"]
    return int(device == "cuda" or (device == "auto" and (cluster or bool(machine_gpus()))))


def gpu_jobs(config: Config) -> int:
    """Return how many jobs with a GPU may run on this machine at the same time, at least one."""
    return max(1, len(machine_gpus())) * config["compute"]["jobs_per_gpu"]

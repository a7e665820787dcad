"""STAGES: everything that rules, jobs and tools know of a stage, one entry each. No other file spells these paths.

A path holds names in braces. The config decides ``source``, ``teacher``, ``targets`` (the teacher and the space of its targets),
``expert_student`` (its key ``student``) and ``experiment``; the others are wildcards of the stage's rule. ``{expert}`` has three
digits. Experiments with equal names in a path share the file.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path

from mkdt.config import resource_needs, slices
from mkdt.config.extensions import is_extension
from mkdt.config.methods import METHODS
from mkdt.config.plan import Job, distilled, matched, targets_name, targets_stage
from mkdt.config.resource_needs import Need
from mkdt.config.result_folders import BENCHMARKS, LOGS, RESULTS
from mkdt.config.sections import Config, Names, Settings
from mkdt.config.teacher_origin import teacher_origin

EXPERTS = "{source}/{targets}/{expert_student}/experts"
METHOD_EXPERTS = "{experiment}/experts/{method}"
SET = "{experiment}/sets/{method}/{budget}/{distill_seed}"
STUDENTS = "{experiment}/pretrain/{student}/{method}/{budget}/{distill_seed}"
SELECTION = "{experiment}/select/{student}/{method}/{budget}"
SCORES = "{experiment}/probe/{student}/{method}/{budget}"
REPORT = "{experiment}/report"
NUMBERS = ("expert", "first", "last", "distill_seed", "seed")


def _none(config: Config, names: Names) -> list[str]:
    return []


def _reader(config: Config, names: Names) -> list[str]:
    kind = config["datasets"][names["dataset"]]["kind"]
    return [f"extensions.{kind}"] if is_extension(kind) else []


def _network(config: Config, student: str) -> list[str]:
    architecture = config["students"][student]["architecture"]
    return [f"extensions.{architecture}"] if is_extension(architecture) else []


def _student(config: Config, names: Names) -> list[str]:
    return _network(config, names["student"])


def _method(config: Config, names: Names) -> list[str]:
    method = METHODS[names["method"]]
    student = config["krr_st"]["student"] if method.section == "krr_st" else config["student"]
    encoding = ["teacher.encoding"] if method.teacher else []
    return [method.module, *encoding, *_network(config, student)]


@dataclass(frozen=True)
class Stage:
    """A stage of the workflow.

    Attributes:
        name: of the stage, of its rule and of its script.
        outputs: path of each output below the results, by its role.
        job: path of its log and of its benchmark, below folders of their own and without suffix.
        settings: the slice of the config that it is given.
        need: the memory and disk of one job.
        hours: time limit of one job on a cluster; each attempt gets as much again, up to ``resource_needs.LONGEST``.
        modules: names below ``mkdt`` of the code that it imports by name when it runs, beside what its script imports.
        gpu: whether it computes on a GPU where there is one.
        artifact: what its main output is; another stage may make the same from what the user brings.
        optional: by role whether a config has this output.
    """

    name: str
    outputs: Mapping[str, str]
    job: str
    settings: Callable[[Config, Names], Settings]
    need: Callable[[Config, Names], Need]
    hours: float
    modules: Callable[[Config, Names], list[str]] = _none
    gpu: bool = True
    artifact: str = ""
    optional: Mapping[str, Callable[[Config], bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the artifact after the stage where nothing else is said."""
        object.__setattr__(self, "artifact", self.artifact or self.name)

    def path(self, config: Config, role: str, names: Mapping[str, str] | None = None) -> str:
        """Return the path of an output; names that neither the config nor ``names`` gives stay in braces."""
        return str(RESULTS / fill(self.outputs[role], config, names or {}))

    def log(self, config: Config, names: Mapping[str, str] | None = None) -> str:
        """Return the path of the log file, as ``path`` does."""
        return str(RESULTS / LOGS / f"{fill(self.job, config, names or {})}.log")

    def benchmark(self, config: Config, names: Mapping[str, str] | None = None) -> str:
        """Return the path of Snakemake's benchmark file, as ``path`` does."""
        return str(RESULTS / BENCHMARKS / f"{fill(self.job, config, names or {})}.tsv")

    def slice(self, config: Config, names: Names) -> Settings:
        """Return the settings that a job is given, in canonical order, with the root seed."""
        settings: Settings = slices.canonical({"seed": config["seed"]} | self.settings(config, names))
        return settings

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """By role a pattern of the paths of an output below the results."""
        return {
            role: re.compile(re.sub(r"\\{(\w+)\\}", _group, re.escape(path))) for role, path in self.outputs.items()
        }

    def makes(self, path: str | Path) -> bool:
        """Return whether an output may lie at a path below the results."""
        return any(pattern.fullmatch(Path(path).as_posix()) for pattern in self.patterns.values())


def _group(name: re.Match[str]) -> str:
    """Return the pattern of a name in a path; experts and seeds are numbers, and a plus follows no teacher alone."""
    form = r"[0-9]+" if name[1] in NUMBERS else r"[^/+]+" if name[1] == "teacher" else r"[^/]+"
    return f"(?P<{name[1]}>{form})"


def fill(template: str, config: Config, names: Mapping[str, str]) -> str:
    """Replace the names in a template; those that neither the config nor ``names`` gives stay in braces."""
    known = {
        "source": config["source"],
        "teacher": config["teacher"]["name"],
        "targets": targets_name(config),
        "expert_student": config["student"],
        "experiment": config["experiment"],
        **names,
    }
    return re.sub(r"\{(\w+)\}", lambda match: str(known.get(match[1], match[0])), template)


_TEACHER = "{source}/{teacher}"
STAGES = {
    stage.name: stage
    for stage in [
        Stage(
            "data", {"data": "{dataset}/data.safetensors"}, "{dataset}/data",
            slices.data, resource_needs.data, hours=4, modules=_reader, gpu=False,
        ),
        Stage(
            "teacher", {"teacher": f"{_TEACHER}/teacher.safetensors", "metrics": f"{_TEACHER}/teacher.jsonl"},
            f"{_TEACHER}/teacher", slices.teacher, resource_needs.teacher, hours=24,
        ),
        Stage(
            "teacher_import", {"teacher": f"{_TEACHER}/teacher.safetensors"}, f"{_TEACHER}/teacher",
            slices.teacher_import, resource_needs.teacher_import, hours=1, gpu=False, artifact="teacher",
        ),
        Stage(
            "targets", {"targets": f"{_TEACHER}/targets.safetensors"}, f"{_TEACHER}/targets",
            slices.targets, resource_needs.targets, hours=4,
        ),
        Stage(
            "targets_import", {"targets": f"{_TEACHER}/targets.safetensors"}, f"{_TEACHER}/targets",
            slices.targets_import, resource_needs.targets_import, hours=1, gpu=False, artifact="targets",
        ),
        Stage(
            "target_space", {"targets": "{source}/{targets}/targets.safetensors"}, "{source}/{targets}/target_space",
            slices.target_space, resource_needs.target_space, hours=1, gpu=False, artifact="targets",
        ),
        Stage(
            "targets_probe", {"metrics": f"{_TEACHER}/targets_probe.jsonl"}, f"{_TEACHER}/targets_probe",
            slices.targets_probe, resource_needs.targets_probe, hours=4, gpu=False,
        ),
        Stage(
            "experts", {"experts": f"{EXPERTS}/{{expert}}.safetensors", "metrics": f"{EXPERTS}/{{first}}-{{last}}.jsonl"},
            "{source}/{targets}/{expert_student}/experts_{first}", slices.experts, resource_needs.experts, hours=12,
        ),
        Stage(
            "method_experts",
            {"experts": f"{METHOD_EXPERTS}/{{expert}}.safetensors", "metrics": f"{METHOD_EXPERTS}/{{first}}-{{last}}.jsonl"},
            f"{METHOD_EXPERTS}_{{first}}", slices.method_experts, resource_needs.method_experts, hours=12, modules=_method,
        ),
        Stage("subset", {"set": f"{SET}.safetensors"}, SET, slices.subset, resource_needs.subset, hours=4, modules=_method),
        Stage(
            "distill", {"set": f"{SET}.safetensors", "metrics": f"{SET}.jsonl", "evolution": f"{SET}.png"}, SET,
            slices.distill, resource_needs.distill, hours=24, modules=_method,
        ),
        Stage(
            "pretrain", {"students": f"{STUDENTS}/{{seed}}.safetensors", "metrics": f"{STUDENTS}/metrics.jsonl"}, STUDENTS,
            slices.pretrain, resource_needs.pretrain, hours=12, modules=_student,
        ),
        Stage(
            "select", {"selection": f"{SELECTION}.csv"}, SELECTION, slices.select, resource_needs.select, hours=24, modules=_student,
        ),
        Stage(
            "probe", {"scores": f"{SCORES}.csv"}, SCORES, slices.probe, resource_needs.probe, hours=24, modules=_student,
        ),
        Stage(
            "report",
            {
                name.replace(".", "_"): f"{REPORT}/{name}"
                for name in (
                    "accuracy.csv", "summary.csv", "summary.md", "curve.csv", "curve.png", "sets.png", "matching.png",
                    "index.html", "origin.json",
                )
            },
            REPORT, slices.report, resource_needs.report, hours=1, gpu=False,
            optional={"sets_png": lambda config: bool(distilled(config)), "matching_png": lambda config: bool(matched(config))},
        ),
    ]
}  # fmt: skip


def files(config: Config, job: Job) -> Iterator[str]:
    """Yield the paths of all outputs of a job; a name with several values makes several of the outputs that hold it."""
    stage = STAGES[job.stage]
    for role, template in stage.outputs.items():
        if not stage.optional.get(role, lambda config: True)(config):
            continue
        several = {
            name: value for name, value in job.names.items() if isinstance(value, tuple) and f"{{{name}}}" in template
        }
        single = job.wildcards
        for values in product(*several.values()):
            yield stage.path(config, role, single | dict(zip(several, values, strict=True)))


def maker(config: Config, artifact: str, names: Names) -> Stage:
    """Return the stage that makes an artifact, by its path too: teacher and targets may come from elsewhere.

    Args:
        config: of the experiment.
        artifact: what it is.
        names: what its path says, as ``place`` returns it.
    """
    if artifact == "targets" and "targets" in names:
        return STAGES["target_space"]
    if (artifact, teacher_origin(config)) in {("teacher", "checkpoint"), ("targets", "file")}:
        return STAGES[f"{artifact}_import"]
    return STAGES[artifact]


def targets_path(config: Config) -> str:
    """Return the path of the targets that students are trained on."""
    return STAGES[targets_stage(config)].path(config, "targets")


def place(path: str | Path) -> tuple[str, dict[str, str]] | None:
    """Return the artifact that lies at a path below the results, and the names in the path; None for other paths."""
    for stage in STAGES.values():
        for pattern in stage.patterns.values():
            if match := pattern.fullmatch(Path(path).as_posix()):
                return stage.artifact, match.groupdict()
    return None

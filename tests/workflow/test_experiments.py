"""Every experiment file: the jobs that it asks for at full size, and a run to the end at smoke scale on small archives."""

from collections import Counter
from pathlib import Path

import archives
import pandas as pd
import pytest
import yaml
from configs import DEFAULT, EXPERIMENTS, ROOT, merged
from project import Project

from mkdt.artifacts import Artifact
from mkdt.config.files import with_base

pytestmark = pytest.mark.slow

METHODS = ("none", "random", "sas", "krr_st", "high_loss", "mkdt", "full")
PAPER = {"cifar10", "cifar100", "tiny_imagenet", "aircraft", "cub200", "dogs", "flowers102"}

# Jobs at full size, counted by hand. A table of the paper has 7 data sets; ten batches of ten experts; three subsets each of
# random and SAS images and one of high loss; three distillations by MKDT and three by KRR-ST, from the random subsets; so
# 1 + 3 + 3 + 3 + 1 + 3 + 1 training sets of the seven methods, each a pre-training.
TABLE = {
    "data": 7, "teacher": 1, "targets": 1, "targets_probe": 1, "experts": 10,
    "subset random": 3, "subset sas": 3, "subset high_loss": 1, "distill mkdt": 3, "distill krr_st": 3,
    "pretrain none": 1, "pretrain random": 3, "pretrain sas": 3, "pretrain krr_st": 3, "pretrain high_loss": 1,
    "pretrain mkdt": 3, "pretrain full": 1,
    **{f"{rule} {method}": 1 for rule in ("select", "probe") for method in METHODS},
    "report": 1,
}  # fmt: skip
OURS = {key: count for key, count in TABLE.items() if not key.endswith((" sas", " krr_st"))}
# An ablation compares two methods; it starts from the random subsets that it compares with, or from the high-loss one.
ABLATION = {key: count for key, count in OURS.items() if not key.endswith((" none", " high_loss", " full"))}
TWO_STUDENTS = {
    key: count * (2 if key.startswith(("pretrain", "select", "probe")) else 1) for key, count in OURS.items()
}
# The default's five methods, its ten experts in two jobs, five seeds.
FASHION = OURS | {
    "data": 1, "experts": 2, "subset random": 5, "distill mkdt": 5, "pretrain random": 5, "pretrain mkdt": 5
}  # fmt: skip
JOBS = {
    "cifar10_2pct": TABLE,
    "cifar10_5pct": TABLE,
    "cifar100_2pct": TABLE,
    "cifar100_5pct": TABLE,
    "tinyimagenet_2pct": TABLE,
    "tinyimagenet_5pct": TABLE,
    "cifar10_2pct_simclr": TABLE,
    "cifar100_2pct_simclr": TABLE,
    "cifar100_2pct_larger_students": TWO_STUDENTS,
    "cifar100_2pct_random_init": ABLATION,
    "cifar100_2pct_fixed_targets": ABLATION | {"subset high_loss": 1},
    "fashion_mnist": FASHION,
}

# One table of the paper and our own experiment go through the whole smoke scale. The others differ in data, methods and
# students, and most of their time would go into the same grid and the same draws of labels again.
WHOLE = {"cifar10_2pct", "fashion_mnist"}
ONE_POINT = ("pretrain={rates: [0.1], steps: [80]}", "probe={label_draws: 1}")


def arguments(file: Path) -> tuple[str, ...]:
    """The files of an experiment, as they follow ``--configfile`` in a copy of the project."""
    return tuple(str(part.relative_to(ROOT)) for part in with_base(file))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_a_dry_run_plans_the_jobs_of_the_table(file: Path, project: Project) -> None:
    """Counted by hand above, at full size, with nothing made yet."""
    project.configfiles = arguments(file)
    planned: Counter[str] = Counter()
    for name, count in project.planned().items():
        planned["experts" if name.startswith("experts_") else name] += count
    assert planned == JOBS[file.stem]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose data sets are small archives of three classes; all experiments use its one results folder."""
    project = Project.fresh(tmp_path_factory.mktemp("experiments") / "project")
    for kind in sorted(PAPER):
        archive(project, kind, {"train": 75, "test": 10, "validation": 10})
    archive(project, "fashion_mnist", {"train": 4100, "test": 20})  # its file asks for 12,000 images by number
    return project


def archive(project: Project, kind: str, per_class: dict[str, int]) -> None:
    """Let a project take a small archive for the published one."""
    made = archives.make(kind, per_class=per_class)
    made.write(project.folder / "data")
    archives.append_to(project.folder / "src", made)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_a_smoke_run_goes_from_the_archives_to_the_tables(file: Path, shared: Project) -> None:
    """What several files share (data, teachers, experts) is made by the first and taken over by the others."""
    shared.configfiles = arguments(file)
    fewer = () if file.stem in WHOLE else ONE_POINT
    shared.run("--quiet", "--scheduler", "greedy", "--config", "scale=smoke", "tracking={enabled: false}", *fewer)
    config = DEFAULT
    for part in with_base(file):
        config = merged(config, yaml.safe_load(part.read_text()))
    results = shared.folder / "results" / f"{config['experiment']}_smoke"
    accuracy = pd.read_csv(results / "report" / "accuracy.csv")
    assert set(accuracy["downstream"]) == {f"{name}_smoke" for name in config["probe"]["downstream"]}
    assert set(accuracy["student"]) == set(config["pretrain"]["students"])
    assert set(accuracy["method"]) == set(config["methods"])
    assert accuracy["accuracy"].between(0, 100).all()
    (made,) = (results / "sets" / "mkdt").rglob("*.safetensors")
    assert len(Artifact(made).tensor("images")) < 12

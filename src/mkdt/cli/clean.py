"""``mkdt clean``: remove what can be made again, after saying how much room it frees and what getting it back costs."""

import argparse
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from mkdt.cli.run import LOCKS, living
from mkdt.config import loading as cfg
from mkdt.config.loading import CLEANED, KEPT, RESULTS
from mkdt.config.methods import METHODS
from mkdt.errors import UserError
from mkdt.jobs import estimates as resources
from mkdt.jobs.lineage import REGISTRY

RESUME = RESULTS / ".resume"
NOTES = {"settings.json", KEPT}
TEMPORARY = re.compile(
    r"\.[^/]+(\.[a-z]+)\.[a-z0-9_]{8}\1"
)  # what `artifacts.write_atomically` writes before it renames


@dataclass(frozen=True)
class Part:
    """Files that go together.

    Attributes:
        name: what they are.
        files: all of them.
        cost: what getting them back costs.
        experts: their folder; None for resume folders.
    """

    name: str
    files: list[Path]
    cost: str
    experts: Path | None = None


def plan(unfinished: bool = False) -> tuple[list[Part], list[str]]:
    """What can go from the results in the current folder, and in sentences what stays.

    Experts go where every set that is made from them is there. Of the resume folders goes what takes room: second names of
    files that stay do not, and spare a run from making those again; that of a file that is lost is the last. Resume points of jobs that did not finish stay, unless
    ``unfinished``.
    """
    parts, stays = [], []
    folders = [file.parent for file in sorted(RESUME.rglob("settings.json"))]
    stopped = [folder for folder in folders if any(folder.glob("*.state.pt")) or any(folder.glob("scratch/*"))]
    done = [file for folder in folders if folder not in stopped for file in folder.iterdir() if file.is_file()]
    kept = {file: file.stat() for file in done if file.suffix != ".lock" and file.name not in NOTES}
    for folder in [*sorted(RESULTS.glob("[!.]*/*/*/experts")), *sorted(RESULTS.glob("[!.]*/ssl_experts"))]:
        files = sorted(file for file in folder.glob("*.safetensors") if file.stem.isdigit())
        if not files:
            continue
        try:
            users = _users(folder)
        except UserError as error:
            stays.append(f"{folder}: {error}")
            continue
        missing = [path for config in users for path in _made_from(config, folder) if not path.is_file()]
        if missing:
            stays.append(f"{folder}: {missing[0]}, which is made from them, is not there yet.")
        elif not users:
            stays.append(f"{folder}: no experiment that ran in this folder is known to use them.")
        else:
            cost = f"made again by what needs them, in about {_duration(_seconds(users[0], folder, len(files)))}"
            inodes = {file.stat().st_ino for file in files}
            second = [file for file, stat in kept.items() if stat.st_ino in inodes]
            parts.append(Part(f"{folder}: {len(files)} experts", files + second, cost, folder))
            kept = {file: stat for file, stat in kept.items() if file not in second}
    if stopped and unfinished:
        files = [
            file for folder in stopped for file in folder.rglob("*") if file.is_file() and file.name != "settings.json"
        ]
        parts.append(Part(f"{RESUME}: resume points of {len(stopped)} job(s)", files, "these jobs start anew"))
    elif stopped:
        size = sum(file.stat().st_size for folder in stopped for file in folder.rglob("*") if file.is_file())
        stays.append(f"{RESUME}: {_room(size)} of {len(stopped)} job(s) that did not finish, to go on from.")
    names = Counter(stat.st_ino for stat in kept.values())
    cleaned = {part.experts for part in parts} | {mark.parent for mark in RESULTS.rglob(CLEANED)}
    alone = [
        file
        for file, stat in kept.items()
        if names[stat.st_ino] >= stat.st_nlink and (_result(file).is_file() or _result(file).parent in cleaned)
    ]
    if alone:
        cost = "nothing, until a run goes back to settings or files that are gone; then they are made anew"
        parts.append(Part(f"{RESUME}: {len(alone)} finished file(s) that no result shares", alone, cost))
    torn = [file for file in RESULTS.rglob(".*") if TEMPORARY.fullmatch(file.name) and file.is_file()]
    if torn:
        parts.append(Part(f"{RESULTS}: {len(torn)} half-written file(s) of killed jobs", torn, "nothing"))
    return parts, stays


def _result(kept: Path) -> Path:
    """The output whose second name lies in a resume folder (``job.Stage.resume``); if it is lost, this is the last one."""
    place = RESULTS / kept.parent.parent.relative_to(RESUME)  # an output, or the folder of several
    return (place.parent if place.suffix else place) / kept.name


def freed(parts: Iterable[Part]) -> int:
    """Bytes that removing them frees: a file with a name elsewhere goes on taking its room."""
    files = {path: path.stat() for part in parts for path in part.files}
    names = Counter(stat.st_ino for stat in files.values())
    sizes = {stat.st_ino: stat.st_size for stat in files.values() if names[stat.st_ino] >= stat.st_nlink}
    return sum(sizes.values())


def remove(parts: Iterable[Part]) -> None:
    """Remove them. A run that is killed halfway leaves nothing that Snakemake would ask for."""
    for part in parts:
        if part.experts is not None:
            (part.experts / CLEANED).touch()  # first: from here on `rule all` does without them
        for file in part.files:
            file.unlink(missing_ok=True)
    for settings in list(RESUME.rglob("settings.json")):
        left = {file.name for file in settings.parent.iterdir() if file.suffix != ".lock"}
        if left <= {*NOTES, "scratch"} and not any(settings.parent.glob("scratch/*")):
            shutil.rmtree(settings.parent)


def refuse_while_running() -> None:
    """Raise where a run is in progress: Snakemake's lock, its process or a job's, or a lock on a resume folder.

    Raises:
        UserError: says what is there.
    """
    if not RESULTS.is_dir():
        raise UserError(f"there is no {RESULTS}/ in {Path.cwd()}: run this in the project's folder.")
    if any(map(bool, living())) or any(LOCKS.glob("*")):
        raise UserError(
            "a run is in progress in this folder, or was killed: wait for it, or let mkdt run finish it first."
        )
    for file in RESUME.rglob("*.lock"):
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout as error:
            raise UserError(f"a job works on {file.parent}: wait until it is done.") from error


def _users(experts: Path) -> list[dict[str, Any]]:
    """Configs, as they ran last, of the experiments that use a folder of experts.

    Raises:
        UserError: one cannot be read, so that it is not known which sets it makes from them.
    """
    shared, found = experts.parent.relative_to(RESULTS).as_posix(), []
    for names in sorted((RESULTS / REGISTRY).glob("*.json")):
        if shared in cfg.registered(names) or shared == names.stem:
            file = names.with_suffix(".yaml")
            try:
                found.append(cfg.load(yaml.safe_load(file.read_text(encoding="utf-8"))))
            except (UserError, OSError, yaml.YAMLError) as error:
                raise UserError(
                    f"the config of an experiment that uses them, {file}, is no good any more ({error}): delete it and "
                    f"{names.name} if that experiment is over."
                ) from error
    return found


def _made_from(config: Mapping[str, Any], experts: Path) -> list[Path]:
    """The sets of an experiment that are made from its experts, or from those of ``mtt_ssl``."""
    config = dict(config)
    made = [
        (name, *variant) for name in config["methods"] if cfg.has_budget(name) for variant in cfg.variants(config, name)
    ]
    for name, budget, seed in [item for item in made if METHODS[item[0]].distilled]:
        init = cfg.initial_method(config, name)
        made.append((init, budget, seed if METHODS[init].seeded else 0))
    ssl = experts.name == "ssl_experts"
    made = [item for item in made if (METHODS[item[0]].rule == "mtt" if ssl else METHODS[item[0]].experts)]
    folder = RESULTS / config["experiment"] / "sets"
    return [folder / name / budget / f"{seed}.safetensors" for name, budget, seed in made]


def _seconds(config: Mapping[str, Any], experts: Path, count: int) -> float:
    """Of making experts again, one job after the other.

    A job's benchmark is of its last run, which may have found some of its experts finished: the longest stands for each.
    Without any, the model's time (``mkdt.jobs.estimates``).
    """
    jobs = -(-count // config["experts"]["per_job"])
    stage = "sslexperts" if experts.name == "ssl_experts" else "experts"
    files = (RESULTS / "benchmarks" / experts.parent.relative_to(RESULTS)).glob(f"{stage}_*.tsv")
    took = [float(pd.read_csv(file, sep="\t")["s"].iloc[0]) for file in files]
    if took:
        return jobs * max(took)
    config = dict(config)
    gpus = cfg.gpus_per_job(config)
    return 3600 * jobs * resources.hours(resources.need(config, stage), gpus, config["compute"]["threads"])


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"


def _room(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand ``mkdt clean``."""
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--unfinished", action="store_true", help="also resume points of jobs that did not finish")
    parser.set_defaults(run=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    refuse_while_running()
    parts, stays = plan(arguments.unfinished)
    for part in parts:
        print(f"{part.name}, {_room(freed([part]))}. To get them back: {part.cost}.")
    for sentence in stays:
        print(f"stays - {sentence}")
    print(f"This frees {_room(freed(parts))}. Sets, teachers, students, tables, reports and the MLflow store stay.")
    if not parts or arguments.dry_run:
        return 0
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UserError("nothing was removed: give --yes, or answer in a terminal.")
        if input("Remove them? [y/N] ").strip().lower() not in {"y", "yes"}:
            return 1
    refuse_while_running()  # the answer may have taken a while
    remove(parts)
    return 0

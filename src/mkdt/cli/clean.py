"""``mkdt clean``: remove what can be made again, after saying how much room it frees and what getting it back costs."""

import argparse
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import stat_result
from pathlib import Path

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from mkdt.cli.run import LOCKS, living
from mkdt.config.loading import load
from mkdt.config.methods import METHODS
from mkdt.config.plan import EXPERT_STAGES, Job, jobs
from mkdt.config.registry import registered
from mkdt.config.result_folders import CLEANED, KEPT, REGISTRY, RESULTS
from mkdt.config.result_folders import RESUME as RESUME_FOLDER
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES, files, place
from mkdt.errors import UserError

RESUME = RESULTS / RESUME_FOLDER
NOTES = {"settings.json", KEPT}
# What `artifacts.write_atomically` writes before it renames.
TEMPORARY = re.compile(r"\.[^/]+(\.[a-z]+)\.[a-z0-9_]{8}\1")


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


def removable(unfinished: bool = False) -> tuple[list[Part], list[str]]:
    """Return what can go from the results in the current folder, and in sentences what stays.

    Experts go where every set that is made from them is there. Resume files that use disk space go; hard links to outputs
    that still exist cost nothing and stay, and so does the last copy of an output that was lost. Resume points of jobs that
    did not finish stay, unless ``unfinished``.
    """
    folders = [file.parent for file in sorted(RESUME.rglob("settings.json"))]
    stopped = [folder for folder in folders if any(folder.glob("*.state.pt")) or any(folder.glob("scratch/*"))]
    done = [file for folder in folders if folder not in stopped for file in folder.iterdir() if file.is_file()]
    kept = {file: file.stat() for file in done if file.suffix != ".lock" and file.name not in NOTES}
    parts, stays = _removable_experts(kept)
    second = {file for part in parts for file in part.files}
    kept = {file: stat for file, stat in kept.items() if file not in second}
    if stopped:
        part = _unfinished(stopped)
        parts += [part] * unfinished
        stays += (
            [] if unfinished else [f"{RESUME}: {_room(freed([part]))} of {len(stopped)} job(s) that did not finish."]
        )
    return parts + _unshared(kept, parts) + _half_written(), stays


def _removable_experts(kept: Mapping[Path, stat_result]) -> tuple[list[Part], list[str]]:
    """Return the folders of experts that can go, with their second names in resume folders, and which stay and why."""
    parts, stays = [], []
    for folder, experts in _expert_folders().items():
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
            inodes = {file.stat().st_ino for file in experts}
            second = [file for file, stat in kept.items() if stat.st_ino in inodes]
            cost = f"made again by what needs them{_took(users[0], folder)}"
            parts.append(Part(f"{folder}: {len(experts)} experts", experts + second, cost, folder))
    return parts, stays


def _expert_folders() -> dict[Path, list[Path]]:
    """Return every folder of experts with the experts in it."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(RESULTS.glob("[!.]*/**/*.safetensors")):
        known = place(path.relative_to(RESULTS))
        if known and known[0] in EXPERT_STAGES:
            folders.setdefault(path.parent, []).append(path)
    return folders


def _unfinished(stopped: list[Path]) -> Part:
    """Return the resume points of jobs that did not finish."""
    points = [
        path for folder in stopped for path in folder.rglob("*") if path.is_file() and path.name != "settings.json"
    ]
    return Part(f"{RESUME}: resume points of {len(stopped)} job(s)", points, "these jobs start anew")


def _unshared(kept: Mapping[Path, stat_result], parts: Iterable[Part]) -> list[Part]:
    """Return kept outputs of settings or code that are no longer in use: no result shares the file."""
    links = Counter(stat.st_ino for stat in kept.values())
    cleaned = {part.experts for part in parts} | {mark.parent for mark in RESULTS.rglob(CLEANED)}
    alone = [
        file
        for file, stat in kept.items()
        if links[stat.st_ino] >= stat.st_nlink and (_result(file).is_file() or _result(file).parent in cleaned)
    ]
    cost = "nothing, until a run goes back to settings or files that are gone; then they are made anew"
    return [Part(f"{RESUME}: {len(alone)} finished file(s) that no result shares", alone, cost)] if alone else []


def _half_written() -> list[Part]:
    """Return files that killed jobs were writing."""
    torn = [file for file in RESULTS.rglob(".*") if TEMPORARY.fullmatch(file.name) and file.is_file()]
    return [Part(f"{RESULTS}: {len(torn)} half-written file(s) of killed jobs", torn, "nothing")] if torn else []


def _result(kept: Path) -> Path:
    """Return the output whose second name lies in a resume folder; if it is lost, this is the last one."""
    below = RESULTS / kept.parent.parent.relative_to(RESUME)  # an output, or the folder of several
    return (below.parent if below.suffix else below) / kept.name


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


def _users(experts: Path) -> list[Config]:
    """Return the configs, as they ran last, of the experiments that use a folder of experts.

    Raises:
        UserError: one cannot be read, so that it is not known which sets it makes from them.
    """
    below = experts.relative_to(RESULTS)
    configs = []
    for names in sorted((RESULTS / REGISTRY).glob("*.json")):
        if below.parent.as_posix() in registered(names) or below.parts[0] == names.stem:
            file = names.with_suffix(".yaml")
            try:
                configs.append(load(yaml.safe_load(file.read_text(encoding="utf-8"))))
            except (UserError, OSError, yaml.YAMLError) as error:
                raise UserError(
                    f"the config of an experiment that uses them, {file}, is no good any more ({error}): delete it and "
                    f"{names.name} if that experiment is over."
                ) from error
    return configs


def _expert_jobs(config: Config, experts: Path) -> list[Job]:
    """Return the jobs of an experiment that train the experts of a folder."""
    return [
        job
        for job in jobs(config)
        if job.stage in EXPERT_STAGES and any(Path(path).parent == experts for path in files(config, job))
    ]


def _made_from(config: Config, experts: Path) -> list[Path]:
    """Return the sets of an experiment that are made from the experts of a folder."""
    trained = _expert_jobs(config, experts)
    own = {str(job.names["method"]) for job in trained if job.stage == "method_experts"}
    shared = any(job.stage == "experts" for job in trained)
    made = [job for job in jobs(config) if job.stage in ("subset", "distill")]
    using = [
        job for job in made if job.names["method"] in own or (shared and METHODS[str(job.names["method"])].experts)
    ]
    return [Path(path) for job in using for path in files(config, job) if Path(path).suffix == ".safetensors"]


def _took(config: Config, experts: Path) -> str:
    """Return in words how long making experts again takes; empty where no benchmark file says it.

    A job's benchmark is of its last run, which may have found some of its experts finished: the longest stands for each.
    """
    trained = _expert_jobs(config, experts)
    names = [job.wildcards for job in trained]
    noted = [Path(STAGES[job.stage].benchmark(config, one)) for job, one in zip(trained, names, strict=True)]
    seconds = [float(pd.read_csv(file, sep="\t")["s"].iloc[0]) for file in noted if file.is_file()]
    return f", in about {_duration(len(trained) * max(seconds))}" if seconds else ""


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
    parts, stays = removable(arguments.unfinished)
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

"""``mkdt run``: clean up after a killed Snakemake, then start Snakemake. The same command starts and continues a run."""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence, Set
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from mkdt.config.files import check_files
from mkdt.config.schema import nested
from mkdt.errors import UserError, redact

LOCKS = Path(".snakemake") / "locks"
PATIENCE = 600.0  # seconds for orphaned jobs to save; longer than any stage's step
CONFIG_SUFFIXES = {".yaml", ".yml", ".json"}
KEY = re.compile(r"[a-zA-Z_][\w-]*\w")  # what Snakemake takes for a key of --config
# With these, alone or behind others (-ns), no Snakefile is needed here.
ELSEWHERE = re.compile(r"--(snakefile|help|version).*|-[a-zA-Z]*[shv].*")
# An option that may take the next word: any long one, and Snakemake's short ones with a value, alone or behind others (-ns).
TAKING = re.compile(r"--.+|-[a-zA-Z]*[sjcdeCROPUqwT]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``mkdt run``, which are Snakemake's."""
    parser.prefix_chars = "\0"  # so that options are left to Snakemake
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of Snakemake")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    words = arguments.arguments
    check_words(words)
    if not any(map(ELSEWHERE.fullmatch, words)) and (note := no_checkout()):
        raise UserError(note)
    take_over()
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *words])


def no_checkout() -> str | None:
    """Return what to do where the current folder has no workflow to run; None where it has one."""
    if Path("Snakefile").is_file():
        return None
    return (
        f"{Path.cwd()} has no Snakefile: run this in the folder of the project's repository. The installed package alone "
        "does mkdt inspect, export, compare and track."
    )


def check_words(words: list[str]) -> None:
    """Check what Snakemake reads of its command line before the Snakefile can: config files and keys.

    Raises:
        UserError: names the word at fault and shows the right spelling.
    """
    files = values(words, {"--configfile", "--configfiles"})
    try:
        check_files(files)
    except UserError as error:
        targets = [file for file in files if Path(file).suffix not in CONFIG_SUFFIXES]
        if not targets:
            raise
        rest = shlex.join(file for file in files if file not in targets) or "FILE.yaml"
        raise UserError(
            f"{targets[0]} is no config file, and --configfile takes every word up to the next option: targets come first, "
            f"as in mkdt run {shlex.join(targets)} --cores 2 --configfile {rest}."
        ) from error
    for before, word in pairwise(["", *words]):
        is_target = not word.startswith("-") and "=" not in word and word not in files and not TAKING.fullmatch(before)
        if is_target and word.endswith((".yaml", ".yml")):
            raise UserError(f"{word} stands where targets do, the files to make: write --configfile {word}.")
    entries_of(values(words, {"--config", "-C"}))


def entries_of(entries: Sequence[str]) -> dict[str, Any]:
    """Return the settings that words of Snakemake's ``--config`` stand for.

    Raises:
        UserError: shows how the word at fault is written.
    """
    settings = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if equals and KEY.fullmatch(key):
            try:
                settings[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UserError(
                    f"--config {' '.join(entries)}: the value of '{key}' is not YAML. One with spaces needs quotes, as in "
                    "'distill={iterations: 5}'."
                ) from error
            continue
        is_nested = equals and re.fullmatch(r"[\w-]+([.:][\w-]+)+", key)
        if equals and key and not is_nested:
            raise UserError(
                f"--config: '{key}' in '{entry}' is no name for Snakemake, which takes two or more letters, digits, _ and -, "
                "the first a letter or _, the last no -; the keys of the config are in config/README.md."
            )
        spelled = nested(key, value) if is_nested else "distill: {iterations: 5}"
        raise UserError(
            f"--config takes words of the form NAME=VALUE up to the next option, got '{entry}': a nested key is written "
            f"'{spelled.replace(': ', '=', 1)}', with these quotes, and targets come before --config."
        )
    return settings


def values(words: list[str], options: Set[str]) -> list[str]:
    """Return what an option that takes several words is given on Snakemake's command line; ``options`` are its spellings."""
    found, taking = [], False
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("-"):
            taking = option in options
            found += [value] * (taking and bool(equals))
            taking = taking and not equals
        elif taking:
            found.append(word)
    return found


def lock_note() -> str | None:
    """Return whose locks lie in this folder, and what to do about them; None where there are none."""
    if not _locked():
        return None
    owners = set(living()[0]) - _ancestors(psutil.Process())
    owners = {owner for owner in owners if not _ancestors(owner) & owners}  # each starts others for its jobs
    if not owners:
        return (
            f"{LOCKS} holds the lock of a Snakemake that does not run on this machine: if it was killed, start with "
            "mkdt run and the same words, which removes the lock."
        )
    shown = [f"process {owner.pid} since {_begun(owner)} ({redact(shlex.join(_words(owner)))})" for owner in owners]
    return f"Snakemake runs in this folder, as {', '.join(shown)}: what it makes, no other run can make meanwhile."


def take_over() -> None:
    """Stop the jobs of killed Snakemakes in this folder, and remove their lock.

    Jobs whose Snakemake is gone get SIGTERM: they save their state, and the next run resumes from it. The lock is removed
    only if no Snakemake of this folder lives on this machine. A Snakemake on another machine is not seen.
    """
    owners, orphans = living()
    for process in orphans:
        process.terminate()
    if orphans:
        print(f"mkdt run: {len(orphans)} job(s) of a killed run save their state.", file=sys.stderr)
        for process in psutil.wait_procs(orphans, PATIENCE)[1]:
            process.kill()
    if not owners and _locked():
        with suppress(FileNotFoundError):  # another `mkdt run` may remove it as well
            shutil.rmtree(LOCKS)
        print("mkdt run: removed the lock of a killed run.", file=sys.stderr)


def _locked() -> bool:
    """Return whether locks lie in this folder; a Snakemake that ends meanwhile takes the folder of its locks away."""
    with suppress(OSError):
        return any(LOCKS.iterdir())
    return False


def living() -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return the Snakemakes of this folder on this machine, and the jobs that run without one."""
    here = [process for process in psutil.process_iter() if _belongs_here(process)]
    owners = [process for process in here if _is_snakemake(process)]
    return owners, [process for process in here if _is_job(process) and not _ancestors(process) & set(owners)]


def _ancestors(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.parents())
    except psutil.Error:  # it has ended
        return set()


def _begun(process: psutil.Process) -> str:
    try:
        return f"{datetime.fromtimestamp(process.create_time()):%Y-%m-%d %H:%M}"
    except psutil.Error:  # it has ended
        return "just now"


def _words(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def _belongs_here(process: psutil.Process) -> bool:
    try:
        return process.pid != os.getpid() and Path(process.cwd()) == Path.cwd() and process.status() != "zombie"
    except psutil.Error:  # it has ended, or belongs to somebody else
        return False


def _is_snakemake(process: psutil.Process) -> bool:
    """Return whether a process is Snakemake, however it was started. A false positive only means that nothing is removed."""
    return "snakemake" in {Path(word).name for word in _words(process)}


def _is_job(process: psutil.Process) -> bool:
    """Return whether a process runs a stage's script, which Snakemake puts into its own folder."""
    words = _words(process)
    return any(word.endswith(".py") and f"{os.sep}.snakemake{os.sep}scripts{os.sep}" in word for word in words[1:2])

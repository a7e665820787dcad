"""``mkdt run``: clean up after a killed Snakemake, then start Snakemake. The same command starts and continues a run."""

import argparse
import os
import shutil
import sys
from pathlib import Path

import psutil

from mkdt.config.files import check_files

LOCKS = Path(".snakemake") / "locks"
PATIENCE = 600.0  # seconds for orphaned jobs to save; longer than any stage's step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``mkdt run``, which are Snakemake's."""
    parser.prefix_chars = "\0"  # so that options are left to Snakemake
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of Snakemake")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_files(config_files(arguments.arguments))
    take_over()
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments.arguments])


def config_files(words: list[str]) -> list[str]:
    """Return the values of ``--configfile`` on Snakemake's command line."""
    files, taking = [], False
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("-"):
            taking = option in {"--configfile", "--configfiles"}
            files += [value] * (taking and bool(equals))
            taking = taking and not equals
        elif taking:
            files.append(word)
    return files


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
    if not owners and LOCKS.is_dir() and any(LOCKS.iterdir()):
        shutil.rmtree(LOCKS)
        print("mkdt run: removed the lock of a killed run.", file=sys.stderr)


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

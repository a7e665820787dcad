"""``mkdt run``: Snakemake, after what a killed one left behind is cleared away. One command to start and to go on."""

import argparse
import os
import shutil
import sys
from pathlib import Path

import psutil

from mkdt.config.files import check_files

LOCKS = Path(".snakemake") / "locks"
PATIENCE = 600.0  # seconds that orphans have for their resume point; longer than any stage's step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``mkdt run ...``: whatever follows is Snakemake's."""
    parser.prefix_chars = "\0"  # options are not this parser's: all words are taken as they come
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of Snakemake")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_files(_config_files(arguments.arguments))
    take_over()
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments.arguments])


def _config_files(words: list[str]) -> list[str]:
    """What follows ``--configfile`` on Snakemake's command line, up to the next option."""
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
    """Clear away what Snakemakes that were killed in this folder left: their jobs, and their lock.

    Jobs that go on without a Snakemake are asked to stop (SIGTERM): they save where they are, and the next run goes on
    from there. The lock is removed only where no Snakemake of this folder lives on this machine; where the folder is
    shared, another machine's is not seen: run it on one.
    """
    owners, orphans = living()
    for process in orphans:
        process.terminate()
    if orphans:
        print(f"mkdt run: {len(orphans)} job(s) of a killed run save where they are.", file=sys.stderr)
        for process in psutil.wait_procs(orphans, PATIENCE)[1]:
            process.kill()
    if not owners and LOCKS.is_dir() and any(LOCKS.iterdir()):
        shutil.rmtree(LOCKS)
        print("mkdt run: removed the lock of a killed run.", file=sys.stderr)


def living() -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The Snakemakes of this folder on this machine, and the jobs that go on without one."""
    here = [process for process in psutil.process_iter() if _belongs_here(process)]
    owners = [process for process in here if _is_snakemake(process)]
    return owners, [process for process in here if _is_job(process) and not _ancestors(process) & set(owners)]


def _ancestors(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.parents())
    except psutil.Error:  # it ended meanwhile
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
    except psutil.Error:  # gone, or somebody else's
        return False


def _is_snakemake(process: psutil.Process) -> bool:
    """However it was started; taking something else for a Snakemake only means that nothing is cleared away."""
    return "snakemake" in {Path(word).name for word in _words(process)}


def _is_job(process: psutil.Process) -> bool:
    """The interpreter of a stage's script, which Snakemake puts into its own folder."""
    words = _words(process)
    return any(word.endswith(".py") and f"{os.sep}.snakemake{os.sep}scripts{os.sep}" in word for word in words[1:2])

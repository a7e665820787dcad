"""``mkdt doctor``: what a run of an experiment needs of this machine, what is there, and what to do about the rest."""

import argparse
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mkdt.config.plan import used_datasets
from mkdt.config.results import REGISTRY, RESULTS
from mkdt.config.sections import Config
from mkdt.config.sizes import facts_of
from mkdt.config.stages import STAGES
from mkdt.errors import UserError, redact

OLDEST_PYTHON = (3, 11)
SLURM_PLUGIN = "snakemake-executor-plugin-slurm"
SLURM_PROFILE = Path("workflow/profiles/slurm/config.yaml")
SECONDS = 5.0  # for an answer of MLflow or SLURM
# What is read in place of an archive under data.root, beside the folders of `arrays.IDX_FOLDERS` and `sources.SETS`.
UNPACKED = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
    "stl10_unlabeled": "stl10_binary",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``; ``note``, which a run survives; ``FAIL``, which it does not.
        subject: what was looked at.
        text: what was found, and what to do about it.
    """

    level: str
    subject: str
    text: str


def examine(files: Sequence[Path]) -> Iterator[Finding]:
    """Look at everything that a run of the default config with these files over it needs, in the current folder."""
    yield from _python()
    lacking = list(_libraries())
    yield from lacking
    if any(finding.level == "FAIL" for finding in lacking):
        return  # the rest would fail to import
    config = None
    for finding in _config(files):
        if isinstance(finding, Finding):
            yield finding
        else:
            config = finding
    yield from _torch(config)
    if config is not None:
        yield from _data(config)
        yield from _room(config)
    yield from _slurm()
    yield from _mlflow(config)


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("FAIL", "Python", f"{text}: {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed.")
    else:
        yield Finding("ok", "Python", text)


def _libraries() -> Iterator[Finding]:
    wanted, missing = ["mkdt"], []
    with suppress(metadata.PackageNotFoundError):
        needed = [text for text in metadata.requires("mkdt") or [] if "extra ==" not in text]
        wanted += [re.split(r"[<>=!~ ;\[]", text)[0] for text in needed]
    for name in wanted:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        todo = "make .venv/.run sets up .venv, or pip install -e . in your own environment."
        yield Finding("FAIL", "libraries", f"{', '.join(missing)} not installed for this Python: {todo}")
    else:
        yield Finding("ok", "libraries", f"all {len(wanted)}, Snakemake {metadata.version('snakemake')}")


def _config(files: Sequence[Path]) -> Iterator[Finding | Config]:
    """Findings, and the config itself where it is good."""
    import yaml

    from mkdt.config import registry
    from mkdt.config.loading import read

    shown = ", ".join(map(str, files)) or "config/config.yaml"
    if not Path("Snakefile").is_file():
        yield Finding("FAIL", "folder", f"{Path.cwd()} has no Snakefile: run this in the project's folder.")
    try:
        config = read(files)
        registry.check_names(config, RESULTS / REGISTRY)
    except UserError as error:
        yield Finding("FAIL", "config", f"{shown}: {str(error).removeprefix('config: ')}")
    except (OSError, yaml.YAMLError) as error:
        yield Finding("FAIL", "config", f"{shown} cannot be read ({' '.join(str(error).split())}).")
    else:
        yield Finding("ok", "config", f"{shown}, experiment {config['experiment']}")
        yield config
    if any(Path(".snakemake/locks").glob("*")):
        yield Finding(
            "note", "lock", "Snakemake runs here, or was killed: if it was, mkdt run in place of snakemake goes on."
        )


def _torch(config: Config | None) -> Iterator[Finding]:
    import torch

    wanted = config["compute"]["device"] if config else "auto"
    there = any(Path("/dev").glob("nvidia[0-9]*"))
    yield Finding("ok", "torch", f"{torch.__version__}, {os.cpu_count()} CPU cores")
    if torch.cuda.is_available():
        try:
            torch.ones(1, device="cuda").sum().item()
        except RuntimeError as error:
            todo = "update the driver or install a build of torch for it; compute.device: cpu does without."
            yield Finding("FAIL", "GPU", f"{torch.cuda.get_device_name()} does not compute ({error}): {todo}")
        else:
            names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
            use = ", which compute.device: cpu leaves unused" if wanted == "cpu" else ""
            yield Finding("ok", "GPU", f"{', '.join(names)}{use}")
    elif wanted == "cuda":
        level = "note" if shutil.which("sbatch") else "FAIL"  # the nodes may have what this one has not
        yield Finding(level, "GPU", "torch sees none here, but compute.device is cuda: set it to auto or cpu.")
    elif there and wanted == "auto":
        build = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        yield Finding("note", "GPU", f"there is one, but torch does not see it ({build}): jobs run on the CPU.")
    else:
        yield Finding("ok", "GPU", "none: jobs run on the CPU")
    if config and config["distill"]["compile"] and not shutil.which(os.environ.get("CXX", "g++")):
        yield Finding("note", "compiler", "distill.compile needs a C++ compiler; without one distillation is slower.")


def _data(config: Config) -> Iterator[Finding]:
    from mkdt.config.catalogue import FILES
    from mkdt.data.readers.archives import SETS
    from mkdt.data.readers.arrays import IDX_FOLDERS

    root = Path(config["data"]["root"])
    for name in used_datasets(config):
        kind, subject = config["datasets"][name]["kind"], f"data {name}"
        if Path(STAGES["data"].path(config, "data", {"dataset": name})).is_file():
            yield Finding("ok", subject, "decoded already")
        elif kind not in FILES:
            facts = facts_of(config, name)
            where = config["datasets"][name].get("path") or f"kind {kind}, no files of its own"
            yield Finding("ok", subject, f"{facts.train + facts.validation + facts.test:,} images, {where}")
        else:
            unpacked = IDX_FOLDERS.get(kind, (UNPACKED.get(kind) or SETS.get(kind, ("",))[0],))
            missing = [file for file in FILES[kind] if not (root / file.name).is_file()]
            if not missing or any(folder and (root / folder).is_dir() for folder in unpacked):
                yield Finding("ok", subject, f"{kind}, in {root}")
            elif config["data"]["download"]:
                yield Finding("note", subject, f"not in {root}: the first run fetches {missing[0].urls[0]}")
            else:
                todo = f"put {missing[0].urls[0]} at {root / missing[0].name}, or set data.download to true."
                yield Finding("FAIL", subject, f"not in data.root: {todo}")


def _room(config: Config) -> Iterator[Finding]:
    import psutil

    from mkdt.config.needs import memory_mb
    from mkdt.config.plan import jobs
    from mkdt.jobs.estimates import need_of
    from mkdt.report.costs import costs

    try:
        needs = [need_of(config, job) for job in jobs(config)]
    except UserError as error:
        yield Finding("FAIL", "students", str(error))
        return
    memory = max(memory_mb(one, 0) for one in needs) / 1e3
    written = costs(config)["disk"].sum()
    disk = max(0, sum(one.disk for one in needs) - written + max(one.resume for one in needs)) / 1e9
    try:
        RESULTS.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=RESULTS):
            free = shutil.disk_usage(RESULTS).free / 1e9
    except OSError as error:
        yield Finding("FAIL", "disk", f"{RESULTS}/ cannot be written ({error}): unlock it, or free space.")
    else:
        what = "what is left of a run" if written else "a whole run"
        text = f"{free:.1f} GB free for {RESULTS}/, {what} writes about {disk:.1f} GB"
        todo = ": free space; mkdt clean says what can go."
        yield Finding("ok" if free > disk else "FAIL", "disk", text + ("" if free > disk else todo))
    total = psutil.virtual_memory().total / 1e9
    if memory > total and not shutil.which("sbatch"):
        todo = "jobs may be killed for it; smaller batches or retain: 0 need less."
        yield Finding("note", "memory", f"{total:.1f} GB, the largest job asks for {memory:.1f} GB: {todo}")
    else:
        yield Finding("ok", "memory", f"{total:.1f} GB, the largest job asks for {memory:.1f} GB")


def _slurm() -> Iterator[Finding]:
    import yaml

    if not shutil.which("sbatch"):
        yield Finding("ok", "SLURM", "none: jobs run on this machine")
        return
    try:
        metadata.version(SLURM_PLUGIN)
    except metadata.PackageNotFoundError:
        yield Finding(
            "note", "SLURM", f"{SLURM_PLUGIN} is not installed: make .venv/.slurm, or pip install -e '.[slurm]'"
        )
        return
    try:
        told = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=SECONDS, check=True)
        profile = yaml.safe_load(SLURM_PROFILE.read_text(encoding="utf-8"))["default-resources"]
    except (OSError, subprocess.SubprocessError, yaml.YAMLError, KeyError) as error:
        yield Finding("note", "SLURM", f"it is installed, but does not answer ({error}).")
        return
    partitions = told.stdout.split()
    chosen = [item.split("=", 1)[1] for item in profile if item.startswith("slurm_partition=")]
    if set(chosen) <= set(partitions):
        yield Finding(
            "ok", "SLURM", f"snakemake --workflow-profile {SLURM_PROFILE.parent} submits to {', '.join(chosen)}"
        )
    else:
        todo = f"name one of {', '.join(partitions)} in {SLURM_PROFILE}"
        yield Finding("note", "SLURM", f"there is no partition {', '.join(chosen)}: {todo}, and your account.")


def _mlflow(config: Config | None) -> Iterator[Finding]:
    if config and not config["tracking"]["enabled"]:
        yield Finding("ok", "MLflow", "off (tracking.enabled: false)")
        return
    given = (config["tracking"]["uri"] if config else None) or os.environ.get("MLFLOW_TRACKING_URI")
    uri, todo = given or "sqlite:///results/mlflow.db", "jobs run all the same, and mkdt track sync sends it later."
    try:
        if uri.startswith(("http://", "https://")):
            place = re.sub(r"//[^/@]*@", "//", uri).rstrip("/")  # urlopen takes no password there
            with urlopen(f"{place}/health", timeout=SECONDS):
                pass
        elif uri.startswith("sqlite:///") and Path(uri.removeprefix("sqlite:///")).is_file():
            with sqlite3.connect(f"file:{uri.removeprefix('sqlite:///')}?mode=ro", uri=True) as store:
                store.execute("SELECT name FROM sqlite_master").fetchone()
    except (OSError, URLError, ValueError, sqlite3.Error) as error:
        yield Finding("note", "MLflow", f"{redact(uri)} does not answer ({redact(str(error))}): {todo}")
    else:
        yield Finding("ok", "MLflow", f"{metadata.version('mlflow')}, runs go to {redact(uri)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand ``mkdt doctor``."""
    parser.add_argument("configfile", type=Path, nargs="*", help="as for snakemake --configfile; default: the default")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    failed = 0
    for finding in examine(arguments.configfile):
        failed += finding.level == "FAIL"
        print(f"{finding.level:5} {finding.subject}: {finding.text}", flush=True)
    print("A run cannot succeed until what is marked FAIL is mended." if failed else "A run can start.")
    return int(failed > 0)

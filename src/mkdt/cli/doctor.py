"""``mkdt doctor``: check whether a run can succeed on this machine, and say what to do if not."""

import argparse
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mkdt.config.result_folders import REGISTRY, RESULTS
from mkdt.config.sections import Config, Data
from mkdt.errors import UserError, redact

SLURM_PLUGIN = "snakemake-executor-plugin-slurm"
SLURM_PROFILE = Path("workflow/profiles/slurm/config.yaml")
SECONDS = 5.0  # for an answer of MLflow or SLURM
# Folders under data.root that replace an archive, besides `arrays.IDX_FOLDERS` and `archives.SETS`.
UNPACKED = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
    "stl10_unlabeled": "stl10_binary",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``ok``, ``note`` (a run is still possible) or ``FAIL`` (it is not).
        subject: what was checked.
        text: the state, and what to do about it.
    """

    level: str
    subject: str
    text: str


def examine(files: Sequence[Path], entries: Sequence[str] = ()) -> Iterator[Finding]:
    """Check what a run in the current folder needs, with the default config, ``files`` and ``entries`` over it.

    Args:
        files: config files.
        entries: words of Snakemake's ``--config``, ``NAME=VALUE``.
    """
    libraries = _libraries()
    yield libraries
    if libraries.level == "FAIL":
        return  # the other checks could not be imported
    from mkdt.cli.run import lock_note, no_checkout

    if note := no_checkout():
        yield Finding("FAIL", "folder", note)
        return  # the other checks are of this folder
    finding, config = _config(files, entries)
    yield finding
    if note := lock_note():
        yield Finding("note", "lock", note)
    yield _gpu(config)
    if config is not None:
        yield from _earlier(config)
        yield from _data(config)
        yield from _brought(config)
        yield from _sets(config)
        yield from _room(config)
    yield _slurm()
    yield _mlflow(config)


def _libraries() -> Finding:
    required, missing = ["mkdt"], []
    with suppress(metadata.PackageNotFoundError):
        requirements = [text for text in metadata.requires("mkdt") or [] if "extra ==" not in text]
        required += [re.split(r"[<>=!~ ;\[]", text)[0] for text in requirements]
    for name in required:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        todo = "make .venv/.run sets up .venv, or pip install -e . in your own environment."
        return Finding("FAIL", "libraries", f"{', '.join(missing)} not installed for this Python: {todo}")
    versions = f"Python {platform.python_version()}, Snakemake {metadata.version('snakemake')}"
    return Finding("ok", "libraries", f"all {len(required)} are installed, {versions}")


def _config(files: Sequence[Path], entries: Sequence[str]) -> tuple[Finding, Config | None]:
    """Return the finding, and the config if it is valid."""
    from mkdt.cli.run import entries_of
    from mkdt.config.loading import read
    from mkdt.config.registry import check_experiment, check_names
    from mkdt.config.set_checks import check_values

    shown = " ".join([", ".join(map(str, files)) or "config/config.yaml", *entries])
    try:
        config = read(files, entries_of(entries))
        check_names(config, RESULTS / REGISTRY)
        check_experiment(config, RESULTS / REGISTRY)
        check_values(config)
    except UserError as error:
        return Finding("FAIL", "config", f"{shown}: {str(error).removeprefix('config: ')}"), None
    return Finding("ok", "config", f"{shown}, experiment {config['experiment']}"), config


def _earlier(config: Config) -> Iterator[Finding]:
    """Say what the run replaces of the results that an earlier run of the experiment left."""
    from mkdt.config.registry import replaced

    for sentence in replaced(config, RESULTS / REGISTRY):
        yield Finding("note", "results", sentence)


def _gpu(config: Config | None) -> Finding:
    import torch

    device = config["compute"]["device"] if config else "auto"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        try:
            torch.ones(1, device="cuda").sum().item()
        except RuntimeError as error:
            todo = "update the driver or install a torch build for it; compute.device: cpu works without."
            return Finding("FAIL", "GPU", f"{name} does not compute ({error}): {todo}")
        unused = ", not used because of compute.device: cpu" if device == "cpu" else ""
        return Finding("ok", "GPU", f"{torch.cuda.device_count()} x {name}{unused}")
    if device == "cuda":
        level = "note" if shutil.which("sbatch") else "FAIL"  # the nodes of a cluster may have a GPU
        return Finding(level, "GPU", "torch sees none here, but compute.device is cuda: set it to auto or cpu.")
    if device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")):
        build = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        return Finding("note", "GPU", f"there is one, but it is not visible to {build}: jobs run on the CPU.")
    return Finding("ok", "GPU", f"none: jobs run on {os.cpu_count()} CPU cores")


def _data(config: Config) -> Iterator[Finding]:
    from mkdt.config.catalogue import FILES
    from mkdt.config.plan import used_datasets
    from mkdt.config.sizes import facts_of, folder_remarks
    from mkdt.config.stages import STAGES

    for name in used_datasets(config):
        kind, subject = config["datasets"][name]["kind"], f"data {name}"
        decoded = Path(STAGES["data"].path(config, "data", {"dataset": name}))
        if decoded.is_file():
            yield Finding("ok", subject, f"decoded already, in {decoded}")
        elif kind in FILES:
            yield _published(config["data"], kind, subject)
        else:
            facts = facts_of(config, name)
            where = config["datasets"][name].get("path") or f"kind {kind}, no files of its own"
            splits = {"training": facts.train, "validation": facts.validation, "test": facts.test}
            counts = " + ".join(f"{count:,} {split}" for split, count in splits.items() if count)
            classes = f"{facts.classes} classes" if facts.classes else "unlabelled"
            yield Finding("ok", subject, f"{counts} images, {classes}, {where}")
        yield from (Finding("note", subject, remark) for remark in folder_remarks(config, name))


def _sets(config: Config) -> Iterator[Finding]:
    from mkdt.config.set_checks import brought_doubts

    for name, sentences in brought_doubts(config).items():
        yield from (Finding("note", f"set {name}", sentence) for sentence in sentences)


def _published(settings: Data, kind: str, subject: str) -> Finding:
    from mkdt.config.catalogue import FILES
    from mkdt.data.readers.archives import SETS
    from mkdt.data.readers.arrays import IDX_FOLDERS

    root = Path(settings["root"])
    unpacked = IDX_FOLDERS.get(kind, (UNPACKED.get(kind) or SETS.get(kind, ("",))[0],))
    missing = [file for file in FILES[kind] if not (root / file.name).is_file()]
    if not missing or any(folder and (root / folder).is_dir() for folder in unpacked):
        return Finding("ok", subject, f"{kind}, in {root}")
    if settings["download"]:
        return Finding("note", subject, f"not in {root}: the first run downloads {missing[0].urls[0]}")
    todo = f"put {missing[0].urls[0]} at {root / missing[0].name}, or set data.download to true."
    return Finding("FAIL", subject, f"not in data.root: {todo}")


def _brought(config: Config) -> Iterator[Finding]:
    """Read the teacher and targets that the user brings, as their jobs do; nothing is downloaded."""
    from mkdt.teacher.brought import checks_of  # torch takes seconds to import

    for subject, check in checks_of(config).items():
        try:
            yield Finding("ok", subject, check())
        except UserError as error:
            yield Finding("FAIL", subject, str(error))


def _room(config: Config) -> Iterator[Finding]:
    import psutil

    from mkdt.config.plan import jobs
    from mkdt.config.resource_needs import memory_mb
    from mkdt.jobs.estimate_tables import need_of
    from mkdt.report.costs import costs

    try:
        needs = [need_of(config, job) for job in jobs(config)]
    except UserError as error:
        yield Finding("FAIL", "students", str(error))
        return
    written = costs(config)["disk"].sum()
    yield _disk(RESULTS, max(0, sum(one.disk for one in needs) - written + max(one.resume for one in needs)) / 1e9)
    memory, total = max(memory_mb(one, 0) for one in needs) / 1e3, psutil.virtual_memory().total / 1e9
    text = f"{total:.1f} GB, the largest job asks for {memory:.1f} GB"
    if memory > total and not shutil.which("sbatch"):
        yield Finding("note", "memory", f"{text}: jobs may be killed; smaller batches or retain: 0 need less.")
    else:
        yield Finding("ok", "memory", text)


def _disk(results: Path, needed: float) -> Finding:
    """Compare the free space with the ``needed`` GB."""
    folder = results if results.exists() else Path()
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Finding("FAIL", "disk", f"{results}/ cannot be written ({error}): unlock it, or free space.")
    text = f"{free:.1f} GB free for {results}/, the rest of the run writes about {needed:.1f} GB"
    if free > needed:
        return Finding("ok", "disk", text)
    return Finding("FAIL", "disk", f"{text}: free space; mkdt clean says what can be removed.")


def _slurm() -> Finding:
    import yaml

    if not shutil.which("sbatch"):
        return Finding("ok", "SLURM", "none: jobs run on this machine")
    try:
        metadata.version(SLURM_PLUGIN)
        answer = subprocess.run(
            ["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        profile = yaml.safe_load(SLURM_PROFILE.read_text(encoding="utf-8"))["default-resources"]
    except metadata.PackageNotFoundError:
        todo = "make .venv/.slurm, or pip install -e '.[slurm]'"
        return Finding("note", "SLURM", f"{SLURM_PLUGIN} is not installed: {todo}")
    except (OSError, subprocess.SubprocessError, yaml.YAMLError, KeyError) as error:
        return Finding("note", "SLURM", f"it is installed, but does not answer ({error}).")
    partitions = answer.stdout.split()
    chosen = [item.split("=", 1)[1] for item in profile if item.startswith("slurm_partition=")]
    if set(chosen) <= set(partitions):
        use = f"snakemake --workflow-profile {SLURM_PROFILE.parent}"
        return Finding("ok", "SLURM", f"{use} submits to {', '.join(chosen)}")
    todo = f"name one of {', '.join(partitions)} in {SLURM_PROFILE}"
    return Finding("note", "SLURM", f"there is no partition {', '.join(chosen)}: {todo}, and your account.")


def _mlflow(config: Config | None) -> Finding:
    if config and not config["tracking"]["enabled"]:
        return Finding("ok", "MLflow", "off (tracking.enabled: false)")
    configured = (config["tracking"]["uri"] if config else None) or os.environ.get("MLFLOW_TRACKING_URI")
    uri = configured or "sqlite:///results/mlflow.db"
    database = uri.removeprefix("sqlite:///")
    try:
        if uri.startswith(("http://", "https://")):
            server = re.sub(r"//[^/@]*@", "//", uri).rstrip("/")  # urlopen accepts no password there
            with urlopen(f"{server}/health", timeout=SECONDS):
                pass
        elif uri != database and Path(database).is_file():
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
                store.execute("SELECT name FROM sqlite_master").fetchone()
    except (OSError, URLError, ValueError, sqlite3.Error) as error:
        todo = "jobs run all the same, and mkdt track sync sends it later."
        return Finding("note", "MLflow", f"{redact(uri)} does not answer ({redact(str(error))}): {todo}")
    return Finding("ok", "MLflow", f"{metadata.version('mlflow')}, runs go to {redact(uri)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``mkdt doctor``."""
    parser.add_argument(
        "files", metavar="CONFIG", type=Path, nargs="*", default=[], help="config files; default: config/config.yaml"
    )
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="the same, as for snakemake")
    parser.add_argument("--config", metavar="NAME=VALUE", nargs="+", default=[], help="as for snakemake --config")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    failed = 0
    for finding in examine([*arguments.files, *arguments.configfile], arguments.config):
        failed += finding.level == "FAIL"
        print(f"{finding.level:5} {finding.subject}: {finding.text}", flush=True)
    print("A run cannot succeed until what is marked FAIL is fixed." if failed else "A run can start.")
    return int(failed > 0)

"""The package is built and installed alone: what works without the repository, and what says that it needs it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_results import SET, make_results
from project import COLD, REPOSITORY, Project

from mkdt.distill.synthetic_set import SyntheticSet

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]
# Stands for apptainer: notes the image of a command, and runs the command without it.
APPTAINER = f"""#!{sys.executable}
import os, sys

if "--version" in sys.argv:
    sys.exit(print("apptainer version 1.4.0"))
*_, image, shell, option, command = sys.argv
with open("images.txt", "a") as images:
    print(image, file=images)
os.execvp(shell, [shell, option, command])
"""
BUILT = ["pyproject.toml", "MANIFEST.in", "Snakefile", "README.md", "LICENSE", "config", "workflow", "src"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy of the repository, and the wheel that is built from the sdist, without a package index."""
    folder = tmp_path_factory.mktemp("built")
    for name in BUILT:
        source, copy = REPOSITORY / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, and this environment's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, distributions[1]], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # After the installation, so that pip did not see the mkdt of this environment.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        line = [folder / "bin" / program, *arguments]
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the results of a run whose config was recorded."""
    spec = {"architecture": "convnet", "depth": 2, "width": 4, "norm": "instance"}
    stream = torch.Generator().manual_seed(0)
    images, targets = torch.randn(4, 1, 8, 8, generator=stream), torch.randn(4, 3, generator=stream)
    tiny = SyntheticSet(images, targets, torch.tensor(0.1), torch.tensor([0.4]), torch.tensor([0.2]), torch.arange(4))
    make_results(tmp_path / "results", spec, tiny)
    return tmp_path


def test_the_package_has_its_schema_and_the_sdist_the_workflow(
    distributions: tuple[Path, Path], installed: Run
) -> None:
    """The schema is a link in the repository, and a file elsewhere."""
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Snakefile", "config/config.yaml", "workflow/rules/common.smk", "workflow/scripts/data.py"} <= names
    code = "import json; from mkdt.config import schema; print(json.dumps([str(schema.SCHEMA), schema.SCHEMA.read_text()]))"
    path, text = json.loads(installed("python", "-c", code, cwd=distributions[0].parent).stdout)
    assert "site-packages" in path
    assert text == (REPOSITORY / "workflow/schemas/config.schema.yaml").read_text()


def test_a_set_is_inspected_loaded_and_exported(installed: Run, results: Path) -> None:
    """In a folder with nothing but results."""
    assert installed("mkdt", "--help", cwd=results).returncode == 0
    inspected = installed("mkdt", "inspect", f"results/{SET}", cwd=results)
    assert inspected.returncode == 0, inspected.stderr
    assert "4 images of 1x8x8" in inspected.stdout
    exported = installed("mkdt", "export", f"results/{SET}", "--to", "alone", cwd=results)
    assert exported.returncode == 0, exported.stderr
    assert (results / "alone/load.py").is_file()
    code = f"import mkdt; print(mkdt.__file__, len(mkdt.load_synthetic('results/{SET}')))"
    printed = installed("python", "-c", code, cwd=results).stdout.split()
    assert "site-packages" in printed[0]
    assert printed[1] == "4"


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_command_that_needs_the_repository_says_so(installed: Run, tmp_path: Path, command: str) -> None:
    """In one sentence that names the folder."""
    done = installed("mkdt", command, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path} has no Snakefile" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_doctor_examines_the_checkout_where_it_is_called(installed: Run, tmp_path: Path) -> None:
    """The config that a run there would read, not one beside the package."""
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    shutil.copy2(REPOSITORY / "Snakefile", tmp_path)
    file = tmp_path / "config/config.yaml"
    file.write_text(file.read_text().replace("experiment: digits_1pct", "experiment: mine"))
    assert "experiment mine" in installed("mkdt", "doctor", cwd=tmp_path).stdout


def test_jobs_run_in_the_image_that_the_pages_build(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake gives a job to apptainer, which finds the image in the project's folder."""
    programs = project.folder / "programs"
    programs.mkdir()
    (programs / "apptainer").write_text(APPTAINER)
    (programs / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    project.snakemake = COLD
    project.run("results/digits/data.safetensors", "--software-deployment-method", "apptainer")
    assert (project.folder / "results/digits/data.safetensors").is_file()
    assert (project.folder / "images.txt").read_text() == "mkdt.sif\n"

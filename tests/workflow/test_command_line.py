"""Command lines that newcomers type: one sentence that says what to type instead, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from brought_sets import tensors_of_a_set, write_set
from project import COLD, Project


def test_another_working_directory_is_named(project: Project, tmp_path: Path) -> None:
    """With a config file and without: the defaults of all keys lie in the project's folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text("experiment: mine\n")
    for options in ([], ["--configfile", "mine.yaml"]):
        command = [
            sys.executable,
            *COLD,
            "--cores",
            "1",
            "--dry-run",
            "-s",
            str(project.folder / "Snakefile"),
            *options,
        ]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert f"{elsewhere} has no config/config.yaml" in said
        assert f"--directory {project.folder}" in said
        assert "Traceback" not in said


def test_a_lock_is_explained_before_snakemake_suggests_to_unlock(project: Project) -> None:
    """Left by a kill: the jobs of the killed run may still be there. A process of its own is what looks for others."""
    project.snakemake = COLD
    locks = project.folder / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/digits/data.safetensors\n")
    text = project.run("results/digits/data.safetensors", fails=True)
    assert text.index("mkdt run") < text.index("--unlock")


@pytest.mark.parametrize("key", ["teacher.checkpoint.file", "targets.file"])
def test_what_is_brought_is_read_before_any_job(key: str, project: Project) -> None:
    """A damaged checkpoint or targets file is refused in a dry run, by its name."""
    (project.folder / "theirs.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    section, *rest = key.split(".")
    value = "theirs.pt"
    for name in reversed(rest):
        value = f"{{{name}: {value}}}"
    text = project.run("--dry-run", "--config", f"{section}={value}", "methods=[none, random]", fails=True)
    assert "theirs.pt" in text
    assert "Traceback" not in text
    assert not (project.folder / "results" / "digits").exists()


def test_results_that_cannot_be_written_are_one_sentence(project: Project) -> None:
    """In a dry run too; root ignores the modes of files, not those of a mount."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    results = project.folder / "results"
    results.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", results, results], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for options in (["--dry-run"], []):
            text = project.run("results/digits/data.safetensors", *options, fails=True)
            assert "results/ cannot be written" in text
            assert "Traceback" not in text
    finally:
        subprocess.run(["umount", "--lazy", results], check=True)


def test_a_brought_set_is_refused_or_doubted_before_any_job(project: Project) -> None:
    """In a dry run too: jobs only look at its header, so that Snakemake itself must read its values."""
    path, tensors = project.folder / "theirs.safetensors", tensors_of_a_set()
    chosen = ("results/digits/data.safetensors", "--config", "methods=[random,file:theirs.safetensors]")
    write_set(path, tensors | {"targets": torch.eye(len(tensors["images"]))})
    assert project.run(*chosen).count("its targets are one-hot") == 1  # jobs do not repeat it
    write_set(path, tensors | {"images": tensors["images"].clamp(0, 1)})
    for options in (["--dry-run"], []):
        text = project.run(*chosen, *options, fails=True)
        assert "theirs.safetensors: all values of its images lie from 0 to 1" in text
        assert "Traceback" not in text

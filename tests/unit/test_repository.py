"""The files that face the public say what is there: CI, hooks, templates, containers, API page."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from configs import ROOT

import mkdt
from mkdt.cli.main import COMMANDS

MAKEFILE = (ROOT / "Makefile").read_text()
RECIPES = {
    target: [command.strip() for command in recipe.splitlines()]
    for target, recipe in re.findall(r"^([$(){}\w./-]+):[^=\n]*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
YAML = [
    *sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml", ROOT / ".snakemake-workflow-catalog.yml",
]  # fmt: skip


def parsed(path: Path) -> Any:
    """A YAML file of the repository."""
    return yaml.safe_load(path.read_text())


def installs(text: str) -> list[str]:
    """The ``pip install`` commands of a text, without what differs between a virtual environment and an image."""
    commands = re.findall(r"-m pip (install [^&\n]*)", text)
    extra = r" (--quiet|--no-cache-dir|--editable|\$\(PIP_ARGS\)|--extra-index-url \S+( INDEX }}\")?)"
    return [re.sub(extra, "", command).strip() for command in commands]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_commands_that_a_file_names_exist(path: Path) -> None:
    """Targets of make, subcommands of mkdt."""
    text = yaml.safe_dump(parsed(path))
    assert set(re.findall(r"\bmake ([\w-]+)", text)) <= RECIPES.keys()
    assert set(re.findall(r"`mkdt (\w+)", text)) <= COMMANDS.keys()


def test_ci_lints_tests_and_runs_the_demo_on_supported_versions_of_python() -> None:
    """Each job by the Makefile alone."""
    jobs = parsed(ROOT / ".github/workflows/ci.yml")["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs == {"lint": ["make lint"], "test": ["make test-fast"], "demo": ["make demo"], "docs": ["make docs"]}
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    assert f">={versions[0]}" == PROJECT["requires-python"]
    for variable in parsed(ROOT / ".github/workflows/ci.yml")["env"]:
        assert re.search(rf"^{variable} \?=", MAKEFILE, re.MULTILINE)
    shown = [step["with"]["path"] for job in jobs.values() for step in job["steps"] if "path" in step.get("with", {})]
    assert all(Path(path).as_posix() in MAKEFILE for path in shown)


def test_hooks_are_the_commands_of_make_lint() -> None:
    """Hooks are given the changed files, `make lint` all."""
    hooks = [hook["entry"] for repo in parsed(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    linted = [command.replace("$(BIN)", ".venv/bin") for command in RECIPES["lint"]]
    plain = [hook.replace(" --force-exclude", "") for hook in hooks]
    assert [re.sub(r"( \.| Snakefile workflow)$", "", command) for command in linted] == plain


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_have_what_github_asks_for(path: Path) -> None:
    """A name, a description, and fields of known types with an id of their own and a label."""
    form = parsed(path)
    assert form["name"]
    assert form["description"]
    assert {field["type"] for field in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in form["body"])
    assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_the_catalogue_is_told_what_the_rules_have() -> None:
    """Conda environments; a container image only where one is published."""
    deployment = parsed(ROOT / ".snakemake-workflow-catalog.yml")["usage"]["software-stack-deployment"]
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    image = re.search(r'^container: "(.+)"', (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert image
    assert deployment == {"conda": "conda:" in rules, "apptainer": "://" in image[1], "apptainer+conda": False}
    assert f"build {image[1]} apptainer.def" in (ROOT / "docs/cluster.md").read_text()


def test_snakemake_is_required_as_by_the_package() -> None:
    """`min_version` in the Snakefile, the lower bound in pyproject.toml."""
    (version,) = re.findall(r'^min_version\("([\d.]+)"\)', (ROOT / "Snakefile").read_text(), re.MULTILINE)
    (bound,) = [text for text in PROJECT["dependencies"] if text.startswith("snakemake>")]
    assert f"snakemake>={version.removesuffix('.0')}," in bound


def test_images_are_installed_as_by_make() -> None:
    """The same command, and files that are there; the package index is that of CI unless the build is told another."""
    docker, apptainer = (ROOT / "Dockerfile").read_text(), (ROOT / "apptainer.def").read_text()
    expected = installs("\n".join(RECIPES["$(VENV)/.run"]))
    assert len(expected) == 1
    assert installs(docker) == installs(apptainer) == expected
    (index,) = {re.search(r"INDEX=(\S+)", text[1])[1] for text in [docker.split("ARG "), apptainer.split("%arguments")]}  # type: ignore[index]
    assert parsed(ROOT / ".github/workflows/ci.yml")["env"]["PIP_ARGS"] == f"--extra-index-url {index}"
    copied = [name for line in re.findall(r"^COPY (.+)", docker, re.MULTILINE) for name in line.split()[:-1]]
    context = re.findall(r"^!(.+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(context)
    files = apptainer.partition("%files")[2].partition("%post")[0].split()[::2]
    assert all((ROOT / name).exists() for name in [*copied, *files])
    assert set(files) <= set(copied)


def test_the_api_page_has_every_public_name() -> None:
    """Of `import mkdt`."""
    page = (ROOT / "docs/site/api.md").read_text()
    assert not [name for name in mkdt.__all__ if not re.search(rf":: mkdt\.{name}$", page, re.MULTILINE)]


def test_the_changelog_keeps_a_changelog() -> None:
    """Keep a Changelog 1.1: versions, the newest first, in brackets; kinds of changes below them."""
    headings = re.findall(r"^##+ .+", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "## [Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for heading in headings:
        assert (
            re.fullmatch(r"## \[Unreleased\]|## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) or heading[4:] in kinds
        )

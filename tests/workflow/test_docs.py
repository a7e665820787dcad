"""The pages tell the truth: commands and code of README and tutorial are run as they stand, with small settings."""

import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forks import fork
from PIL import Image
from project import REPOSITORY, TINY, Project

from mkdt.config.loading import merge

pytestmark = pytest.mark.slow

# What makes a run short, without a name that a page mentions.
SIZES = {key: value for key, value in yaml.safe_load(TINY.read_text()).items() if key not in {"experiment", "datasets"}}
SIZES["tracking"] = {"enabled": False}  # tests of its own; here it would only import MLflow at every run
SIZES["teacher"] = {key: value for key, value in SIZES["teacher"].items() if key != "name"}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", (REPOSITORY / page).read_text(), re.DOTALL | re.MULTILINE)


def words(text: str) -> str:
    """A block without the comments behind its commands."""
    return re.sub(r"\s+#.*$", "", text, flags=re.MULTILINE)


class Shell:
    """Runs a page's commands in a project, as a shell in an activated environment would."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def sh(self, text: str) -> str:
        """Run a block of commands and return what was printed."""
        return "".join(self.command(line) for line in words(text).replace("\\\n", " ").splitlines() if line.strip())

    def command(self, line: str) -> str:
        """Run one command; Snakemake and `mkdt` in processes that have torch already."""
        first, *arguments = shlex.split(line)
        if first not in {"snakemake", "mkdt"}:
            return self._run(["bash", "-ec", line])
        code, printed = fork([first, *arguments], self.project.folder, self.project.environment())
        assert code == 0, f"{line}\n{printed[-4000:]}"
        return printed

    def python(self, text: str, cwd: str = ".", **more: str) -> str:
        """Run a block of Python."""
        return self._run([sys.executable, "-c", text], cwd, **more)

    def _run(self, command: list[str], cwd: str = ".", **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.project.folder / cwd,
            env=self.project.environment() | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        return done.stdout


def test_the_tutorial_leads_from_jpegs_to_an_exported_set(project: Project) -> None:
    """Block by block: pictures, config, run, inspection, export; the last snippet has no mkdt to import."""
    shell = Shell(project)
    for language, text in blocks("docs/tutorial.md"):
        if language == "sh":
            # What `scale: smoke` makes of a config, test_experiments runs: here it is only planned.
            printed = shell.sh(text.replace("scale=smoke", "scale=smoke --dry-run"))
            assert "FAIL" not in printed
        elif language == "yaml":
            config = merge(yaml.safe_load(text), {key: SIZES[key] for key in SIZES.keys() - {"students", "budgets"}})
            (project.folder / "mine.yaml").write_text(yaml.safe_dump(config))
        elif language == "python" and "load" in text:
            shell.python(f"import sys; sys.modules['mkdt'] = None\n{text}", "mine_distilled", PYTHONPATH="")
        elif language == "python":
            shell.python(text)
    assert {path.name for path in (project.folder / "mine_teacher").iterdir()} == {
        "README.md",
        "encoder.safetensors",
        "load.py",
    }
    card = (project.folder / "mine_distilled/README.md").read_text()
    assert "its owner decides" in card
    assert re.search(r"\| convnet \| mine \| linear \| 10 % \|", card)


def fill_with_pictures(folder: Path) -> None:
    """Two classes of 200 one-coloured pictures."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(200):
            Image.new("RGB", (8, 8), (k, 255 - k, 0)).save(folder / name / f"{k}.png")


def test_the_commands_of_the_readme(project: Project) -> None:
    """Those with the default config are run, at tiny size under its names; studies are planned; then the Python."""
    longer = "iterations: 500"
    pages = (
        "docs/workflow.md",
        "README.md",
    )  # `make demo` is the first command of the README, and the same as that of the other
    assert all(longer in (REPOSITORY / page).read_text() for page in pages)
    default = project.folder / "config/config.yaml"
    tiny = merge(
        yaml.safe_load(default.read_text()), SIZES | {"pretrain": {"seeds": [0], "steps": [2], "rates": [0.1]}}
    )
    few = {"budgets": [0.01], "distill_seeds": [0], "methods": ["random", "mkdt"]}
    default.write_text(yaml.safe_dump(tiny | few))
    shell, known, python = Shell(project), 0, 0
    for language, text in dict.fromkeys(block for page in pages for block in blocks(page)):
        if language == "yaml":
            (project.folder / "mine.yaml").write_text(text)
            fill_with_pictures(project.folder / "photos")
        for line in words(text).replace(longer, "iterations: 5").splitlines() if language in {"", "sh"} else ():
            if line.startswith("mkdt "):
                shell.sh(line)
            elif line.startswith("snakemake "):
                shell.sh(line + (" --dry-run --quiet" if "--configfile" in line else ""))
            else:
                continue
            known += 1
        if language == "python":
            shell.python(text)
            python += 1
    assert known >= 5
    assert python >= 1
    assert (project.folder / "report.zip").is_file()


def test_every_link_leads_somewhere() -> None:
    """Relative links of all pages; every page is in the index."""
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("*/README.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    index = (REPOSITORY / "docs/README.md").read_text()
    assert not [
        page.name for page in (REPOSITORY / "docs").glob("*.md") if page.name not in index and page.name != "README.md"
    ]


def test_the_modules_and_functions_of_the_pages_exist() -> None:
    """Each `mkdt.package.module.name` that a page mentions can be imported."""
    for page in [*(REPOSITORY / "docs").glob("**/*.md"), *REPOSITORY.glob("*.md"), REPOSITORY / "benchmarks/README.md"]:
        for name in re.findall(r"`(mkdt\.\w+(?:\.\w+)+)[`(]", page.read_text()):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                raise AssertionError(f"{page.name}: {name}") from error

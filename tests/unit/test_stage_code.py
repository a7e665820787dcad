"""Digests of the real stages: an edit of any module reruns exactly the stages that import it."""

import shutil
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from configs import ROOT, with_sections

from mkdt.config.plan import jobs
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.jobs import code_digest
from mkdt.jobs.code_digest import stage_code

SOURCE = ROOT / "src" / "mkdt"
MODULES = sorted(
    path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if path.name != "__init__.py" and "extensions" not in path.parts
)  # fmt: skip
SCIENCE = {"data", "distill", "evaluate", "networks", "report", "seeding.py", "teacher"}
NO_SCIENCE = ("artifact_header", "artifacts", "cli", "config", "data.readers", "errors", "export", "jobs", "progress")


def cases(config: Config) -> dict[str, dict[str, str]]:
    """One job of each stage, and of each method that makes a set."""
    found = {}
    for job in jobs(config):
        names = job.wildcards
        found[
            f"{job.stage} {names.get('method', '')}"
            if job.stage in ("subset", "distill", "method_experts")
            else job.stage
        ] = names
    return found  # fmt: skip


CONFIG = with_sections(
    methods=["none", "random", "high_loss", "kmeans", "sas", "mkdt", "bptt", "krr_st", "mtt_ssl", "full", "teacher"],
    targets={"file": None, "space": {"center": True, "components": 8, "scale": "none"}},
)
CASES = cases(CONFIG)


def imported(stage: str, names: dict[str, str], source: Path) -> set[Path]:
    """The modules that a stage imports, as Python's own module finder sees it."""
    finder = ModuleFinder([str(source.parent)], excludes=[f"mkdt.{name}" for name in NO_SCIENCE])
    finder.run_script(str(ROOT / "workflow" / "scripts" / f"{stage}.py"))
    for name in STAGES[stage].modules(CONFIG, names):
        finder.import_hook(f"mkdt.{name}")
    files = [Path(module.__file__) for module in finder.modules.values() if module.__file__]
    return {file.relative_to(source) for file in files if file.is_relative_to(source)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, to be edited."""
    folder = tmp_path_factory.mktemp("package") / "mkdt"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "__init__.py").write_text("")  # it imports lazily, and for type checkers
    return folder


@pytest.fixture(scope="module")
def users(package: Path) -> dict[str, set[Path]]:
    """The modules that each case imports."""
    return {case: imported(case.split()[0], names, package) for case, names in CASES.items()}


def digests() -> dict[str, str]:
    """The digest of each case."""
    code_digest.forget()
    return {case: stage_code(STAGES[case.split()[0]], CONFIG, names) for case, names in CASES.items()}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_an_edit_reruns_the_stages_that_import_it(
    path: Path, package: Path, users: dict[str, set[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module that is no science: none."""
    monkeypatch.setattr(code_digest, "PACKAGE", package)
    before, text = digests(), (package / path).read_text()
    (package / path).write_text(text + "\nEDITED = True\n")
    after = digests()
    (package / path).write_text(text)
    code_digest.forget()
    counts = path.parts[0] in SCIENCE and path.parts[:2] != ("data", "readers")
    expected = {case for case, files in users.items() if counts and path in files}
    assert {case for case in CASES if before[case] != after[case]} == expected

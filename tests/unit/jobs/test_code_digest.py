"""Digest of a stage's code: code counts, prose does not, and a module counts for the stages that import it."""

from pathlib import Path

import pytest

from mkdt.jobs import code_digest as digests
from mkdt.jobs.code_digest import code_digest, science_of

SCRIPTS = Path(__file__).parents[3] / "workflow" / "scripts"
# One of each way to import: of a package, of a module, by its dotted name, by a relative name, for a type checker only.
FILES = {
    "script.py": "from mkdt.data import pixels\nfrom mkdt.jobs.stage import stage\nfrom mkdt.distill.mkdt import f\nf()\n",
    "data/pixels.py": '"""Pixels."""\nfrom mkdt.data.readers import archives\nX = 1\n',
    "data/readers/archives.py": "A = 1\n",
    "distill/mkdt.py": (
        "from typing import TYPE_CHECKING\nimport mkdt.networks.students\nfrom mkdt import seeding\nfrom . import unroll\n"
        'if TYPE_CHECKING:\n    from mkdt.teacher import ssl\n\ndef f():\n    """Docs."""\n    return 1\n'
    ),
    "distill/unroll.py": "from ..networks.flat import flatten\nfrom .near import g\nN = 1\n",
    "distill/near.py": "def g():\n    return 1\n",
    "networks/students.py": "S = 1\n",
    "networks/flat.py": "F = 1\n",
    "teacher/ssl.py": "L = 1\n",
    "evaluate/probe.py": "P = 1\n",
    "extensions/mine.py": "from mkdt.extensions.helper import h\nM = 1\n",
    "extensions/helper.py": "def h():\n    return 1\n",
    "seeding.py": "S = 1\n",
    "errors.py": "E = 1\n",
    "jobs/stage.py": "import mkdt.evaluate.probe\nY = 1\n",
}
USED = {
    "script.py", "data/pixels.py", "distill/mkdt.py", "distill/unroll.py", "distill/near.py", "networks/students.py",
    "networks/flat.py", "seeding.py", "extensions/mine.py", "extensions/helper.py",
}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package and a script."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name != "script.py":
            (file.parent / "__init__.py").touch()
        file.write_text(text)
    monkeypatch.setattr(digests, "PACKAGE", tmp_path)
    digests.forget()
    return tmp_path


def digest(package: Path) -> str:
    """The script's digest as the files are now."""
    digests.forget()
    return code_digest(package / "script.py", "extensions.mine")


@pytest.mark.parametrize("name", FILES)
def test_an_edit_counts_where_the_module_is_used_and_nowhere_else(package: Path, name: str) -> None:
    """However it is imported; types, jobs and readers of archives do not count."""
    before = digest(package)
    (package / name).write_text((package / name).read_text() + "\nADDED = 2\n")
    assert (digest(package) != before) == (name in USED)


@pytest.mark.parametrize("name", sorted(USED))
def test_prose_does_not_count(package: Path, name: str) -> None:
    """A comment, a docstring or an empty line must not retrain a hundred experts."""
    before = digest(package)
    text = (package / name).read_text()
    for old, new in (('"""Pixels."""', '"""Other."""'), ('"""Docs."""', '"""More."""'), ("\n", "  # why\n\n")):
        text = text.replace(old, new)
    (package / name).write_text(text)
    assert digest(package) == before


def test_a_moved_project_has_the_same_digests(package: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Paths are hashed relative to the package."""
    before, moved = digest(package), tmp_path_factory.mktemp("elsewhere") / "package"
    package.rename(moved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "PACKAGE", moved)
        assert digest(moved) == before
    moved.rename(package)


def test_figures_of_the_report_are_no_part_of_distillation() -> None:
    """A changed axis label must not rerun distillation."""
    digests.forget()
    assert not any(name.startswith(("report", "evaluate")) for name in science_of(SCRIPTS / "distill.py"))

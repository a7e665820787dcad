"""Code as an input: code counts, prose does not, and a module counts for those that import it."""

from pathlib import Path

import pytest

from mkdt import codedigest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A little package with a script, a module it imports, one behind that, one beside it, and plumbing."""
    (tmp_path / "script.py").write_text("from mkdt import near, job\nnear.f()\n")
    (tmp_path / "near.py").write_text(
        '"""Near."""\nfrom mkdt.far import g\n\ndef f():\n    """Docs."""\n    return g()\n'
    )
    (tmp_path / "far.py").write_text("def g():\n    return 1\n")
    (tmp_path / "beside.py").write_text("X = 1\n")
    (tmp_path / "job.py").write_text("import mkdt.beside\nY = 1\n")
    monkeypatch.setattr(codedigest, "PACKAGE", tmp_path)
    codedigest._essence.cache_clear()
    return tmp_path


def digest_after(package: Path, name: str, old: str, new: str) -> tuple[str, str]:
    """The script's digest before and after an edit."""
    before = codedigest.code_digest(package / "script.py")
    text = (package / name).read_text()
    assert old in text
    (package / name).write_text(text.replace(old, new, 1))
    codedigest._essence.cache_clear()
    return before, codedigest.code_digest(package / "script.py")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", "near.f()", "near.f(2)"),
        ("near.py", "return g()", "return g() + 1"),
        ("far.py", "return 1", "return 2"),
    ],
)
def test_code_counts_however_far(package: Path, name: str, old: str, new: str) -> None:
    """An edit in anything that the script runs must rerun it."""
    before, after = digest_after(package, name, old, new)
    assert before != after


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("near.py", '"""Near."""', '"""Other words."""'),
        ("near.py", '"""Docs."""', '"""More docs."""'),
        ("far.py", "def g():", "# why\n\ndef g():"),
        ("beside.py", "X = 1", "X = 2"),
        ("job.py", "Y = 1", "Y = 2"),
    ],
)
def test_prose_plumbing_and_strangers_do_not(package: Path, name: str, old: str, new: str) -> None:
    """A docstring, a comment, a module that is not imported, or the plumbing must not retrain a hundred experts."""
    before, after = digest_after(package, name, old, new)
    assert before == after


def test_pictures_of_the_report_are_no_part_of_distillation() -> None:
    """A changed axis label must not rerun distillation."""
    scripts = Path(__file__).parents[2] / "workflow" / "scripts"
    assert "mkdt.report" not in (scripts / "distill.py").read_text()

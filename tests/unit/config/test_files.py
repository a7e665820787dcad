"""Config files that override a base: the base comes first, and files that only lie beside one need none."""

from pathlib import Path

import pytest

from mkdt.config.files import check_files, with_base
from mkdt.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, a file that names it in a comment, and one that does not."""
    (tmp_path / "base.yaml").write_text("seed: 1\n")
    (tmp_path / "over.yaml").write_text("# snakemake --configfile base.yaml over.yaml\nseed: 2\n")
    (tmp_path / "alone.yaml").write_text("# complete\nseed: 3\n")
    return tmp_path


def test_the_base_comes_first(folder: Path) -> None:
    """For a file that names it; not for itself, or for a neighbour."""
    base, over, alone = (folder / f"{name}.yaml" for name in ("base", "over", "alone"))
    assert with_base(over) == [base, over]
    assert with_base(alone) == [alone]
    assert with_base(base) == [base]
    check_files([base, over])
    check_files([alone])


def test_a_missing_base_is_named_with_the_command(folder: Path) -> None:
    """Alone, the file would run another experiment than it says."""
    with pytest.raises(UserError) as caught:
        check_files([folder / "over.yaml"])
    assert f"--configfile {folder / 'base.yaml'} {folder / 'over.yaml'}" in str(caught.value)
    with pytest.raises(UserError):
        check_files([folder / "over.yaml", folder / "base.yaml"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0\ndata:\n\troot: x\n", "line 3 has a tab, which YAML does not allow here: use spaces"),
        ("seed: 0\n\tdata: 1\n", "line 2 has a tab"),
        ("budgets: [1, 2\nseed: 0\n", "line 2: "),
        ("a: b: c\n", "line 1: mapping values are not allowed here"),
        ("a: 'x\n", "line 2: found unexpected end of stream"),
    ],
)
def test_a_fault_of_yaml_is_shown_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    """What the parser was doing (scanning for the next token) helps nobody."""
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        check_files([tmp_path / "mine.yaml"])
    assert words in str(caught.value)
    assert "while" not in str(caught.value)

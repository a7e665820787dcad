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

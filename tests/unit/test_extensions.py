"""Extensions: what a file declares is read without running it; whatever cannot be read is named."""

from pathlib import Path

import pytest

from mkdt import extensions
from mkdt.catalog import Dataset
from mkdt.errors import UserError
from mkdt.extensions import Architecture, declared, own_modules
from mkdt.methods import Method


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of extensions."""
    monkeypatch.setattr(extensions, "FOLDER", tmp_path)
    return tmp_path


def test_a_declaration_is_read_without_running_the_file(folder: Path) -> None:
    """By kind and file name; the file's code, which would fail, is not run."""
    (folder / "mine.py").write_text("METHOD = Method(seeded=True, teacher=True)\nraise RuntimeError\n")
    (folder / "net.py").write_text('import nowhere\nARCHITECTURE = extensions.Architecture(arguments=("depth",))\n')
    (folder / "_draft.py").write_text("not python (")
    assert declared(Method, ["random"]) == {"mine": Method(seeded=True, teacher=True)}
    assert declared(Architecture, []) == {"net": Architecture(("depth",))}
    assert declared(Dataset, []) == {}
    assert own_modules("net") == ["extensions.net"]
    assert own_modules("convnet") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "declares nothing"),
        ("METHOD = Method(seeded=choose())\n", "cannot be read"),
        ("METHOD = Method(True)\n", "declares nothing"),
        ("METHOD = (\n", "cannot be read"),
        ("METHOD = Method(seeds=True)\n", "unexpected keyword argument 'seeds'"),
    ],
)
def test_a_bad_file_is_one_sentence(folder: Path, text: str, words: str) -> None:
    """It names the file."""
    (folder / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        declared(Method, [])
    assert "mine.py" in str(caught.value)


def test_a_name_that_is_taken_is_refused(folder: Path) -> None:
    """An extension replaces nothing silently."""
    (folder / "random.py").write_text("METHOD = Method()\n")
    with pytest.raises(UserError, match="'random' is taken"):
        declared(Method, ["random"])

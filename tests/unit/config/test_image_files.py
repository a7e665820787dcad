"""Which files are images: by suffix, by content, and what is never looked into."""

import io
import os
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from mkdt.config import image_files
from mkdt.config.image_files import FORMATS, HEIF, OTHERS, SUFFIXES, UNSIGNED, Walk, by_content, by_name

COLOUR = Image.new("RGB", (9, 7), (200, 100, 50))


def encoded(file_format: str) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    COLOUR.save(buffer, file_format)
    return buffer.getvalue()


def written() -> list[str]:
    """The signed formats that Pillow writes here."""
    Image.init()
    return [name for name in FORMATS if name in Image.SAVE and name not in UNSIGNED | {"HEIF", "SUN"}]


@pytest.mark.parametrize("file_format", written())
@pytest.mark.parametrize("name", ["IMG_0001", "IMG.picture", "2026.01.02 at noon"])
def test_an_image_of_any_name_is_known_by_its_content(tmp_path: Path, file_format: str, name: str) -> None:
    """Cameras, browsers and chat programs give files any suffix or none."""
    (tmp_path / name).write_bytes(encoded(file_format))
    assert list(Walk().images(tmp_path, "")) == [name]


@pytest.mark.parametrize(
    "content",
    [b"", b"BMW and BM", b"P1 is a road", b"P6", b"Python", b"II*", b"GIF", b"\xff\xd8", b"RIFF0000WAVE", b"\n\0\1\1",
     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"#define x_width 8", b"\x89HDF\r\n\x1a\n", b"%PDF-1.7", b"<svg/>",
     b"\0\0\0\x18ftypisom", b"PK\3\4"],
)  # fmt: skip
def test_other_files_are_no_images(tmp_path: Path, content: bytes) -> None:
    """Whatever they begin with; nothing is raised."""
    (tmp_path / "file").write_bytes(content)
    assert not by_content(str(tmp_path / "file"))


def test_a_bomb_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding refuses it with its name; passing over it would hide it."""
    (tmp_path / "file").write_bytes(encoded("PNG"))
    for most in (10, 40):  # an error, a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with warnings.catch_warnings(action="error"):
            assert by_content(str(tmp_path / "file"))


def test_only_files_that_their_suffix_does_not_tell_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of 100,000 images with annotations is listed by every job. A pipe would block."""
    opened: list[str] = []
    monkeypatch.setattr(image_files, "by_content", lambda path: opened.append(Path(path).name) or True)
    for name in ("a.jpg", "b.PNG", "c.xml", "d.JSON", "e.nef", "f.jpg.part", "g.jpg~", "h", "i.webp2", ".j"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("link")
    (tmp_path / "nowhere").symlink_to("not there")
    walk = Walk()
    assert sorted(walk.images(tmp_path, "")) == ["a.jpg", "b.PNG", "h", "i.webp2"]
    assert sorted(opened) == ["h", "i.webp2"]
    assert {Path(path).name for path in walk.opened} == set(opened)
    assert walk.passed_over == {".xml": 1, ".json": 1, ".nef": 1, ".part": 1, ".jpg~": 1, "": 3}


def test_the_tables_of_suffixes_agree_with_pillow() -> None:
    """A suffix that is taken by name is one of a format that is read."""
    Image.init()
    assert {Image.EXTENSION.get(suffix, "PPM") for suffix in SUFFIXES} <= {*FORMATS, "AVIF"}
    assert not SUFFIXES & OTHERS
    assert not HEIF & (SUFFIXES | OTHERS)
    assert set(FORMATS) > UNSIGNED


def test_what_is_passed_over_is_in_words(tmp_path: Path) -> None:
    """The most frequent suffix first, at most ten."""
    for k in range(12):
        (tmp_path / f"a.x{k:02}").touch()
    (tmp_path / "b.x05").touch()
    walk = Walk()
    assert list(walk.images(tmp_path, "")) == []
    text = walk.passed_over_in_words()
    assert "2 .x05, 1 .x00, 1 .x01" in text
    assert text.endswith("and 2 more")
    assert Walk().passed_over_in_words() == ""


def test_heic_without_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones write it; the sentence says what to install."""
    monkeypatch.setattr(image_files, "reads_heif", lambda: False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "IMG_2.heic").write_bytes(encoded("JPEG"))  # by a converter that kept the name
    walk = Walk()
    assert list(walk.images(tmp_path, "")) == ["IMG_2.heic"]
    assert "1 .heic" in walk.passed_over_in_words()
    assert ".[heif]" in walk.passed_over_in_words()
    assert by_name("x.heic") is None


def test_heic_is_read_with_its_library(tmp_path: Path) -> None:
    """By suffix, and by content."""
    pillow_heif = pytest.importorskip("pillow_heif")
    image_files.formats.cache_clear()
    for name in ("IMG_1.HEIC", "IMG_2"):
        pillow_heif.from_pillow(COLOUR.resize((64, 64))).save(tmp_path / "x.heic")
        (tmp_path / "x.heic").rename(tmp_path / name)
    assert sorted(Walk().images(tmp_path, "")) == ["IMG_1.HEIC", "IMG_2"]
    with Image.open(tmp_path / "IMG_2", formats=image_files.formats()) as picture:
        assert picture.size == (64, 64)

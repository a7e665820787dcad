"""Archives of arrays are unpacked safely."""

from pathlib import Path

import archives
import pytest

from mkdt.data.readers import arrays
from mkdt.errors import UserError


@pytest.mark.parametrize(
    ("name", "link"), [("../outside", ""), ("/tmp/outside", ""), ("inside", "/etc/passwd"), ("inside", "other")]
)
def test_members_outside_the_folder_and_links_are_refused(tmp_path: Path, name: str, link: str) -> None:
    """No file is written outside the folder, and no link is made."""
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "folder"
    archive.write_bytes(archives.tar_of_one(name, link))
    folder.mkdir()
    with pytest.raises(UserError, match=rf"a\.tar\.gz: the member {name} "):
        arrays.unpack(archive, folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/outside").exists()


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive of many zeros."""
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(archives.tar({"zeros": bytes(1 << 20), "more": bytes(1 << 20)}))
    monkeypatch.setattr(arrays, "LARGEST_ARCHIVE", 3 << 19)
    with pytest.raises(UserError, match=f"{archive} would unpack"):
        arrays.unpack(archive, tmp_path / "out")

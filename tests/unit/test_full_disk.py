"""A full disk: one sentence, nothing under the final name, and the same call works once there is room."""

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_disk import small_file_system

from mkdt import artifacts
from mkdt.errors import UserError
from mkdt.jobs.resume import save_state

pytestmark = pytest.mark.counts("faults injected")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    yield from small_file_system(folder, 1)


def test_a_full_disk_leaves_no_part_of_a_file(small: Path) -> None:
    """An artifact, text and a resume state; what was under the name before stays as it was."""
    writers = {
        "a.safetensors": lambda path: artifacts.save(path, {"x": torch.ones(100_000)}, stage="experts"),
        "a.jsonl": lambda path: artifacts.write_text(path, "row\n" * 100_000),
        "a.pt": lambda path: artifacts.write_atomically(
            path, lambda name: save_state({"x": torch.ones(100_000)}, name)
        ),
        "a.png": lambda path: artifacts.write_picture(path, torch.randint(256, (3, 400, 400), dtype=torch.uint8)),
    }
    filler = small / "filler"
    for name, write in writers.items():
        path = small / name
        path.write_bytes(b"earlier")
        filler.write_bytes(b"x" * 800_000)
        for before in (b"earlier", None):
            if before is None:
                path.unlink()
            with pytest.raises(UserError, match="could not be written") as caught:
                write(path)
            assert "\n" not in str(caught.value)
            assert name in str(caught.value)
            assert {file.name for file in small.iterdir()} == {"filler"} | ({name} if before else set())
            assert before is None or path.read_bytes() == before
            del caught  # its traceback keeps torch's half-written file open, and so the room that it takes
            gc.collect()
        filler.unlink()
        write(path)
        assert path.stat().st_size > 100_000
        path.unlink()


def test_a_read_only_folder_is_one_sentence(small: Path) -> None:
    """Root ignores the modes of files, not those of a mount."""
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(UserError, match="Read-only file system"):
        artifacts.write_text(small / "new" / "a.jsonl", "row\n")

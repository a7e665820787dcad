"""What becomes of a finished run whose files are damaged, swapped, foreign, lost or only touched, by the real workflow."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from project import Project

from mkdt.artifacts import Artifact, save

pytestmark = [pytest.mark.slow, pytest.mark.counts("faults injected")]

RUN = Path("results/digits/tiny_teacher")
EXPERT, OTHER = RUN / "convnet/experts/001.safetensors", RUN / "convnet/experts/002.safetensors"
SUBSET, STUDENT = (
    Path("results/tiny/sets/random/6img/0.safetensors"),
    Path("results/tiny/pretrain/convnet/full/all/0/0.safetensors"),
)
SELECTION, SCORES = (Path(f"results/tiny/{stage}/convnet/mkdt/6img.csv") for stage in ("select", "probe"))


def flip(path: Path) -> None:
    """Change one byte of a tensor that is read; a new file, as a copy would make it."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    (tensor,) = {"losses", "train_images", "valid"} & header.keys() - {"losses" if "valid" in header else ""}
    content[8 + length + header[tensor]["data_offsets"][0]] ^= 1
    replace(path, bytes(content))


def cut(path: Path) -> None:
    """Lose the end."""
    replace(path, path.read_bytes()[:-7])


def swap(path: Path) -> None:
    """Give two experts each other's name."""
    first, second = path.read_bytes(), path.with_name(OTHER.name).read_bytes()
    replace(path, second)
    replace(path.with_name(OTHER.name), first)


def foreign(width: int) -> Callable[[Path], None]:
    """Put the file of another run in its place: a whole one, of another width."""

    def put(path: Path) -> None:
        file = Artifact(path)
        header = file.header
        if header["stage"] == "teacher":
            header["parameters"]["backbone"]["width"] = width
        else:
            header["inputs"]["teacher"] = "that of another teacher"
        tensors = {name: file.tensor(name)[..., :width].clone() for name in file.names if file.tensor(name).ndim}
        path.unlink()
        keys = ("stage", "parameters", "code", "inputs", "notes")
        save(path, tensors, **{key: header[key] for key in keys})

    return put


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # the resume folder has the old one under a second name
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "damage", "words", "rule"),
    [
        (EXPERT, flip, "does not match its digest", "experts"),
        (EXPERT, swap, "was made as results/digits/tiny_teacher/convnet/experts/002.safetensors", "experts"),
        (RUN / "teacher.safetensors", cut, "is damaged", "teacher"),
        (RUN / "teacher.safetensors", foreign(4), "backbone.width: 4 -> 8", "teacher"),
        (RUN / "targets.safetensors", foreign(4), "made from another file of the rule 'teacher'", "targets"),
        (SUBSET, cut, "is damaged", "subset"),
        (STUDENT, flip, "does not match its digest", "pretrain"),
        (SELECTION, cut, "is damaged", "select"),
        (SCORES, cut, "is damaged", "probe"),
    ],
    ids=lambda value: value.__qualname__.split(".")[0] if callable(value) else value.stem if isinstance(value, Path) else "",
)  # fmt: skip
def test_damage_is_one_sentence_that_says_how_to_mend_it(
    changed: Project, finished: Project, path: Path, damage: Callable[[Path], None], words: str, rule: str
) -> None:
    """It names the file and its rule; what it says (delete it, the same command again) makes everything as it was.

    That is run to the end where it is short, planned where all stages follow.
    """
    damage(changed.folder / path)
    text = changed.run(fails=True)
    sentences = [line for line in text.splitlines() if words in line]
    assert sentences, text
    assert all(str(path) in line or (damage is swap and str(OTHER) in line) for line in sentences)
    assert all(f"the rule '{rule}'" in line for line in sentences)
    assert "Traceback" not in text
    for damaged in {path, OTHER} if damage is swap else {path}:
        (changed.folder / damaged).unlink()
    if rule in {"experts", "pretrain", "select", "probe"}:
        changed.run()
        assert changed.artifacts() == finished.artifacts()
    else:
        assert any(job.split()[0] == rule for job in changed.planned())


def test_a_lost_file_is_asked_for(changed: Project) -> None:
    """Whatever is kept is a target: the report that is there hides nothing."""
    for path in (EXPERT, RUN / "teacher.safetensors", SUBSET, STUDENT, SELECTION, SCORES):
        aside = (changed.folder / path).rename(changed.folder / "aside")
        assert changed.planned() != Counter(), path
        aside.rename(changed.folder / path)
    assert changed.planned() == Counter()


def test_a_new_time_stamp_makes_nothing_again(changed: Project) -> None:
    """Of an expert, the teacher, a set: its content is compared."""
    later = time.time() + 10
    for path in (EXPERT, RUN / "teacher.safetensors", SUBSET, STUDENT):
        os.utime(changed.folder / path, (later, later))
    assert changed.planned() == Counter()

"""`mkdt inspect`: what a file is, what it was made from, and whether it is damaged."""

import re
from pathlib import Path

import pytest
import torch
from brought_sets import tensors_of_a_set, write_set
from made_results import SET, STUDENT
from safetensors.torch import save_file

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.cli.inspection import describe
from mkdt.cli.main import main
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError


def test_inspect_says_what_a_file_is_and_what_it_was_made_from(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints kind, tensors with ranges, place and inputs; of a file outside of the results, what its header has."""
    assert main(["inspect", str(results / STUDENT)]) == 0
    text = capsys.readouterr().out
    for words in ("a pre-trained student", "experiment    study", "distill seed  0", "Intact"):
        assert words in text
    assert f"set: results/{SET}" in text
    assert "teacher: results/digits/bt/teacher.safetensors" in text
    assert re.search(r"losses +float32 +\[2, 2\]", text)
    assert "with the config of study" in text
    assert main(["inspect", str(results / STUDENT), str(results / SET)]) == 0
    assert capsys.readouterr().out.startswith(text)
    copy = results.parent / "elsewhere.safetensors"
    copy.write_bytes((results / SET).read_bytes())
    assert "outside of a results folder" in describe(copy)


def test_inspect_says_what_looks_wrong_about_a_set(tmp_path: Path) -> None:
    """Of a set that somebody else made, by its values alone; one that is as it should be raises no doubt."""
    tensors = tensors_of_a_set()
    text = describe(write_set(tmp_path / "theirs.safetensors", tensors))
    assert "looks wrong" not in text
    assert f"{sum(tensors[name].nbytes for name in ('images', 'targets', 'step_size')):,} for pixels" in text
    for wrong, word in (
        ({"images": 8 * tensors["images"]}, "run from"),
        ({"targets": torch.eye(12)}, "one-hot"),
        ({"targets": torch.arange(12)}, "not a synthetic set"),
    ):
        text = describe(write_set(tmp_path / "theirs.safetensors", tensors | wrong))
        assert re.search(rf"looks wrong: .*{word}", text)


def test_inspect_finds_a_flipped_bit_and_foreign_files(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing, truncated, altered or foreign file gives one sentence and an exit code."""
    whole = (results / SET).read_bytes()
    cases = {
        "truncated": whole[:-5],
        "altered": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "text": b"no tensors",
        "empty": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    for name in (*cases, "foreign", "missing"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        printed = capsys.readouterr()
        assert not printed.out
        assert printed.err.startswith("mkdt: ")
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is a folder: give one file in it"),
        (b"", "is empty"),
        (b"no tensors", "is no tensor file of this project: it is no safetensors file"),
        (b"seed: 0\n{}", "it is no safetensors file"),
        ({"x": torch.zeros(2)}, "a safetensors file of another program"),
    ],
)
def test_inspect_says_what_a_path_is_that_is_no_file_of_this_project(
    tmp_path: Path, content: bytes | dict[str, torch.Tensor] | None, words: str
) -> None:
    """In plain words, without those of a Python error or of the library that reads tensors."""
    path = tmp_path / "given"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    with pytest.raises(UserError, match=words) as caught:
        describe(path)
    assert str(path) in str(caught.value)
    assert not re.search(
        "KeyError|'mkdt'|header too|rule wrote|does not exist", str(caught.value).replace(str(path), "")
    )


def test_experts_of_both_kinds_are_one_input(results: Path, tiny: SyntheticSet) -> None:
    """A set names its experts by one digest; inspect shows how many they are, and what each is."""
    folder = results / "study/experts/mtt_ssl"
    for expert in range(2):
        trajectory = {"trajectory": torch.full((3, 5), float(expert))}
        artifacts.save(
            folder / f"{expert:03d}.safetensors", trajectory, stage="method_experts", parameters={}, inputs={}
        )
    identities = [Artifact(folder / f"{expert:03d}.safetensors").identity for expert in range(2)]
    path = results / "study/sets/mtt_ssl/4img/0.safetensors"
    inputs = {"experts": artifacts.digest(identities)}
    artifacts.save(path, tiny.tensors(), stage="distill", parameters={}, inputs=inputs)
    assert "study/experts/mtt_ssl, 2 experts" in describe(path)
    text = describe(folder / "001.safetensors")
    assert "a method's own expert: 3 times its 5 weights" in text
    assert "with the config of study" in text

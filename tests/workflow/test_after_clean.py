"""`mkdt clean` on a finished run, by the real workflow: nothing is asked for after it, and what needs experts makes them."""

from collections import Counter
from pathlib import Path

import pytest
from project import AFTER_DISTILL, PROBES, Project, edit

from mkdt.cli.main import main

pytestmark = pytest.mark.slow

FOLDER = Path("results/digits/tiny_teacher/convnet/experts")
EXPERTS = {f"{FOLDER.relative_to('results')}/{expert:03d}.safetensors" for expert in range(4)}
MADE_AGAIN = {"experts_0_1": 1, "experts_2_3": 1}
# Snakemake makes again what is made from a file that is made again, though it will be the same.
AFTER_EXPERTS = {"subset high_loss": 1, "pretrain high_loss": 1, "select high_loss": 1, "probe high_loss": 1}


def test_cleaned_experts_are_made_again_when_something_needs_them(
    changed: Project, finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triggers of mtime, parameters and code ask for no more than before; final artifacts stay, byte for byte."""
    monkeypatch.chdir(changed.folder)
    aside = Path("results/tiny/sets/mkdt/6img/1.safetensors").rename("aside")
    assert main(["clean", "--yes"]) == 0
    assert "1.safetensors, which is made from them, is not there yet" in capsys.readouterr().out
    aside.rename("results/tiny/sets/mkdt/6img/1.safetensors")
    assert changed.artifacts() == finished.artifacts()
    assert main(["clean", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"{FOLDER}: 4 experts, 0.07 MB. To get them back: made again by what needs them, in about" in said
    before, after = finished.artifacts(), changed.artifacts()
    assert before.keys() - after.keys() == EXPERTS
    assert after.items() - before.items() == {(str(FOLDER.relative_to("results") / ".cleaned"), b"")}

    assert changed.planned() == Counter()
    probe = {"targets_probe": 1, **PROBES, "report": 1}
    assert changed.planned("--config", "probe={label_draws: 3}") == Counter(probe)
    distill = {**MADE_AGAIN, **AFTER_EXPERTS, **AFTER_DISTILL}
    assert changed.planned("--config", "distill={image_lr: 0.5}") == Counter(distill)
    for path in Path("results").rglob("*.safetensors"):
        path.touch()
    assert changed.planned() == Counter()
    assert changed.planned("experts") == Counter({"experts": 1, **MADE_AGAIN})
    changed.run("experts")
    assert changed.artifacts() == finished.artifacts(), "the same bits, and nothing says that they are gone"
    assert changed.planned() == Counter()
    assert changed.planned("--config", "distill={image_lr: 0.5}") == Counter(AFTER_DISTILL)

    assert main(["clean", "--yes"]) == 0
    edit(changed, "src/mkdt/distill/outer_loop.py", "SMALLEST_STEP_SIZE = 1e-6", "SMALLEST_STEP_SIZE = 1e-7")
    assert changed.planned() == Counter(distill)


def test_more_of_the_same_takes_over_what_is_there(
    changed: Project, finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third distill seed after it: the first two sets are not computed again, the resume folder has them."""
    monkeypatch.chdir(changed.folder)
    assert main(["clean", "--yes"]) == 0
    sets = [f"tiny/sets/mkdt/6img/{seed}.safetensors" for seed in range(3)]
    changed.run(*(f"results/{path}" for path in sets), "--config", "distill_seeds=[0, 1, 2]")
    before, after = finished.artifacts(), changed.artifacts()
    assert after.keys() >= EXPERTS | {sets[2]}
    assert {path for path in before if after.get(path) != before[path]} == set()
    logs = [(changed.folder / "results/logs" / path).with_suffix(".log").read_text() for path in sets]
    assert ["was finished before" in log for log in logs] == [True, True, False]

"""A name of an experiment is used again: a changed setting goes on, another experiment is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configs import DEFAULT, merged
from PIL import Image

from mkdt.config import checks, folder_listings, registry
from mkdt.config.loading import load
from mkdt.config.plan import jobs
from mkdt.config.result_folders import REGISTRY, RESULTS
from mkdt.config.sections import Config
from mkdt.config.stages import files
from mkdt.errors import UserError

NOTES = RESULTS / REGISTRY
DIGITS = DEFAULT["datasets"]["digits"]


def changed(**over: Any) -> dict[str, Any]:
    """The default with some keys changed."""
    return merged(DEFAULT, over)


def photos(folder: str = "photos", **over: Any) -> dict[str, Any]:
    """An experiment whose source is a folder of images."""
    entry = {"kind": "folder", "path": folder, "train": None, "validation": 4, "test": 4, "image_size": 8}
    probe = {"selection": "photos", "downstream": ["photos"], "label_fractions": [0.5]}
    return changed(datasets={"photos": entry}, source="photos", budgets=[4], probe=probe, **over)


def tree(folder: str, each: int = 20) -> None:
    """Two classes of images."""
    for number in range(2 * each):
        path = Path(folder) / "ab"[number % 2] / f"{folder.rsplit('/')[-1][0]}{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which results lie."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(given: dict[str, Any]) -> Config:
    """Leave behind what a finished run does: its notes, and a file at every path."""
    config = load(given)
    registry.register(config, NOTES, given)
    for job in jobs(config):
        for path in files(config, job):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    return config


def check(given: dict[str, Any]) -> list[str]:
    """What a run of a config does before its first job."""
    config = load(given)
    registry.check_names(config, NOTES)
    registry.check_experiment(config, NOTES)
    return registry.replaced(config, NOTES)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"datasets": {"more": DIGITS}, "source": "more"}, ["source", '"digits" -> "more"']),
        ({"teacher": {"name": "simclr"}}, ["teacher.name", '"vicreg" -> "simclr"']),
        ({"students": {"deep": DEFAULT["students"]["convnet"]}, "student": "deep"}, ["student", '"convnet" -> "deep"']),
    ],
)
def test_another_experiment_under_an_old_name_is_refused(over: dict[str, Any], words: list[str]) -> None:
    """Whose results lie there, what differs, how many files would be replaced; without these results it may run."""
    config = ran(DEFAULT)
    own = {path for job in jobs(config) for path in files(config, job) if path.startswith("results/digits_1pct/")}
    with pytest.raises(UserError) as caught:
        check(changed(**over))
    for word in (*words, "results/digits_1pct", f"{len(own)} of them", "`experiment`"):
        assert word in str(caught.value)
    check(changed(**over, experiment="digits_other"))
    for path in own:
        Path(path).unlink()
    check(changed(**over))


def test_files_of_other_budgets_are_counted_apart() -> None:
    """What only lies there is not replaced; mixed with another source it would be nobody's."""
    ran(changed(budgets=[14], methods=["random"]))
    over = {"datasets": {"more": DIGITS}, "source": "more", "budgets": [20], "methods": ["kmeans"]}
    with pytest.raises(UserError, match=r"holds 44 files .* 7 of them would be replaced"):  # the report's
        check(changed(**over))


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"methods": [*DEFAULT["methods"], "kmeans", "krr_st"]},
        {"budgets": [0.01, 0.02]},
        {"distill_seeds": [*range(7)]},
        {"pretrain": {"seeds": [*range(7)], "students": ["convnet", "convnet_bn"]}},
        {"compute": {"threads": 2}, "tracking": {"enabled": False}, "data": {"root": "elsewhere"}},
        {"teacher": {"temperature": 0.9}},  # of another loss
    ],
)
def test_additions_and_what_makes_no_result_are_silent(over: dict[str, Any]) -> None:
    """One more method, seed, budget, student; a key that no result depends on."""
    ran(DEFAULT)
    assert check(changed(**over)) == []


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"distill": {"iterations": 500}}, "distill.iterations: 200 -> 500"),
        ({"probe": {"l2": 0.5}}, "probe.l2: 0.001 -> 0.5"),
        ({"probe": {"selection_draws": 1}}, "(probe.selection_draws: 2 -> 1)"),
        ({"probe": {"finetune": {"rates": [0.1], "steps": 2, "batch": 8, "weight_decay": 0}}}, "(probe.finetune"),
        ({"teacher": {"lr": 0.5}}, "teacher.lr: 0.002 -> 0.5"),
        ({"datasets": {"digits": {"validation": 150}}}, "data.validation: 100 -> 150"),
        ({"datasets": {"more": DIGITS}, "probe": {"selection": "more", "downstream": ["digits", "more"]}}, "probe.selection"),
        ({"probe": {"label_fractions": [0.01, 0.05, 0.1]}}, "probe.label_fractions"),
        ({"experts": {"count": 20}}, "experts.count: 10 -> 20"),
        ({"targets": {"space": {"components": 8}}}, "targets.space.components: null -> 8"),
        ({"views": ["identity", "shifts 1"]}, "views"),
        ({"distill": {"init": "kmeans"}}, 'distill.init: "random" -> "kmeans"'),
    ],
)  # fmt: skip
def test_a_changed_setting_goes_on_and_is_named(over: dict[str, Any], words: str) -> None:
    """Change one thing, pay for that alone: no refusal, one sentence."""
    ran(DEFAULT)
    (sentence,) = check(changed(**over))
    assert words in sentence
    assert "digits_1pct" in sentence


def test_the_number_of_experts_is_named_only_where_sets_are_made_from_them() -> None:
    """Real subsets look at none: more of them change no result."""
    ran(changed(methods=["random", "full"]))
    assert check(changed(methods=["random", "full"], experts={"count": 20})) == []


@pytest.mark.parametrize(
    ("over", "key"),
    [
        (lambda folder: {"teacher": {"checkpoint": {"file": f"{folder}/c.pt"}}}, "teacher.checkpoint.file"),
        (lambda folder: {"targets": {"file": f"{folder}/c.pt"}}, "targets.file"),
        (lambda folder: {"methods": ["random", f"file:{folder}/c.pt"]}, "methods.file-c"),
    ],
)
def test_another_brought_file_of_the_same_name_is_named(
    over: Callable[[str], dict[str, Any]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a checkpoint, of targets and of a set is in no path of a result."""
    monkeypatch.setattr(checks, "check_set", lambda *_: None)
    for name in ("x", "y"):
        Path(name).mkdir()
        (Path(name) / "c.pt").touch()
    methods = {"methods": ["random", "mkdt"], "distill": {"init": "random"}}  # none that needs the teacher itself
    ran(changed(**methods | over("x")))
    assert check(changed(**methods | over("x"))) == []
    (sentence,) = check(changed(**methods | over("y")))
    assert re.search(rf'{key}: "(file:)?x/c.pt" -> "(file:)?y/c.pt"', sentence)


@pytest.mark.parametrize(
    ("over", "count"),
    [({"methods": ["random", "mkdt"]}, 25), ({"budgets": [0.02]}, 93), ({"pretrain": {"seeds": [0, 1]}}, 39)],
)
def test_what_is_left_out_is_named(over: dict[str, Any], count: int) -> None:
    """It stays, and the report says nothing of it."""
    ran(DEFAULT)
    (sentence,) = check(changed(**over))
    assert f"{count} files" in sentence
    assert "results/digits_1pct/" in sentence


def test_nothing_is_said_of_what_is_not_there() -> None:
    """No results yet, though a run began; no notes; a note of a version whose config is no good any more."""
    registry.register(load(DEFAULT), NOTES, DEFAULT)
    other = changed(datasets={"more": DIGITS}, source="more", distill={"iterations": 3})
    assert check(other) == []
    ran(DEFAULT)
    for text in ("[1]", "teacher: 3", "\xff", ""):
        (NOTES / "digits_1pct.yaml").write_text(text, encoding="latin-1")
        assert check(changed(distill={"iterations": 3})) == []
    (NOTES / "digits_1pct.json").unlink()
    assert check(other) == []


def test_a_source_of_the_same_name_that_reads_other_images() -> None:
    """A folder that grows or moves is the same source; another folder, or another published set, is another."""
    tree("photos")
    ran(photos())
    tree("photos", 30)
    folder_listings.find.cache_clear()
    check(photos())
    ran(photos())
    Path("link").symlink_to("photos")
    check(photos("link"))
    for pets in ("pets", "others"):  # of the same names of files, and of others
        tree(pets, 30)
        with pytest.raises(UserError, match=rf"datasets\.photos\.path: .*photos.*{pets}"):
            check(photos(pets))
    Path("photos").rename("moved")
    check(photos("moved"))
    entry = {"kind": "digits", "path": None, "train": None, "validation": 100, "test": 397, "image_size": None}
    with pytest.raises(UserError, match=r"datasets\.photos\.kind: .*folder.*digits"):
        check(merged(photos(), {"datasets": {"photos": entry}}))


def test_notes_of_an_older_version_may_write_paths_otherwise(folder: Path) -> None:
    """Absolute or with a dot: it is the same file, and no reason to refuse."""
    tree("photos")
    (folder / "t.npy").touch()
    brought = photos(experiment="first", targets={"file": "t.npy"})
    ran(brought)
    note = NOTES / "first.json"
    noted = json.loads(note.read_text())
    assert noted["photos"]["path"] == "photos"
    noted["photos"]["path"], noted["photos/vicreg"]["file"] = f"{folder}/photos/", "./t.npy"
    note.write_text(json.dumps(noted))
    check(brought | {"experiment": "second"})
    check(brought)


@pytest.mark.parametrize(("first", "second"), [("digits_1pct", "more"), ("more", "digits_1pct")])
def test_an_experiment_named_like_the_data_set_of_another(first: str, second: str) -> None:
    """Both would lie in one folder."""
    sets = {"datasets": {"more": DIGITS}, "probe": {"downstream": ["digits", "more"]}}
    given = {"digits_1pct": changed(**sets), "more": changed(experiment="more")}
    ran(given[first])
    with pytest.raises(UserError, match="results/more "):
        check(given[second])

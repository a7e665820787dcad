"""The config: coercion, one sentence a mistake, sizes and slices."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from brought_sets import write_set
from configs import DEFAULT, EXPERIMENTS, ROOT, merged, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mkdt import artifacts
from mkdt.config import loading as cfg
from mkdt.config import plan, registry, sizes, slices
from mkdt.config.budgets import budget_count, budget_label
from mkdt.config.files import with_base
from mkdt.config.schema import reference
from mkdt.config.teacher_origin import teacher_origin
from mkdt.errors import UserError
from mkdt.jobs.lineage import REGISTRY, place_of


def as_strings(value: Any) -> Any:
    """What nested --config gives: every leaf a string."""
    if isinstance(value, dict):
        return {key: as_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_strings(item) for item in value]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def test_the_default_is_valid_and_strings_become_what_they_mean() -> None:
    """Nested --config values arrive as strings; they must mean the same as in a file."""
    loaded = cfg.load(DEFAULT)
    assert loaded == DEFAULT
    assert cfg.load(as_strings(DEFAULT)) == loaded


@pytest.mark.parametrize(
    "path", [*EXPERIMENTS, *sorted((ROOT / "config/studies").glob("*.yaml"))], ids=lambda path: path.stem
)
def test_every_experiment_file_is_valid(path: Path) -> None:
    """A study that does not pass its own checks would waste its first user's time."""
    default = DEFAULT
    for file in with_base(path)[:-1]:
        default = merged(default, yaml.safe_load(file.read_text()))
    study = yaml.safe_load(path.read_text())
    below = path.with_name(f"{path.stem.rsplit('_', 1)[0]}.yaml")  # fashion_rates.yaml is laid over fashion.yaml
    if below.is_file() and below != path:
        default = merged(default, yaml.safe_load(below.read_text()))
    cfg.load(merged(default, study.get("base", study)))  # a study of many levels overrides its base


def test_a_method_from_a_file_is_named_after_it() -> None:
    """The name goes into paths and tables: the file's stem, with or without a folder."""
    assert plan.method_name("file:sets/mine.safetensors") == plan.method_name("file:mine.safetensors") == "file-mine"
    assert plan.method_name("mkdt") == "mkdt"


def test_default_sizes() -> None:
    """Digits: 1,300 / 100 / 397, and one per cent of the images outside the test split is 14."""
    loaded = cfg.load(DEFAULT)
    assert sizes.train_images(loaded, "digits") == 1300
    assert budget_count(loaded, 0.01, "mkdt") == 14
    assert budget_label(0.01) == "1pct"
    assert budget_label(14) == "14img"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"sead": 1}, ["sead", "did you mean 'seed'"]),
        ({"teacher": {"epoch": 1}}, ["teacher.epoch", "did you mean 'epochs'"]),
        ({"teacher": {"lr": "fast"}}, ["teacher.lr", "number", "fast"]),
        ({"teacher": {"lr": float("nan")}}, ["teacher.lr", "finite"]),
        ({"teacher": {"lr": float("inf")}}, ["teacher.lr", "finite"]),
        ({"teacher": {"lr": 0}}, ["teacher.lr", "greater than 0"]),
        ({"teacher": {"epochs": 2.5}}, ["teacher.epochs", "integer"]),
        ({"teacher": {"method": "dino"}}, ["teacher.method", "barlow_twins"]),
        ({"teacher": {"warmup_epochs": 999}}, ["teacher.warmup_epochs"]),
        ({"teacher": {"augment": {"crop_scale": [0.9, 0.2]}}}, ["crop_scale", "ascend"]),
        ({"teacher": {"augment": {"crop_scale": [0.9]}}}, ["crop_scale", "at least 2"]),
        ({"teacher": {"checkpoint": {"file": "/nowhere/bt.pt"}}}, ["teacher.checkpoint.file", "/nowhere/bt.pt", "does not exist"]),
        ({"teacher": {"checkpoint": {"model": "dinov2"}}}, ["teacher.checkpoint.model", "timm:"]),
        ({"teacher": {"checkpoint": {"sha256": "abc"}}}, ["teacher.checkpoint.sha256", "must be 64 digits"]),
        ({"teacher": {"checkpoint": {"padding": 1}}}, ["teacher.checkpoint.padding", "no checkpoint"]),
        ({"teacher": {"checkpoint": {"model": "timm:vit", "mean": [123, 116, 103]}}}, ["teacher.checkpoint.mean", "123", "255"]),
        ({"teacher": {"checkpoint": {"model": "timm:vit", "std": [58, 57, 57]}}}, ["teacher.checkpoint.std", "58", "255"]),
        ({"teacher": {"checkpoint": {"model": "timm:vit", "sha256": "0" * 64}}}, ["sha256", "teacher.checkpoint.file"]),
        ({"targets": {"file": "/nowhere/t.npy"}}, ["targets.file", "/nowhere/t.npy", "does not exist"]),
        (
            {"targets": {"file": __file__}, "teacher": {"checkpoint": {"model": "timm:vit"}}},
            ["targets.file and teacher.checkpoint", "both"],
        ),
        ({"teacher": {"name": "../up"}}, ["teacher.name", "must be letters"]),
        ({"experiment": "digits"}, ["experiment", "rename"]),
        ({"experiment": "logs"}, ["logs", "taken"]),
        ({"source": "cifar"}, ["source", "cifar", "datasets"]),
        ({"student": "vgg"}, ["student", "vgg", "students"]),
        ({"students": {"convnet": {"depth": 4}}}, ["students.convnet.depth", "8x8", "3 times"]),
        ({"students": {"convnet": {"norm": "batch"}}}, ["running statistics"]),
        ({"students": {"convnet": {"norm": "group", "width": 48}}}, ["width", "32 groups"]),
        ({"students": {"convnet": {"architecture": "resnet"}}}, ["students.convnet", "blocks"]),
        (
            {"students": {"vgg": {"architecture": "vgg11"}}, "pretrain": {"students": ["vgg"]}},
            ["students.vgg", "32x32", "8x8"],
        ),
        (
            {"students": {"alex": {"architecture": "alexnet"}}, "pretrain": {"students": ["alex"], "batch": 13}},
            ["students.alex", "one image", "14"],
        ),
        ({"students": {"convnet": {"architecture": "mobilenet"}}}, ["students.convnet", "running statistics"]),
        ({"methods": ["krr_st"], "krr_st": {"student": "vgg"}}, ["krr_st.student", "vgg"]),
        ({"methods": ["mtt_ssl"], "budgets": [1]}, ["budgets", "mtt_ssl", "two"]),
        ({"methods": ["mtt_ssl"], "experts": {"epochs": 2}}, ["experts.epochs", "need 3"]),
        ({"methods": ["mkdt_high_loss"], "experts": {"epochs": 2}}, ["experts.epochs", "need 3"]),
        ({"experts": {"epochs": 2}}, ["experts.epochs", "need 3"]),
        ({"budgets": []}, ["budgets", "at least 1"]),
        ({"budgets": [0.0001]}, ["budgets", "less than one image"]),
        ({"budgets": [5000]}, ["budgets", "5000", "1300"]),
        ({"budgets": [2.5]}, ["budgets", "2.5"]),
        ({"budgets": [14, 14]}, ["budgets", "twice"]),
        ({"budgets": [0.01, 14]}, ["budgets", "0.01", "14 images"]),
        ({"budgets": [0.02, 0.0201]}, ["budgets", "0.02", "0.0201", "28 images"]),
        ({"experiment": "digits_smoke"}, ["experiment", "digits_smoke"]),
        ({"experiment": "a_smoke", "scale": "smoke"}, ["experiment", "a_smoke"]),
        ({"datasets": {"d_smoke": DEFAULT["datasets"]["digits"]}, "source": "d_smoke"}, ["datasets.d_smoke"]),
        ({"experiment": "null"}, ["experiment", "null"]),
        ({"experiment": "True"}, ["experiment", "True"]),
        ({"experiment": "0x1F"}, ["experiment", "0x1F"]),
        ({"datasets": {"no": DEFAULT["datasets"]["digits"]}}, ["datasets.no"]),
        ({"students": {"off": DEFAULT["students"]["convnet"]}}, ["students.off"]),
        ({"teacher": {"name": "0b1"}}, ["teacher.name", "0b1"]),
        ({"methods": ["mkdt", "magic"]}, ["methods.1", "magic"]),
        ({"methods": ["kmean"]}, ["methods.0", "did you mean 'kmeans'?"]),
        ({"methods": ["mkdt", "mkdt_random"]}, ["'mkdt' and 'mkdt_random'", "random images"]),
        ({"methods": ["bptt_kmeans", "bptt"]}, ["'bptt_kmeans' and 'bptt'", "kmeans images"]),
        ({"bptt": {"curriculum": True}}, ["bptt.curriculum", "bptt.window"]),
        ({"methods": ["file:/nowhere/set.safetensors"]}, ["/nowhere/set.safetensors", "does not exist"]),
        ({"distill_seeds": [0, 0]}, ["distill_seeds", "twice"]),
        ({"pretrain": {"seeds": [1, 1]}}, ["pretrain.seeds", "twice"]),
        ({"pretrain": {"steps": [20, 10]}}, ["pretrain.steps", "ascend"]),
        ({"pretrain": {"rates": [0.1, 0.01]}}, ["pretrain.rates", "ascend"]),
        ({"distill": {"retain": "all"}}, ["distill.retain", "auto"]),
        ({"distill": {"momentum": 1}}, ["distill.momentum", "less than 1"]),
        ({"datasets": {"digits": {"test": None}}}, ["datasets.digits.test", "number"]),
        ({"datasets": {"digits": {"test": 1795}}}, ["datasets.digits", "1797"]),
        ({"datasets": {"digits": {"train": 1295}}}, ["datasets.digits.train", "stratified"]),
        ({"datasets": {"digits": {"validation": 5}}}, ["datasets.digits.validation", "one image a class"]),
        ({"datasets": {"digits": {"kind": "imagenet"}}}, ["datasets.digits.kind", "cifar10"]),
        ({"datasets": {"digits": {"kind": "mnist"}}}, ["datasets.digits.test", "null"]),
        ({"probe": {"label_fractions": [0.001]}}, ["probe.label_fractions", "two labels"]),
        ({"probe": {"label_fractions": [1.5]}}, ["probe.label_fractions", "at most 1"]),
        ({"probe": {"selection_draws": 9}}, ["probe.selection_draws", "label_draws"]),
        ({"probe": {"knn": 27}}, ["probe.knn is 27", "26 labels"]),
        ({"probe": {"finetune": {"rates": [0.1]}}}, ["probe.finetune.batch", "missing"]),
        ({"probe": {"downstream": ["stl"]}}, ["probe.downstream.0", "stl"]),
        ({"compute": {"device": "tpu"}}, ["compute.device", "cuda"]),
        ({"compute": {"precision": "fp16"}}, ["compute.precision", "bf16"]),
        ({"compute": {"tf32": True}}, ["compute.tf32", "now compute.precision"]),
        ({"compute": {"threads": 0}}, ["compute.threads", "at least 1"]),
        ({"tracking": {"enabled": "maybe"}}, ["tracking.enabled", "boolean"]),
        ({"teacher": [1, 2]}, ["teacher", "object"]),
        ({"teacher": {"devices": 3}}, ["teacher.devices is 3", "teacher.batch (256)"]),
        ({"teacher": {"devices": 8, "batch": 9999}}, ["teacher.devices", "images, all there are"]),
        ({"teacher": {"devices": 0}}, ["teacher.devices", "at least 1"]),
    ],
)  # fmt: skip
def test_each_mistake_is_one_sentence(over: dict[str, Any], words: list[str]) -> None:
    """The message names the key and what was expected, in one line."""
    with pytest.raises(UserError) as caught:
        cfg.load(merged(DEFAULT, over))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["1.0e+3", "007", "123_456", "0x1F", "2024-05-01"])
@pytest.mark.parametrize("key", ["experiment", "teacher.name", "source", "datasets"])
def test_a_name_that_yaml_takes_for_something_else_needs_quotes(name: str, key: str) -> None:
    """The message shows how, since the number that it names is not what stands in the file."""
    value = yaml.safe_load(name)
    over = {"teacher.name": {"teacher": {"name": value}}, "datasets": {"datasets": {value: {}}}}.get(key, {key: value})
    with pytest.raises(UserError, match=rf"{key}.*quotes.*--config"):
        cfg.load(merged(DEFAULT, over))


@pytest.mark.parametrize("name", ["true", "No", "on", "null", "0x1F", "0b11"])
@pytest.mark.parametrize("key", ["experiment", "teacher.name", "datasets", "students"])
def test_a_name_like_a_truth_value_is_refused_in_quotes_too(name: str, key: str) -> None:
    """It says why, and promises nothing of quotes, which stand there already."""
    entry = {"datasets": DEFAULT["datasets"]["digits"], "students": DEFAULT["students"]["convnet"]}.get(key)
    over = {"teacher.name": {"teacher": {"name": name}}, "experiment": {key: name}}.get(key, {key: {name: entry}})
    with pytest.raises(UserError, match=rf"{key}.*'{name}'.*wherever its quotes are forgotten: choose another name\.$"):
        cfg.load(merged(DEFAULT, over))


@pytest.mark.parametrize("name", ["1e3", "007", "123_456", "2024-05-01", "nullify", "0x", "smoke"])
def test_a_name_of_digits_in_quotes_is_taken(name: str) -> None:
    """As a text it is a folder like any other."""
    given = merged(DEFAULT, {"experiment": name})
    assert cfg.load(yaml.safe_load(yaml.safe_dump(given)))["experiment"] == name


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "teacher: {lr: 0.1, lr: 0.2}\n", "a: [", "\xff", None])
def test_every_reader_of_config_files_refuses_what_snakemake_would(tmp_path: Path, text: str | None) -> None:
    """A key given twice, no YAML, no text, no file; in the default config too."""
    mine, good = tmp_path / "mine.yaml", tmp_path / "good.yaml"
    good.write_text("seed: 1\n")
    if text is not None:
        mine.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        cfg.read([good, mine])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(cfg, "DEFAULT", mine)
        with pytest.raises(UserError, match=r"mine\.yaml"):
            cfg.read([good])


def test_a_missing_key_is_named() -> None:
    """A config that lacks a section says which."""
    with pytest.raises(UserError, match="'probe' is missing"):
        cfg.load({key: value for key, value in DEFAULT.items() if key != "probe"})


PAPER = ("cifar10", "cifar100", "tiny_imagenet", "aircraft", "cub200", "dogs", "flowers102")


def test_the_papers_downstream_sets_fit_with_its_label_fractions() -> None:
    """Whole published training splits, 32x32, 1 % and 5 % of the labels: fewer labels than classes on four of them."""
    sets = {
        kind: {
            "kind": kind,
            "train": None,
            "validation": 5000 if kind == "cifar10" else None if kind == "flowers102" else 0,
            "test": None,
            "image_size": 32,
        }
        for kind in PAPER
    }
    over = {
        "datasets": sets,
        "source": "cifar10",
        "probe": {"selection": "cifar10", "downstream": list(PAPER), "label_fractions": [0.01, 0.05]},
    }
    loaded = cfg.load(merged(DEFAULT, over))
    assert sizes.split_sizes(loaded, "cifar10") == (45_000, 5_000, 10_000)
    assert sizes.split_sizes(loaded, "aircraft") == (6_667, 0, 3_333)
    assert sizes.split_sizes(loaded, "flowers102") == (1_020, 1_020, 6_149)
    assert budget_count(loaded, 0.02, "mkdt") == 1000
    for name, change, words in (
        ("cub200", {"image_size": None}, "datasets.cub200.image_size must be a number"),
        ("cifar10", {"validation": 0}, "neither source nor probe.selection"),
        ("flowers102", {"validation": 100}, "datasets.flowers102.validation must be null"),
        ("cub200", {"validation": None}, "datasets.cub200.validation must be a number"),
        ("dogs", {"kind": "stl10_unlabeled"}, "'dogs', which is unlabelled"),
    ):
        with pytest.raises(UserError, match=words):
            cfg.load(merged(loaded, {"datasets": {name: change}}))


def test_splits_may_be_fractions_and_an_unlabelled_source_needs_no_test_split() -> None:
    """A fraction counts the published training images; the stage is given numbers."""
    entry = {"kind": "stl10_unlabeled", "train": 0.5, "validation": 0.01, "test": None, "image_size": 32}
    loaded = cfg.load(merged(DEFAULT, {"datasets": {"stl": entry}, "source": "stl"}))
    assert sizes.split_sizes(loaded, "stl") == (50_000, 1_000, 0)
    given = settings_of(loaded, "data", dataset="stl")
    assert (given["train"], given["validation"], given["test"]) == (50_000, 1_000, None)


def test_a_slice_holds_only_what_its_stage_needs() -> None:
    """A key of one stage must not appear in the settings of an earlier one: it would rerun it."""
    loaded = cfg.load(DEFAULT)
    changed = cfg.load(
        merged(
            DEFAULT,
            {
                "probe": {"l2": 0.5},
                "distill": {"image_lr": 7},
                "experts": {"per_job": 3, "count": 20},
                "teacher": {"devices": 4},
            },
        )
    )
    for stage in ("teacher", "targets", "experts"):
        assert settings_of(loaded, stage) == settings_of(changed, stage)
    assert settings_of(loaded, "data", dataset="digits") == settings_of(changed, "data", dataset="digits")
    assert settings_of(loaded, "distill") != settings_of(changed, "distill")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("barlow_twins", {"off_diagonal"}),
        ("simclr", {"temperature"}),
        ("vicreg", {"invariance", "variance", "covariance"}),
    ],
)
def test_a_teacher_depends_on_the_options_of_its_own_loss_alone(method: str, options: set[str]) -> None:
    """A new temperature must not retrain a Barlow Twins teacher."""
    slice_ = settings_of(cfg.load(merged(DEFAULT, {"teacher": {"method": method}})), "teacher")
    assert set(slice_["loss"]) == options
    assert not {option for group in slices.LOSS_OPTIONS.values() for option in group} & set(slice_)


def test_with_a_checkpoint_no_other_key_of_the_teacher_counts(tmp_path: Path) -> None:
    """The file decides the network: a backbone or a rate that nobody uses is neither checked nor part of a slice."""
    file = tmp_path / "bt.pt"
    file.touch()
    brought = {"teacher": {"checkpoint": {"file": str(file)}, "warmup_epochs": 999, "lr": 7}}
    loaded = cfg.load(merged(DEFAULT, brought))
    assert teacher_origin(loaded) == "checkpoint"
    slice_ = settings_of(loaded, "teacher")
    assert set(slice_) == {"seed", "checkpoint"}
    assert "file" not in slice_["checkpoint"]  # where it lies does not matter, what it holds is in the header
    assert settings_of(loaded, "targets") == settings_of(cfg.load(DEFAULT), "targets") == {"seed": 0}
    # But one name for two files is two teachers.
    registry.register(loaded, tmp_path, loaded)
    (tmp_path / "other.pt").touch()
    brought["teacher"]["checkpoint"]["file"] = str(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"results/digits/vicreg.*file: "):
        registry.check_names(cfg.load(merged(DEFAULT, brought | {"experiment": "other"})), tmp_path)


def test_targets_from_a_file_need_no_teacher(tmp_path: Path) -> None:
    """Their import knows how many images the data set has as published; nothing else of the config matters to it."""
    file = tmp_path / "targets.npy"
    file.touch()
    loaded = cfg.load(merged(DEFAULT, {"targets": {"file": str(file)}, "teacher": {"warmup_epochs": 999}}))
    assert teacher_origin(loaded) == "file"
    assert settings_of(loaded, "targets") == {"seed": 0, "published": 1797}
    assert registry.names(loaded)["digits/vicreg"] == {"seed": 0, "published": 1797, "file": str(file)}


def test_the_subset_of_one_method_does_not_depend_on_the_options_of_another() -> None:
    """SAS looks at random views, so the teacher's augmentation is its key; nothing of it is a random subset's."""
    loaded = cfg.load(DEFAULT)
    changed = cfg.load(merged(DEFAULT, {"sas": {"views": 3}, "teacher": {"augment": {"noise": 0.2}}}))
    for method, same in (("random", True), ("high_loss", True), ("kmeans", True), ("sas", False)):
        slices = [settings_of(config, "subset", method=method, budget="1pct") for config in (loaded, changed)]
        assert (slices[0] == slices[1]) == same


@pytest.mark.parametrize("init", ["random", "high_loss", "kmeans"])
def test_a_name_decides_where_distillation_starts_and_else_the_key(init: str) -> None:
    """`mkdt` and `mtt_ssl` follow `distill.init`, `krr_st` its own key; each of them has a method with the start in its name."""
    other = "kmeans" if init == "random" else "random"
    loaded = cfg.load(merged(DEFAULT, {"distill": {"init": init}, "krr_st": {"init": other}}))
    assert [plan.initial_method(loaded, method) for method in ("mkdt", "mtt_ssl", "krr_st")] == [init, init, other]
    assert plan.initial_method(loaded, f"mkdt_{init}") == init
    assert plan.initial_method(loaded, f"mkdt_{other}") == other


def test_leftovers_of_another_architecture_do_not_count() -> None:
    """An experiment that switches to resnet18 inherits blocks and width from the default; they mean nothing there."""
    loaded = cfg.load(merged(DEFAULT, {"teacher": {"backbone": {"architecture": "resnet18"}}}))
    assert settings_of(loaded, "teacher")["backbone"] == {"architecture": "resnet18"}


def test_names_are_checked_across_experiments(tmp_path: Path) -> None:
    """One name with two settings is refused with the difference; equal settings and the own old ones are not."""
    registry.register(cfg.load(DEFAULT), tmp_path, DEFAULT)
    other = merged(DEFAULT, {"experiment": "other", "teacher": {"lr": 0.5}})
    with pytest.raises(UserError, match=r"results/digits/vicreg.*digits_1pct.*lr: 0.002 -> 0.5"):
        registry.check_names(cfg.load(other), tmp_path)
    registry.check_names(cfg.load(merged(DEFAULT, {"experiment": "other", "budgets": [0.05]})), tmp_path)
    registry.check_names(cfg.load(merged(DEFAULT, {"teacher": {"lr": 0.5}})), tmp_path)


def test_the_reference_page_is_current() -> None:
    """config/README.md is made from the schema: `make config-docs`."""
    assert (ROOT / "config" / "README.md").read_text() == reference()


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)


@given(key=st.sampled_from(sorted(DEFAULT)), inner=st.integers(0, 30), value=LEAVES)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_value_anywhere_is_taken_or_explained(key: str, inner: int, value: Any) -> None:
    """Whatever stands at a key, the answer is a config or one sentence, never another exception."""
    over: Any = value
    if isinstance(DEFAULT[key], dict):
        names = sorted(DEFAULT[key]) or ["random"]  # `options` is empty
        over = {names[inner % len(names)]: value}
    with contextlib.suppress(UserError):
        cfg.load(merged(DEFAULT, {key: over}))


def test_no_password_is_noted_with_the_config(tmp_path: Path) -> None:
    """The address of the tracking server stays out of results/."""
    given = merged(DEFAULT, {"tracking": {"uri": "https://me:secret@server"}})
    registry.register(cfg.load(given), tmp_path, given)
    assert len(files := list(tmp_path.iterdir())) == 2
    assert not any("secret" in file.read_text() for file in files)


def test_a_damaged_note_of_another_experiment_is_named(tmp_path: Path) -> None:
    """Half a file, or something else in its place."""
    config = cfg.load(DEFAULT)
    for text in ('{"digits": {', "[1]", "\xff"):
        (tmp_path / "other.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"other\.json is damaged .*: delete it"):
            registry.check_names(config, tmp_path)
    (tmp_path / REGISTRY).mkdir()
    (tmp_path / "other.json").rename(tmp_path / REGISTRY / "other.json")
    place = place_of(tmp_path / "digits/data.safetensors")
    assert place is not None
    with pytest.raises(UserError, match=r"other\.json is damaged"):
        place.experiments()


@pytest.mark.parametrize("link", [False, True])
def test_results_must_be_a_folder(tmp_path: Path, link: bool) -> None:
    """Not a file, and not a link to a disk that is not mounted."""
    results = tmp_path / "results"
    results.symlink_to("nowhere") if link else results.write_text("")
    with pytest.raises(UserError, match=r"results is a file, or a link to nothing"):
        registry.check_names(cfg.load(DEFAULT), results / ".experiments")


def test_paths_that_snakemake_would_take_for_patterns(tmp_path: Path) -> None:
    """Braces are its wildcards; a name that becomes a folder is as long as other names at most."""
    braces, long = tmp_path / "a{b}.safetensors", tmp_path / f"{'y' * 200}.safetensors"
    for path in (braces, long):
        write_set(path)
    for key, change in {
        "methods.0": {"methods": [f"file:{braces}"]},
        "teacher.checkpoint.file": {"teacher": {"checkpoint": {"file": str(braces)}}},
        "targets.file": {"targets": {"file": str(braces)}},
    }.items():
        with pytest.raises(UserError, match=rf"{key}: .* has braces"):
            cfg.load(merged(DEFAULT, change))
    with pytest.raises(UserError, match=r"methods\.0: the name of y+\.\.\. has more than 100"):
        cfg.load(merged(DEFAULT, {"methods": [f"file:{long}"]}))


@pytest.mark.parametrize("value", [10**400, -(10**16), 1e308, "1" + "0" * 400])
def test_numbers_beyond_any_meaning(value: Any) -> None:
    """They would overflow where times and sizes are reckoned, in the middle of planning."""
    for change in ({"teacher": {"epochs": value}}, {"compute": {"resume_minutes": value}}, {"seed": value}):
        with pytest.raises(UserError, match=f"{next(iter(change))}"):
            cfg.load(merged(DEFAULT, change))


def test_the_server_binds_to_this_machine_alone() -> None:
    """`make ui`, the one server that the project starts; nothing listens to the network."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (command,) = [line for line in makefile.splitlines() if "mlflow server" in line]
    assert "--host 127.0.0.1 " in command
    sources = [file.read_text() for folder in ("src", "workflow") for file in (ROOT / folder).rglob("*.py")]
    assert not any("0.0.0.0" in text or "mlflow server" in text for text in sources)


@pytest.mark.parametrize(
    ("key", "made_by"), [("teacher", "data"), ("teacher", "targets"), ("targets", "teacher"), ("targets", "distill")]
)
def test_an_artifact_of_another_kind_is_no_teacher_and_no_targets(key: str, made_by: str, tmp_path: Path) -> None:
    """It is a good file of some experiment, so nobody is told to delete it."""
    path = tmp_path / "theirs.safetensors"
    for stage, good in ((made_by, False), (key, True)):
        artifacts.save(path, {"x": torch.ones(1)}, stage=stage)
        file = {"file": str(path)}
        over = {"targets": file} if key == "targets" else {"teacher": {"checkpoint": file}}
        over["methods"] = ["random"]
        if good:
            cfg.load(merged(DEFAULT, over))
            continue
        with pytest.raises(UserError, match=rf"{key}.*theirs.safetensors.*'{made_by}'") as caught:
            cfg.load(merged(DEFAULT, over))
        assert "delete" not in str(caught.value)

"""The config: coercion, one sentence a mistake, sizes and slices."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mkdt import config as cfg
from mkdt.errors import UserError

ROOT = Path(__file__).parents[2]
DEFAULT: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of ``base`` with ``over`` merged in, as Snakemake merges config files."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        result[key] = (
            merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
        )
    return result


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


@pytest.mark.parametrize("path", sorted((ROOT / "config/experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_file_is_valid(path: Path) -> None:
    """A study that does not pass its own checks would waste its first user's time."""
    cfg.load(merged(DEFAULT, yaml.safe_load(path.read_text())))


def test_a_method_from_a_file_is_named_after_it() -> None:
    """The name goes into paths and tables: the file's stem, with or without a folder."""
    assert cfg.method_name("file:sets/mine.safetensors") == cfg.method_name("file:mine.safetensors") == "file-mine"
    assert cfg.method_name("mkdt") == "mkdt"


def test_default_sizes() -> None:
    """Digits: 1,300 / 100 / 397, and one per cent of the images outside the test split is 14."""
    loaded = cfg.load(DEFAULT)
    assert cfg.train_images(loaded, "digits") == 1300
    assert cfg.budget_count(loaded, 0.01) == 14
    assert cfg.budget_label(0.01) == "1pct"
    assert cfg.budget_label(14) == "14img"


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
        ({"teacher": {"name": "../up"}}, ["teacher.name", "must match"]),
        ({"experiment": "digits"}, ["experiment", "rename"]),
        ({"experiment": "logs"}, ["logs", "taken"]),
        ({"source": "cifar"}, ["source", "cifar", "datasets"]),
        ({"student": "vgg"}, ["student", "vgg", "students"]),
        ({"students": {"convnet": {"depth": 4}}}, ["students.convnet.depth", "8x8", "3 times"]),
        ({"students": {"convnet": {"norm": "batch"}}}, ["running statistics"]),
        ({"students": {"convnet": {"norm": "group", "width": 48}}}, ["width", "32 groups"]),
        ({"students": {"convnet": {"architecture": "resnet"}}}, ["students.convnet", "blocks"]),
        ({"methods": ["krr_st"], "krr_st": {"student": "vgg"}}, ["krr_st.student", "vgg"]),
        ({"methods": ["mkdt_high_loss"], "experts": {"epochs": 2}}, ["experts.epochs", "need 3"]),
        ({"experts": {"epochs": 2}}, ["experts.epochs", "need 3"]),
        ({"budgets": []}, ["budgets", "at least 1"]),
        ({"budgets": [0.0001]}, ["budgets", "less than one image"]),
        ({"budgets": [5000]}, ["budgets", "5000", "1300"]),
        ({"budgets": [2.5]}, ["budgets", "2.5"]),
        ({"budgets": [14, 14]}, ["budgets", "twice"]),
        ({"methods": ["mkdt", "magic"]}, ["methods.1", "magic"]),
        ({"methods": ["file:/nowhere/set.safetensors"]}, ["/nowhere/set.safetensors", "does not exist"]),
        ({"distill_seeds": [0, 0]}, ["distill_seeds", "twice"]),
        ({"pretrain": {"seeds": [1, 1]}}, ["pretrain.seeds", "twice"]),
        ({"pretrain": {"steps": [20, 10]}}, ["pretrain.steps", "ascend"]),
        ({"distill": {"retain": 21}}, ["distill.retain", "20"]),
        ({"distill": {"retain": "all"}}, ["distill.retain", "auto"]),
        ({"distill": {"momentum": 1}}, ["distill.momentum", "less than 1"]),
        ({"datasets": {"digits": {"test": None}}}, ["datasets.digits.test", "number"]),
        ({"datasets": {"digits": {"test": 1795}}}, ["datasets.digits", "1797"]),
        ({"datasets": {"digits": {"train": 1295}}}, ["datasets.digits.train", "stratified"]),
        ({"datasets": {"digits": {"validation": 5}}}, ["datasets.digits.validation", "one image a class"]),
        ({"datasets": {"digits": {"kind": "imagenet"}}}, ["datasets.digits.kind", "cifar10"]),
        ({"datasets": {"digits": {"kind": "mnist"}}}, ["datasets.digits.test", "null"]),
        ({"probe": {"label_fractions": [0.005]}}, ["probe.label_fractions", "one a class"]),
        ({"probe": {"label_fractions": [1.5]}}, ["probe.label_fractions", "at most 1"]),
        ({"probe": {"selection_draws": 9}}, ["probe.selection_draws", "label_draws"]),
        ({"probe": {"knn": 27}}, ["probe.knn is 27", "26 labels"]),
        ({"probe": {"finetune": {"rates": [0.1]}}}, ["probe.finetune.batch", "missing"]),
        ({"probe": {"downstream": ["stl"]}}, ["probe.downstream.0", "stl"]),
        ({"compute": {"device": "tpu"}}, ["compute.device", "cuda"]),
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


def test_a_missing_key_is_named() -> None:
    """A config that lacks a section says which."""
    with pytest.raises(UserError, match="'probe' is missing"):
        cfg.load({key: value for key, value in DEFAULT.items() if key != "probe"})


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
        assert cfg.settings(loaded, stage) == cfg.settings(changed, stage)
    assert cfg.settings(loaded, "data", dataset="digits") == cfg.settings(changed, "data", dataset="digits")
    assert cfg.settings(loaded, "distill") != cfg.settings(changed, "distill")


def test_the_subset_of_one_method_does_not_depend_on_the_options_of_another() -> None:
    """SAS looks at random views, so the teacher's augmentation is its key; nothing of it is a random subset's."""
    loaded = cfg.load(DEFAULT)
    changed = cfg.load(merged(DEFAULT, {"sas": {"views": 3}, "teacher": {"augment": {"noise": 0.2}}}))
    for method, same in (("random", True), ("high_loss", True), ("kmeans", True), ("sas", False)):
        slices = [cfg.settings(config, "subset", method=method, budget="1pct") for config in (loaded, changed)]
        assert (slices[0] == slices[1]) == same


def test_leftovers_of_another_architecture_do_not_count() -> None:
    """An experiment that switches to resnet18 inherits blocks and width from the default; they mean nothing there."""
    loaded = cfg.load(merged(DEFAULT, {"teacher": {"backbone": {"architecture": "resnet18"}}}))
    assert cfg.settings(loaded, "teacher")["backbone"] == {"architecture": "resnet18"}


def test_names_are_checked_across_experiments(tmp_path: Path) -> None:
    """One name with two settings is refused with the difference; equal settings and the own old ones are not."""
    cfg.register(cfg.load(DEFAULT), tmp_path)
    other = merged(DEFAULT, {"experiment": "other", "teacher": {"lr": 0.5}})
    with pytest.raises(UserError, match=r"results/digits/barlow_twins.*digits_1pct.*lr: 0.002 -> 0.5"):
        cfg.check_names(cfg.load(other), tmp_path)
    cfg.check_names(cfg.load(merged(DEFAULT, {"experiment": "other", "budgets": [0.05]})), tmp_path)
    cfg.check_names(cfg.load(merged(DEFAULT, {"teacher": {"lr": 0.5}})), tmp_path)


def test_the_reference_page_is_current() -> None:
    """config/README.md is made from the schema: `make config-docs`."""
    assert (ROOT / "config" / "README.md").read_text() == cfg.reference()


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)


@given(key=st.sampled_from(sorted(DEFAULT)), inner=st.integers(0, 30), value=LEAVES)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_value_anywhere_is_taken_or_explained(key: str, inner: int, value: Any) -> None:
    """Whatever stands at a key, the answer is a config or one sentence, never another exception."""
    over: Any = value
    if isinstance(DEFAULT[key], dict):
        names = sorted(DEFAULT[key])
        over = {names[inner % len(names)]: value}
    with contextlib.suppress(UserError):
        cfg.load(merged(DEFAULT, {key: over}))

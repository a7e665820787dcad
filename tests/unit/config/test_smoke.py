"""``scale: smoke``: valid for every experiment, the same structure, smaller, and under names of its own."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from brought_sets import tensors_of_a_set, write_set
from configs import DEFAULT, EXPERIMENTS, merged

from mkdt.config import loading as cfg
from mkdt.config import plan, registry, sizes
from mkdt.config.budgets import lonely_rows
from mkdt.config.files import with_base
from mkdt.config.schema import flat
from mkdt.errors import UserError


def loaded(file: Path | None, scale: str, over: dict[str, Any] | None = None) -> cfg.Config:
    """An experiment (None: the default) at one scale."""
    config = DEFAULT
    for part in with_base(file) if file else []:
        config = merged(config, yaml.safe_load(part.read_text()))
    return cfg.load(merged(config, {"scale": scale} | (over or {})))


@pytest.mark.parametrize("file", [None, *EXPERIMENTS], ids=lambda file: file.stem if file else "default")
def test_structure_stays_and_sizes_shrink(file: Path | None) -> None:
    """The same switches; no number is larger, but for the shares of few images."""
    full, smoke = loaded(file, "full"), loaded(file, "smoke")
    for key in ("methods", "students", "student", "compute", "data", "targets"):
        assert smoke[key] == full[key]
    assert smoke["probe"]["downstream"] == [f"{name}_smoke" for name in full["probe"]["downstream"]]
    small = dict(flat(smoke))
    for key, value in flat(full):
        if key.startswith(("datasets.", "budgets", "probe.label_fractions")):
            continue
        if isinstance(value, list):
            assert min(1, len(value)) <= len(small[key]) <= len(value), key
        elif isinstance(value, (int, float)):
            assert small[key] <= value, key
        elif key.rsplit(".")[-1] not in {"experiment", "scale", "source", "selection"}:
            assert small[key] == value, key
    assert len(smoke["budgets"]) == len(full["budgets"])
    for name in plan.used_datasets(smoke):
        assert max(sizes.split_sizes(smoke, name)) <= 200
        assert sizes.image_shape(smoke, name)[1] <= 16


def test_all_experiments_share_one_results_folder_at_both_scales(tmp_path: Path) -> None:
    """Equal names mean equal files; no name of one scale is a name of the other."""
    names: dict[str, set[str]] = {}
    for scale in ("full", "smoke"):
        for file in EXPERIMENTS:
            config = loaded(file, scale)
            registry.check_names(config, tmp_path)
            registry.register(config, tmp_path, config)
            names.setdefault(scale, set()).update({config["experiment"], *plan.used_datasets(config)})
    assert not names["full"] & names["smoke"]


def test_views_stay_in_sight_and_no_last_batch_is_of_one_row() -> None:
    """Shifts fit the smallest images; 3 images in 11 views are 33 rows, one more than the batch."""
    views = ["identity", "mirror", "shift 7 0", "shift 5 0", "shift -6 1", "crop 0.5 centre"]
    smoke = loaded(None, "smoke", {"views": views})
    assert smoke["views"] == ["identity", "mirror", "shift 2 0", "shift -2 1", "crop 0.5 centre"]
    smoke = loaded(None, "smoke", {"views": ["identity", "mirror", "shifts 2", "crop 0.5 centre"], "budgets": [9]})
    assert lonely_rows(smoke) == []
    assert smoke["pretrain"]["batch"] == 33


def test_two_data_sets_never_get_one_name() -> None:
    """The size that a network needs is added to a name; another data set may have that name already."""
    entry = {"kind": "cifar10", "train": None, "validation": 5000, "test": None, "image_size": None}
    vgg = {"students": {"vgg": {"architecture": "vgg11"}}, "pretrain": {"students": ["vgg"]}}
    over = {"datasets": {"a": entry, "a_32px": entry}, "source": "a", "probe": {"selection": "a_32px"}}
    with pytest.raises(UserError, match=r"datasets\.a and datasets\.a_32px.*rename"):
        loaded(None, "smoke", over | vgg)


def test_what_becomes_equal_is_one_and_a_brought_set_keeps_its_size(tmp_path: Path) -> None:
    """Edge cases of the table."""
    smoke = loaded(None, "smoke", {"budgets": [16, 17, 0.001], "probe": {"label_fractions": [0.2, 0.5, 0.01]}})
    assert smoke["budgets"] == [4, 0.01]
    assert loaded(None, "smoke", {"budgets": [0.02, 16]})["budgets"] == [0.02]  # 2 % of 200, and the root of 16
    assert smoke["probe"]["label_fractions"] == [1.0, 0.1]
    assert sizes.image_shape(smoke, "digits_smoke")[1] == 8
    entry = {"kind": "cifar10", "train": None, "validation": 5000, "test": None, "image_size": None}
    over = {"datasets": {"cifar": entry}, "source": "cifar"}
    assert sizes.image_shape(loaded(None, "smoke", over), "cifar_smoke")[1] == 8
    # A batch that its processes can share.
    assert loaded(None, "smoke", {"teacher": {"batch": 256, "devices": 32}})["teacher"]["batch"] == 32
    # A set that somebody else distilled has the source's full size.
    theirs = write_set(tmp_path / "theirs.safetensors", tensors_of_a_set(3, 32))
    with_theirs = loaded(None, "smoke", over | {"methods": ["random", f"file:{theirs}"]})
    assert sizes.image_shape(with_theirs, "cifar_32px_smoke")[1] == 32
    # So does a network that halves its images five times. Images of two sizes have two names.
    vgg = {"students": {"vgg": {"architecture": "vgg11"}}, "pretrain": {"students": ["vgg"]}}
    assert sizes.image_shape(loaded(None, "smoke", over | vgg), "cifar_32px_smoke")[1] == 32

"""The default config, changes of it, and the experiment files, for tests."""

import copy
from pathlib import Path
from typing import Any, cast

import yaml

from mkdt.config.loading import read
from mkdt.config.sections import Config
from mkdt.config.stages import maker

ROOT = Path(__file__).parents[1]
DEFAULT: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


# Every experiment that a command names; base.yaml of a folder is no experiment of its own.
EXPERIMENTS = sorted(path for path in (ROOT / "config" / "experiments").rglob("*.yaml") if path.name != "base.yaml")


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of ``base`` with ``over`` merged in, as Snakemake merges config files."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        result[key] = (
            merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
        )
    return result


def settings_of(config: Config, stage: str, **names: str) -> dict[str, Any]:
    """The slice of a config that a stage is given; teacher and targets by the stage that makes them there."""
    return maker(config, stage, names).slice(config, {"method": "mkdt", **names})


def with_sections(**changes: Any) -> Config:
    """The default config, checked, with some sections changed."""
    config: Any = read([])
    for section, values in changes.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    return cast(Config, config)

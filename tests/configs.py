"""The default config and changes of it, for tests."""

import copy
from pathlib import Path
from typing import Any

import yaml

from mkdt.config.files import with_base
from mkdt.config.sections import Config
from mkdt.config.stages import maker

ROOT = Path(__file__).parents[1]
DEFAULT: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


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
    return maker(config, stage).slice(config, {"method": "mkdt", **names})


def experiment_files(file: Path) -> list[Path]:
    """A config file behind the base that it overrides."""
    return with_base(file)

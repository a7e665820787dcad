"""Load a config: validate it, scale it down where it asks for that, read and merge config files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from mkdt.config.checks import check
from mkdt.config.files import check_files
from mkdt.config.methods import METHODS
from mkdt.config.plan import smallest_image
from mkdt.config.schema import DEFAULT, LARGEST, canonical_path, coerce, conform
from mkdt.config.sections import Config
from mkdt.config.smoke import check_endings, smoke
from mkdt.errors import UserError

HERE = Path("config/config.yaml")  # what a run in the current folder reads


def load(raw: Mapping[str, Any]) -> Config:
    """Return a checked copy of a config in canonical form; with ``scale: smoke`` check the full size, then scale down.

    Raises:
        UserError: one sentence that names the first key at fault.
    """
    config = cast(Config, conform(raw))
    config["options"] = {name: _typed(name, given) for name, given in config["options"].items()}
    config["methods"] = [_canonical_method(method) for method in config["methods"]]
    try:
        check(config)
        check_endings(config)
        if config["scale"] == "smoke":
            config = smoke(config, smallest_image(config))
            check(config)
    except OSError as error:  # a path too long, a disk that does not answer
        raise UserError(f"config: a path in it cannot be looked at ({error}).") from error
    return config


def _canonical_method(method: str) -> str:
    brought, prefix, path = method.partition("file:")
    return method if brought or not prefix else prefix + canonical_path(path)


def _typed(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of an extension in the types of their defaults, as far as they can be read so."""
    defaults = METHODS[method].options if method in METHODS else {}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    kinds = {key: {"type": names[type(default)]} for key, default in defaults.items()}
    typed: dict[str, Any] = coerce(dict(given), {"properties": kinds}, {})
    whole = {key for key, value in typed.items() if type(value) is int and type(defaults.get(key)) is float}
    return {key: float(value) if key in whole and abs(value) < LARGEST else value for key, value in typed.items()}


def merge(old: Any, new: Any) -> Any:
    """Return nested settings over others, as Snakemake merges config files."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def read(files: Sequence[str | Path], over: Mapping[str, Any] | None = None) -> Config:
    """Return the checked config that Snakemake makes of the default and these files, the last one winning.

    Args:
        files: config files.
        over: settings over them, as from Snakemake's ``--config``.

    Raises:
        UserError: one sentence that names the file, or the first key, at fault.
    """
    merged: Any = {}
    default = HERE if HERE.is_file() else DEFAULT
    check_files([default, *files])
    for file in [default, *files]:
        merged = merge(merged, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    return load(merge(merged, over or {}))

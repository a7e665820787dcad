"""What the shared folders of the results stand for, noted for each experiment that ran."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mkdt.config.plan import teacher_origin, used_datasets
from mkdt.config.schema import flat
from mkdt.config.sections import Config
from mkdt.config.stages import EXPERTS, STAGES, fill, maker
from mkdt.errors import UserError


def names(config: Config) -> dict[str, Any]:
    """Return what each shared folder of the results stands for; experiments that share a folder must agree on it."""
    origin = teacher_origin(config)
    brought = {
        "trained": {},
        "checkpoint": {"file": config["teacher"]["checkpoint"]["file"]},
        "file": {"file": config["targets"]["file"]},
    }
    shared: dict[str, Any] = {name: STAGES["data"].slice(config, {"dataset": name}) for name in used_datasets(config)}
    experts = Path(fill(EXPERTS, config, {})).parent
    made = maker(config, "targets" if origin == "file" else "teacher")
    shared[experts.parent.as_posix()] = made.slice(config, {}) | brought[origin]
    shared[experts.as_posix()] = STAGES["experts"].slice(config, {})
    return shared


def check_names(config: Config, registry: Path) -> None:
    """Refuse a name that another experiment uses with other settings.

    Args:
        registry: folder with one ``{experiment}.json`` each, written by ``register``.

    Raises:
        UserError: names the folder, the other experiment and the first difference.
    """
    results = registry.parent
    if (results.exists() or results.is_symlink()) and not results.is_dir():
        raise UserError(f"{results} is a file, or a link to nothing: it must be a folder, or a link to one.")
    if results.is_dir() and not os.access(results, os.W_OK):
        raise UserError(f"{results}/ cannot be written: change its rights, or let it be a link to a folder that can.")
    mine = names(config)
    for file in sorted(registry.glob("*.json")):
        if file.stem == config["experiment"]:
            continue
        for name, theirs in registered(file).items():
            if name in mine and mine[name] != theirs:
                raise UserError(
                    f"config: results/{name} already belongs to experiment '{file.stem}' with other settings "
                    f"({differences(theirs, mine[name])}): give this one another name, or delete {file} if that "
                    "experiment is over."
                )


def registered(file: Path) -> dict[str, Any]:
    """What ``register`` noted of an experiment's shared names.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it; the next run of experiment '{file.stem}' writes it anew."
        ) from error
    return found


def register(config: Config, registry: Path, given: Mapping[str, Any]) -> None:
    """Note what this experiment's shared names stand for, so that others can be checked against it, and its whole config.

    Args:
        config: as ``load`` returns it.
        registry: folder for ``{experiment}.json``, and ``{experiment}.yaml`` for ``snakemake --configfile``.
        given: as ``load`` was given it: files and command line merged, before ``scale``.
    """
    registry.mkdir(parents=True, exist_ok=True)
    whole = json.loads(json.dumps(given))  # Snakemake's ordered dicts as plain ones
    whole["tracking"]["uri"] = None  # it may hold a password, and where runs are sent makes no result
    texts = {
        "json": json.dumps(names(config), sort_keys=True, indent=1),
        "yaml": yaml.safe_dump(whole, sort_keys=False, allow_unicode=True),
    }
    for suffix, text in texts.items():
        temporary = registry / f".{config['experiment']}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(registry / f"{config['experiment']}.{suffix}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys in which two settings differ, as ``key: old -> new``, nested keys with dots."""
    before, after = dict(flat(old)), dict(flat(new))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return ", ".join(f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys)

"""What an experiment's name and the shared folders of the results stand for, noted for each experiment that ran."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mkdt.config.loading import load
from mkdt.config.methods import METHODS
from mkdt.config.plan import Job, initial_method, jobs, method_name, targets_stage, used_datasets
from mkdt.config.result_folders import RESULTS
from mkdt.config.schema import canonical_path, flat
from mkdt.config.sections import Config
from mkdt.config.stages import EXPERTS, STAGES, files, fill, maker
from mkdt.config.teacher_origin import teacher_origin
from mkdt.errors import UserError

LONGEST = 300  # characters of differences that a sentence shows


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
    made = maker(config, "targets" if origin == "file" else "teacher", {})
    shared[fill("{source}/{teacher}", config, {})] = made.slice(config, {}) | brought[origin]
    if targets_stage(config) == "target_space":
        shared[experts.parent.as_posix()] = STAGES["target_space"].slice(config, {})
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
    mine, experiment = names(config), config["experiment"]
    for file in sorted(registry.glob("*.json")):
        if file.stem == experiment:
            continue
        noted = registered(file)
        for name in {experiment} & noted.keys() | {file.stem} & mine.keys():
            raise UserError(
                f"config: results/{name} would belong to an experiment and to a data set, one of them of experiment "
                f"'{file.stem}': give yours another name, or delete {file} if that experiment is over."
            )
        for name, theirs in noted.items():
            if name in mine and mine[name] != theirs:
                raise UserError(
                    f"config: results/{name} already belongs to experiment '{file.stem}' with other settings "
                    f"({differences(theirs, mine[name])}): give this one another name, or delete {file} if that "
                    "experiment is over."
                )


def check_experiment(config: Config, registry: Path) -> None:
    """Refuse a config that is another experiment than the one whose results lie under its name.

    Another experiment has another source, or another name of the teacher or of the student that distils. These names are
    not in the paths of sets, students and scores, so a run would replace them. A changed value is no other experiment.

    Args:
        registry: folder with ``{experiment}.json``, written by ``register``.

    Raises:
        UserError: names the experiment, what differs, and how many files would be replaced.
    """
    folder, file = RESULTS / config["experiment"], registry / f"{config['experiment']}.json"
    there = {str(path) for path in folder.rglob("[!.]*") if path.is_file()}
    if not there or not file.is_file():
        return
    old, new = registered(file), names(config)
    before, now = _subject(old), _subject(new)
    source = now["source"]
    if before.get("source") == source and not _same_images(old.get(source, {}), new[source]):
        before, now = ({f"datasets.{source}": _only(noted[source], "kind", "path")} for noted in (old, new))
    if before and (differing := differences(before, now)):
        made = {path for job in jobs(config) for path in files(config, job)}
        raise UserError(
            f"config: {folder} holds {len(there)} files of an earlier experiment '{config['experiment']}', and this one differs "
            f"in {differing}: {len(there & made)} of them would be replaced; give this one another `experiment` name, or "
            f"delete {folder} if they are no longer needed."
        )


def _subject(noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names that an experiment's own folder does not show, from the name of its folder of experts."""
    for name in noted:
        if name.count("/") == 2:
            source, teacher, student = name.split("/")
            # A target space is a setting, not another experiment.
            return {"source": source, "teacher.name": teacher.partition("+")[0], "student": student}
    return {}


def _same_images(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether two settings of a data set read the same images; a folder may have moved, or may have grown."""
    before, now = old.get("path"), new.get("path")
    if not old or old == new:
        return True
    if old.get("kind") != new["kind"] or before is None or now is None:
        return old.get("kind") == new["kind"]
    return os.path.samefile(before, now) if os.path.exists(before) else bool(old.get("found") == new.get("found"))


def _only(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: settings[key] for key in keys if key in settings}


def replaced(config: Config, registry: Path) -> list[str]:
    """Return in sentences what a run replaces or leaves out of what its experiment made with its last config.

    Args:
        registry: folder with ``{experiment}.yaml``, written by ``register``.

    Returns:
        no sentence if there is nothing to say, or if the last config cannot be loaded any more.
    """
    try:
        text = (registry / f"{config['experiment']}.yaml").read_text(encoding="utf-8")
        last = load(yaml.safe_load(text))
    except (UserError, OSError, ValueError, TypeError, yaml.YAMLError):
        return []
    made = {path: job for job in jobs(last) for path in files(last, job) if Path(path).is_file()}
    folder, changes, sentences = RESULTS / config["experiment"], list[str](), list[str]()
    for job in jobs(config):
        earlier = [made.pop(path) for path in files(config, job) if path in made]
        if earlier and job.stage != "report":  # its settings are lists of what it shows
            changes += _differing(_described(last, earlier[0]), _described(config, job))
    if changed := ", ".join(dict.fromkeys(changes)):
        shown = changed if len(changed) < LONGEST else f"{changed[:LONGEST]}..."
        sentences.append(
            f"experiment '{config['experiment']}' ran last with other settings ({shown}): what depends on them is made again and "
            "replaces what is there; names of its own keep both (docs/experiments.md)."
        )
    if left := [path for path in made if Path(path).is_relative_to(folder)]:
        sentences.append(
            f"{folder} holds {len(left)} files of methods, budgets, seeds or students that this config leaves out, {left[0]} "
            "among them: they stay, but the new report does not show them."
        )
    return sentences


def makes_the_same(old: Config, new: Config) -> bool:
    """Return whether two configs make the same files by the same settings; how the work is shared does not matter."""
    first, second = (
        {path: _described(config, job) for job in jobs(config) for path in files(config, job) if ".jsonl" not in path}
        for config in (old, new)
    )
    return first == second


def _described(config: Config, job: Job) -> dict[str, Any]:
    """Return a job's settings, and what of the config decides its inputs but is in no settings of a job that made them."""
    stage, method = STAGES[job.stage], job.wildcards.get("method", "")
    settings, found = dict(stage.slice(config, job.wildcards)), dict[str, Any]()
    if job.stage == "teacher_import":
        settings["checkpoint"] = settings["checkpoint"] | {"file": config["teacher"]["checkpoint"]["file"]}
    if job.stage == "targets_import":
        settings["file"] = config["targets"]["file"]
    if job.stage == "pretrain" and method not in METHODS:
        found["methods"] = {method: next(brought for brought in config["methods"] if method_name(brought) == method)}
    if job.stage in ("subset", "distill", "pretrain"):
        found["targets"] = {"space": config["targets"]["space"]}
    if job.stage == "distill":
        settings["init"] = initial_method(config, method)
    if job.stage in ("subset", "distill") and (METHODS[method].experts or METHODS[method].own_experts):
        found["experts"] = {"count": config["experts"]["count"]}
    if job.stage in ("select", "probe"):  # they share a section, and each is given a part of it
        return {"probe": settings | config["probe"]}
    return found | {stage.artifact: settings}


def registered(file: Path) -> dict[str, Any]:
    """What ``register`` noted of an experiment's shared names.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
        for settings in found.values():  # noted by an older version, perhaps
            paths = {
                key: canonical_path(settings[key]) for key in ("path", "file") if isinstance(settings.get(key), str)
            }
            settings.update(paths)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
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
    return ", ".join(_differing(old, new))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = dict(flat(old)), dict(flat(new))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return [f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys]

"""The conditions between keys of a config, beyond its schema: each failure is one sentence. No torch here."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mkdt.config import loading as cfg
from mkdt.config.catalogue import DATASETS
from mkdt.config.loading import Config
from mkdt.config.methods import METHODS, made_by
from mkdt.config.schema import LARGEST
from mkdt.errors import UserError


def _fail_if(condition: bool, sentence: str) -> None:
    if condition:
        raise UserError(f"config: {sentence}")


def check(config: Config) -> None:
    """The conditions between keys; each failure is one sentence."""
    sets, students = config["datasets"], config["students"]
    for name, entry in sets.items():
        kinds = [*DATASETS, "folder"]
        _fail_if(
            entry["kind"] not in kinds, f"datasets.{name}.kind is '{entry['kind']}', known are {', '.join(kinds)}."
        )
    for name, entry in students.items():
        _fail_if(
            entry["architecture"] not in cfg.ARCHITECTURES,
            f"students.{name}.architecture is '{entry['architecture']}', known are {', '.join(cfg.ARCHITECTURES)}.",
        )
    for key, name in [
        ("source", config["source"]),
        ("probe.selection", config["probe"]["selection"]),
        *((f"probe.downstream.{i}", name) for i, name in enumerate(config["probe"]["downstream"])),
    ]:
        _fail_if(name not in sets, f"{key} names the data set '{name}', which is not in datasets ({', '.join(sets)}).")
    others = [config["krr_st"]["student"]] * ("krr_st" in config["methods"])
    for key, name in [
        ("student", config["student"]),
        ("krr_st.student", config["krr_st"]["student"]),  # its rule has it as a parameter, used or not
        *((f"pretrain.students.{i}", name) for i, name in enumerate(config["pretrain"]["students"])),
    ]:
        _fail_if(name not in students, f"{key} names '{name}', which is not in students ({', '.join(students)}).")
    _fail_if(
        config["experiment"] in sets,
        f"experiment '{config['experiment']}' bears the name of a data set; results need different folders, rename it.",
    )
    for name in (config["experiment"], *cfg.used_datasets(config)):
        _fail_if(name in cfg.RESERVED, f"the name '{name}' is taken by a folder of results/, choose another one.")
    for name in cfg.used_datasets(config):
        _check_folder(config, name)
        _check_dataset(config, name)
    origin = cfg.teacher_origin(config)
    _check_origin(config)
    _check_arguments(f"students.{config['krr_st']['student']}", students[config["krr_st"]["student"]])
    for key, spec in [
        *[("teacher.backbone", config["teacher"]["backbone"])] * (origin == "trained"),
        *(
            (f"students.{name}", students[name])
            for name in sorted({config["student"], *config["pretrain"]["students"], *others})
        ),
    ]:
        _check_network(key, spec, cfg.image_size(config, config["source"]))
    distilling = students[config["student"]]
    _fail_if(
        distilling["architecture"] != "convnet" or distilling["norm"] == "batch",
        f"students.{config['student']} has running statistics, which trajectories cannot hold: the distilling "
        "student must be a convnet with norm instance, group or none.",
    )
    total = cfg.train_images(config, config["source"])
    for budget in config["budgets"]:
        _fail_if(
            budget >= 1 and budget != int(budget),
            f"budgets: {budget:g} is neither a fraction below 1 nor a whole number.",
        )
        count = cfg.budget_count(config, budget)
        _fail_if(count < 1, f"budgets: {budget:g} of source '{config['source']}' is less than one image.")
        _fail_if(
            count < 2 and "mtt_ssl" in config["methods"],
            f"budgets: {budget:g} of source '{config['source']}' is one image, but 'mtt_ssl' needs two: SSL compares images.",
        )
        _fail_if(
            count > total, f"budgets: {budget:g} asks for {count:.12g} images, source '{config['source']}' has {total}."
        )
    labels = [cfg.budget_label(budget) for budget in config["budgets"]]
    _fail_if(len(set(labels)) < len(labels), f"budgets: two entries mean the same ({', '.join(labels)}).")
    distill, experts = config["distill"], config["experts"]
    needed = distill["start_epochs"] - 1 + distill["match_epochs"]
    _fail_if(
        bool({*made_by("distill"), *made_by("mtt")} & {*config["methods"]}) and experts["epochs"] < needed,
        f"experts.epochs is {experts['epochs']}, but distill.start_epochs {distill['start_epochs']} and "
        f"distill.match_epochs {distill['match_epochs']} need {needed}.",
    )
    crop = config["teacher"]["augment"]["crop_scale"]
    _fail_if(crop[0] > crop[1], f"teacher.augment.crop_scale must ascend, got {crop}.")
    _fail_if(
        origin == "trained" and config["teacher"]["warmup_epochs"] >= config["teacher"]["epochs"],
        f"teacher.warmup_epochs ({config['teacher']['warmup_epochs']}) must be less than teacher.epochs "
        f"({config['teacher']['epochs']}).",
    )
    shared = min(config["teacher"]["batch"], total)
    _fail_if(
        origin == "trained" and shared % config["teacher"]["devices"] != 0,
        f"teacher.devices is {config['teacher']['devices']}, which does not divide teacher.batch "
        f"({shared}{' images, all there are' if shared < config['teacher']['batch'] else ''}): change one of them.",
    )
    counts = [cfg.budget_count(config, budget) for budget in config["budgets"]] + [total]
    for name in config["pretrain"]["students"]:
        normalises = students[name]["architecture"] != "convnet" or students[name]["norm"] == "batch"
        batch = config["pretrain"]["batch"]
        lonely = [count for count in counts if count % batch == 1 or batch == 1]
        _fail_if(
            normalises and bool(lonely),
            f"pretrain.batch {batch} leaves a last batch of one image of a set of {', '.join(map(str, lonely))}, from which "
            f"the batch norm of students.{name} takes no statistics: change pretrain.batch or budgets.",
        )
    for method in config["methods"]:
        made = [METHODS[name] for name in (method, METHODS[method].init) if name] if method in METHODS else []
        _fail_if(
            origin == "file" and any(one.teacher for one in made),
            f"methods: '{method}' needs the teacher itself, but targets.file brings representations only: leave it out.",
        )
    _check_options(config)
    probe = config["probe"]
    _fail_if(
        probe["selection_draws"] > probe["label_draws"],
        f"probe.selection_draws is {probe['selection_draws']}, more than probe.label_draws ({probe['label_draws']}).",
    )
    for name in cfg.scored_datasets(config):
        fewest = round(min(probe["label_fractions"]) * cfg.train_images(config, name))
        _fail_if(
            probe["knn"] is not None and probe["knn"] > fewest,
            f"probe.knn is {probe['knn']}, more than the {fewest} labels of '{name}' that probe.label_fractions leaves.",
        )
    steps = config["pretrain"]["steps"]
    _fail_if(steps != sorted(steps), f"pretrain.steps must ascend, got {steps}.")
    rates = config["pretrain"]["rates"]
    _fail_if(rates != sorted(rates), f"pretrain.rates must ascend, got {rates}.")
    slugs: dict[str, str] = {}
    for i, method in enumerate(config["methods"]):
        _fail_if(
            method not in METHODS and not method.startswith("file:"),
            f"methods.{i} is '{method}'{_near(method, METHODS)}; known are {', '.join(METHODS)} and file:PATH.",
        )
        if method.startswith("file:"):
            path = Path(method.removeprefix("file:"))
            _check_set(config, f"methods.{i}", path)
            slug = cfg.method_name(method)
            _fail_if(
                slug in slugs,
                f"methods: {method} and {slugs.get(slug)} would share the name '{slug}', rename one file.",
            )
            slugs[slug] = method


def _check_options(config: Config) -> None:
    """Options of methods of one's own: each declared, and of the type of its default."""
    having = [name for name, method in METHODS.items() if method.options]
    for name, given in config["options"].items():
        _fail_if(
            name not in having,
            f"options.{name}: no method of this name declares options (CONTRIBUTING.md), known are {', '.join(having) or 'none'}.",
        )
        defaults = METHODS[name].options
        for key, value in given.items():
            _fail_if(
                key not in defaults,
                f"unknown key 'options.{name}.{key}'{_near(key, defaults)}; known here are {', '.join(defaults)}.",
            )
            kind = type(defaults[key])
            _fail_if(type(value) is not kind, f"options.{name}.{key} must be of type {kind.__name__}, got {value!r}.")
    for name in {*config["methods"], *config["options"]} & METHODS.keys():
        options = cfg.own_options(config, name)
        for key, value in options.items():
            _fail_if(
                isinstance(value, int | float) and not abs(value) <= LARGEST,
                f"options.{name}.{key} must be finite and at most {LARGEST:g} in size, got {str(value)[:30]}.",
            )
        for key in ("iterations", "pictures") if METHODS[name].rule == "own" else ():
            _fail_if(
                type(options[key]) is not int or options[key] < 1,
                f"options.{name}.{key} must be a whole number from 1 on, got {options[key]!r}.",
            )


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean '{found[0]}'?" if found else ""


def _check_path(key: str, path: Path) -> None:
    """A file that is an input of a rule."""
    _fail_if(not path.is_file(), f"{key}: {path} does not exist, or is no file.")
    _fail_if(
        not {"{", "}"}.isdisjoint(str(path)), f"{key}: {path} has braces in it, which Snakemake reads as wildcards."
    )


def _check_set(config: Config, key: str, path: Path) -> None:
    """A set that somebody else distilled: its header, of the right shape; its content is checked where it is read."""
    _check_path(key, path)
    slug, longest = cfg.method_name(f"file:{path}"), 100  # as for all names that become folders
    _fail_if(len(slug) > longest, f"{key}: the name of {path.name[:20]}... has more than {longest} characters.")
    size, channels = cfg.image_size(config, config["source"]), cfg.facts_of(config, config["source"]).channels
    try:
        with safe_open(path, "np") as file:
            shape = tuple(file.get_slice("images").get_shape())
    except Exception as error:  # whatever the reader of an arbitrary file says
        raise UserError(
            f"config: {key}: {path} is not a synthetic set ({str(error)[:100]}); docs/artifacts.md says what is in one."
        ) from error
    _fail_if(
        len(shape) != 4 or shape[1:] != (channels, size, size),
        f"{key}: {path} has images of shape {shape[1:]}, the source's are {(channels, size, size)}: distil at that size.",
    )


def _check_origin(config: Config) -> None:
    """The files of a teacher or of targets that the user brings."""
    checkpoint, targets = config["teacher"]["checkpoint"], config["targets"]["file"]
    given = cfg.teacher_origin(config)
    _fail_if(
        targets is not None and (checkpoint["file"] is not None or checkpoint["model"] is not None),
        "targets.file and teacher.checkpoint are both given: one of them makes the targets, set the other to null.",
    )
    for key, path in (("targets.file", targets), ("teacher.checkpoint.file", checkpoint["file"])):
        if path is not None:
            _check_path(key, Path(path))
    unused = [key for key, value in checkpoint.items() if value is not None and key not in {"file", "model"}]
    _fail_if(
        given != "checkpoint" and bool(unused),
        f"teacher.checkpoint.{''.join(unused[:1])} is set, but there is no checkpoint: give teacher.checkpoint.file.",
    )
    _fail_if(
        checkpoint["sha256"] is not None and checkpoint["file"] is None,
        "teacher.checkpoint.sha256 is the digest of teacher.checkpoint.file, which is null.",
    )


def _check_folder(config: Config, name: str) -> None:
    """The keys that belong to folders, there and nowhere else."""
    entry, key = config["datasets"][name], f"datasets.{name}"
    if entry["kind"] == "folder":
        _fail_if(entry.get("path") is None, f"{key}.path is missing: where is the folder?")
    else:
        given = [option for option in cfg.FOLDER_OPTIONS if entry.get(option) is not None]
        _fail_if(bool(given), f"{key}.{', '.join(given)} belongs to kind folder, not to {entry['kind']}.")


def _check_dataset(config: Config, name: str) -> None:
    entry, facts, kind = config["datasets"][name], cfg.facts_of(config, name), config["datasets"][name]["kind"]
    key, probe = f"datasets.{name}", config["probe"]
    scored = name in cfg.scored_datasets(config)
    _fail_if(
        scored and not facts.classes,
        f"probe names the data set '{name}', which is unlabelled ({kind}): it can be the source, but the selection set "
        "and the downstream sets need labels.",
    )
    _fail_if(scored and facts.classes == 1, f"probe names the data set '{name}', which has one class: it needs two.")
    _fail_if(
        entry["image_size"] is None and not facts.size,
        f"{key}.image_size must be a number: the images of {kind} vary in size.",
    )
    for split, published, needed in [
        ("test", facts.test, name in probe["downstream"]),
        ("validation", facts.validation, True),
    ]:
        _fail_if(
            bool(published) and entry[split] is not None,
            f"{key}.{split} must be null: {kind} has a published {split} split.",
        )
        _fail_if(
            not published and entry[split] is None and needed,
            f"{key}.{split} must be a number: {kind} has no published {split} split.",
        )
    for split in ("train", "validation", "test"):
        value = entry[split]
        _fail_if(
            value is not None and value >= 1 and value != int(value),
            f"{key}.{split} ({value}) is neither a fraction below 1 nor a whole number.",
        )
    train, validation, test = cfg.cut_sizes(config, name)
    least = max(1, facts.classes)
    for split, count in (("validation", validation), ("test", test)):
        _fail_if(
            0 < count < least or (count == 0 and entry[split] not in {None, 0}),
            f"{key}.{split} ({entry[split]}) is less than one image a class ({least}).",
        )
    _fail_if(
        validation == 0 and name in {config["source"], probe["selection"]},
        f"{key}.validation is 0, which only sets can have that are neither source nor probe.selection.",
    )
    split_off = (0 if entry["validation"] is None else validation) + (0 if entry["test"] is None else test)
    left = facts.train - split_off
    _fail_if(
        left < max(least, train),
        f"{key}: {facts.train} images cannot give {split_off} for validation and test and "
        f"{max(least, train)} for training.",
    )
    _fail_if(train < 1, f"{key}.train ({entry['train']}) is less than one image.")
    _fail_if(
        entry["train"] is not None and 0 < left - train < facts.classes,
        f"{key}.train ({train}) leaves {left - train} images out, too few to draw a subset "
        f"stratified by {facts.classes} classes: take {left} (or null), or at most {left - facts.classes}.",
    )
    for fraction in probe["label_fractions"]:
        _fail_if(
            scored and round(fraction * cfg.train_images(config, name)) < 2,
            f"probe.label_fractions: {fraction:g} of the {cfg.train_images(config, name)} training labels of '{name}' is less than two labels.",
        )


def _check_arguments(key: str, spec: Mapping[str, Any]) -> None:
    for argument in cfg.ARCHITECTURES[spec["architecture"]]:
        _fail_if(argument not in spec, f"{key} is a {spec['architecture']} and needs the key '{argument}'.")


def _check_network(key: str, spec: Mapping[str, Any], size: int) -> None:
    _check_arguments(key, spec)
    if spec["architecture"] == "convnet":
        _fail_if(
            spec["norm"] == "group" and spec["width"] > 32 and spec["width"] % 32 != 0,
            f"{key}.width is {spec['width']}, which norm 'group' cannot cut into 32 groups.",
        )
        _fail_if(
            spec["depth"] >= size.bit_length(),
            f"{key}.depth is {spec['depth']}, but images of {size}x{size} can be halved only {size.bit_length() - 1} times.",
        )
    smallest = 2 ** cfg.POOLS.get(spec["architecture"], 0)
    _fail_if(
        size < smallest,
        f"{key} is a {spec['architecture']}, which needs images of at least {smallest}x{smallest}, but the source's are "
        f"{size}x{size}: take another student, or a larger image_size.",
    )

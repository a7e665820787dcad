"""The config: coerced and checked before anything runs; its sizes, names and slices. No torch here: it must start fast."""

import copy
import difflib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from mkdt.catalog import DATASETS, PICTURES, Dataset
from mkdt.errors import UserError
from mkdt.folders import find
from mkdt.scale import smoke

Config = dict[str, Any]

RESULTS = Path("results")  # everything produced, relative to the working directory
RESERVED = ("logs", "benchmarks", "mlartifacts")  # folders in it that are no data set and no experiment
SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "config.schema.yaml"
# Arguments of each architecture: what an overriding file left over from another one is dropped.
ARCHITECTURES = {
    "convnet": ("depth", "width", "norm"),
    "resnet": ("blocks", "width"),
    **dict.fromkeys(("resnet10", "resnet18", "vgg11", "alexnet", "mobilenet"), ()),
}
FOLDER_OPTIONS = ("path", "channels", "labelled")
POOLS = {"alexnet": 3, "vgg11": 5}  # how often these halve an image
# Keys of `teacher` that belong to one loss alone: another method does not depend on them.
LOSS_OPTIONS = {
    "barlow_twins": ("off_diagonal",),
    "simclr": ("temperature",),
    "vicreg": ("invariance", "variance", "covariance"),
}
METHODS_WITHOUT_BUDGET = ("none", "full")
METHODS_WITHOUT_DISTILL_SEED = ("none", "full", "high_loss")


def load(raw: Mapping[str, Any], schema_file: Path = SCHEMA) -> Config:
    """A checked copy of a config; strings become what the schema asks for (nested ``--config`` gives strings).

    With ``scale: smoke`` it comes back scaled down, after the full size was checked too.

    Raises:
        UserError: one sentence that names the first key at fault.
    """
    schema = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    config: Config = _coerce(copy.deepcopy(dict(raw)), schema, schema)
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.path)))
    if errors:
        raise UserError(_sentence(errors[0]))
    for key, value in flat(config):
        numbers = value if isinstance(value, list) else [value]
        _fail_if(
            any(isinstance(number, float) and not math.isfinite(number) for number in numbers),
            f"{key} must be finite, got {value}.",
        )
    _check(config)
    if config["scale"] == "smoke":
        config = smoke(config, smallest_image(config))
        _check(config)
    return config


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        return {**root["$defs"][schema["$ref"].rsplit("/", 1)[1]], **schema}
    return schema


def _coerce(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Turn strings into numbers, booleans and null where the schema wants those; leave the rest to validation."""
    schema = _resolve(schema, root)
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        return {
            key: _coerce(item, known.get(key, other if isinstance(other, dict) else {}), root)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_coerce(item, schema.get("items", {}), root) for item in value]
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return int(value)
    if not isinstance(value, str):
        return value
    if "null" in types and value in {"null", "~"}:
        return None
    if "boolean" in types and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    for name, convert in (("integer", int), ("number", float)):
        if name in types:
            try:
                return convert(value)
            except ValueError:
                continue
    return value


def _sentence(error: Any) -> str:
    """What a schema violation (a jsonschema ValidationError) means, in one sentence."""
    key = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(set(error.instance) - set(known), key=str)[0]
        near = difflib.get_close_matches(str(unknown), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}."
        return f"config: unknown key '{'.'.join(filter(None, [key, str(unknown)]))}'; {hint}"
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))[0]
        return f"config: key '{'.'.join(filter(None, [key, missing]))}' is missing; config/README.md explains it."
    shown = json.dumps(error.instance, default=str)
    rules = {
        "type": lambda rule: f"must be of type {rule if isinstance(rule, str) else ' or '.join(rule)}",
        "enum": lambda rule: f"must be one of {', '.join(map(str, rule))}",
        "minimum": lambda rule: f"must be at least {rule}",
        "maximum": lambda rule: f"must be at most {rule}",
        "exclusiveMinimum": lambda rule: f"must be greater than {rule}",
        "exclusiveMaximum": lambda rule: f"must be less than {rule}",
        "minItems": lambda rule: f"needs at least {rule} entries",
        "maxItems": lambda rule: f"takes at most {rule} entries",
        "minLength": lambda rule: "must not be empty",
        "minProperties": lambda rule: "must not be empty",
        "uniqueItems": lambda rule: "must not name an entry twice",
        "pattern": lambda rule: f"must match {rule}",
    }
    describe = rules.get(str(error.validator), lambda rule: error.message)
    return f"config: {key or 'the config'} {describe(error.validator_value)}, got {shown}; see config/README.md."


def _fail_if(condition: bool, sentence: str) -> None:
    if condition:
        raise UserError(f"config: {sentence}")


def _check(config: Config) -> None:
    """The conditions between keys; each failure is one sentence."""
    sets, students = config["datasets"], config["students"]
    for key, name in [
        ("source", config["source"]),
        ("probe.selection", config["probe"]["selection"]),
        *((f"probe.downstream.{i}", name) for i, name in enumerate(config["probe"]["downstream"])),
    ]:
        _fail_if(name not in sets, f"{key} names the data set '{name}', which is not in datasets ({', '.join(sets)}).")
    for key, name in [
        ("student", config["student"]),
        *((f"pretrain.students.{i}", name) for i, name in enumerate(config["pretrain"]["students"])),
    ]:
        _fail_if(name not in students, f"{key} names '{name}', which is not in students ({', '.join(students)}).")
    _fail_if(
        config["experiment"] in sets,
        f"experiment '{config['experiment']}' bears the name of a data set; results need different folders, rename it.",
    )
    for name in (config["experiment"], *used_datasets(config)):
        _fail_if(name in RESERVED, f"the name '{name}' is taken by a folder of results/, choose another one.")
    for name in used_datasets(config):
        _check_folder(config, name)
        _check_dataset(config, name)
    origin = teacher_origin(config)
    _check_origin(config)
    for key, spec in [
        *[("teacher.backbone", config["teacher"]["backbone"])] * (origin == "trained"),
        *(
            (f"students.{name}", students[name])
            for name in sorted({config["student"], *config["pretrain"]["students"]})
        ),
    ]:
        _check_network(key, spec, image_size(config, config["source"]))
    distilling = students[config["student"]]
    _fail_if(
        distilling["architecture"] != "convnet" or distilling["norm"] == "batch",
        f"students.{config['student']} has running statistics, which trajectories cannot hold: the distilling "
        "student must be a convnet with norm instance, group or none.",
    )
    total = train_images(config, config["source"])
    for budget in config["budgets"]:
        _fail_if(
            budget >= 1 and budget != int(budget),
            f"budgets: {budget:g} is neither a fraction below 1 nor a whole number.",
        )
        count = budget_count(config, budget)
        _fail_if(count < 1, f"budgets: {budget:g} of source '{config['source']}' is less than one image.")
        _fail_if(
            count > total, f"budgets: {budget:g} asks for {count} images, source '{config['source']}' has {total}."
        )
    labels = [budget_label(budget) for budget in config["budgets"]]
    _fail_if(len(set(labels)) < len(labels), f"budgets: two entries mean the same ({', '.join(labels)}).")
    distill, experts = config["distill"], config["experts"]
    needed = distill["start_epochs"] - 1 + distill["match_epochs"]
    _fail_if(
        "mkdt" in config["methods"] and experts["epochs"] < needed,
        f"experts.epochs is {experts['epochs']}, but distill.start_epochs {distill['start_epochs']} and "
        f"distill.match_epochs {distill['match_epochs']} need {needed}.",
    )
    _fail_if(
        distill["retain"] != "auto" and distill["retain"] > distill["steps"],
        f"distill.retain is {distill['retain']}, more than distill.steps ({distill['steps']}).",
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
    counts = [budget_count(config, budget) for budget in config["budgets"]] + [total]
    for name in config["pretrain"]["students"]:
        normalises = students[name]["architecture"] != "convnet" or students[name]["norm"] == "batch"
        batch = config["pretrain"]["batch"]
        lonely = [count for count in counts if count % batch == 1 or batch == 1]
        _fail_if(
            normalises and bool(lonely),
            f"pretrain.batch {batch} leaves a last batch of one image of a set of {', '.join(map(str, lonely))}, which the "
            f"batch norm of students.{name} cannot take: change pretrain.batch or budgets.",
        )
    probe = config["probe"]
    _fail_if(
        probe["selection_draws"] > probe["label_draws"],
        f"probe.selection_draws is {probe['selection_draws']}, more than probe.label_draws ({probe['label_draws']}).",
    )
    steps = config["pretrain"]["steps"]
    _fail_if(steps != sorted(steps), f"pretrain.steps must ascend, got {steps}.")
    slugs: dict[str, str] = {}
    for method in config["methods"]:
        if method.startswith("file:"):
            path = Path(method.removeprefix("file:"))
            _fail_if(not path.is_file(), f"methods: {path} does not exist.")
            slug = method_name(method)
            _fail_if(
                slug in slugs,
                f"methods: {method} and {slugs.get(slug)} would share the name '{slug}', rename one file.",
            )
            slugs[slug] = method


def _check_origin(config: Config) -> None:
    """The files of a teacher or of targets that the user brings."""
    checkpoint, targets = config["teacher"]["checkpoint"], config["targets"]["file"]
    given = teacher_origin(config)
    _fail_if(
        targets is not None and (checkpoint["file"] is not None or checkpoint["model"] is not None),
        "targets.file and teacher.checkpoint are both given: one of them makes the targets, set the other to null.",
    )
    for key, path in (("targets.file", targets), ("teacher.checkpoint.file", checkpoint["file"])):
        _fail_if(path is not None and not Path(path).is_file(), f"{key}: {path} does not exist.")
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
        given = [option for option in FOLDER_OPTIONS if entry.get(option) is not None]
        _fail_if(bool(given), f"{key}.{', '.join(given)} belongs to kind folder, not to {entry['kind']}.")


def _check_dataset(config: Config, name: str) -> None:
    entry, facts, kind = config["datasets"][name], facts_of(config, name), config["datasets"][name]["kind"]
    key, probe = f"datasets.{name}", config["probe"]
    scored = name in scored_datasets(config)
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
    train, validation, test = _cut(config, name)
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
            scored and round(fraction * train_images(config, name)) < 2,
            f"probe.label_fractions: {fraction:g} of the {train_images(config, name)} training labels of '{name}' is less than two labels.",
        )


def _check_network(key: str, spec: Mapping[str, Any], size: int) -> None:
    for argument in ARCHITECTURES[spec["architecture"]]:
        _fail_if(argument not in spec, f"{key} is a {spec['architecture']} and needs the key '{argument}'.")
    if spec["architecture"] == "convnet":
        _fail_if(
            spec["norm"] == "group" and spec["width"] > 32 and spec["width"] % 32 != 0,
            f"{key}.width is {spec['width']}, which norm 'group' cannot cut into 32 groups.",
        )
        _fail_if(
            size // 2 ** spec["depth"] < 1,
            f"{key}.depth is {spec['depth']}, but images of {size}x{size} can be halved only {size.bit_length() - 1} times.",
        )
    smallest = 2 ** POOLS.get(spec["architecture"], 0)
    _fail_if(
        size < smallest,
        f"{key} is a {spec['architecture']}, which needs images of at least {smallest}x{smallest}, but the source's are "
        f"{size}x{size}: take another student, or a larger image_size.",
    )


def facts_of(config: Config, dataset: str) -> Dataset:
    """Published shape and sizes of a data set of the config; of a folder, what lies there."""
    entry = config["datasets"][dataset]
    if entry["kind"] != "folder":
        return DATASETS[entry["kind"]]
    found = _found(config, dataset)
    train, test, validation = (found.get(split, 0) for split in ("train", "test", "validation"))
    return Dataset(entry.get("channels") or 3, 0, found["classes"], train, test, validation, entry["path"])


def _found(config: Config, dataset: str) -> dict[str, Any]:
    """What lies in a folder."""
    entry = config["datasets"][dataset]
    try:
        return find(entry["path"], entry.get("labelled") is not False, RESULTS / ".folders")
    except UserError as error:
        raise UserError(f"config: datasets.{dataset}.path: {error}") from error


def image_size(config: Config, dataset: str) -> int:
    """Height and width of its images in pixels."""
    return config["datasets"][dataset]["image_size"] or facts_of(config, dataset).size


def smallest_image(config: Config) -> int:
    """Height and width that the smallest images may have for all networks of the config and its sets from files."""
    if any(method.startswith("file:") for method in config["methods"]):
        return image_size(config, config["source"])
    used = [config["students"][name] for name in (config["student"], *config["pretrain"]["students"])]
    networks = [config["teacher"]["backbone"], *used]
    halvings = [s["depth"] if s["architecture"] == "convnet" else POOLS.get(s["architecture"], 0) for s in networks]
    return int(2 ** max(halvings))


def split_sizes(config: Config, dataset: str) -> tuple[int, int, int]:
    """Numbers of training, validation and test images, of each at most ``limit``."""
    train, validation, test = _cut(config, dataset)
    limit = config["datasets"][dataset].get("limit") or math.inf
    return int(min(train, limit)), int(min(validation, limit)), int(min(test, limit))


def _cut(config: Config, dataset: str) -> tuple[int, int, int]:
    """Numbers of images as the splits are cut, before the limit; fractions count the published training images."""
    entry, facts = config["datasets"][dataset], facts_of(config, dataset)
    counts = {
        split: round(entry[split] * facts.train) if entry[split] < 1 else int(entry[split])
        for split in ("train", "validation", "test")
        if entry[split] is not None
    }
    left = facts.train - counts.get("validation", 0) - counts.get("test", 0)
    return counts.get("train", left), counts.get("validation", facts.validation), counts.get("test", facts.test)


def train_images(config: Config, dataset: str) -> int:
    """Number of training images after the splits."""
    return split_sizes(config, dataset)[0]


def budget_count(config: Config, budget: float) -> int:
    """Number of synthetic images of a budget: a fraction counts the published training images, as papers do."""
    if budget >= 1:
        return int(budget)
    entry, facts = config["datasets"][config["source"]], facts_of(config, config["source"])
    train, _, test = split_sizes(config, config["source"])
    chosen = entry["train"] is not None or entry.get("limit") is not None
    return round(budget * (train if chosen else facts.train - (test if entry["test"] else 0)))


def budget_label(budget: float) -> str:
    """The budget in a path: ``1pct`` or ``14img``."""
    return f"{100 * budget:.6g}pct" if budget < 1 else f"{int(budget)}img"


def method_name(method: str) -> str:
    """The method in a path: ``file:sets/mine.safetensors`` becomes ``file-mine``."""
    return f"file-{Path(method.removeprefix('file:')).stem}" if method.startswith("file:") else method


def variants(config: Config, method: str) -> list[tuple[str, int]]:
    """(budget label, distill seed) of every training set that a method makes."""
    budgets = ["all"] if method in METHODS_WITHOUT_BUDGET else [budget_label(budget) for budget in config["budgets"]]
    if method.startswith("file:"):
        budgets = ["all"]
    single = method in METHODS_WITHOUT_DISTILL_SEED or method.startswith("file:")
    return [(budget, seed) for budget in budgets for seed in ([0] if single else config["distill_seeds"])]


def gpus_per_job(config: Config) -> int:
    """1 where the device is ``cuda``, or ``auto`` on a machine with an NVIDIA GPU; else 0."""
    device = config["compute"]["device"]
    return int(device == "cuda" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*"))))


def decoding_threads(config: Config, dataset: str) -> int:
    """Cores worth asking for (Snakemake gives what there are): several for image files, one for arrays."""
    return 8 if config["datasets"][dataset]["kind"] in {*PICTURES, "folder"} else 1


def decoding_memory(config: Config, dataset: str) -> int:
    """MB of the rule data: torch and its libraries, and a chunk of image files, or four copies of arrays (raw, in
    torchvision's hands, split, resized)."""
    facts = facts_of(config, dataset)
    if config["datasets"][dataset]["kind"] in {*PICTURES, "folder"}:
        return 3000
    return 2000 + math.ceil(4 * (facts.train + facts.test) * facts.channels * facts.size**2 / 1e6)


def network(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A network's entry with the arguments of its architecture only."""
    return {key: spec[key] for key in ("architecture", *ARCHITECTURES[spec["architecture"]])}


def scored_datasets(config: Config) -> list[str]:
    """The selection set and the downstream sets, each once."""
    return list(dict.fromkeys([config["probe"]["selection"], *config["probe"]["downstream"]]))


def teacher_origin(config: Config) -> str:
    """Where the targets come from: a teacher that is ``trained`` here, a ``checkpoint``, or a ``file`` of targets."""
    checkpoint = config["teacher"]["checkpoint"]
    if config["targets"]["file"] is not None:
        return "file"
    return "checkpoint" if checkpoint["file"] is not None or checkpoint["model"] is not None else "trained"


def used_datasets(config: Config) -> list[str]:
    """The source and those, each once."""
    return list(dict.fromkeys([config["source"], *scored_datasets(config)]))


def settings(
    config: Config, stage: str, *, dataset: str = "", student: str = "", method: str = "", budget: str = ""
) -> dict[str, Any]:
    """The slice of the config that a stage depends on: a change elsewhere does not touch it."""
    seed = {"seed": config["seed"]}
    if stage == "data":
        entry, sizes = config["datasets"][dataset], _cut(config, dataset)
        counts = {
            split: None if entry[split] is None else count
            for split, count in zip(("train", "validation", "test"), sizes, strict=True)
        }
        # A limit of null is none at all.
        chosen = {k: v for k, v in entry.items() if k not in FOLDER_OPTIONS and (k, v) != ("limit", None)}
        if entry["kind"] == "folder":
            chosen |= {
                "path": entry["path"],
                "channels": entry.get("channels") or 3,
                "labelled": entry.get("labelled") is not False,
                "found": _found(config, dataset),  # a folder that grows or shrinks is decoded again
            }
        return seed | chosen | counts
    if stage == "teacher" and teacher_origin(config) == "checkpoint":
        # Without its path: the file's digest is in the header, and a file that moved makes nothing anew.
        return seed | {"checkpoint": {k: v for k, v in config["teacher"]["checkpoint"].items() if k != "file"}}
    if stage == "teacher":
        # How many share the work is no science.
        left_out = {"name", "devices", "checkpoint", *itertools.chain(*LOSS_OPTIONS.values())}
        teacher = {k: v for k, v in config["teacher"].items() if k not in left_out}
        loss = {option: config["teacher"][option] for option in LOSS_OPTIONS[teacher["method"]]}
        teacher |= {"backbone": network(teacher["backbone"]), "loss": loss}
        return seed | teacher
    if stage == "targets":
        # The teacher's file says which network it is.
        published = {"published": facts_of(config, config["source"]).train}
        return seed | (published if teacher_origin(config) == "file" else {})
    if stage == "targets_probe":
        chosen = {key: config["probe"][key] for key in ("label_fractions", "label_draws", "l2")}
        return seed | chosen | {"standardise": config["pretrain"]["protocol"] == "fair"}
    if stage == "experts":
        training = {k: v for k, v in config["experts"].items() if k not in {"count", "per_job"}}
        return seed | {"student": network(config["students"][config["student"]])} | training
    if stage == "subset":
        counts = {budget_label(value): budget_count(config, value) for value in config["budgets"]}
        return seed | {"count": counts[budget]}
    if stage == "distill":
        rest = {k: v for k, v in config["distill"].items() if k != "init"}
        return seed | {"student": network(config["students"][config["student"]])} | rest
    if stage == "pretrain":
        pretrain = config["pretrain"]
        grid: tuple[str, ...] = ("rates", "steps") if pretrain["protocol"] == "fair" else ("epochs",)
        chosen = {key: pretrain[key] for key in ("protocol", "batch", "momentum", "weight_decay", *grid)}
        if method == "none":  # nothing is trained: no key of training matters
            chosen = {"batch": 1, "momentum": 0.0, "weight_decay": 0.0}
        return seed | {"student": network(config["students"][student])} | chosen
    if stage == "probe":
        keys = ("selection", "downstream", "label_fractions", "label_draws", "selection_draws", "l2")
        chosen = {key: config["probe"][key] for key in keys}
        return seed | chosen | {"standardise": config["pretrain"]["protocol"] == "fair"}
    if stage == "report":
        return seed | {
            "source": config["source"],
            "protocol": config["pretrain"]["protocol"],
            "methods": [method_name(method) for method in config["methods"]],
            "budgets": [budget_label(budget) for budget in config["budgets"]],
        }
    raise ValueError(f"no such stage: {stage}")


def names(config: Config) -> dict[str, Any]:
    """What each shared folder name stands for; experiments that share a name must agree on it."""
    folder = f"{config['source']}/{config['teacher']['name']}"
    shared = {name: settings(config, "data", dataset=name) for name in used_datasets(config)}
    files = {"checkpoint": config["teacher"]["checkpoint"]["file"], "file": config["targets"]["file"]}
    origin = teacher_origin(config)
    shared[folder] = settings(config, "targets" if origin == "file" else "teacher")
    if origin != "trained":
        shared[folder] |= {"file": files[origin]}
    shared[f"{folder}/{config['student']}"] = settings(config, "experts")
    return shared


def check_names(config: Config, registry: Path) -> None:
    """Refuse a name that another experiment uses with other settings.

    Args:
        registry: folder with one ``{experiment}.json`` each, written by ``register``.

    Raises:
        UserError: names the folder, the other experiment and the first difference.
    """
    mine = names(config)
    for file in sorted(registry.glob("*.json")):
        if file.stem == config["experiment"]:
            continue
        for name, theirs in json.loads(file.read_text(encoding="utf-8")).items():
            if name in mine and mine[name] != theirs:
                raise UserError(
                    f"config: results/{name} already belongs to experiment '{file.stem}' with other settings "
                    f"({differences(theirs, mine[name])}): give this one another name, or delete {file} if that "
                    "experiment is over."
                )


def register(config: Config, registry: Path) -> None:
    """Note what this experiment's shared names stand for, so that others can be checked against it."""
    registry.mkdir(parents=True, exist_ok=True)
    text = json.dumps(names(config), sort_keys=True, indent=1)
    temporary = registry / f".{config['experiment']}.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(registry / f"{config['experiment']}.json")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys in which two settings differ, as ``key: old -> new``, nested keys with dots."""
    before, after = dict(flat(old)), dict(flat(new))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return ", ".join(f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings as (dotted key, value) pairs."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def reference(schema_file: Path = SCHEMA, default_file: Path | None = None) -> str:
    """config/README.md: every key of the schema with its default and meaning, as Markdown."""
    schema = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    default_file = default_file or schema_file.parents[2] / "config" / "config.yaml"
    default = yaml.safe_load(default_file.read_text(encoding="utf-8"))
    lines = [
        "# The config, key by key",
        "",
        "Made from `workflow/schemas/config.schema.yaml` by `make config-docs`. Defaults are those of `config/config.yaml`;",
        "a file given with `--configfile`, and then `--config`, override single keys. *The paper* is arXiv 2410.02116.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]

    def walk(node: Mapping[str, Any], value: Any, key: str) -> None:
        node = _resolve(node, schema)
        children = node.get("properties")
        entry = node.get("additionalProperties")
        if children is None and isinstance(entry, dict):
            lines.append(f"| `{key}` | | {node['description']} |")
            first = next(iter(value.values()))
            for child, inner in entry["properties"].items():
                walk(inner, first.get(child), f"{key}.NAME.{child}")
        elif children is not None:
            if key:
                lines.append(f"| `{key}` | | {node['description']} |")
            for child, inner in children.items():
                walk(inner, None if value is None else value.get(child), f"{key}.{child}" if key else child)
        else:
            meaning = node["description"].replace("|", "\\|")  # a bar would end the cell
            lines.append(f"| `{key}` | `{json.dumps(value)}` | {meaning} |")

    walk(schema, default, "")
    return "\n".join(lines) + "\n"

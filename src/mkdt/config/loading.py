"""The config: checked before anything runs; its sizes, names and slices. No torch here: it must start fast."""

import difflib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mkdt.config import extensions
from mkdt.config.catalogue import DATASETS, PICTURES, Dataset
from mkdt.config.image_folder import find
from mkdt.config.methods import METHODS
from mkdt.config.schema import LARGEST, coerce, conform, flat
from mkdt.config.smoke import smoke
from mkdt.errors import UserError

Config = dict[str, Any]

RESULTS = Path("results")  # everything produced, relative to the working directory
KEPT = "kept.json"  # in a resume folder: digests of the finished outputs that it keeps
CLEANED = (
    ".cleaned"  # in a folder of experts that `mkdt clean` emptied: they are not asked for until something needs them
)
RESERVED = ("logs", "benchmarks", "mlartifacts")  # folders in it that are no data set and no experiment
# Arguments of each architecture: what an overriding file left over from another one is dropped.
ARCHITECTURES = {
    "convnet": ("depth", "width", "norm"),
    "resnet": ("blocks", "width"),
    **dict.fromkeys(("resnet10", "resnet18", "vgg11", "alexnet", "mobilenet"), ()),
}
OWN = extensions.declared(extensions.Architecture, ARCHITECTURES)
ARCHITECTURES |= {name: own.arguments for name, own in OWN.items()}
FOLDER_OPTIONS = ("path", "channels", "labelled")
POOLS = {
    "alexnet": 3,
    "vgg11": 5,
    **{name: own.halvings for name, own in OWN.items()},
}  # how often these halve an image
# Keys of `teacher` that belong to one loss alone: another method does not depend on them.
LOSS_OPTIONS = {
    "barlow_twins": ("off_diagonal",),
    "simclr": ("temperature",),
    "vicreg": ("invariance", "variance", "covariance"),
}


def load(raw: Mapping[str, Any]) -> Config:
    """A checked copy of a config; with ``scale: smoke`` scaled down, after the full size was checked too.

    Raises:
        UserError: one sentence that names the first key at fault.
    """
    from mkdt.config.checks import check  # it asks this module for sizes

    config = conform(raw)
    config["options"] = {name: _typed(name, given) for name, given in config["options"].items()}
    try:
        check(config)
        if config["scale"] == "smoke":
            config = smoke(config, smallest_image(config))
            check(config)
    except OSError as error:  # a path too long, a disk that does not answer
        raise UserError(f"config: a path in it cannot be looked at ({error}).") from error
    return config


def _typed(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method of one's own in the types of their defaults, as far as they can be read so."""
    defaults = METHODS[method].options if method in METHODS else {}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    kinds = {key: {"type": names[type(default)]} for key, default in defaults.items()}
    found: dict[str, Any] = coerce(dict(given), {"properties": kinds}, {})
    whole = {key for key, value in found.items() if type(value) is int and type(defaults.get(key)) is float}
    return {key: float(value) if key in whole and abs(value) < LARGEST else value for key, value in found.items()}


def facts_of(config: Config, dataset: str) -> Dataset:
    """Published shape and sizes of a data set of the config; of a folder, what lies there."""
    entry = config["datasets"][dataset]
    if entry["kind"] != "folder":
        return DATASETS[entry["kind"]]
    found = found_in(config, dataset)
    train, test, validation = (found.get(split, 0) for split in ("train", "test", "validation"))
    return Dataset(entry.get("channels") or 3, 0, found["classes"], train, test, validation, entry["path"])


def found_in(config: Config, dataset: str) -> dict[str, Any]:
    """What lies in a folder."""
    entry = config["datasets"][dataset]
    try:
        return find(entry["path"], entry.get("labelled") is not False, RESULTS / ".folders")
    except UserError as error:
        raise UserError(f"config: datasets.{dataset}.path: {error}") from error


def image_size(config: Config, dataset: str) -> int:
    """Height and width of its images in pixels."""
    return config["datasets"][dataset]["image_size"] or facts_of(config, dataset).size


def used_students(config: Config) -> list[str]:
    """Names of the students that distil, are pre-trained, or make KRR-ST's pool."""
    krr = [config["krr_st"]["student"]] * ("krr_st" in config["methods"])
    return list(dict.fromkeys([config["student"], *config["pretrain"]["students"], *krr]))


def smallest_image(config: Config) -> int:
    """Height and width that the smallest images may have for all networks of the config and its sets from files."""
    if any(method.startswith("file:") for method in config["methods"]):
        return image_size(config, config["source"])
    networks = [config["teacher"]["backbone"], *(config["students"][name] for name in used_students(config))]
    halvings = [s["depth"] if s["architecture"] == "convnet" else POOLS.get(s["architecture"], 0) for s in networks]
    return int(2 ** max(halvings))


def split_sizes(config: Config, dataset: str) -> tuple[int, int, int]:
    """Numbers of training, validation and test images, of each at most ``limit``."""
    train, validation, test = cut_sizes(config, dataset)
    limit = config["datasets"][dataset].get("limit") or math.inf
    return int(min(train, limit)), int(min(validation, limit)), int(min(test, limit))


def cut_sizes(config: Config, dataset: str) -> tuple[int, int, int]:
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


def budget_words(label: str) -> str:
    """A label of ``budget_label`` for people: ``1%`` or ``14 images``."""
    return f"{label[:-3]}%" if label.endswith("pct") else label.replace("img", " images")


def method_name(method: str) -> str:
    """The method in a path: ``file:sets/mine.safetensors`` becomes ``file-mine``."""
    return f"file-{Path(method.removeprefix('file:')).stem}" if method.startswith("file:") else method


def has_budget(method: str) -> bool:
    """Whether a method makes a set for each budget; a file has the size that it has."""
    return method in METHODS and METHODS[method].rule is not None


def initial_method(config: Config, method: str) -> str:
    """The method whose subset a distilled set starts from."""
    section = "krr_st" if method == "krr_st" else "distill"
    return METHODS[method].init or str(config[section]["init"])


def variants(config: Config, method: str) -> list[tuple[str, int]]:
    """(budget label, distill seed) of every training set that a method makes."""
    budgets = [budget_label(budget) for budget in config["budgets"]] if has_budget(method) else ["all"]
    seeds = config["distill_seeds"] if has_budget(method) and METHODS[method].seeded else [0]
    return [(budget, seed) for budget in budgets for seed in seeds]


def own_options(config: Config, method: str) -> dict[str, Any]:
    """The options that a method of one's own declares, with the config's values."""
    return {**METHODS[method].options, **config["options"].get(method, {})}


def gpus_per_job(config: Config, cluster: bool = False) -> int:
    """1 where the device is ``cuda``, or ``auto`` on a cluster or on a machine with an NVIDIA GPU; else 0."""
    device = config["compute"]["device"]
    return int(device == "cuda" or (device == "auto" and (cluster or any(Path("/dev").glob("nvidia[0-9]*")))))


def decoding_threads(config: Config, dataset: str) -> int:
    """Cores worth asking for (Snakemake gives what there are): several for image files, one for arrays."""
    return 8 if decodes_files(config, dataset) else 1


def decodes_files(config: Config, dataset: str) -> bool:
    """Whether a data set is image files, which are decoded a chunk at a time; others are published as arrays."""
    return config["datasets"][dataset]["kind"] in {*PICTURES, "folder"}


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
        entry, sizes = config["datasets"][dataset], cut_sizes(config, dataset)
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
                "found": found_in(config, dataset),  # a folder that grows or shrinks is decoded again
            }
        return seed | chosen | counts
    if stage == "teacher" and teacher_origin(config) == "checkpoint":
        # Without its path: the file's digest is in the header, and a file that moved makes nothing anew.
        return seed | {"checkpoint": {k: v for k, v in config["teacher"]["checkpoint"].items() if k != "file"}}
    if stage == "teacher":
        # How many share the work and how often it is looked at changes no weight.
        left_out = {"name", "devices", "monitor_every", "checkpoint", *itertools.chain(*LOSS_OPTIONS.values())}
        teacher = {k: v for k, v in config["teacher"].items() if k not in left_out}
        loss = {option: config["teacher"][option] for option in LOSS_OPTIONS[teacher["method"]]}
        teacher |= {"backbone": network(teacher["backbone"]), "loss": loss}
        return seed | teacher
    if stage in {"sslexperts", "mtt"}:  # the teacher's loss on the teacher's views
        own, method = config["mtt_ssl"], config["teacher"]["method"]
        shared = {
            "student": network(config["students"][config["student"]]),
            "method": method,
            "loss": {option: config["teacher"][option] for option in LOSS_OPTIONS[method]},
            "augment": config["teacher"]["augment"],
            "projector": own["projector"],
        }
        if stage == "sslexperts":
            training = {key: config["experts"][key] for key in ("epochs", "momentum", "weight_decay")}
            return seed | shared | training | {"batch": own["expert_batch"], "lr": own["expert_lr"]}
        changed = {
            "image_lr": own["image_lr"],
            "learn_targets": False,
            "step_size": config["distill"]["step_size"] | {"initial": own["step_size"]},
        }
        return settings(config, "distill") | shared | changed
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
        sas = {"sas": config["sas"] | {"augment": config["teacher"]["augment"]}}
        return seed | {"count": counts[budget]} | sas.get(method, {}) | own_options(config, method)
    if stage == "distill":
        rest = {k: v for k, v in config["distill"].items() if k != "init"}
        return seed | {"student": network(config["students"][config["student"]])} | rest
    if stage == "krr":
        rest = {k: v for k, v in config["krr_st"].items() if k not in {"init", "student"}}
        return seed | {"student": network(config["students"][config["krr_st"]["student"]])} | rest
    if stage == "own":
        return seed | {"student": network(config["students"][config["student"]])} | own_options(config, method)
    if stage == "pretrain":
        pretrain = config["pretrain"]
        grid: tuple[str, ...] = ("rates", "steps") if pretrain["protocol"] == "fair" else ("epochs",)
        chosen = {key: pretrain[key] for key in ("protocol", "batch", "momentum", "weight_decay", *grid)}
        if method == "none":  # nothing is trained: no key of training matters
            chosen = {"batch": 1, "momentum": 0.0, "weight_decay": 0.0}
        return seed | {"student": network(config["students"][student])} | chosen
    if stage == "probe":
        keys = ("selection", "downstream", "label_fractions", "label_draws", "selection_draws", "l2", "knn", "finetune")
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


class _UniqueKeys(yaml.SafeLoader):
    """YAML as Snakemake reads it, but a key that is given twice is refused instead of taken for the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of one value a key."""
        seen: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} gives the key '{name}' again")
            seen.append(name)
        return super().construct_mapping(node, deep)


def check_files(files: Iterable[str | Path]) -> None:
    """Config files that can be read, each a mapping without a key that is given twice.

    Raises:
        UserError: names the file.
    """
    for file in files:
        try:
            found = yaml.load(Path(file).read_text(encoding="utf-8"), _UniqueKeys)
            json.dumps(found, default=str)  # no mapping within itself
            if not isinstance(found, dict):
                raise ValueError("it holds no keys")
        except FileNotFoundError as error:
            beside = Path(file).parent
            near = difflib.get_close_matches(Path(file).name, [path.name for path in beside.glob("*.y*ml")], 1, 0.5)
            hint = f": did you mean {beside / near[0]}?" if near else "."
            raise UserError(f"the config file {file} does not exist{hint}") from error
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the config file {file} cannot be used ({reason}): it must be YAML of keys and values, as config/config.yaml is."
            ) from error


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
    results = registry.parent
    if (results.exists() or results.is_symlink()) and not results.is_dir():
        raise UserError(f"{results} is a file, or a link to nothing: it must be a folder, or a link to one.")
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

"""The slice of the config that each stage depends on: a change elsewhere does not touch the stage.

Each function takes the config and what the path says of the artifact; ``stages`` names the function of each stage.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from mkdt.config.architectures import network
from mkdt.config.budgets import budget_images, budget_label
from mkdt.config.methods import METHODS
from mkdt.config.plan import method_name, own_options
from mkdt.config.sections import Config, Names, Settings
from mkdt.config.sizes import cut_sizes, facts_of, folder_listing
from mkdt.config.views import expand

FOLDER_OPTIONS = ("path", "channels", "labelled")
# Keys of `teacher` that belong to one loss alone: a teacher of another loss does not depend on them.
LOSS_OPTIONS = {
    "barlow_twins": ("off_diagonal",),
    "simclr": ("temperature",),
    "vicreg": ("invariance", "variance", "covariance"),
}


def canonical(value: Any) -> Any:
    """Return settings with the keys of every mapping in order, so that their order in a config file changes nothing."""
    if isinstance(value, Mapping):
        return {key: canonical(value[key]) for key in sorted(value)}
    return [canonical(item) for item in value] if isinstance(value, list | tuple) else value


def _without(section: Mapping[str, Any], keys: Iterable[str]) -> Settings:
    left_out = set(keys)
    return {key: value for key, value in section.items() if key not in left_out}


def _only(section: Mapping[str, Any], *keys: str) -> Settings:
    return {key: section[key] for key in keys}


def _loss(config: Config) -> Settings:
    return _only(config["teacher"], *LOSS_OPTIONS[config["teacher"]["method"]])


def _student(config: Config, name: str) -> Settings:
    return {"student": network(config["students"][name])}


def data(config: Config, names: Names) -> Settings:
    """A data set's entry with its splits as counts, and of a folder what lies in it."""
    entry = config["datasets"][names["dataset"]]
    counts = dict(zip(("train", "validation", "test"), cut_sizes(config, names["dataset"]), strict=True))
    splits = {split: None if count is None else counts[split] for split, count in _only(entry, *counts).items()}
    chosen = _without(entry, FOLDER_OPTIONS)
    if chosen.get("limit") is None:  # null is no limit, as a missing key is
        chosen.pop("limit", None)
    if entry["kind"] == "folder":
        chosen |= {
            "path": entry.get("path"),
            "channels": entry.get("channels") or 3,
            "labelled": entry.get("labelled") is not False,
            "found": folder_listing(config, names["dataset"]).found,  # a folder that grows or shrinks is decoded again
        }
    return chosen | splits


def teacher(config: Config, names: Names) -> Settings:
    """What decides the weights of a teacher that is trained here."""
    # How many processes share the work and how often the teacher is monitored changes no weight.
    left_out = ("name", "devices", "monitor_every", "checkpoint", *itertools.chain(*LOSS_OPTIONS.values()))
    backbone = network(config["teacher"]["backbone"])
    return _without(config["teacher"], left_out) | {"backbone": backbone, "loss": _loss(config)}


def teacher_import(config: Config, names: Names) -> Settings:
    """How a checkpoint is read; its path is left out, so that a file that moved makes nothing anew."""
    return {"checkpoint": _without(config["teacher"]["checkpoint"], ["file"])}


def targets(config: Config, names: Names) -> Settings:
    """Nothing (``Stage.slice`` adds the root seed): the teacher's file says which network it is."""
    return {}


def target_space(config: Config, names: Names) -> Settings:
    """The space."""
    return dict(config["targets"]["space"])


def targets_import(config: Config, names: Names) -> Settings:
    """How many published images the representations must be of."""
    return {"published": facts_of(config, config["source"]).train}


def targets_probe(config: Config, names: Names) -> Settings:
    """The label draws and the classifier."""
    return _only(config["probe"], "label_fractions", "label_draws", "l2") | _standardise(config)


def experts(config: Config, names: Names) -> Settings:
    """The student and its training; which job trains which expert changes none."""
    return _student(config, config["student"]) | _without(config["experts"], ["count", "per_job"])


def method_experts(config: Config, names: Names) -> Settings:
    """What decides a method's own experts: of ``mtt_ssl`` the student and its training by the teacher's loss."""
    if METHODS[names["method"]].section != "mtt_ssl":
        own = _without(own_options(config, names["method"]), ["iterations", "pictures"])  # these decide the set alone
        return experts(config, names) | {"options": own}
    section, training = config["mtt_ssl"], _only(config["experts"], "epochs", "momentum", "weight_decay")
    return _ssl(config) | training | {"batch": section["expert_batch"], "lr": section["expert_lr"]}


def _ssl(config: Config) -> Settings:
    """What ``mtt_ssl`` shares with the teacher, and its projector."""
    shared = {"method": config["teacher"]["method"], "loss": _loss(config), "augment": config["teacher"]["augment"]}
    return _student(config, config["student"]) | shared | {"projector": config["mtt_ssl"]["projector"]}


def subset(config: Config, names: Names) -> Settings:
    """The number of images, their views, and a method's own settings."""
    count = {"count": budget_images(config, names["budget"], names["method"]), "fixed_views": expand(config["views"])}
    count |= {"storage": {"targets": config["storage"]["targets"]}}  # pixels of real images are bytes
    sas = config["sas"] | {"augment": config["teacher"]["augment"]} if names["method"] == "sas" else {}
    return count | dict(sas) | own_options(config, names["method"])


def distill(config: Config, names: Names) -> Settings:
    """A distillation method's section of the config, or an extension's options, the student, and how the set is stored."""
    return _method(config, names) | {"storage": dict(config["storage"])}


def _method(config: Config, names: Names) -> Settings:
    section = METHODS[names["method"]].section
    if section == "krr_st":
        return _student(config, config["krr_st"]["student"]) | _without(config["krr_st"], ["init", "student"])
    if section == "bptt":
        return _student(config, config["student"]) | _without(config["bptt"], ["init"])
    if not section:
        return _student(config, config["student"]) | own_options(config, names["method"])
    matching = _student(config, config["student"]) | _without(config["distill"], ["init"])
    if section == "distill":
        return matching
    changed = {
        "image_lr": config["mtt_ssl"]["image_lr"],
        "learn_targets": False,
        "step_size": config["distill"]["step_size"] | {"initial": config["mtt_ssl"]["step_size"]},
    }
    return matching | _ssl(config) | changed


def pretrain(config: Config, names: Names) -> Settings:
    """The student and the grid of its training. Nothing is trained for ``none``, so it depends on the student alone."""
    section = config["pretrain"]
    grid = ("rates", "steps") if section["protocol"] == "fair" else ("epochs",)
    chosen = _only(section, "protocol", "batch", "momentum", "weight_decay", *grid)
    if names["method"] == "none":
        chosen = {"batch": 1, "momentum": 0.0, "weight_decay": 0.0}
    return _student(config, names["student"]) | chosen


def select(config: Config, names: Names) -> Settings:
    """What decides the linear probe on the selection set."""
    return _only(config["probe"], "selection", "label_fractions", "selection_draws", "l2") | _standardise(config)


def probe(config: Config, names: Names) -> Settings:
    """The evaluation; the selection set and its draws where they choose the learning rate of fine-tuning."""
    chooses = config["probe"]["finetune"] is not None
    return _without(config["probe"], [] if chooses else ["selection", "selection_draws"]) | _standardise(config)


def _standardise(config: Config) -> Settings:
    return {"standardise": config["pretrain"]["protocol"] == "fair"}


def report(config: Config, names: Names) -> Settings:
    """What the report names, in the order of the config."""
    return {
        "source": config["source"],
        "protocol": config["pretrain"]["protocol"],
        "methods": [method_name(method) for method in config["methods"]],
        "budgets": [budget_label(budget) for budget in config["budgets"]],
    }

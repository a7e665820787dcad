"""``scale: smoke``: the same study with every size scaled down, to see in minutes that it works before it is paid for.

Stages, methods, students and downstream sets stay, so every rule runs with the study's own switches. No torch here.
"""

import copy
from math import isqrt
from typing import Any, cast

from mkdt.config.budgets import budget_count, lonely_rows
from mkdt.config.catalogue import DATASETS
from mkdt.config.methods import METHODS
from mkdt.config.plan import used_datasets
from mkdt.config.sections import Config, DatasetEntry
from mkdt.config.views import expand, parse
from mkdt.errors import UserError

ENDING = "_smoke"  # of all names, so that results of the two scales never mix
LIMIT = 200  # images of each split
FARTHEST = 2  # pixels that a view shifts an image
SHRINK, SMALLEST = 4, 8  # sides of the images are divided by the one, as far as the other
# Numbers keep at most this value, lists at most so many entries. `experts.epochs` fits the largest start and match epochs.
MOST: dict[str, dict[str, int]] = {
    "teacher": {"batch": 48, "epochs": 2, "warmup_epochs": 1},
    "experts": {"count": 4, "per_job": 4, "epochs": 3, "batch": 64},
    "distill": {"iterations": 4, "steps": 3, "match_epochs": 2, "start_epochs": 2, "batch": 64, "pictures": 2},
    "bptt": {"iterations": 4, "steps": 3, "window": 2, "losses_at": 1, "outer_batch": 64, "batch": 64, "pictures": 2},
    "sas": {"classes": 10, "views": 2},
    "krr_st": {"iterations": 4, "batch": 64, "students": 2, "student_steps": 4, "pictures": 2},
    "mtt_ssl": {"expert_batch": 48},
    "pretrain": {"seeds": 2, "rates": 2, "steps": 2, "epochs": 2, "batch": 32},
    "probe": {"label_draws": 2, "selection_draws": 1},
}
OWN = {"iterations": 4, "pictures": 2}  # the options that every extension that distils has
STEPS = (2, 4)  # of pre-training
DISTILL_SEEDS = 1


def check_endings(config: Config) -> None:
    """Refuse names that end as the names of smoke results do, in a config of full size.

    Raises:
        UserError: names the key.
    """
    for key, name in [
        ("experiment", config["experiment"]),
        *((f"datasets.{name}", name) for name in used_datasets(config)),
    ]:
        if name.endswith(ENDING):
            raise UserError(
                f"config: {key}: the name '{name}' ends in '{ENDING}', as the folders of scale: smoke do; choose "
                "another ending."
            )


def smoke(config: Config, smallest: int) -> Config:
    """Return a scaled-down copy of a checked config.

    Args:
        config: of full size.
        smallest: height and width below which its networks cannot take the source's images.
    """
    small = copy.deepcopy(config)
    sections = cast(dict[str, dict[str, Any]], small)
    for section, most in MOST.items():
        for key, bound in most.items():
            value = sections[section][key]
            if value is not None:
                sections[section][key] = value[:bound] if isinstance(value, list) else min(value, bound)
    devices = small["teacher"]["devices"]
    small["teacher"]["batch"] = max(devices, small["teacher"]["batch"] // devices * devices)
    for name in small["methods"]:
        if name in METHODS and METHODS[name].distilled and METHODS[name].options:
            own = {**METHODS[name].options, **small["options"].get(name, {})}
            small["options"][name] = own | {key: min(own[key], bound) for key, bound in OWN.items()}
    if small["probe"]["finetune"] is not None:
        finetune = small["probe"]["finetune"]
        small["probe"]["finetune"] = finetune | {
            "rates": finetune["rates"][:2],
            "steps": min(finetune["steps"], STEPS[-1]),
        }
    small["bptt"]["losses_at"] = [1 for _ in small["bptt"]["losses_at"]]  # fewer than the steps that are left
    small["pretrain"]["steps"] = list(STEPS[: len(small["pretrain"]["steps"])])
    small["distill_seeds"] = small["distill_seeds"][:DISTILL_SEEDS]
    # Few images need larger shares of them; what thereby becomes equal is one.
    fractions = [min(1.0, max(0.05, 10 * fraction)) for fraction in small["probe"]["label_fractions"]]
    budgets = [_fewer(config, budget) for budget in small["budgets"]]
    small["probe"]["label_fractions"] = _once(fractions)

    used = used_datasets(small)
    # Only the source's size matters to networks: the others are brought to it.
    least = {name: smallest if name == small["source"] else SMALLEST for name in used}
    names = {name: _name(name, small["datasets"][name], least[name]) for name in used}
    twice = [name for name in used if list(names.values()).count(names[name]) > 1]
    if twice:
        raise UserError(
            f"config: datasets.{twice[0]} and datasets.{twice[1]} would both be {names[twice[0]]} with scale: smoke; rename one."
        )
    small["datasets"] = {names[name]: _few(small["datasets"][name], least[name]) for name in used}
    small["probe"]["downstream"] = [names[name] for name in small["probe"]["downstream"]]
    small["probe"]["selection"] = names[small["probe"]["selection"]]
    small["source"] = names[small["source"]]
    small["experiment"] += ENDING
    # Of equal sizes the first stays.
    counts = {budget_count(small, budget, "random"): budget for budget in reversed(budgets)}
    small["budgets"] = list(reversed(counts.values()))
    small["views"] = _once([_near(name) for name in expand(small["views"])])
    while lonely_rows(small) and small["pretrain"]["batch"] < config["pretrain"]["batch"]:
        small["pretrain"]["batch"] += 1
    return small


def _fewer(config: Config, budget: float | str) -> float:
    """A share of 1 % or more, or the root of a number of images; bytes become images."""
    if not isinstance(budget, str) and budget < 1:
        return max(0.01, budget)
    return max(2, isqrt(budget_count(config, budget, "random")))


def _near(view: str) -> str:
    """A view that leaves the smallest images in sight: a shift by ``FARTHEST`` pixels at most."""
    form = parse(view)
    if form.kind != "shift":
        return view
    return " ".join(["shift", *(f"{min(max(number, -FARTHEST), FARTHEST):.0f}" for number in form.numbers)])


def _name(name: str, entry: DatasetEntry, least: int) -> str:
    """The name of a scaled-down data set; where networks or brought sets need larger images than others, with their size."""
    side = _few(entry, least)["image_size"]
    return name + ("" if side == _few(entry, SMALLEST)["image_size"] else f"_{side}px") + ENDING


def _few(entry: DatasetEntry, least: int) -> DatasetEntry:
    """A data set with fewer and smaller images."""
    side = entry["image_size"] or DATASETS[entry["kind"]].size
    limit = min(LIMIT, entry.get("limit") or LIMIT)
    return {**entry, "limit": limit, "image_size": max(side // SHRINK, min(side, max(least, SMALLEST)))}


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))

"""Budgets: how many images a set has, from a share of the training images, a number of images or of bytes."""

from mkdt.config.methods import METHODS, has_budget
from mkdt.config.network_sizes import targets_dimension
from mkdt.config.sections import Config
from mkdt.config.sizes import facts_of, image_shape, split_sizes, train_images
from mkdt.config.views import expand
from mkdt.errors import UserError

BYTES = {"float32": 4, "float16": 2, "uint8": 1}
STEP_SIZE = 4  # bytes of a set's step size
BOUNDS = 8  # bytes of the bounds of a channel or component that is stored as uint8


def budget_count(config: Config, budget: float | str, method: str) -> int:
    """Return the number of images that a method makes for a budget.

    A fraction is one of the published training images, as in papers. Of bytes, a method makes as many images as fit; real
    images have one byte a pixel, synthetic ones ``storage.pixels``.
    """
    if isinstance(budget, str):
        return (_bytes_of(budget) - set_bytes(config, 0, method)) // image_bytes(config, method)
    if budget >= 1:
        return int(budget)
    entry, facts = config["datasets"][config["source"]], facts_of(config, config["source"])
    train, _, test = split_sizes(config, config["source"])
    chosen = entry["train"] is not None or entry.get("limit") is not None
    return round(budget * (train if chosen else facts.train - (test if entry["test"] else 0)))


def _bytes_of(budget: str) -> int:
    """Return the bytes of ``8064B`` or ``8KB`` (1 KB is 1,000 bytes)."""
    number, kilo = budget.removesuffix("B").removesuffix("K"), "K" in budget
    return round(float(number) * (1000 if kilo else 1))


def image_bytes(config: Config, method: str) -> int:
    """Return the bytes of an image of a method's set, with the targets of all its views."""
    channels, size = image_shape(config, config["source"])
    pixels = "uint8" if _is_real(method) else config["storage"]["pixels"]
    targets = _views(config) * targets_dimension(config)
    return channels * size**2 * BYTES[pixels] + targets * BYTES[config["storage"]["targets"]]


def set_bytes(config: Config, images: int, method: str) -> int:
    """Return the bytes of a method's set of so many images, as ``distill.storage.bytes_of`` counts them."""
    storage, channels = config["storage"], image_shape(config, config["source"])[0]
    bounds = channels * (_is_real(method) or storage["pixels"] == "uint8")
    bounds += targets_dimension(config) * (storage["targets"] == "uint8")
    return STEP_SIZE + BOUNDS * bounds + images * image_bytes(config, method)


def _views(config: Config) -> int:
    return len(expand(config["views"]))


def _is_real(method: str) -> bool:
    return METHODS[method].stage == "subset"


def budget_label(budget: float | str) -> str:
    """Return the budget as it stands in a path: ``1pct``, ``14img`` or ``8KB``."""
    if isinstance(budget, str):
        return budget
    return f"{100 * budget:.6g}pct" if budget < 1 else f"{int(budget)}img"


def budget_words(label: str) -> str:
    """Return a label of ``budget_label`` for people: ``1%``, ``14 images`` or ``8 KB``."""
    for unit, word in {"pct": "%", "img": " images", "KB": " KB", "B": " bytes"}.items():
        if label.endswith(unit):
            return label.removesuffix(unit) + word
    return label


def budget_images(config: Config, label: str, method: str) -> int:
    """Return the number of images a method trains on, by the budget in its path; of ``all``, all training images.

    Raises:
        UserError: the config has no such budget.
    """
    if label == "all":
        return train_images(config, config["source"])
    for budget in config["budgets"]:
        if budget_label(budget) == label:
            return budget_count(config, budget, method)
    for maker in _makers(config):  # a subset that a set of so many bytes starts from
        for budget in config["budgets"]:
            if isinstance(budget, str) and initial_label(config, budget, maker) == label:
                return budget_count(config, budget, maker)
    known = ", ".join([*map(budget_label, config["budgets"]), "all"])
    raise UserError(f"config: budgets has no '{label}' (it has {known}): add it, or ask for another set.")


def initial_label(config: Config, label: str, method: str) -> str:
    """Return the budget of the subset that a distilled set starts from: the same, or its number of images.

    A number of bytes may buy another number of real images.
    """
    if not label.endswith("B") or image_bytes(config, method) == image_bytes(config, "random"):
        return label
    return f"{budget_images(config, label, method)}img"


def view_count(config: Config, budget: str) -> int:
    """Return the number of views of each image of a set; all images are trained on as they are."""
    return 1 if budget == "all" else _views(config)


def lonely_rows(config: Config) -> list[int]:
    """Return the sizes of the sets, in rows (views count), whose last batch in pre-training is of one row."""
    views, batch = _views(config), config["pretrain"]["batch"]
    rows = [views * count for budget in config["budgets"] for count in set(budget_counts(config, budget).values())]
    return [count for count in [*rows, train_images(config, config["source"])] if count % batch == 1 or batch == 1]


def budget_counts(config: Config, budget: float | str) -> dict[str, int]:
    """Return the number of images that each of the config's methods makes for a budget."""
    return {method: budget_count(config, budget, method) for method in _makers(config)}


def _makers(config: Config) -> list[str]:
    """Return the config's methods that make a set for each budget."""
    return [method for method in config["methods"] if has_budget(method)]

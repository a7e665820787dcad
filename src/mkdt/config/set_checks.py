"""Check a set that somebody else distilled (``methods: [file:PATH]``): its form, its units, and what looks wrong. No torch here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from mkdt.artifact_header import HEADER_KEY, read_header
from mkdt.config import plan, sizes
from mkdt.config.budgets import budget_counts
from mkdt.config.dataset_checks import fail_if
from mkdt.config.network_sizes import targets_dimension
from mkdt.config.sections import Config
from mkdt.config.set_values import ALTERED, Values, measure, unreadable, values_of
from mkdt.config.stages import STAGES, targets_path
from mkdt.config.teacher_origin import teacher_origin
from mkdt.config.views import IDENTITY, parse
from mkdt.config.views import check as check_views
from mkdt.errors import UserError

Array = NDArray[Any]

# Tensors of a set: types and shape. V is the number of its views, 1 where its header names none.
LAYOUT = {
    "images": ("float32, float16 or uint8", "[m,C,H,W]"),
    "targets": ("float32, float16 or uint8", "[V*m,D]"),
    "step_size": ("float32", "[]"),
    "mean": ("float32", "[C]"),
    "std": ("float32", "[C]"),
    "init_index": ("int64", "[m]"),
}
# Beside tensors of type uint8: the values that 0 and 255 stand for, float32 [C,2] of pixels in [0, 1] and [D,2].
BOUNDS = {"images": "pixel_bounds", "targets": "target_bounds"}
# Denormalised pixels of a distilled set; the digits of the README run from -0.9 to 2.2.
LOWEST, HIGHEST = -2.0, 3.0
# Of any pixels in [0, 1].
LARGEST_STD = 0.5
# A deviation of denormalised pixels that no distillation reaches.
WIDEST = 10 * LARGEST_STD
# Deviation of normalised images: near 1 of real ones, 1.7 of distilled digits, 0.2 to 0.5 after ZCA with 0.1.
LEAST_SPREAD = 0.6
# Of neighbouring pixels: 0.4 in digits and 0.95 in photographs, 0.0 after ZCA with 0.001.
LEAST_CORRELATION = 0.1
# Between the statistics of a set and the source's; published ones differ by 1.22.
FARTHEST_MEAN, LARGEST_RATIO = 0.1, 1.4


def check_set(config: Config, key: str, path: Path) -> None:
    """Check the form of the set in a file, and that of its images: its header is read, but not its values.

    Raises:
        UserError: one sentence that names ``key`` and the file: it cannot be read, its header was altered, or it has
            another form than ``LAYOUT`` or another image shape than the source.
    """
    try:
        fault, shape = _form(path)
    except ValueError as error:
        raise _no_set(key, path, error) from error
    fail_if(bool(fault), f"{key}: {path} is not a synthetic set: {fault} (docs/artifacts.md).")
    channels, size = sizes.image_shape(config, config["source"])
    fail_if(
        shape != (channels, size, size),
        f"{key}: {path} has images of shape {shape}, the source's are {(channels, size, size)}: distil at that size.",
    )


def check_values(config: Config) -> None:
    """Check that the values of each brought set are as its header says, and those of normalised pixels.

    This reads whole files, so that only the process that begins a run does it. The config is one that was loaded.

    Raises:
        UserError: one sentence that names the key and the file.
    """
    for i, method in enumerate(config["methods"]):
        if method.startswith("file:"):
            check_values_of(f"methods.{i}", _file(method))


def check_values_of(key: str, path: Path) -> None:
    """Check the values of a set that ``check_set`` accepts, as ``check_values`` does.

    Raises:
        UserError: as ``check_values``.
    """
    try:
        fault = _impossible(values_of(path))
    except ValueError as error:
        raise _no_set(key, path, error) from error
    fail_if(
        bool(fault), f"{key}: {path}: {fault}; docs/artifacts.md says how images are normalised and a set is written."
    )


def _file(method: str) -> Path:
    return Path(method.removeprefix("file:"))


def _no_set(key: str, path: Path, error: ValueError) -> UserError:
    return UserError(
        f"config: {key}: {path} is not a synthetic set ({error}); docs/artifacts.md says how to write one."
    )


@dataclass(frozen=True)
class _Form:
    """What a file says of a tensor before the tensor is read."""

    dtype: str
    shape: tuple[int, ...]


def _form(path: Path) -> tuple[str, tuple[int, ...]]:
    """Return what in the form of a set is not as in ``LAYOUT``, empty if all is, and the shape of one of its images.

    Raises:
        ValueError: the file cannot be read, has no header, or another one than its digest says.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            forms = {name: _Form(_dtype(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}
            small = {name: file.get_tensor(name) for name in ("step_size", "std", *BOUNDS.values()) if name in forms}
    except Exception as error:  # whatever the reader of an arbitrary file says
        raise unreadable(error) from error
    if HEADER_KEY not in metadata:
        raise ValueError("has no header of this project, which mkdt.artifacts.save writes")
    try:
        header = read_header(metadata, {name: form.shape for name, form in forms.items()})
    except ValueError as error:
        raise ValueError(ALTERED) from error
    names = views_of(header)
    fault = _misform(forms, len(names)) or _negative(small)
    if not fault:
        try:
            check_views(names, *forms["images"].shape[1:3])
        except UserError as error:
            fault = f"views in its header: {str(error).rstrip('.')}"
    return fault, () if fault else forms["images"].shape[1:]


def _dtype(name: str) -> str:
    """Return the name of a type in numpy: ``float32`` for ``F32``."""
    kind, bits = name.rstrip("0123456789"), name.lstrip("BFIU")
    return {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}[kind] + bits if name != kind else name.lower()


def views_of(header: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a set's views from its header, ``identity`` alone where it has none.

    Raises:
        ValueError: they are not names of views.
    """
    notes = header.get("notes", {})
    names = notes.get("views", [IDENTITY]) if isinstance(notes, dict) else notes
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"views in its header are {names!r}, expected a list of names")
    if several := [name for name in names if name.startswith("shifts ")]:
        raise ValueError(f"views in its header have '{several[0]}', where each of the eight shifts is to be named")
    try:
        for name in names:
            parse(name)
    except UserError as error:
        raise ValueError(f"views in its header: {str(error).rstrip('.')}") from error
    return tuple(names)


def misfit(tensors: Mapping[str, Any], views: int) -> str:
    """Say what in the names, types or shapes of a set's tensors is not as in ``LAYOUT``, or not positive; empty if all is.

    Args:
        tensors: arrays of numpy or tensors of torch, by name.
        views: the number of views, V.
    """
    return _misform(tensors, views) or _negative(tensors)


def _misform(tensors: Mapping[str, Any], views: int) -> str:
    """Say what in the names, types or shapes is not as in ``LAYOUT``."""
    missing = [name for name in LAYOUT if name not in tensors]
    if missing:
        return f"it has no {', '.join(missing)}"
    shapes = {name: tuple(tensors[name].shape) for name in LAYOUT}
    m, channels = shapes["images"][:2] if len(shapes["images"]) == 4 else (0, 0)
    fits = {
        "images": 0 not in shapes["images"] and channels > 0,
        "targets": len(shapes["targets"]) == 2 and shapes["targets"][0] == views * m and shapes["targets"][1] > 0,
        "step_size": shapes["step_size"] == (),
        "mean": shapes["mean"] == (channels,),
        "std": shapes["std"] == (channels,),
        "init_index": shapes["init_index"] == (m,),
    }
    for name, (dtypes, _) in LAYOUT.items():
        given = str(tensors[name].dtype).removeprefix("torch.")
        if name == "mean" and channels not in (1, 3) and shapes["images"][-1] in (1, 3):
            return f"images {list(shapes['images'])} have their channels last, where they must be second: [m,C,H,W]"
        if not fits[name] or given not in re.split(", | or ", dtypes):
            form = ", ".join(f"{name} {dtypes} {shape}" for name, (dtypes, shape) in LAYOUT.items())
            return f"{name} is {given} {list(shapes[name])}, expected {form}; V is {views}"
        if given == "uint8" and (fault := _misbound(name, shapes[name][1], tensors)):
            return fault
    return ""


def _misbound(name: str, count: int, tensors: Mapping[str, Any]) -> str:
    """Say what is wrong with the bounds of a tensor of type uint8 that has so many channels or components."""
    bounds = tensors.get(BOUNDS[name])
    given = bounds is not None and (str(bounds.dtype).removeprefix("torch."), tuple(bounds.shape))
    if given == ("float32", (count, 2)):
        return ""
    shown = f"{given[0]} {list(given[1])}" if given else "not there"
    return f"{name} is uint8, so that {BOUNDS[name]} must be float32 {[count, 2]}; it is {shown}"


def _negative(tensors: Mapping[str, Any]) -> str:
    """Say which of the tensors that must be positive is not, or whose bounds are swapped."""
    if not float(tensors["step_size"]) > 0:
        return f"step_size is {float(tensors['step_size']):g}, it must be positive"
    if not bool((tensors["std"] > 0).all()):
        return f"std must be positive in every channel, got {tensors['std'].tolist()}"
    for name in BOUNDS.values():
        if name in tensors and bool((tensors[name][:, 0] > tensors[name][:, 1]).any()):
            return f"{name} must have the smaller value first in every row, which 0 stands for"
    return ""


def doubts(config: Config, tensors: Mapping[str, Array]) -> list[str]:
    """Return what looks wrong about a set beside this source and teacher, as far as these are made: sentences.

    Args:
        config: of the run.
        tensors: arrays in the form of ``LAYOUT``.
    """
    return _doubts(config, measure(tensors))


def _doubts(config: Config, values: Values) -> list[str]:
    counts = {count: None for budget in config["budgets"] for count in budget_counts(config, budget).values()}
    others = [f"{count:,}" for count in counts if count != values.count]
    size = [f"it has {values.count:,} images, and is compared with sets of {', '.join(others)}."] if others else []
    return size + _odd(values, *_source_and_width(config))


def brought_doubts(config: Config) -> dict[str, list[str]]:
    """Return ``doubts`` of each set that the config brings, by the name of its method; only sets with some."""
    found = {}
    for method in config["methods"]:
        if method.startswith("file:"):
            try:
                sentences = _doubts(config, values_of(_file(method)))
            except ValueError as error:  # it changed since it was checked
                sentences = [f"it {error}"]
            found[plan.method_name(method)] = sentences
    return {name: sentences for name, sentences in found.items() if sentences}


def _source_and_width(config: Config) -> tuple[dict[str, Array] | None, int | None]:
    """Return ``source`` and ``width`` as for ``oddities``, as far as they are made."""
    source = _made(STAGES["data"].path(config, "data", {"dataset": config["source"]}), "mean", "std")
    if teacher_origin(config) == "trained":
        return source, targets_dimension(config)
    return source, _made_width(targets_path(config))


def oddities(
    tensors: Mapping[str, Array], source: Mapping[str, Array] | None = None, width: int | None = None
) -> list[str]:
    """Return what looks wrong about a set, though it may be meant: one sentence each.

    Args:
        tensors: arrays in the form of ``LAYOUT``.
        source: ``mean`` and ``std`` float32 [C] of the source's pixels in [0, 1]; None if they are not known.
        width: length of the teacher's representations; None if it is not known.
    """
    return _odd(measure(tensors), source, width)


@np.errstate(all="ignore")
def _odd(values: Values, source: Mapping[str, Array] | None, width: int | None) -> list[str]:
    """Return what ``oddities`` does, from numbers about the set."""
    least, most, mean, std = values.darkest, values.brightest, values.mean, values.std
    found = []
    if least < LOWEST or most > HIGHEST:
        found.append(f"its pixels run from {least:.1f} to {most:.1f} after denormalising, where images lie in [0, 1].")
    if float(std.max()) > LARGEST_STD:
        if least < 0 or most > 1:
            found.append(f"its std {_rounded(std)} is larger than that of any pixels in [0, 1]: is the set whitened?")
    elif values.spread < LEAST_SPREAD:
        found.append(
            f"its images have a deviation of {values.spread:.2f}, where normalised images have about 1: were they "
            "normalised with this mean and std, or whitened?"
        )
    if values.flat:
        found.append(f"{values.flat} of its {values.count} images have one colour.")
    if values.correlation < LEAST_CORRELATION:
        found.append(
            f"neighbouring pixels of its images hardly resemble each other (correlation {values.correlation:.2f}): are "
            "they whitened, or noise?"
        )
    if values.repeated:
        found.append(f"{values.repeated} of its {values.count} images are there more than once.")
    if values.one_hot:
        found.append("its targets are one-hot: they are labels, which no other method here has seen.")
    if width is not None and values.width != width:
        found.append(f"its targets have {values.width} values, the teacher's {width}: they are another teacher's.")
    return found + (_unlike(mean, std, source["mean"], source["std"]) if source else [])


def _unlike(mean: Array, std: Array, own_mean: Array, own_std: Array) -> list[str]:
    """Compare the statistics of a set with the source's, all float32 [C]."""
    if mean.shape != own_mean.shape:
        return []
    ratio = np.exp(np.abs(np.log(std / own_std)).max())
    given = f"its mean {_rounded(mean)} and std {_rounded(std)}"
    own = f"the source's, {_rounded(own_mean)} and {_rounded(own_std)}"

    def distance(first: Array, second: Array) -> float:
        return float(np.abs(first - own_mean).max() + np.abs(second - own_std).max())

    if distance(std, mean) < min(distance(mean, std), FARTHEST_MEAN):
        return [f"{given} look swapped beside {own}."]
    if np.abs(mean - own_mean).max() > FARTHEST_MEAN or ratio > LARGEST_RATIO:
        return [f"{given} are unlike {own}."]
    return []


def _impossible(values: Values) -> str:
    """Say which values of a set cannot be meant; empty if all can."""
    mean, std = values.mean, values.std
    if values.infinite:
        return f"{values.infinite} has values that are not finite"
    if mean.min() < 0 or mean.max() > 1 or std.max() > 1:
        return f"mean {_rounded(mean)} and std {_rounded(std)} are not those of pixels in [0, 1]"
    if values.flat == values.count:
        return "each of its images has one colour"
    if mean.max() > 0 and values.least >= 0 and (values.most <= 1 or values.most > 20):
        given = f"all values of its images lie from {values.least:.3g} to {values.most:.3g}"
        return f"{given}: they are pixels that were not normalised with its mean and std"
    if values.alike and values.count > 1:
        return "all of its targets are the same, so there is nothing to learn from them"
    if not values.deviation <= WIDEST:
        return (
            f"its pixels have a deviation of {values.deviation:.3g} after denormalising, where those of images in [0, 1] "
            "have 0.5 at most"
        )
    return ""


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 3) for value in values]


def _made_width(path: str) -> int | None:
    """Return the length of the targets in a file of the results, without reading them; None as ``_made``."""
    try:
        with safe_open(path, "np") as file:
            return int(file.get_slice("targets").get_shape()[1])
    except Exception:  # as for _made
        return None


def _made(path: str, *names: str) -> dict[str, Array] | None:
    """Read tensors of a file of the results; None if it is not there. Jobs say what is wrong with one that is damaged."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in names}
    except Exception:  # whatever the reader of an arbitrary file says
        return None

"""Check a set that somebody else distilled (``methods: [file:PATH]``): its form, its units, and what looks wrong. No torch here."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from mkdt.config import plan, sizes
from mkdt.config.dataset_checks import fail_if
from mkdt.config.network_sizes import targets_dimension
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES, targets_path
from mkdt.config.views import IDENTITY, parse
from mkdt.errors import UserError

Array = NDArray[Any]

# Tensors of a set: type and shape. V is the number of its views, 1 where its header names none.
LAYOUT = {
    "images": ("float32", "[m,C,H,W]"),
    "targets": ("float32", "[V*m,D]"),
    "step_size": ("float32", "[]"),
    "mean": ("float32", "[C]"),
    "std": ("float32", "[C]"),
    "init_index": ("int64", "[m]"),
}
LOWEST, HIGHEST = -2.0, 3.0  # denormalised pixels of a distilled set; the digits of the README run from -0.9 to 2.2
LARGEST_STD = 0.5  # of any pixels in [0, 1]
WIDEST = 10 * LARGEST_STD  # a deviation of denormalised pixels that no distillation reaches
LEAST_SPREAD = (
    0.6  # deviation of normalised images: near 1 of real ones, 1.7 of distilled digits, 0.2 to 0.5 after ZCA with 0.1
)
LEAST_CORRELATION = 0.1  # of neighbouring pixels: 0.4 in digits and 0.95 in photographs, 0.0 after ZCA with 0.001
FARTHEST_MEAN, LARGEST_RATIO = (
    0.1,
    1.4,
)  # between the statistics of a set and the source's; published ones differ by 1.22


def check_set(config: Config, key: str, path: Path) -> None:
    """Check that the set in a file can be pre-trained on beside the sets of the source.

    Raises:
        UserError: one sentence that names ``key`` and the file: it cannot be read, was altered, has another form than
            ``LAYOUT`` or another image shape than the source, or its values are not normalised pixels.
    """
    try:
        tensors, views = _read(path)
    except ValueError as error:
        raise UserError(
            f"config: {key}: {path} is not a synthetic set ({error}); docs/artifacts.md says how to write one."
        ) from error
    fault = misfit(tensors, len(views))
    fail_if(bool(fault), f"{key}: {path} is not a synthetic set: {fault} (docs/artifacts.md).")
    channels, size = sizes.image_shape(config, config["source"])
    shape = tensors["images"].shape[1:]
    fail_if(
        shape != (channels, size, size),
        f"{key}: {path} has images of shape {shape}, the source's are {(channels, size, size)}: distil at that size.",
    )
    fault = _impossible(tensors)
    fail_if(
        bool(fault), f"{key}: {path}: {fault}; docs/artifacts.md says how images are normalised and a set is written."
    )


def views_of(header: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a set's views from its header, ``identity`` alone where it has none.

    Raises:
        ValueError: they are not names of views.
    """
    notes = header.get("notes", {})
    names = notes.get("views", [IDENTITY]) if isinstance(notes, dict) else notes
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"views in its header are {names!r}, expected a list of names")
    try:
        for name in names:
            parse(name)
    except UserError as error:
        raise ValueError(f"views in its header: {str(error).rstrip('.')}") from error
    return tuple(names)


def misfit(tensors: Mapping[str, Any], views: int) -> str:
    """Say what in the names, types or shapes of a set's tensors is not as in ``LAYOUT``; empty if all is.

    Args:
        tensors: arrays of numpy or tensors of torch, by name.
        views: the number of views, V.
    """
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
    for name, (dtype, _) in LAYOUT.items():
        given = str(tensors[name].dtype).removeprefix("torch.")
        if not fits[name] or given != dtype:
            form = ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in LAYOUT.items())
            return f"{name} is {given} {list(shapes[name])}, expected {form}; V is {views}"
    if not float(tensors["step_size"]) > 0:
        return f"step_size is {float(tensors['step_size']):g}, it must be positive"
    if not bool((tensors["std"] > 0).all()):
        return f"std must be positive in every channel, got {tensors['std'].tolist()}"
    return ""


def doubts(config: Config, path: Path) -> list[str]:
    """Return what looks wrong about a brought set beside this source and teacher, as far as these are made: sentences.

    The file is one that ``check_set`` accepts.
    """
    source = _made(STAGES["data"].path(config, "data", {"dataset": config["source"]}), "mean", "std")
    if plan.teacher_origin(config) == "trained":
        width: int | None = targets_dimension(config)
    else:
        made = _made(targets_path(config), "targets")
        width = made["targets"].shape[1] if made else None
    try:
        return oddities(_read(path)[0], source, width)
    except ValueError as error:  # it changed since it was checked
        return [f"it {error}"]


def brought_doubts(config: Config) -> dict[str, list[str]]:
    """Return ``doubts`` of each set that the config brings, by the name of its method; only sets with some."""
    brought = [method for method in config["methods"] if method.startswith("file:")]
    found = {plan.method_name(one): doubts(config, Path(one.removeprefix("file:"))) for one in brought}
    return {name: sentences for name, sentences in found.items() if sentences}


@np.errstate(all="ignore")
def oddities(
    tensors: Mapping[str, Array], source: Mapping[str, Array] | None = None, width: int | None = None
) -> list[str]:
    """Return what looks wrong about a set, though it may be meant: one sentence each.

    Args:
        tensors: arrays in the form of ``LAYOUT``.
        source: ``mean`` and ``std`` float32 [C] of the source's pixels in [0, 1]; None if they are not known.
        width: length of the teacher's representations; None if it is not known.
    """
    images, targets, mean, std = (tensors[name] for name in ("images", "targets", "mean", "std"))
    pixels = _denormalised(tensors)
    least, most, spread = float(pixels.min()), float(pixels.max()), float(images.std())
    found = []
    if least < LOWEST or most > HIGHEST:
        found.append(f"its pixels run from {least:.1f} to {most:.1f} after denormalising, where images lie in [0, 1].")
    if float(std.max()) > LARGEST_STD:
        if least < 0 or most > 1:
            found.append(f"its std {_rounded(std)} is larger than that of any pixels in [0, 1]: is the set whitened?")
    elif spread < LEAST_SPREAD:
        found.append(
            f"its images have a deviation of {spread:.2f}, where normalised images have about 1: were they normalised "
            "with this mean and std, or whitened?"
        )
    flat = int((images.max((2, 3)) == images.min((2, 3))).all(1).sum())
    if flat:
        found.append(f"{flat} of its {len(images)} images have one colour.")
    correlation = _correlation(pixels)
    if correlation < LEAST_CORRELATION:
        found.append(
            f"neighbouring pixels of its images hardly resemble each other (correlation {correlation:.2f}): are they "
            "whitened, or noise?"
        )
    if bool((targets.max(1) == 1).all() and (np.count_nonzero(targets, 1) == 1).all()):
        found.append("its targets are one-hot: they are labels, which no other method here has seen.")
    if width is not None and targets.shape[1] != width:
        found.append(f"its targets have {targets.shape[1]} values, the teacher's {width}: they are another teacher's.")
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


@np.errstate(all="ignore")  # numbers near the largest overflow, and are refused for it
def _impossible(tensors: Mapping[str, Array]) -> str:
    """Say which values of a set cannot be meant; empty if all can."""
    images, mean, std = tensors["images"], tensors["mean"], tensors["std"]
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            return f"{name} has values that are not finite"
    if mean.min() < 0 or mean.max() > 1 or std.max() > 1:
        return f"mean {_rounded(mean)} and std {_rounded(std)} are not those of pixels in [0, 1]"
    if (images.max((2, 3)) == images.min((2, 3))).all():
        return "each of its images has one colour"
    if mean.max() > 0 and images.min() >= 0 and (images.max() <= 1 or images.max() > 20):
        values = f"all values of its images lie from {images.min():.3g} to {images.max():.3g}"
        return f"{values}: they are pixels that were not normalised with its mean and std"
    deviation = float(_denormalised(tensors).std())
    if not deviation <= WIDEST:
        return f"its pixels have a deviation of {deviation:.3g} after denormalising, where those of images in [0, 1] have 0.5 at most"
    return ""


def _denormalised(tensors: Mapping[str, Array]) -> Array:
    pixels: Array = tensors["images"] * tensors["std"][:, None, None] + tensors["mean"][:, None, None]
    return pixels


def _correlation(images: Array) -> float:
    """Return the correlation of horizontal neighbours in images [m,C,H,W]; 1 if there is nothing to correlate."""
    left, right = images[..., :-1].ravel(), images[..., 1:].ravel()
    if left.size < 2 or left.std() == 0 or right.std() == 0:
        return 1.0
    return float(np.corrcoef(left, right)[0, 1])


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 3) for value in values]


def _made(path: str, *names: str) -> dict[str, Array] | None:
    """Read tensors of a file of the results; None if it is not there. Jobs say what is wrong with one that is damaged."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in names}
    except Exception:  # whatever the reader of an arbitrary file says
        return None


def _read(path: Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Read tensors and views of a file that ``mkdt.artifacts.save`` wrote, and compare them with the digests in its header.

    Raises:
        ValueError: it cannot be read, has no header, or another content than the header says.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever the reader of an arbitrary file says
        raise ValueError(f"cannot be read: {' '.join(str(error).split())[:100]}") from error
    if "mkdt" not in metadata:
        raise ValueError("has no header of this project, which mkdt.artifacts.save writes")
    try:
        header = json.loads(metadata["mkdt"])
        intact = header.pop("check") == _digest(header) and header["digests"].keys() == tensors.keys()
        for name, stored in header["digests"].items() if intact else ():
            rows = isinstance(stored, list)
            intact &= ([_sha256(row) for row in tensors[name]] if rows else _sha256(tensors[name])) == stored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError("was altered: its content does not match the digests in its header")
    return tensors, views_of(header)


def _digest(header: Mapping[str, Any]) -> str:
    """Return what ``mkdt.artifacts.digest`` returns, which needs torch."""
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(array: Array) -> str:
    """Return what ``mkdt.artifacts.tensor_digest`` returns of the same tensor."""
    sha = hashlib.sha256(f"torch.{array.dtype} {array.shape} ".encode())
    sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()

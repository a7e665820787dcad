"""``mkdt inspect``: describe an artifact: its tensors, what made it from which files, and the command that makes it again."""

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mkdt.artifacts import HEADER_KEY, Artifact
from mkdt.config.schema import flat
from mkdt.config.set_checks import misfit, oddities, views_of
from mkdt.distill.storage import bytes_of
from mkdt.errors import UserError
from mkdt.jobs.lineage import Family, Place, place_of, recipe, same_code
from mkdt.teacher.external_file import format_of

SHOWN = 12  # tensors listed: a network has hundreds
Shape = Callable[[str], tuple[int, ...]]


def _images(shape: Shape, name: str = "images") -> str:
    count, channels, height, width = shape(name)
    return f"{count:,} images of {channels}x{height}x{width}"


KINDS: dict[str, Callable[[Shape], str]] = {
    "data": lambda shape: f"a decoded data set, {_images(shape, 'train_images')} for training",
    "teacher": lambda shape: "a teacher: the weights of its backbone",
    "targets": lambda shape: "the teacher's representations, {:,} images, {} dimensions".format(*shape("targets")),
    "experts": lambda shape: "an expert: {} times its {:,} weights, at the start and after each epoch".format(
        *shape("trajectory")
    ),
    "subset": lambda shape: f"a real subset, {_images(shape)} with targets",
    "distill": lambda shape: f"a distilled set, {_images(shape)} with targets",
    "method_experts": lambda shape: (
        "a method's own expert: {} times its {:,} weights, at the start and after each epoch".format(
            *shape("trajectory")
        )
    ),
    "pretrain": lambda shape: "a pre-trained student: its {2:,} weights at {0} rates and {1} numbers of steps".format(
        *shape("snapshots")
    ),
    "export": lambda shape: "an exported encoder: the weights of its backbone",
}


def describe(path: str | Path) -> str:
    """Return an artifact in words; read every tensor and check its digest.

    Raises:
        UserError: the file is missing, damaged, altered, or not this project's.
    """
    _refuse_other_files(Path(path))
    file = Artifact(path)
    header = file.header
    kind = KINDS.get(header["stage"], lambda shape: f"a file of the rule {header['stage']}")
    rows = [("tensor", "dtype", "shape", "smallest", "largest", "SHA-256")]
    for name in file.names:
        row = (name, *_facts(file.tensor(name)), _digest(header["digests"][name]))
        rows += [row] if len(rows) <= SHOWN else []
    tensors = _aligned(rows)
    if len(file.names) > SHOWN:
        tensors.append(f"... and {len(file.names) - SHOWN} more tensors")
    lines = [f"{path}: {kind(file.shape)}. Intact: every tensor matches its digest.", "", *tensors, "", *_doubts(file)]
    facts = [("made by", f"rule {header['stage']}")]
    place = place_of(path)
    if place is not None:
        facts += [(key.replace("_", " "), value) for key, value in place.names.items()]
    if {"images", "targets"} <= set(file.names):
        facts += [("bytes", f"{bytes_of(file):,} for pixels, targets, their bounds and step size")]
    facts += [("identity", file.identity)]
    facts += [(key, json.dumps(value)) for key, value in header.get("notes", {}).items()]
    lines += [*_aligned(facts), *_wrapped("settings", header["parameters"])]
    if header["inputs"]:
        lines += ["", "made from", *_inputs(header, place)]
    return "\n".join([*lines, "", *_again(header, place)]) + "\n"


def _refuse_other_files(path: Path) -> None:
    """Raise if a path is a folder, or a file that was never one of this project; a damaged one of it passes."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give one file in it, such as {path / 'NAME.safetensors'}.")
    if not path.is_file():
        return
    if not path.stat().st_size:
        raise UserError(f"{path} is empty.")
    if format_of(path) != "safetensors":
        raise UserError(f"{path} is no tensor file of this project: it is no safetensors file.")
    with suppress(SafetensorError, OSError), safe_open(path, "pt") as tensors:
        if HEADER_KEY not in (tensors.metadata() or {}):
            raise UserError(
                f"{path} is no tensor file of this project: it is a safetensors file of another program, without a header "
                "of this one."
            )


def _doubts(file: Artifact) -> list[str]:
    """Return what looks wrong about a file that holds a set, whoever made it."""
    if not {"images", "targets"} <= set(file.names):
        return []
    tensors = {name: file.tensor(name) for name in file.names}
    try:
        fault = misfit(tensors, len(views_of(file.header)))
    except ValueError as error:
        fault = str(error)
    if fault:
        return [f"looks wrong: it is not a synthetic set: {fault}", ""]
    found = oddities({name: tensor.numpy() for name, tensor in tensors.items()})
    return [*(f"looks wrong: {sentence}" for sentence in found), *[""] * bool(found)]


def _facts(tensor: Tensor) -> tuple[str, str, str, str]:
    numbers = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    least, most = (f"{value.item():.6g}" for value in numbers.aminmax()) if tensor.numel() else ("-", "-")
    return str(tensor.dtype).removeprefix("torch."), str(list(tensor.shape)), least, most


def _digest(value: str | list[str]) -> str:
    return f"{value[:16]}..." if isinstance(value, str) else f"one for each of {len(value)} rows"


def _wrapped(title: str, parameters: Any) -> list[str]:
    pairs = flat(parameters) if isinstance(parameters, dict) else ()
    text = "; ".join(f"{key} {json.dumps(value)}" for key, value in pairs) or "none noted"
    return ["", title, *textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _inputs(header: dict[str, Any], place: Place | None) -> list[str]:
    if place is None:
        return [f"  {role}: {identity[:16]}..." for role, identity in sorted(header["inputs"].items())]
    lines, family = [], Family(place.results)
    for depth, role, identity, path in family.ancestors(header):
        where = "not in these results" if path is None else str(path.relative_to(place.results.parent))
        if identity in family.counts and role == "experts":
            where = f"{Path(where).parent}, {family.counts[identity]} experts"
        lines.append(f"  {'  ' * depth}{role}: {where} ({identity[:16]}...)")
    return lines


def _again(header: dict[str, Any], place: Place | None) -> list[str]:
    if place is None:
        return ["It lies outside of a results folder: the header above is all that is known of it."]
    found = recipe(place, header)
    if found is None:
        experiments = " or ".join(place.experiments()) or "its experiment"
        path = f"{place.results.name}/{place.path}"
        return [f"make it again: snakemake --cores 2 {path} --force, with the config of {experiments}."]
    lines = [f"make it again, in {place.results.parent}:", f"  {found.command}"]
    if found.difference:
        lines.append(f"  but the config that ran last differs from what made this file ({found.difference}).")
    if same_code(place, header) is False:
        lines.append("  but the code of this checkout is not the code that made this file: numbers may differ.")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand ``mkdt inspect``."""
    parser.add_argument(
        "files", metavar="FILE", type=Path, nargs="+", help=".safetensors files of the results, or exported ones"
    )
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    for k, file in enumerate(arguments.files):
        print("\n" * (k > 0) + describe(file), end="", flush=True)
    return 0

"""``mkdt export``: a set or an encoder in a folder that works alone - tensors, a picture, a loader and a card."""

import argparse
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.config.methods import SET_STAGES
from mkdt.data.pixels import image_grid
from mkdt.distill.synthetic_set import load_synthetic
from mkdt.errors import UserError
from mkdt.export import card
from mkdt.export.standalone import standalone
from mkdt.jobs.lineage import Family, Place, place_of
from mkdt.networks.backbones import BUILDERS
from mkdt.networks.flat import load_state
from mkdt.networks.students import build_student


def export(path: str | Path, folder: Path, rate: float | None = None, steps: int | None = None) -> None:
    """Write a folder that works alone, whole or not at all.

    Args:
        path: a training set, a pre-trained student or a teacher of this project.
        folder: to make; it must not exist yet.
        rate, steps: the student's point of the grid; None takes the one that validation chose.

    Raises:
        UserError: the file is damaged or of another kind, ``folder`` exists, or something that belongs to the encoder is
            not in the results.
    """
    file = Artifact(path)
    stage, place = file.header["stage"], place_of(path)
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder with --to, or delete it.")
    if stage not in {*SET_STAGES, "teacher", "pretrain"}:
        raise UserError(
            f"{path} was made by the rule '{stage}'; what can be exported are training sets (sets/), pre-trained students "
            "(pretrain/) and teachers."
        )
    if (rate, steps) != (None, None) and stage != "pretrain":
        raise UserError(f"--rate and --steps choose a pre-trained student's snapshot; {path} is none.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error}): choose another folder with --to.") from error
    try:
        text = (
            _export_set(file, place, aside) if stage in SET_STAGES else _export_encoder(file, place, aside, rate, steps)
        )
        artifacts.write_text(aside / "README.md", text)
        aside.chmod(0o755)  # mkdtemp makes private folders
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _export_set(file: Artifact, place: Place | None, folder: Path) -> str:
    """Write a set's files; returns its card."""
    tiny = load_synthetic(file.path)
    artifacts.write_atomically(folder / "set.safetensors", lambda path: shutil.copyfile(file.path, path))
    sheet = image_grid(tiny.pixels(), columns=math.ceil(math.sqrt(len(tiny))), most=len(tiny))
    artifacts.write_picture(folder / "images.png", sheet)
    artifacts.write_text(folder / "load.py", _loader("load_set", "set.safetensors"))
    return card.of_set(tiny, file, place, Family(place.results) if place else None)


def _export_encoder(file: Artifact, place: Place | None, folder: Path, rate: float | None, steps: int | None) -> str:
    """Write an encoder's files; returns its card."""
    family = Family(place.results) if place else None
    data = family.ancestor(file.header, "data") if family else None
    if data is None or place is None or family is None:
        raise UserError(
            f"{file.path}: the data set that it was trained on is not in its results folder, so it is not known how its "
            "images are normalised: make data.safetensors there again."
        )
    channels, size = data.shape("train_images")[1:3]
    view: dict[str, Any] = {"channels": channels, "size": size}
    view |= {name: data.tensor(name).tolist() for name in ("mean", "std")}
    parameters = file.header["parameters"]
    point: dict[str, Any] = {}
    if file.header["stage"] == "teacher":
        network, weights = parameters["backbone"], {name: file.tensor(name) for name in file.names}
        view |= {key: value for key, value in parameters.get("view", {}).items() if key in view and value is not None}
        trained = "trained by self-supervision" if "method" in parameters else "that was brought as a checkpoint"
    else:
        network = parameters["student"]
        weights, point = _student(file, place, rate, steps)
        trained = (
            f"pre-trained without labels on the set `{place.names['method']}`, budget {place.names['budget']}, by "
            f"{point['steps']}\nsteps of SGD at the rate {point['rate']:g}; its head is left out"
        )
    artifacts.save(
        folder / "encoder.safetensors",
        weights,
        stage="export",
        parameters={"backbone": network, "view": view} | point,
        inputs={file.header["stage"]: file.identity, "data": data.identity},
    )
    artifacts.write_text(folder / "load.py", _loader("load_encoder", "encoder.safetensors", network["architecture"]))
    return card.of_encoder(network, view, trained, file, place, family)


def _student(
    file: Artifact, place: Place, rate: float | None, steps: int | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone's ``state_dict`` at one point of the grid, and which point."""
    rates, numbers = file.tensor("rates").tolist(), file.tensor("steps").tolist()
    there = f"{file.path} has the rates {', '.join(f'{r:g}' for r in rates)} and steps {', '.join(map(str, numbers))}"
    if rate is None and steps is None:
        names = place.names
        probe = place.results / names["experiment"] / "probe" / names["student"] / names["method"]
        scores = probe / f"{names['budget']}.csv"
        table = pd.read_csv(scores) if scores.is_file() else pd.DataFrame(columns=["chosen", "distill_seed", "seed"])
        # Of this student: under the protocol `paper` each set has its own rate.
        mine = (table["distill_seed"] == int(names["distill_seed"])) & (table["seed"] == int(names["seed"]))
        chosen = table[mine & table["chosen"].astype(bool)]
        if chosen.empty:
            raise UserError(f"{there}, and {scores} does not say which are best: give --rate and --steps.")
        rate, steps = float(chosen["rate"].iloc[0]), int(chosen["steps"].iloc[0])
    if rate not in rates or steps not in numbers:
        raise UserError(f"{there}: give one of each with --rate and --steps.")
    r, s = rates.index(rate), numbers.index(steps)
    if not file.tensor("valid")[r, s]:
        raise UserError(f"{file.path}: pre-training diverged at the rate {rate:g}: choose another with --rate.")
    channels, size, dimension = file.tensor("shape").tolist()
    student = build_student(file.header["parameters"]["student"], channels, size, dimension, 0, "template")
    load_state(student, file.row("snapshots", r)[s])
    return student.backbone.state_dict(), {"rate": rate, "steps": steps}


def _loader(function: str, name: str, architecture: str = "convnet") -> str:
    own = ""
    if architecture not in BUILDERS:  # the loader finds it in the table, and so needs no extension of mkdt
        own = f'{standalone(f"extensions.{architecture}", "build")}\n\nBUILDERS["{architecture}"] = build\n'
    return f'''"""Loads {name} beside this file, without the package mkdt that its code is from."""

{standalone("export.loaders", function)}{own}

def load():
    """What ``{function}`` makes of the file beside this one."""
    return {function}(Path(__file__).with_name("{name}"))
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand ``mkdt export``."""
    parser.add_argument(
        "file", type=Path, help="a training set (sets/), a pre-trained student (pretrain/) or a teacher"
    )
    parser.add_argument("--to", type=Path, help="folder to make; default: export/NAME, NAME from the file's path")
    parser.add_argument("--rate", type=float, help="a student's learning rate; default: the one that validation chose")
    parser.add_argument("--steps", type=int, help="a student's number of steps; default: likewise")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    place = place_of(arguments.file)
    name = "-".join(place.path.with_suffix("").parts) if place else arguments.file.stem
    folder = arguments.to or Path("export") / name
    export(arguments.file, folder, arguments.rate, arguments.steps)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0

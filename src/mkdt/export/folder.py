"""``mkdt export``: write a set or an encoder to a folder that needs no mkdt: tensors, picture, loader and card."""

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
from mkdt.config.stages import STAGES
from mkdt.data.pixels import image_grid
from mkdt.distill.synthetic_set import load_synthetic
from mkdt.errors import UserError
from mkdt.export import card
from mkdt.export.hub import ROWS, write_rows
from mkdt.export.standalone import standalone
from mkdt.jobs.lineage import Family, Place, place_of
from mkdt.networks.backbones import BUILDERS
from mkdt.networks.flat import load_state
from mkdt.networks.students import build_student
from mkdt.report.tables import read_table


def export(path: str | Path, folder: Path, rate: float | None = None, steps: int | None = None) -> None:
    """Write a folder that needs no mkdt, atomically.

    Args:
        path: a training set, a pre-trained student or a teacher of this project.
        folder: where to write; it must not exist.
        rate, steps: the student's point of the grid; None takes the point that validation chose.

    Raises:
        UserError: the file is damaged or of another kind, ``folder`` exists, or something that the encoder needs is missing
            from the results.
    """
    file = Artifact(path)
    stage, place = file.header["stage"], place_of(path)
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder with --to, or delete it.")
    if stage not in {*SET_STAGES, "teacher", "pretrain"}:
        raise UserError(
            f"{path} was made by the rule '{stage}'; only training sets (sets/), pre-trained students (pretrain/) and "
            "teachers can be exported."
        )
    if (rate, steps) != (None, None) and stage != "pretrain":
        raise UserError(f"--rate and --steps choose a pre-trained student's snapshot; {path} is not a student.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error}): choose another folder with --to.") from error
    try:
        if stage in SET_STAGES:
            text = _export_set(file, place, aside)
        else:
            text = _export_encoder(file, place, aside, rate, steps)
        artifacts.write_text(aside / "README.md", text)
        aside.chmod(0o755)  # mkdtemp makes private folders
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _export_set(file: Artifact, place: Place | None, folder: Path) -> str:
    """Write a set's files and return its card."""
    tiny = load_synthetic(file.path)
    artifacts.write_atomically(folder / "set.safetensors", lambda path: shutil.copyfile(file.path, path))
    sheet = image_grid(tiny.pixels(), columns=math.ceil(math.sqrt(len(tiny))), most=len(tiny))
    artifacts.write_picture(folder / "images.png", sheet)
    artifacts.write_text(folder / "load.py", _loader("load_set", "set.safetensors"))
    write_rows(tiny, folder / ROWS)
    return card.of_set(tiny, file, place, Family(place.results) if place else None)


def _export_encoder(file: Artifact, place: Place | None, folder: Path, rate: float | None, steps: int | None) -> str:
    """Write an encoder's files and return its card."""
    family = Family(place.results) if place else None
    data = family.ancestor(file.header, "data") if family else None
    if data is None or place is None or family is None:
        raise UserError(
            f"{file.path}: the data set that it was trained on is not in its results folder, so the normalisation of its "
            f"images is not known: make {Path(STAGES['data'].outputs['data']).name} there again."
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
        rate, steps = _chosen_point(file, place) if rate is None and steps is None else (rate, steps)
        weights, point = _student(file, rate, steps), {"rate": rate, "steps": steps}
        trained = (
            f"pre-trained without labels on the set `{place.names['method']}`, budget {place.names['budget']}, by "
            f"{steps}\nsteps of SGD at the rate {rate:g}; its head is left out"
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


def _chosen_point(file: Artifact, place: Place) -> tuple[float, int]:
    """Return the learning rate and the number of steps that validation chose for a student.

    Raises:
        UserError: the table of the rule select is missing, or does not have this student.
    """
    names = place.names
    selection = place.results / STAGES["select"].outputs["selection"].format(**names)
    none = pd.DataFrame(columns=["chosen", "distill_seed", "seed"])
    table = read_table(selection, "select") if selection.is_file() else none
    # Of this student: under the protocol `paper` each set has its own rate.
    mine = (table["distill_seed"] == int(names["distill_seed"])) & (table["seed"] == int(names["seed"]))
    chosen = table[mine & table["chosen"].astype(bool)]
    if chosen.empty:
        raise UserError(f"{_points(file)}, and {selection} does not say which are best: give --rate and --steps.")
    return float(chosen["rate"].iloc[0]), int(chosen["steps"].iloc[0])


def _student(file: Artifact, rate: float | None, steps: int | None) -> dict[str, Tensor]:
    """Return the backbone's ``state_dict`` at a point of the grid.

    Raises:
        UserError: the grid has no such point, or pre-training diverged there.
    """
    rates, numbers = file.tensor("rates").tolist(), file.tensor("steps").tolist()
    if rate not in rates or steps not in numbers:
        raise UserError(f"{_points(file)}: give one of each with --rate and --steps.")
    r, s = rates.index(rate), numbers.index(steps)
    if not file.tensor("valid")[r, s]:
        raise UserError(f"{file.path}: pre-training diverged at the rate {rate:g}: choose another with --rate.")
    channels, size, dimension = file.tensor("shape").tolist()
    student = build_student(file.header["parameters"]["student"], channels, size, dimension, 0, "template")
    load_state(student, file.row("snapshots", r)[s])
    return student.backbone.state_dict()


def _points(file: Artifact) -> str:
    """Name the points of a student's grid, as the beginning of an error."""
    rates, steps = file.tensor("rates").tolist(), file.tensor("steps").tolist()
    return f"{file.path} has the rates {', '.join(f'{r:g}' for r in rates)} and steps {', '.join(map(str, steps))}"


def _loader(function: str, name: str, architecture: str = "convnet") -> str:
    """Write the text of ``load.py``."""
    own = ""
    if architecture not in BUILDERS:  # an extension; in the table, the loader finds it without mkdt
        own = f'{standalone(f"extensions.{architecture}", "build")}\n\nBUILDERS["{architecture}"] = build\n'
    return f'''"""Load {name} in this folder, without the package mkdt."""

{standalone("export.loaders", function)}{own}

def load():
    """Call ``{function}`` on the file in this folder."""
    return {function}(Path(__file__).with_name("{name}"))
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``mkdt export``."""
    parser.add_argument(
        "file", type=Path, help="a training set (sets/), a pre-trained student (pretrain/) or a teacher"
    )
    parser.add_argument("--to", type=Path, help="folder to write; default: export/NAME, NAME from the file's path")
    parser.add_argument("--rate", type=float, help="a student's learning rate; default: the rate that validation chose")
    parser.add_argument(
        "--steps", type=int, help="a student's number of steps; default: the number that validation chose"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    place = place_of(arguments.file)
    name = "-".join(place.path.with_suffix("").parts) if place else arguments.file.stem
    folder = arguments.to or Path("export") / name
    export(arguments.file, folder, arguments.rate, arguments.steps)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0

"""``mkdt compare``: what differs between two experiments, in their configs, accuracies and costs."""

import argparse
import os
from pathlib import Path

from mkdt.artifacts import write_text
from mkdt.config.result_folders import RESULTS
from mkdt.errors import UserError
from mkdt.report.comparison import Experiment, as_text


def find(name: str) -> Experiment:
    """Return the experiment of a folder, or of a name in ``results/``.

    Raises:
        UserError: there is no such experiment, or it has no report yet.
    """
    folders = [path for path in (RESULTS / name, Path(name)) if path.is_dir()]
    if not folders:
        raise UserError(f"there is no experiment '{name}': {_known()}")
    experiments = {path: Experiment(name, Path(os.path.abspath(path))) for path in folders}  # results/ may be a link
    reported = (path for path in folders if experiments[path].path("summary_csv").is_file())
    folder = next(reported, folders[0])
    experiment = experiments[folder]
    if not experiment.path("summary_csv").is_file():
        raise UserError(
            f"{folder} has no report ({experiment.path('summary_csv')} does not exist): run snakemake with the experiment's "
            f"config to its end first; {_known()}"
        )
    return experiment


def _known() -> str:
    """Return which experiments can be compared."""
    reported = sorted(path.name for path in RESULTS.glob("*") if Experiment("", path).path("summary_csv").is_file())
    if not reported:
        return f"{RESULTS.resolve()} has no experiment with a report."
    return f"give the folder of one, or one of these names: {', '.join(reported)}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand ``mkdt compare``."""
    for name in "AB":
        parser.add_argument(name, help="an experiment: its folder, or its name in results/")
    parser.add_argument("--to", type=Path, metavar="FILE.md", help="also write what is printed to this file")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    a, b = find(arguments.A), find(arguments.B)
    if a.folder.samefile(b.folder):
        raise UserError(f"{arguments.A} and {arguments.B} are the same experiment: give two different ones.")
    text = as_text(a, b)
    if arguments.to is not None:
        write_text(arguments.to, text)
    print(text, end="")
    return 0

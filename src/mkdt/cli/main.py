"""The command ``mkdt``: a table of subcommands, each in a module of its own that is imported only when asked for."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from mkdt.errors import UserError

# name: (module with `add_arguments(parser)`, which sets `run`: arguments -> exit code; help)
COMMANDS = {
    "run": ("mkdt.cli.run", "snakemake, after what a killed one left is cleared away"),
    "doctor": ("mkdt.cli.doctor", "whether a run can succeed on this machine, and what to do if not"),
    "inspect": ("mkdt.cli.inspection", "an artifact in words: what it is, what made it, how to make it again"),
    "export": ("mkdt.export.folder", "a set or an encoder in a folder that works alone"),
    "clean": ("mkdt.cli.clean", "removes what can be made again; says what it frees and what getting it back costs"),
    "track": ("mkdt.jobs.mlflow_sync", "runs and MLflow"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand; a ``UserError`` is one sentence and exit code 1.

    Args:
        words: the command line; default: this process's.
    """
    words = sys.argv[1:] if words is None else words
    try:
        parser = argparse.ArgumentParser(prog="mkdt", description="Tools beside the workflow; `snakemake` runs it.")
        commands = parser.add_subparsers(required=True, metavar="command")
        for name, (module, summary) in COMMANDS.items():
            command = commands.add_parser(name, help=summary)
            if words[:1] == [name]:
                import_module(module).add_arguments(command)
        arguments = parser.parse_args(words)
        code: int = arguments.run(arguments)
        return code
    except UserError as error:
        print(f"mkdt: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

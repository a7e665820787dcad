"""The command ``mkdt``. Each subcommand is a module that is imported only when it is called."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from mkdt.errors import UserError

# name: (module, help). The module's `add_arguments(parser)` sets `run`, a function from the arguments to the exit code.
COMMANDS = {
    "run": ("mkdt.cli.run", "start or continue a run: Snakemake, after cleaning up a killed one"),
    "doctor": ("mkdt.cli.doctor", "check whether a run can succeed on this machine, and say what to do if not"),
    "inspect": ("mkdt.cli.inspection", "describe an artifact: what it is, what made it, how to make it again"),
    "compare": ("mkdt.cli.compare", "compare two experiments: configs, accuracies with intervals, costs"),
    "export": ("mkdt.export.folder", "export a set or an encoder to a folder that works alone"),
    "clean": ("mkdt.cli.clean", "remove what can be made again; say what it frees and what remaking it costs"),
    "track": ("mkdt.jobs.mlflow_sync", "send runs to MLflow"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code; a ``UserError`` prints one sentence and returns 1.

    Where the reader of the output has seen enough, as ``head``, the command ends without a word and with the exit code of SIGPIPE, 141.

    Args:
        words: the command line; default: that of this process.
    """
    words = sys.argv[1:] if words is None else words
    try:
        parser = argparse.ArgumentParser(prog="mkdt", description="Run the workflow and work with its results.")
        commands = parser.add_subparsers(required=True, metavar="command")
        for name, (module, summary) in COMMANDS.items():
            command = commands.add_parser(name, help=summary)
            if words[:1] == [name]:
                import_module(module).add_arguments(command)
        arguments = parser.parse_args(words)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Otherwise Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"mkdt: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

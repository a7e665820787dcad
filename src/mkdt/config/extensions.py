"""Read what the files of ``mkdt.extensions`` declare: methods, data sets and students of one's own. No torch here.

A file is known by its name and by one call with literal arguments, which is read without importing the file: a config is
checked before any job, and fast (CONTRIBUTING.md).
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mkdt.errors import UserError

FOLDER = Path(__file__).parents[1] / "extensions"
DECLARATIONS = {"METHOD": "Method", "DATASET": "Dataset", "ARCHITECTURE": "Architecture"}
Declared = TypeVar("Declared")


@dataclass(frozen=True)
class Architecture:
    """A student's network.

    Attributes:
        arguments: keys of `students.NAME` that it takes, of depth, width, norm and blocks.
        halvings: how often it halves an image, which decides the smallest one that it takes.
    """

    arguments: tuple[str, ...] = ()
    halvings: int = 0


def declared(kind: type[Declared], known: Iterable[str]) -> dict[str, Declared]:
    """What the files of this folder declare of one kind (``Method``, ``Dataset`` or ``Architecture``), by file name.

    Args:
        kind: the class of what they declare.
        known: names that are taken.

    Raises:
        UserError: a file declares nothing, something that cannot be read without running it, or a name that is taken.
    """
    found = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        name, arguments = _declaration(file)
        if name == kind.__name__:
            if file.stem in known:
                raise UserError(f"{file}: the name '{file.stem}' is taken: rename the file.")
            try:
                found[file.stem] = kind(**arguments)
            except TypeError as error:
                raise UserError(f"{file}: {name}: {error}.") from error
    return found


@cache
def _declaration(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Call)
            ):
                name = DECLARATIONS.get(node.targets[0].id)
                if name is not None and ast.unparse(node.value.func).split(".")[-1] == name and not node.value.args:
                    return name, {str(word.arg): ast.literal_eval(word.value) for word in node.value.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a declaration ({error}).") from error
    forms = ", ".join(f"{target} = {name}(...)" for target, name in DECLARATIONS.items())
    raise UserError(
        f"{file} declares nothing: expected one of {forms} with literal keyword arguments (CONTRIBUTING.md)."
    )


def is_extension(name: str) -> bool:
    """Return whether a method, data set or architecture is a file of ``mkdt.extensions``."""
    return (FOLDER / f"{name}.py").is_file()

"""Check config files: each is YAML with unique keys, and stands behind the base that it overrides."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mkdt.errors import UserError

BASE = "base.yaml"  # what the other config files of its folder have in common


class _UniqueKeys(yaml.SafeLoader):
    """YAML as Snakemake reads it, but a key that is given twice is refused instead of taken for the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of one value a key."""
        seen: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} gives the key '{name}' again")
            seen.append(name)
        return super().construct_mapping(node, deep)


def check_files(files: Iterable[str | Path]) -> None:
    """Check that config files can be read, each a mapping without a key that is given twice, each after its base.

    Raises:
        UserError: names the file.
    """
    files = list(files)
    for file in files:
        try:
            config = yaml.load(Path(file).read_text(encoding="utf-8"), _UniqueKeys)
            json.dumps(config, default=str)  # no mapping within itself
            if not isinstance(config, dict):
                raise ValueError("it holds no keys")
        except FileNotFoundError as error:
            beside = Path(file).parent
            near = difflib.get_close_matches(Path(file).name, [path.name for path in beside.glob("*.y*ml")], 1, 0.5)
            hint = f": did you mean {beside / near[0]}?" if near else "."
            raise UserError(f"the config file {file} does not exist{hint}") from error
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            reason = _reason(error)
            raise UserError(
                f"the config file {file} cannot be used ({reason}): it must be YAML of keys and values, as config/config.yaml is."
            ) from error
    _check_bases(files)


def _reason(error: Exception) -> str:
    """Return what is wrong with a file in one line, with the line where it is known."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return str(error).splitlines()[0]
    if "'\\t'" in (error.problem or ""):
        return f"line {mark.line + 1} has a tab, which YAML does not allow here: use spaces"
    return f"line {mark.line + 1}: {error.problem or error.context}"


def with_base(file: str | Path) -> list[Path]:
    """Return the config files to give for one: the ``base.yaml`` of its folder comes first, if the file's comments name it."""
    file = Path(file)
    base = file.parent / BASE
    if file.name == BASE or not base.is_file() or not file.is_file():
        return [file]
    comments = [
        line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith("#")
    ]
    return [base, file] if BASE in " ".join(comments) else [file]


def _check_bases(files: Iterable[str | Path]) -> None:
    """Check that config files which override a base come after it.

    Raises:
        UserError: names the file and the base that is missing before it.
    """
    given: list[Path] = []
    for file in map(Path, files):
        base = with_base(file)[0]
        if base != file and base.resolve() not in [earlier.resolve() for earlier in given]:
            raise UserError(f"the config file {file} only overrides {base}: give --configfile {base} {file}.")
        given.append(file)

"""Validate the config against its schema: coerce strings, report the first error in one sentence. No torch here."""

import copy
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from mkdt.errors import UserError

LARGEST = 1e15  # beyond it no size, time or rate means anything, and whole numbers do not fit a float any more
UNQUOTED = (
    'text that YAML takes for a number or a date needs quotes: name: "1e3" in a file, '
    "--config 'name=\"1e3\"' on the command line"
)
NO_TEXT = (
    "YAML takes true, false, yes, no, on, off and null for values: choose another text"  # as a name, in quotes too
)
# What the patterns of the schema ask for.
PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z": "must be letters (a-z, A-Z), digits, - and _, at most 100, the first no - or _",
    "^timm:.+$": "must be timm:NAME",
    "^[0-9a-f]{64}$": "must be 64 digits of 0-9 and a-f",
    "^([a-z][a-z0-9_]*|file:.+)$": "must be a name of letters a-z, digits and _, the first a letter, or file:PATH",
    "^auto$": "must be a number or auto",
    r"^[1-9][0-9]{0,11}(\.[0-9]{1,6})?K?B$": "must be a number, or bytes such as 8KB or 8064B",
    "^(none|isotropic)$": "must be none, isotropic or a number above 0, up to 1",
}
REPLACED = {
    "compute.tf32": "compute.precision, with the values auto, float32, tf32 and bf16"
}  # keys of earlier versions
PERCENT = re.compile(r"\[?\s*(\d+(?:\.\d+)?)\s*%\s*\]?")
SCHEMA = Path(__file__).with_name("config.schema.yaml")  # a link to workflow/schemas/, so that the wheel has it
DEFAULT = Path(__file__).with_name("config.yaml")  # a link to config/config.yaml, for the same reason


def conform(raw: Mapping[str, Any], schema_file: Path = SCHEMA) -> dict[str, Any]:
    """Return a copy of a config that obeys the schema, in canonical form.

    Strings become what the schema asks for, since nested ``--config`` gives strings. Each number and each path has one
    form, whichever way it was written.

    Raises:
        UserError: one sentence that names the first key at fault.
    """
    schema = _read(schema_file)
    config: dict[str, Any] = coerce(copy.deepcopy(dict(raw)), schema, schema)
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.path)))
    if errors:
        raise UserError(_sentence(errors[0]))
    for key, value in flat(config):
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"config: {key} must be finite, got {value}.")
        if any(isinstance(number, int | float) and abs(number) > LARGEST for number in numbers):
            raise UserError(f"config: {key} must be at most {LARGEST:g} in size, got {str(value)[:30]}.")
    return config


@cache  # reading takes longer than checking a config
def _read(schema_file: Path) -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    return schema


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        return {**root["$defs"][schema["$ref"].rsplit("/", 1)[1]], **schema}
    return schema


def coerce(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Turn strings into numbers, booleans and null where the schema wants those, and bring numbers and paths to one form.

    What does not fit is left to validation.
    """
    schema = _resolve(schema, root)
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        return {
            key: coerce(item, known.get(key, other if isinstance(other, dict) else {}), root)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [coerce(item, schema.get("items", {}), root) for item in value]
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if isinstance(value, float):
        return _shortest(value) if {"integer", "number"} & set(types) else value
    if not isinstance(value, str):
        return value
    if schema.get("format") == "path" and value not in {"", "null", "~"}:
        return canonical_path(value)
    if "null" in types and value in {"null", "~"}:
        return None
    if "boolean" in types and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if {"integer", "number"} & set(types):
        for convert in (int, float):
            with suppress(ValueError):
                number = _shortest(convert(value))
                return number if "number" in types or isinstance(number, int) else value
    return value


def _shortest(number: float) -> float:
    """Return a whole number as an int, so that ``1`` and ``1.0`` are the same in every slice and path."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < LARGEST else number


def canonical_path(path: str) -> str:
    """Return a path below the working directory as a relative one, and any other as an absolute one.

    A ``~`` at its start stands for the home folder, as in a shell.
    """
    absolute = os.path.abspath(os.path.expanduser(path))
    return os.path.relpath(absolute) if Path(absolute).is_relative_to(Path.cwd()) else absolute


def _sentence(error: Any) -> str:
    """What a schema violation (a jsonschema ValidationError) means, in one sentence."""
    key = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(set(error.instance) - set(known), key=str)[0]
        if new := REPLACED.get(f"{key}.{unknown}"):
            return f"config: the key {key}.{unknown} is now {new}: see config/README.md."
        near = difflib.get_close_matches(str(unknown), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}."
        if re.search("[.:=]", str(unknown)):
            hint = f"write '{nested(str(unknown), error.instance[unknown])}', with a space after each colon."
        return f"config: unknown key '{'.'.join(filter(None, [key, str(unknown)]))}'; {hint}"
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))[0]
        return f"config: key '{'.'.join(filter(None, [key, missing]))}' is missing; config/README.md explains it."
    shown = json.dumps(error.instance, default=str)
    if "propertyNames" in error.relative_schema_path:
        key = f"a name in {key}"
    if error.validator == "type" and "string" in error.validator_value and not isinstance(error.instance, list | dict):
        shown += f" ({NO_TEXT if isinstance(error.instance, bool | None) else UNQUOTED})"
    rules = {
        "type": lambda rule: (
            f"must be of type {rule if isinstance(rule, str) else ' or '.join(rule)}" + _form(rule, error.instance)
        ),
        "enum": lambda rule: f"must be one of {', '.join(map(str, rule))}",
        "minimum": lambda rule: f"must be at least {rule}",
        "maximum": lambda rule: f"must be at most {rule}",
        "exclusiveMinimum": lambda rule: f"must be greater than {rule}",
        "exclusiveMaximum": lambda rule: f"must be less than {rule}",
        "minItems": lambda rule: f"needs at least {rule} entries",
        "maxItems": lambda rule: f"takes at most {rule} entries",
        "minLength": lambda rule: "must not be empty",
        "minProperties": lambda rule: "must not be empty",
        "uniqueItems": lambda rule: "must not name an entry twice",
        "pattern": lambda rule: (
            PATTERNS.get(rule, f"must match {rule}") + _form(error.schema.get("type", []), error.instance)
        ),
    }
    describe = rules.get(str(error.validator), lambda rule: error.message)
    return f"config: {key or 'the config'} {describe(error.validator_value)}, got {shown}; see config/README.md."


def _form(kinds: str | Sequence[str], value: Any) -> str:
    """Return how a list, a group of keys or a fraction is written, where the schema wants one and got ``value``."""
    percent = PERCENT.fullmatch(value) if isinstance(value, str) else None
    if percent and {"array", "number"} & ({kinds} if isinstance(kinds, str) else set(kinds)):
        share = f"{float(percent[1]) / 100:.10g}"
        return f", such as [{share}]" if "array" in kinds else f": write {share}"
    if "array" in kinds:
        is_one = isinstance(value, str | int | float) and not isinstance(value, bool)
        return f", such as [{str(value).strip('[]')}]" if is_one else ", such as [0.01]"
    return ", such as {key: value}" if "object" in kinds else ""


def nested(key: str, value: Any) -> str:
    """Return the YAML of a nested key: ``a: {b: 1}`` for ``a.b`` or ``a:b`` with the value 1, and for ``a.b:1`` without one."""
    if value in (None, "") and (one := re.fullmatch(r"(.*\w.*?)\s*[:=]\s*([^:=]+)", key)):
        key, value = one.groups()
    shown = _one_line(value)
    parts = [part.strip() for part in re.split("[.:=]", key) if part.strip()] or [key]
    for part in reversed(parts[1:]):
        shown = f"{{{part}: {shown}}}"
    return f"{parts[0]}: {shown}"


def _one_line(value: Any) -> str:
    """Return a value as it stands in a line of YAML; a string is that line already, as on the command line."""
    if value in (None, ""):
        return "null"
    if isinstance(value, str):
        return value
    plain = json.loads(json.dumps(value, default=str))  # ordered dicts as plain ones
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings as (dotted key, value) pairs."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def reference(schema_file: Path = SCHEMA, default_file: Path = DEFAULT) -> str:
    """config/README.md: every key of the schema with its default and meaning, as Markdown."""
    schema = _read(schema_file)
    default = yaml.safe_load(default_file.read_text(encoding="utf-8"))
    lines = [
        "# The config, key by key",
        "",
        "Made from `workflow/schemas/config.schema.yaml` by `make config-docs`. Defaults are those of `config/config.yaml`;",
        "a file given with `--configfile`, and then `--config`, override single keys. `NAME` is any name;",
        "*the paper* is arXiv 2410.02116.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]

    def row(key: str, default: str, node: Mapping[str, Any]) -> str:
        meaning = _resolve(node, schema)["description"].replace("|", "\\|")  # a bar would end the cell
        return " ".join(f"| `{key}` | {default} | {meaning} |".split())

    def walk(node: Mapping[str, Any], value: Any, key: str) -> None:
        node = _resolve(node, schema)
        children = node.get("properties")
        entry = node.get("additionalProperties")
        if children is None and isinstance(entry, dict):
            lines.append(f"| `{key}` | | {node['description']} |")
            for child, inner in entry.get("properties", {}).items():
                lines.append(row(f"{key}.NAME.{child}", "", inner))
        elif children is not None:
            if key:
                lines.append(f"| `{key}` | | {node['description']} |")
            for child, inner in children.items():
                walk(inner, None if value is None else value.get(child), f"{key}.{child}" if key else child)
        else:
            lines.append(row(key, f"`{json.dumps(value)}`", node))

    walk(schema, default, "")
    return "\n".join(lines) + "\n"

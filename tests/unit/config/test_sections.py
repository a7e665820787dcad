"""The types of the config against its schema: the same keys, the same ones optional, types that fit."""

import types
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from mkdt.config.schema import SCHEMA
from mkdt.config.sections import Config

NAMES = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}
GRAMMAR = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def alternatives(kind: Any) -> list[Any]:
    """The parts of a union, without ``NotRequired``."""
    if get_origin(kind) is NotRequired:
        return alternatives(get_args(kind)[0])
    return list(get_args(kind)) if get_origin(kind) in (types.UnionType, Union) else [kind]


def compare(kind: Any, node: dict[str, Any], key: str) -> None:
    """A type says what a node of the schema allows."""
    if "$ref" in node:
        node = {**GRAMMAR["$defs"][node["$ref"].rsplit("/", 1)[1]], **node}
    given = node.get("type", ["string"] if "enum" in node else [])
    wanted = {given} if isinstance(given, str) else set(given)
    simple = {NAMES[name] for name in wanted if name in NAMES}
    simple -= {int} if float in simple else set()  # a type checker takes an int for a float
    parts = alternatives(kind)
    assert {part for part in parts if part in NAMES.values()} == simple, key
    if "object" in wanted:
        (part,) = [part for part in parts if is_typeddict(part) or get_origin(part) is dict]
        if is_typeddict(part):
            hints = get_type_hints(part, include_extras=True)
            assert hints.keys() == node["properties"].keys(), key
            assert part.__required_keys__ == set(node["required"]), key
            for name, inner in node["properties"].items():
                compare(hints[name], inner, f"{key}.{name}")
        elif isinstance(node.get("additionalProperties"), dict):
            compare(get_args(part)[1], node["additionalProperties"], f"{key}.NAME")
    if "array" in wanted:
        (part,) = [part for part in parts if get_origin(part) is list]
        compare(get_args(part)[0], node["items"], f"{key}[]")


def test_the_sections_are_those_of_the_schema() -> None:
    """Otherwise a type checker would miss a misspelt key, or refuse a right one."""
    compare(Config, GRAMMAR, "config")

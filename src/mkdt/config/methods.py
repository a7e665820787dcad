"""What is compared: one entry a method. No torch here: the config is checked by this table before any job."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mkdt.config import extensions
from mkdt.errors import UserError


@dataclass(frozen=True)
class Method:
    """How a method comes by its training set.

    Attributes:
        rule: the rule that makes the set; None where it trains on all images, or trains nothing.
        module: of ``mkdt``, where the function ``{method}_subset`` of a subset, or ``{method}_set`` of the rule ``own`` stands.
        seeded: whether each distill seed gives another set.
        experts, teacher: whether making it needs these, beside the images and their targets.
        init: the subset that a distilled set starts from; empty for the config's choice.
        options: of an extension, its settings by name with their defaults, which ``options.{method}`` of the config overrides.
    """

    rule: str | None = None
    module: str = ""
    seeded: bool = False
    experts: bool = False
    teacher: bool = False
    init: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def distilled(self) -> bool:
        """Whether the set is synthetic, and starts from a real subset."""
        return self.rule not in {None, "subset"}


METHODS = {
    "none": Method(),
    "random": Method("subset", "distill.subsets", seeded=True),
    "high_loss": Method("subset", "distill.subsets", experts=True),
    "kmeans": Method("subset", "distill.kmeans", seeded=True),
    "sas": Method("subset", "distill.sas", seeded=True, teacher=True),
    "mkdt": Method("distill", seeded=True, experts=True),
    "mkdt_random": Method("distill", seeded=True, experts=True, init="random"),
    "mkdt_high_loss": Method("distill", seeded=True, experts=True, init="high_loss"),
    "mkdt_kmeans": Method("distill", seeded=True, experts=True, init="kmeans"),
    "krr_st": Method("krr", seeded=True),
    "mtt_ssl": Method("mtt", seeded=True),
    "full": Method(),
    "teacher": Method(teacher=True),
}

RESERVED = ("seed", "count", "student")  # settings that every subset or distillation is given


def made_by(rule: str) -> list[str]:
    """The methods whose set a rule makes."""
    return [name for name, method in METHODS.items() if method.rule == rule]


def _check_options(where: str, options: object, needed: set[str]) -> None:
    """Names that no stage uses itself, with defaults that a config can override."""
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"{where} has options {options!r}: expected names with their defaults.")
    for name, default in options.items():
        if name in RESERVED:
            raise UserError(f"{where} has an option '{name}', which is a setting of all methods: rename it.")
        if type(default) not in (bool, int, float, str):
            raise UserError(f"{where} has an option '{name}' that is no number, text, True or False: {default!r}.")
    if needed - options.keys():
        raise UserError(f"{where} distils, so its options need '{min(needed - options.keys())}', a whole number.")


def _own() -> dict[str, Method]:
    """The methods of ``mkdt.extensions``: subsets, and with the rule ``own`` distilled sets."""
    found, declared = {}, extensions.declared(Method, METHODS)
    for name, method in declared.items():
        file, rule = extensions.FOLDER / f"{name}.py", method.rule or "subset"
        if rule not in ("subset", "own"):
            raise UserError(f"{file}: METHOD has the rule {rule!r}: expected 'own' (it distils) or none (a subset).")
        if not {bool} >= {type(method.seeded), type(method.experts), type(method.teacher)}:
            raise UserError(f"{file}: METHOD has a seeded, experts or teacher that is neither True nor False.")
        _check_options(f"{file}: METHOD", method.options, {"iterations", "pictures"} if rule == "own" else set())
        starts = ["", *made_by("subset"), *(other for other, one in declared.items() if one.rule in (None, "subset"))]
        if method.init not in (starts if rule == "own" else [""]):
            raise UserError(
                f"{file}: METHOD has init {method.init!r}, which is no subset method, or is a subset itself."
            )
        function = f"{name}_{'set' if rule == 'own' else 'subset'}"
        if f"def {function}(" not in file.read_text(encoding="utf-8"):
            raise UserError(f"{file} has no function {function} (CONTRIBUTING.md).")
        found[name] = replace(method, rule=rule, module=f"extensions.{name}")
    return found


METHODS |= _own()

# The rules that make training sets.
SET_RULES = tuple(dict.fromkeys(method.rule for method in METHODS.values() if method.rule is not None))

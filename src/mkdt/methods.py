"""What is compared: one entry a method. No torch here: the config is checked by this table before any job."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mkdt import extensions
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
    "random": Method("subset", "subset", seeded=True),
    "high_loss": Method("subset", "subset", experts=True),
    "kmeans": Method("subset", "kmeans", seeded=True),
    "sas": Method("subset", "sas", seeded=True, teacher=True),
    "mkdt": Method("distill", seeded=True, experts=True),
    "mkdt_random": Method("distill", seeded=True, experts=True, init="random"),
    "mkdt_high_loss": Method("distill", seeded=True, experts=True, init="high_loss"),
    "mkdt_kmeans": Method("distill", seeded=True, experts=True, init="kmeans"),
    "krr_st": Method("krr", seeded=True),
    "mtt_ssl": Method("mtt", seeded=True),
    "full": Method(),
    "teacher": Method(teacher=True),
}


def made_by(rule: str) -> list[str]:
    """The methods whose set a rule makes."""
    return [name for name, method in METHODS.items() if method.rule == rule]


def _own() -> dict[str, Method]:
    """The methods of ``mkdt.extensions``: subsets, and with the rule ``own`` distilled sets."""
    found, declared = {}, extensions.declared(Method, METHODS)
    for name, method in declared.items():
        file, rule = extensions.FOLDER / f"{name}.py", method.rule or "subset"
        if rule not in {"subset", "own"}:
            raise UserError(f"{file}: METHOD has the rule '{rule}': expected 'own' (it distils) or none (a subset).")
        if not isinstance(method.options, dict):
            raise UserError(f"{file}: METHOD has options {method.options!r}: expected names with their defaults.")
        missing = {"iterations", "pictures"} - method.options.keys()
        if rule == "own" and missing:
            raise UserError(f"{file}: METHOD distils, so its options need '{min(missing)}', a whole number.")
        if method.init not in {"", *made_by("subset"), *(other for other, own in declared.items() if not own.rule)}:
            raise UserError(f"{file}: METHOD has init '{method.init}', which is no subset method.")
        found[name] = replace(method, rule=rule, module=f"extensions.{name}")
    return found


METHODS |= _own()

# The rules that make training sets.
SET_RULES = tuple(dict.fromkeys(method.rule for method in METHODS.values() if method.rule is not None))

"""What is compared: one entry a method. No torch here: the config is checked by this table before any job."""

from dataclasses import dataclass, replace

from mkdt import extensions


@dataclass(frozen=True)
class Method:
    """How a method comes by its training set.

    Attributes:
        rule: the rule that makes the set; None where it trains on all images, or trains nothing.
        module: of ``mkdt``, where a subset's function ``{method}_subset`` stands.
        seeded: whether each distill seed gives another set.
        experts, teacher: whether making it needs these, beside the images and their targets.
        init: the subset that a distilled set starts from; empty for the config's choice.
    """

    rule: str | None = None
    module: str = ""
    seeded: bool = False
    experts: bool = False
    teacher: bool = False
    init: str = ""

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
METHODS |= {
    name: replace(method, rule="subset", module=f"extensions.{name}")
    for name, method in extensions.declared(Method, METHODS).items()
}

# The rules that make training sets.
SET_RULES = tuple(dict.fromkeys(method.rule for method in METHODS.values() if method.rule is not None))


def made_by(rule: str) -> list[str]:
    """The methods whose set a rule makes."""
    return [name for name, method in METHODS.items() if method.rule == rule]

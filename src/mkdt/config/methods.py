"""The methods that are compared, one entry each. No torch here: the config is checked by this table before any job."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mkdt.config import extensions
from mkdt.errors import UserError


@dataclass(frozen=True)
class Method:
    """How a method makes its training set, and what it needs for that.

    Attributes:
        function: of ``mkdt``, with a dotted name, that makes the set; empty for methods without a set of their own.
        distilled: whether the set is synthetic and starts from a real subset; otherwise it is a real subset.
        seeded: whether each distill seed gives another set.
        data: whether the function looks at the source's images and targets.
        experts: whether it looks at the experts that are trained by regression to the targets.
        own_experts: whether it looks at experts of its own kind, which ``{method}_expert`` in the same module trains.
        teacher: whether it looks at the teacher.
        init: the subset that a distilled set starts from; empty for the choice of the config.
        section: of the config, with the settings of a built-in distillation method.
        options: settings of an extension with their defaults, which ``options.{method}`` of the config overrides.
    """

    function: str = ""
    distilled: bool = False
    seeded: bool = False
    data: bool = True
    experts: bool = False
    own_experts: bool = False
    teacher: bool = False
    init: str = ""
    section: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Name below ``mkdt`` of the module of the function."""
        return self.function.rpartition(".")[0]

    @property
    def matches(self) -> bool:
        """Whether the set is made by matching trajectories of experts."""
        return self.section in ("distill", "mtt_ssl")

    @property
    def stage(self) -> str:
        """The stage that makes the set; empty where there is none."""
        return "" if not self.function else "distill" if self.distilled else "subset"


_MKDT = Method("distill.mkdt.mkdt_set", distilled=True, seeded=True, data=False, experts=True, section="distill")
_BPTT = Method("distill.bptt.bptt_set", distilled=True, seeded=True, section="bptt")
METHODS = {
    "none": Method(),
    "random": Method("distill.subsets.random_subset", seeded=True),
    "high_loss": Method("distill.subsets.high_loss_subset", experts=True),
    "kmeans": Method("distill.kmeans.kmeans_subset", seeded=True),
    "sas": Method("distill.sas.sas_subset", seeded=True, teacher=True),
    "mkdt": _MKDT,
    "mkdt_random": replace(_MKDT, init="random"),
    "mkdt_high_loss": replace(_MKDT, init="high_loss"),
    "mkdt_kmeans": replace(_MKDT, init="kmeans"),
    "bptt": _BPTT,
    "bptt_random": replace(_BPTT, init="random"),
    "bptt_kmeans": replace(_BPTT, init="kmeans"),
    "krr_st": Method("distill.krr_st.krr_st_set", distilled=True, seeded=True, section="krr_st"),
    "mtt_ssl": Method(
        "distill.mtt_ssl.mtt_ssl_set", distilled=True, seeded=True, data=False, own_experts=True, section="mtt_ssl"
    ),
    "full": Method(),
    "teacher": Method(teacher=True),
}

RESERVED = ("seed", "count", "student", "storage", "fixed_views")  # settings that every subset or distillation is given
SET_STAGES = ("subset", "distill")  # the stages that make training sets


def methods_that(**wanted: bool | str) -> list[str]:
    """Return the methods whose attributes have these values, for example ``methods_that(stage="subset")``."""
    return [
        name
        for name, method in METHODS.items()
        if all(getattr(method, attribute) == value for attribute, value in wanted.items())
    ]


def has_budget(method: str) -> bool:
    """Return whether a method makes a set for each budget; a file has the size that it has."""
    return method in METHODS and METHODS[method].stage != ""


def _check_options(where: str, options: object, needed: set[str]) -> None:
    """Refuse options that a stage uses itself, and defaults that a config cannot override."""
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"{where} has options {options!r}: expected names with their defaults.")
    for name, default in options.items():
        if name in RESERVED:
            raise UserError(f"{where} has an option '{name}', which is a setting of all methods: rename it.")
        if type(default) not in (bool, int, float, str):
            raise UserError(f"{where} has an option '{name}' that is no number, text, True or False: {default!r}.")
    if needed - options.keys():
        raise UserError(f"{where} distils, so its options need '{min(needed - options.keys())}', a whole number.")


def _check_inputs(where: str, method: Method) -> None:
    """Refuse inputs that exclude each other, and attributes of built-in methods."""
    for attribute in ("function", "section"):
        if getattr(method, attribute):
            raise UserError(f"{where} has a {attribute}, which is for built-in methods: leave it out.")
    if not method.data and (method.teacher or not method.distilled):
        raise UserError(f"{where} has data=False, but a subset and a method with the teacher need the images.")
    if method.own_experts and (method.experts or not method.distilled):
        raise UserError(f"{where} has own_experts=True, which goes neither with experts=True nor with a subset.")


def extension_methods() -> dict[str, Method]:
    """Return the methods that the files of ``mkdt.extensions`` declare.

    Raises:
        UserError: names the file whose declaration cannot be used.
    """
    declared = extensions.declared(Method, METHODS)
    subsets = [*methods_that(stage="subset"), *(name for name, method in declared.items() if not method.distilled)]
    checked = {}
    for name, method in declared.items():
        file = extensions.FOLDER / f"{name}.py"
        flags = ("distilled", "seeded", "data", "experts", "own_experts", "teacher")
        wrong = [flag for flag in flags if type(getattr(method, flag)) is not bool]
        if wrong:
            raise UserError(f"{file}: METHOD has a {wrong[0]} that is neither True nor False.")
        _check_inputs(f"{file}: METHOD", method)
        _check_options(f"{file}: METHOD", method.options, {"iterations", "pictures"} if method.distilled else set())
        if method.init not in (["", *subsets] if method.distilled else [""]):
            raise UserError(
                f"{file}: METHOD has init {method.init!r}, which is no subset method, or is a subset itself."
            )
        function = f"{name}_{'set' if method.distilled else 'subset'}"
        needed = [function, *[f"{name}_expert"] * method.own_experts]
        missing = [name for name in needed if f"def {name}(" not in file.read_text(encoding="utf-8")]
        if missing:
            raise UserError(f"{file} has no function {missing[0]} (CONTRIBUTING.md).")
        checked[name] = replace(method, function=f"extensions.{name}.{function}")
    return checked


METHODS |= extension_methods()

"""Fixed views of an image: their names in the config. No torch here; ``mkdt.data.views`` makes the views."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mkdt.errors import UserError

IDENTITY = "identity"
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
FORMS = {  # kind -> how it is written
    "identity": "identity",
    "mirror": "mirror",
    "shift": "shift RIGHT DOWN (whole pixels)",
    "rotate": "rotate DEGREES (-180 to 180)",
    "crop": f"crop SHARE PLACE (0 to 1; {', '.join(CORNERS)})",
    "colour": "colour AMOUNT, or one amount for each channel (-1 to 1, added to pixels in [0, 1])",
}
SHIFTS = "shifts PIXELS (eight views)"


@dataclass(frozen=True)
class View:
    """A deterministic view.

    Attributes:
        kind: a key of ``FORMS``.
        numbers: what follows the kind in its name.
        corner: of a crop.
    """

    kind: str
    numbers: tuple[float, ...] = ()
    corner: str = ""


def parse(name: str) -> View:
    """Return the view of a name.

    Raises:
        UserError: there is no such view; the sentence shows how views are written.
    """
    kind, *words = name.split() or [""]
    corner = words.pop() if kind == "crop" and words and words[-1] in CORNERS else ""
    try:
        numbers = tuple(map(float, words))
    except ValueError:
        numbers = (float("nan"),)
    good = {
        "identity": not numbers,
        "mirror": not numbers,
        "shift": len(numbers) == 2 and all(number.is_integer() for number in numbers),
        "rotate": len(numbers) == 1 and abs(numbers[0]) <= 180,
        "crop": len(numbers) == 1 and 0 < numbers[0] < 1 and corner != "",
        "colour": len(numbers) in (1, 3) and all(abs(number) <= 1 for number in numbers),
    }
    if not good.get(kind, False):
        raise UserError(f"'{name}' is no view; views are: {'; '.join([*FORMS.values(), SHIFTS])}.")
    return View(kind, numbers, corner)


def expand(names: Iterable[str]) -> list[str]:
    """Return the names with ``shifts K`` replaced by the eight shifts by K pixels, row by row.

    Raises:
        UserError: a name is no view.
    """
    expanded: list[str] = []
    for name in names:
        kind, *words = name.split() or [""]
        if kind == "shifts" and len(words) == 1 and words[0].isdecimal() and int(words[0]):
            k = int(words[0])
            steps = [(right, down) for down in (-k, 0, k) for right in (-k, 0, k)]
            expanded += [f"shift {right} {down}" for right, down in steps if (right, down) != (0, 0)]
        else:
            parse(name)
            expanded.append(" ".join(name.split()))
    return expanded


def has_views(names: Sequence[str]) -> bool:
    """Return whether there is a view beside the images themselves."""
    return list(names) != [IDENTITY]


def check(names: Sequence[str], channels: int, size: int) -> None:
    """Check the views of images of a shape.

    Args:
        names: one for each view, as from ``expand``.
        channels, size: of the images, which are square.

    Raises:
        UserError: the first is not ``identity``, one is there twice, changes nothing or is no view, or it does not fit the
            images.
    """
    if names[0] != IDENTITY:
        raise UserError(f"the first must be '{IDENTITY}', not '{names[0]}'.")
    seen: dict[View, str] = {}
    for name in names:
        view = parse(name)
        if view.kind in ("shift", "rotate", "colour") and not any(view.numbers):
            raise UserError(f"'{name}' changes nothing.")
        if view in seen:
            again = f", first as '{seen[view]}'" if seen[view] != name else ""
            raise UserError(f"'{name}' is there twice{again}.")
        seen[view] = name
        if view.kind == "shift" and max(map(abs, view.numbers)) >= size:
            raise UserError(f"'{name}' moves images of {size}x{size} out of sight.")
        if view.kind == "colour" and len(view.numbers) not in (1, channels):
            raise UserError(f"'{name}' has {len(view.numbers)} amounts, but images have {channels} channel(s).")

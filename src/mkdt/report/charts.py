"""Charts of the report's page: figures as SVG in the page's own text and colours."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mkdt.report.figures import Style

# A colour of the figures. The page may give it another value in dark mode: `var(--c0072b2, #0072b2)`.
HEX = re.compile(r"#[0-9a-f]{6}\b")


@dataclass(frozen=True)
class Panel:
    """A chart with its title."""

    title: str
    svg: Markup


def chart(name: str, draw: Callable[[Axes], object], height: float = 3.1) -> Markup:
    """Draw a chart as SVG. Equal data give equal text.

    Args:
        name: unique in the page.
        draw: draws on the axes that it is given.
        height: in inches at a width of 4.6; the page scales both.
    """
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axis = figure.subplots()
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
        return _svg(figure, name)


def swatch(look: Style, name: str) -> Markup:
    """Draw a method's line and marker for a legend; ``name`` is unique in the page for each look."""
    colour, marker, dashes = look
    figure = Figure(figsize=(0.5, 0.17))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.plot([0, 1, 2], [0, 0, 0], color=colour, linestyle=dashes, linewidth=1.5)
    axis.plot([1], [0], color=colour, marker=marker, markersize=6)
    return _svg(figure, f"{name} {look}")


def _svg(figure: Figure, name: str) -> Markup:
    """Convert a figure to SVG with real text, in colours that the page can change."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    # Figures have equal ids, which must be unique in a page: only those that something refers to stay.
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', svg, count=1)
    return Markup(HEX.sub(lambda match: f"var(--c{match[0][1:]}, {match[0]})", svg))

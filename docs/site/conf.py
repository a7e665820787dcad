"""Configuration of the documentation site (`make docs`): the Markdown pages where they lie, and docs/site/api.md.

The source folder is the repository's root, so a link means the same here and on GitHub.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
MAP = "docs/README.md"  # its headings and links are the navigation

project = html_title = "mkdt"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "config/README.md",
    "benchmarks/README.md",
    "docs/*.md",
    "docs/site/*.md",
    "docs/studies/*.md",
]
myst_heading_anchors = 6
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
html_theme = "furo"
html_copy_source = False


def navigation() -> str:
    """Return a hidden table of contents for each section of the map, in its order."""
    text = (ROOT / MAP).read_text(encoding="utf-8")
    trees = [("Map", [MAP])]
    for caption, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        linked = [(ROOT / MAP).parent / page for page in re.findall(r"\]\(([^)#:]+\.md)\)", body)]
        trees.append((caption, [page.resolve().relative_to(ROOT).as_posix() for page in linked]))
    return "".join(
        "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", *(f"/{page}" for page in pages), "```\n"])
        for caption, pages in trees
        if pages
    )


def adapt(app: Sphinx, name: str, source: list[str]) -> None:
    """Give the first page the navigation, and make links to Markdown files that are no pages of the site downloads."""

    def link(match: re.Match[str]) -> str:
        target = (ROOT / name).parent / match[1]
        if target.is_dir():
            logging.getLogger(__name__).warning("%s: a link to the folder %s; name a file", name, match[1])
        is_page = app.env.path2doc(target.resolve()) in app.env.found_docs
        return match[0] if is_page or target.suffix != ".md" else f"](path:{match[1]})"

    if name == root_doc:
        app.env.note_dependency(MAP)
    source[0] = re.sub(r"\]\(([^)#:]+)\)", link, source[0]) + (navigation() if name == root_doc else "")


def first_page(app: Sphinx, error: Exception | None) -> None:
    """Serve the README where a web server looks first."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Register the two functions above."""
    app.connect("source-read", adapt)
    app.connect("build-finished", first_page)

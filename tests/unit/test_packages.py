"""The packages tell a story: imports go one way along it, and one file spells the paths of the results."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from configs import ROOT

SOURCE = ROOT / "src" / "mkdt"
# Each may import those before it. Files of one's own (extensions) may import everything, and are imported by name alone.
STORY = [
    "errors", "seeding", "progress", "artifact_header", "artifacts", "config", "data", "networks", "teacher", "distill", "evaluate",
    "report", "jobs", "export", "cli",
]  # fmt: skip
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent.name != "extensions" and path.name != "__init__.py")


def module(path: Path) -> str:
    """The name of a file below ``mkdt``."""
    return path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")


def imports(path: Path) -> Iterator[str]:
    """The modules below ``mkdt`` that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("mkdt.") for alias in node.names if alias.name.startswith("mkdt."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mkdt":
            base = (node.module or "").removeprefix("mkdt").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                yield name if (SOURCE / f"{name.replace('.', '/')}.py").is_file() else base


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_one_way_along_the_story(path: Path) -> None:
    """A package imports itself and those before it."""
    own = module(path).split(".")[0]
    later = {name for name in imports(path) if STORY.index(name.split(".")[0]) > STORY.index(own)}
    assert not later, f"{module(path)} imports {later}"


def test_no_two_modules_import_each_other() -> None:
    """Within a package too, however long the circle is."""
    graph = {module(path): set(imports(path)) for path in FILES}
    while graph:
        leaves = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in leaves}


# Pieces of paths below results/ that a stage decides. Messages and help texts may show an example.
SPELLED = re.compile(
    r"data\.safetensors|targets\.safetensors|teacher\.(safetensors|jsonl)|targets_probe\.jsonl|"
    r"([\"']|}/)(sets|pretrain|select|probe|experts|report)/|results/(logs|benchmarks)"
)
ALLOWED = {"src/mkdt/config/stages.py"}


def test_only_stages_spells_a_path_of_the_results() -> None:
    """A second spelling would be missed where a path changes."""
    files = [*FILES, ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk"), *(ROOT / "workflow").rglob("*.py")]
    found = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        if path.suffix == ".py":  # comments and docstrings may name a path
            tree = ast.parse(text)
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            strings = [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
            ]
            text = "\n".join(f'"{value}"' for value in strings)
        else:
            text = re.sub(r"#.*", "", text)
        if name not in ALLOWED:
            found += [f"{name}: {match[0]}" for match in SPELLED.finditer(text)]
    assert not found


def test_the_picture_of_the_packages_shows_every_module() -> None:
    """docs/images/packages.svg is drawn once; a module that was added or renamed since would be missing."""
    shown = set(re.findall(r">([a-z_0-9]+/?)</text>", (ROOT / "docs/images/packages.svg").read_text()))
    modules = {path.stem for path in FILES if len(path.relative_to(SOURCE).parts) == 2}
    assert modules <= shown
    packages = {
        path.name for path in SOURCE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "extensions")
    }
    assert packages <= shown

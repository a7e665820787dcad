"""Digest of the code that a stage runs, so that an edit reruns the stages that use it and no others."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mkdt.config.sections import Config, Names
from mkdt.config.stages import Stage

PACKAGE = Path(__file__).parents[1]
# What decides numbers. The config reaches a stage as settings; jobs, the command line, export and the readers of archives
# only carry data: a better progress bar, or a mended reader, must not retrain a hundred experts.
SCIENCE = ("data", "distill", "evaluate", "extensions", "networks", "report", "seeding", "teacher")
LEFT_OUT = ("data.readers",)
SCRIPTS = PACKAGE.parents[1] / "workflow" / "scripts"


def stage_code(stage: Stage, config: Config, names: Names) -> str:
    """Return the digest of the code that a job of a stage runs: its script, and modules that the config names."""
    return code_digest(SCRIPTS / f"{stage.name}.py", *stage.modules(config, names))


def code_digest(script: str | Path, *modules: str) -> str:
    """Return the SHA-256 (hex, 16 digits) of a script and of the modules of ``SCIENCE`` that it imports, recursively.

    Comments, docstrings and layout do not count.

    Args:
        script: a stage's script.
        modules: names below ``mkdt`` of what it imports by name when it runs, for example ``distill.kmeans``.
    """
    texts = {"script": _essence(Path(script))}
    texts |= {name: _essence(_file(name)) for name in science_of(script, *modules)}
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]


def science_of(script: str | Path, *modules: str) -> list[str]:
    """Return the names below ``mkdt`` of all modules of ``SCIENCE`` that a script imports, directly or not, sorted."""
    found: set[str] = set()
    pending = [*modules, *_imports(Path(script), "")]
    while pending:
        name = pending.pop()
        if name not in found and _counts(name) and _file(name).is_file():
            found.add(name)
            pending += _imports(_file(name), name.rpartition(".")[0])
    return sorted(found)


def _counts(name: str) -> bool:
    return name.split(".")[0] in SCIENCE and not any(f"{name}.".startswith(f"{out}.") for out in LEFT_OUT)


def _file(name: str) -> Path:
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path, package: str) -> tuple[str, ...]:
    """Names below ``mkdt`` that a file imports; of ``from a import b`` both ``a`` and ``a.b``, whichever is a module.

    Args:
        path: the file.
        package: its package below ``mkdt``, which relative imports start from.
    """
    found: list[str] = []
    for node in _run_time(_tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["mkdt", *filter(None, package.split("."))]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(name.removeprefix("mkdt.") for name in found if name.startswith("mkdt."))


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, but for those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            continue
        yield child
        yield from _run_time(child)


@cache
def _essence(path: Path) -> str:
    """The code of a file without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def forget() -> None:
    """Drop what was read of the files, so that edits since then are seen."""
    for cached in (_tree, _imports, _essence):
        cached.cache_clear()

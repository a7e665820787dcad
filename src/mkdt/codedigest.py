"""Code as an input: a digest of a script and of what it imports from this package, comments and docstrings left out."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# Plumbing that carries no number: a new progress bar, or a better word on a licence, must not retrain a hundred experts.
PLUMBING = frozenset(
    {"job", "tracking", "sync", "cli", "config", "methods", "codedigest", "errors", "catalog", "downloads"}
)


def code_digest(script: str | Path, *modules: str) -> str:
    """SHA-256 (hex, 16 digits) over the code of ``script`` and, recursively, of the modules of ``mkdt`` that it imports.

    Comments, docstrings and layout do not count; neither do the modules of ``PLUMBING``.

    Args:
        script: a stage's script.
        modules: of ``mkdt``, that it imports by name when it runs.
    """
    pending, seen = [Path(script), *(PACKAGE / f"{name.replace('.', '/')}.py" for name in modules)], set()
    parts = []
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        text, imports = _essence(path)
        parts.append((path.name, text))
        pending += [PACKAGE / f"{name}.py" for name in imports - PLUMBING if (PACKAGE / f"{name}.py").is_file()]
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:16]


@cache
def _essence(path: Path) -> tuple[str, frozenset[str]]:
    """The code of a file without comments and docstrings, and the names of the modules of ``mkdt`` that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "mkdt":
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mkdt."):
            imports.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            imports |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mkdt.")}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree), frozenset(imports)

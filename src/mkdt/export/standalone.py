"""Collect the source of a function with all that it uses of this package, for exported folders."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def standalone(module: str, name: str) -> str:
    """Return the source of a function or class and, before it, of everything of ``mkdt`` that it uses.

    Args:
        module: of ``mkdt``, for example ``export.loaders``. It must import names of ``mkdt``, not modules
            (``from mkdt.networks.backbones import ResNet``, not ``from mkdt.networks import backbones``).
        name: bound at the top level of the module.

    Returns:
        Python whose imports are of other packages only.
    """
    imports: set[str] = set()
    parts: list[str] = []
    seen: set[tuple[str, str]] = set()

    def visit(module: str, name: str) -> None:
        text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        node = _bindings(text).get(name)
        if node is None or (module, name) in seen:  # None: a builtin, or a local name
            return
        seen.add((module, name))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mkdt."):
            visit((node.module or "").removeprefix("mkdt."), name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.add(ast.unparse(node))
        else:
            for part in ast.walk(node):
                if isinstance(part, ast.Name):
                    visit(module, part.id)
            parts.append(_text(text, node))

    visit(module, name)
    return "\n".join(sorted(imports)) + "\n\n\n" + "\n\n\n".join(parts) + "\n"


def _bindings(text: str) -> dict[str, ast.stmt]:
    """Map each top-level name of a module to the statement that binds it; imports are split into one name a statement."""
    bound: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound[node.name] = node
        elif isinstance(node, ast.Assign):
            bound |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            bound[node.target.id] = node
        elif isinstance(node, ast.Import):
            bound |= {alias.asname or alias.name.split(".")[0]: ast.Import([alias]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            bound |= {
                alias.asname or alias.name: ast.ImportFrom(node.module, [alias], node.level) for alias in node.names
            }
    return bound


def _text(text: str, node: ast.stmt) -> str:
    """Cut a statement with its decorators from the text of its module."""
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])

"""Check the structure of the package: sizes, import cycles and upward imports.

    python benchmarks/structure.py

Prints the lines of the package, the longest file, the longest function and all violations. Exits
with 1 for an import cycle between files, an import of a higher layer, a file of more than 300
lines or a function of more than 60 lines. All imports count, also those for type checking and
inside functions. The lines of a function are those of its body without the docstring.
"""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

# From the bottom. A module may import from its own layer and from those before it.
LAYERS = [
    {"_choices", "_fields", "_specs", "_torchrl_private", "distributed", "groups", "schedules"},
    {"distributions", "envs", "modules"},
    {"policies"},
    {"objectives"},
    {"algorithms"},
    {"training"},
    {"config", "experiment", "pretrained"},
    {"benchmarl", "diagnostics", "export", "reporting"},
]
MAX_FILE, MAX_FUNCTION = 300, 60


class Module(NamedTuple):
    """A file of the package."""

    path: Path
    lines: int
    imports: set[str]  # dotted names of other files of the package
    functions: dict[str, int]  # lines by name and first line


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(root: Path) -> dict[str, Module]:
    """All files of a package by dotted name."""
    paths = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {name: read_file(name, path, set(paths)) for name, path in paths.items()}


def read_file(name: str, path: Path, known: set[str]) -> Module:
    text = path.read_text()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports, functions = set(), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:  # a module of the package, or a name in one
                module = f"{base}.{alias.name}"
                imports.add(module if module in known else base)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            functions[f"{path}:{node.lineno} {node.name}"] = lines
    return Module(path, len(text.splitlines()), (imports & known) - {name}, functions)


def layer(name: str) -> int:
    """Index of a module's layer; the package itself is above all layers."""
    parts = name.split(".")
    if len(parts) == 1:
        return len(LAYERS)
    found = [index for index, names in enumerate(LAYERS) if parts[1] in names]
    if not found:
        raise SystemExit(f"{name}: expected {parts[1]!r} in LAYERS of {__file__}: add it there.")
    return found[0]


def violations(modules: dict[str, Module]) -> list[str]:
    """Sentences about everything that is not allowed."""
    found = []
    try:
        TopologicalSorter({name: module.imports for name, module in modules.items()}).prepare()
    except CycleError as error:
        found.append("import cycle: " + " <- ".join(error.args[1]))
    for name, module in modules.items():
        above = sorted(other for other in module.imports if layer(other) > layer(name))
        found += [f"upward import: {name} imports {other}" for other in above]
        if module.lines > MAX_FILE:
            found.append(f"long file: {module.path}, {module.lines} lines (at most {MAX_FILE})")
        for function, lines in module.functions.items():
            if lines > MAX_FUNCTION:
                found.append(f"long function: {function}, {lines} lines (at most {MAX_FUNCTION})")
    return found


def main(root: Path) -> int:
    modules = read(root)
    if not modules:
        raise SystemExit(f"{root}: expected a folder with Python files, got none.")
    longest = max(modules.values(), key=lambda module: module.lines)
    functions = {n: lines for module in modules.values() for n, lines in module.functions.items()}
    print(f"{root.name}: {sum(m.lines for m in modules.values()):,} lines, {len(modules)} files")
    print(f"longest file: {longest.path}, {longest.lines} lines")
    if functions:
        name = max(functions, key=functions.__getitem__)
        print(f"longest function: {name}, {functions[name]} lines")
    found = violations(modules)
    print("\n".join(found) or "no import cycle, no upward import")
    return 1 if found else 0


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "torchrl_agentmixer"
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))

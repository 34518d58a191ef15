"""Which code a job reaches, read from the sources: definitions that name each other, followed through imports.

Names are resolved, values are not: of a class that is named, every method counts as reached.
"""

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Module(NamedTuple):
    """A source file: its definitions by name, and what its imported names stand for, as dotted names."""

    definitions: dict[str, ast.stmt]
    imported: dict[str, str]


@cache
def parse(name: str) -> Module | None:
    """One of the project's modules by its dotted name, or None where there is none."""
    base = ROOT.joinpath(*name.split("."))
    file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    if not file.is_file():
        return None
    tree = ast.parse(file.read_text("utf-8"))
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            definitions[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions.update({target.id: node for target in targets if isinstance(target, ast.Name)})
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return Module(definitions, imported)


def attributes(module: str, start: Collection[str], passed: Collection[str] = ()) -> set[str]:
    """Names of all attributes that are read by what these definitions of a module reach; `passed` modules are not."""
    queue = [(module, name) for name in start]
    reached, read = set(queue), set()
    while queue:
        here, name = queue.pop()
        source = parse(here)
        if source is None or here in passed or name not in source.definitions:
            continue
        node = source.definitions[name]
        read |= set(_read(node))
        for target in _named(node, here, source):
            if target not in reached:
                reached.add(target)
                queue.append(target)
    return read


def _read(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load):
            yield part.attr
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "getattr":
            yield from (str(value.value) for value in part.args[1:2] if isinstance(value, ast.Constant))


def _named(node: ast.AST, here: str, source: Module) -> Iterator[tuple[str, str]]:
    """Definitions that some code names, as (module, name)."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in source.definitions:
            yield here, part.id
        elif isinstance(part, ast.Name) and part.id in source.imported:
            module, _, name = source.imported[part.id].rpartition(".")
            yield module, name
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in source.imported:
            yield source.imported[part.value.id], part.attr

"""The built-in engine holds what the product reaches and what `querypose.d2.FOR_USERS` offers, and nothing else.

A definition is reached if its name stands in the product (querypose, tools, datasets, examples) or in the body of a
definition that is reached. Names are compared without types, so that a definition may count as reached that is not; one
that is reported is not reached.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

from querypose import d2

ROOT = Path(__file__).resolve().parents[2]
BUILTIN = ROOT / "querypose" / "d2" / "builtin"
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    """A function, class or method of the built-in engine."""

    module: str
    owner: str  # the class of a method, else ""
    name: str
    body: list[ast.AST]  # what is run, or looked at, once the definition is reached

    def __str__(self) -> str:
        return ".".join(filter(None, (self.module, self.owner, self.name)))


def _product_files() -> Iterator[Path]:
    for folder in ("querypose", "tools", "datasets", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            if not file.is_relative_to(BUILTIN) and file != BUILTIN.parent / "upstream.py":
                yield file


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for root in nodes:
        for node in ast.walk(root):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
    return names


def _split(tree: ast.Module, module: str) -> tuple[list[Definition], list[ast.AST]]:
    """The definitions of a module, and its other statements."""
    definitions: list[Definition] = []
    rest: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, Function):
            definitions.append(Definition(module, "", node.name, [node]))
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, Function)]
            definitions += [Definition(module, node.name, method.name, [method]) for method in methods]
            others: list[ast.AST] = [part for part in node.body if not isinstance(part, Function)]
            definitions.append(Definition(module, "", node.name, [*others, *node.bases, *node.decorator_list]))
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            rest.append(node)
    return definitions, rest


def _is_called_by_a_library(definition: Definition) -> bool:
    """Python calls `__len__`, and fvcore, torch or logging call what their class has too."""
    if definition.name.startswith("__"):
        return True
    owner = getattr(importlib.import_module(f"querypose.d2.builtin.{definition.module}"), definition.owner)
    foreign = [base for base in owner.__mro__ if not base.__module__.startswith("querypose")]
    return any(definition.name in vars(base) for base in foreign)


def unreached() -> list[str]:
    """The definitions of the built-in engine that nothing reaches."""
    waiting: list[Definition] = []
    names = _names(ast.parse(file.read_text(encoding="utf-8")) for file in _product_files())
    for file in BUILTIN.glob("*.py"):
        definitions, rest = _split(ast.parse(file.read_text(encoding="utf-8")), file.stem)
        waiting += definitions
        names |= _names(rest)
    names |= set(d2.FOR_USERS)
    builtin = importlib.import_module("querypose.d2.builtin")
    values = [getattr(builtin, name) for name in d2.FOR_USERS]
    offered = {value.__name__ if inspect.isclass(value) else type(value).__name__ for value in values}
    classes: set[str] = set()
    while True:
        reached = [
            definition
            for definition in waiting
            if (definition.name in names or (definition.owner in offered and not definition.name.startswith("_"))
                or (definition.owner in classes and _is_called_by_a_library(definition)))
            and (not definition.owner or definition.owner in classes)
        ]  # fmt: skip
        if not reached:
            return [str(definition) for definition in waiting]
        waiting = [definition for definition in waiting if definition not in reached]
        classes |= {definition.name for definition in reached if not definition.owner}
        names |= _names(part for definition in reached for part in definition.body)


def overridden() -> list[str]:
    """The methods of built-in classes that a subclass in the product replaces without calling them."""
    found: list[str] = []
    builtin = importlib.import_module("querypose.d2.builtin")
    names = set(d2.__all__) - set(d2.FOR_USERS)
    classes = {name: value for name in names if inspect.isclass(value := getattr(builtin, name, None))}
    classes |= {f"hooks.{name}": getattr(builtin.hooks, name) for name in builtin.hooks.__all__}
    for file in _product_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for base in (classes[name] for name in map(ast.unparse, node.bases) if name in classes):
                for method in (part for part in node.body if isinstance(part, Function)):
                    former = _own_function(base, method.name)
                    calls_it = f"super().{method.name}(" in ast.unparse(node)
                    calls_it |= f"{base.__mro__[1].__name__}.{method.name}(" in ast.unparse(node)
                    if former is not None and not calls_it and _does_something(former):
                        found.append(f"{former.__qualname__}, by {node.name}")
    return found


def _own_function(cls: type, name: str) -> FunctionType | None:
    for base in cls.__mro__:
        if name in vars(base):
            value = inspect.unwrap(getattr(vars(base)[name], "__func__", vars(base)[name]))
            return value if base.__module__.startswith("querypose") and inspect.isfunction(value) else None
    return None


def _does_something(function: FunctionType) -> bool:
    """Whether it has more than a docstring, a constant to return, or NotImplementedError to raise."""
    [node] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, Function)
    return not all(
        isinstance(part, ast.Expr | ast.Pass)
        or (isinstance(part, ast.Raise) and "NotImplementedError" in ast.unparse(part))
        or (isinstance(part, ast.Return) and isinstance(part.value, ast.Constant | ast.Dict | None))
        for part in node.body
    )


def test_the_product_reaches_every_definition() -> None:
    assert unreached() == []


def test_the_product_replaces_no_definition() -> None:
    assert overridden() == []


def test_every_name_of_the_seam_is_used() -> None:
    used = _names(ast.parse(file.read_text(encoding="utf-8")) for file in _product_files())
    assert [name for name in d2.__all__ if name not in used | set(d2.FOR_USERS)] == []

"""Modules of a user's own, imported by name or by path, so that what they register and the keys they add count."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from querypose.config.keys import ConfigError


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --import to a command line; the names come as `imports`."""
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="import a module of your own first, with its models, keys, …: a dotted name (my_project.models), a .py "
        "file or the folder of a package; may be given several times; IMPORTS in a YAML file does the same",
    )  # fmt: skip


def import_modules(names: Iterable[str]) -> None:
    """Imports each module: a dotted name, found as Python finds it or in the current folder; a .py file; a package.

    The folder of a file or package joins `sys.path`, at its end: a process that is started later, as of the data
    loader, imports by their names the classes that it is sent.

    Raises:
        ConfigError: there is no such module, it raises an error, or its name is that of another one.
    """
    for name in names:
        is_path = name.endswith(".py") or name.startswith(("~", ".")) or "/" in name or "\\" in name
        path = Path(name).expanduser().resolve() if is_path else None
        if path is not None:
            _require_module(name, path)
        folder = str(Path.cwd() if path is None else path.parent)
        if folder not in sys.path:
            sys.path.append(folder)
        module = _import(name, name if path is None else path.stem)
        found = Path(module.__file__).resolve() if module.__file__ is not None else None
        if path is not None and found not in (path, path / "__init__.py"):
            raise ConfigError(
                f"IMPORTS: {name} cannot be imported, because Python knows another module {path.stem!r} "
                f"({found or 'built in'}). Rename yours."
            )


def _require_module(name: str, path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"IMPORTS: {name} does not exist ({path}). Paths start at the current folder.")
    if path.is_dir() and not (path / "__init__.py").is_file():
        raise ConfigError(
            f"IMPORTS: the folder {name} has no __init__.py; add one that imports the modules of your package."
        )
    if not path.stem.isidentifier():
        raise ConfigError(
            f"IMPORTS: {name} is not a valid name of a module; rename it with letters, digits and underscores only."
        )


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ConfigError as error:
        raise ConfigError(f"IMPORTS: {name}: {error}") from error
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise ConfigError(
                f"IMPORTS: there is no module {missing!r}, neither installed nor in the current folder ({Path.cwd()}). "
                "A file or folder elsewhere is named by its path, as path/to/my_project or path/to/my_model.py."
            ) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        raise ConfigError(
            f"IMPORTS: {name} raises {type(error).__name__} when it is imported: {error} ({where[0]}, line {where[1]})."
        ) from error

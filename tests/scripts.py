"""Imports a script of tools/ or datasets/, which is in no package."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_script(path: str) -> ModuleType:
    """The module in the file `path` of the repository, not run as the main one."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_script(path: str, *arguments: str) -> int:
    """Runs a script of the repository in this process as the command line does; gives its exit code."""
    argv = sys.argv
    sys.argv = [Path(path).name, *arguments]
    try:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
    return 0

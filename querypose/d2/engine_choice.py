"""Which host framework runs: detectron2 or the built-in part of it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from types import TracebackType
from typing import NoReturn

from querypose.errors import UserError

ENGINES = ("builtin", "detectron2")
VARIABLE = "QUERYPOSE_ENGINE"


class EngineError(UserError, ImportError):
    """QUERYPOSE_ENGINE asks for an engine that there is not."""


def choose_engine() -> tuple[str, str]:
    """The active engine and its version: as the environment variable QUERYPOSE_ENGINE says, else as it can be imported.

    Raises:
        EngineError: the variable names no engine, or asks for detectron2, which is missing or cannot be imported.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", *ENGINES):
        _refuse(f"{VARIABLE} is {asked!r}; allowed: {', '.join(ENGINES)}, or unset: then detectron2 if it is there.")
    spec = importlib.util.find_spec("detectron2")
    # A folder that is merely called detectron2 has a spec too, but no __init__.py, hence no origin.
    is_installed = spec is not None and spec.origin is not None
    if asked == "detectron2" or (not asked and is_installed):
        try:
            return "detectron2", str(importlib.import_module("querypose.d2.upstream").VERSION)
        except ImportError as error:
            if asked:
                _refuse(
                    f"{VARIABLE} is 'detectron2', but detectron2 cannot be imported ({error}). "
                    f"Install detectron2, or set {VARIABLE}=builtin."
                )
            # Installed but unusable: the run goes on, and its log says why it does so without detectron2.
            logging.getLogger(__name__).warning(
                "detectron2 is installed but cannot be imported (%s); the built-in engine runs instead.", error
            )
    return "builtin", str(importlib.import_module("querypose.d2.builtin").__version__)


def _refuse(message: str) -> NoReturn:
    """Raises EngineError. It comes while a tool is being imported, which then has nothing yet that reports it."""
    former = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, EngineError):
            former(kind, error, trace)
            return
        print(f"{os.path.basename(sys.argv[0]) or 'python'}: error: {error}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = report
    raise EngineError(message)

"""The one progress bar of all long work: with a rate and an ETA on a terminal, silent elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_Item = TypeVar("_Item")


def progress(
    items: Iterable[_Item], description: str, *, total: int | None = None, unit: str = "image", shown: bool = True
) -> Iterable[_Item]:
    """`items`, with a bar on stderr that says how far they have come; none where stderr is not a terminal.

    Args:
        items: to go through.
        description: begins the bar.
        total: how many there are, where `items` does not know.
        unit: what an item is.
        shown: False for no bar anywhere.
    """
    # disable=None is tqdm's word for "off a terminal".
    return tqdm(items, desc=description, total=total, unit=unit, disable=None if shown else True)


def progress_bar(description: str, total: int, unit: str) -> tqdm[Any]:
    """The same bar for work that is no loop: a context whose `update()` counts one more."""
    bar: tqdm[Any] = tqdm(desc=description, total=total, unit=unit, disable=None)
    return bar


@contextlib.contextmanager
def logs_above_bars(*names: str) -> Iterator[None]:
    """Within the context the consoles of these loggers write above a bar, and not into it; nothing off a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with logging_redirect_tqdm([logging.getLogger(name) for name in names]):
        yield

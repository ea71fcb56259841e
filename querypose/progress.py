"""The one progress bar of all long work: with a rate and an ETA on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")


def progress(
    items: Iterable[_Item], description: str, *, total: int | None = None, unit: str = "image"
) -> Iterable[_Item]:
    """`items`, with a bar on stderr that says how far they have come; none where stderr is not a terminal.

    Args:
        items: to go through.
        description: begins the bar.
        total: how many there are, where `items` does not know.
        unit: what an item is.
    """
    # disable=None is tqdm's word for "off a terminal".
    return tqdm(items, desc=description, total=total, unit=unit, disable=None)

"""The same work on many image files, in threads and with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    description: str,
    *,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> list[_Result]:
    """`function` of every item, in the order of the items.

    Threads are enough: reading, hashing and Pillow's decoding leave the interpreter to the others meanwhile.

    Args:
        function: whatever it raises ends the work and is raised here.
        items: what to call it with.
        description: begins the progress bar.
        num_threads: None takes one a core and four at least, since threads wait for disks too.
        show_progress: draw a bar on stderr.
    """
    if num_threads is None:
        num_threads = max(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        results = pool.map(function, items)
        return list(tqdm(results, description, total=len(items), unit="image", disable=not show_progress))

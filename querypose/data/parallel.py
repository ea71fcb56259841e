"""The same work on many image files, in threads and with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from querypose.progress import progress

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

    Threads are enough: reading, hashing and Pillow's decoding release the interpreter's lock.

    Args:
        function: an error in it ends the work and is raised here.
        items: what to call it with.
        description: begins the progress bar.
        num_threads: None takes one for each core, at least four, since threads also wait for the disk.
        show_progress: draw a bar on stderr, where that is a terminal.
    """
    if num_threads is None:
        num_threads = max(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        results = pool.map(function, items)
        return list(progress(results, description, total=len(items), shown=show_progress))

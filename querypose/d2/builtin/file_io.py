"""Files: the path manager, and writing that leaves either the old file or the whole new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as IopathManager

PathManager = IopathManager()
PathManager.register_handler(HTTPURLHandler())


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that takes the place of `path` when the block ends, and not at all if it fails.

    A process that is killed at any moment leaves the old file whole. Paths that are no local files ("s3://…") are
    written by the path manager, as they can.
    """
    if "://" in path:
        with PathManager.open(path, mode) as stream:
            yield stream
        return
    target = Path(path)
    # A fixed name: what a killed process left of it is overwritten when the file is written again.
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, mode) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Makes the renaming itself survive a power cut; Windows cannot open a directory, and needs none of it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

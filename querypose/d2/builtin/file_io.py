"""The path manager, and atomic writing through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as IopathManager

from querypose.d2 import files

PathManager = IopathManager()
PathManager.register_handler(HTTPURLHandler())


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """As `querypose.d2.files.atomic_write`; paths that are no local files ("s3://…") are written as they can be."""
    with PathManager.open(path, mode) if "://" in path else files.atomic_write(path, mode) as stream:
        yield stream

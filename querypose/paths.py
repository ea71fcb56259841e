"""The one way from a name in a file to a path: names of images, checkpoints, rows, datasets, downloads."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from querypose.errors import UserError

_MAX_COMPONENT = 255  # bytes; what file systems allow


class FileNameError(UserError, ValueError):
    """A name in a file that is no name of a file, or that leads out of the folder to which it belongs.

    Attributes:
        what: what is wrong with the name.
        remedy: what to do about it.
    """

    def __init__(self, source: str, what: str, remedy: str) -> None:
        super().__init__(source, what, remedy)
        self.source = source
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.source}: {self.what}; {self.remedy}."


def path_within(folder: str | Path, name: Any, source: str) -> Path:
    """The file in `folder`, or in a folder in it, that a name from elsewhere stands for.

    Whoever wrote the name decides on a file of that folder and on no other one, whether it is then read or written.
    Links in the folder itself are its owner's, and are followed.

    Args:
        folder: to which the name belongs.
        name: from a json, csv, archive, manifest, config or address; relative, with `/` between folders.
        source: where it stands, for the message.

    Raises:
        FileNameError: it is absolute, has `..` in it, or is no name of a file.
    """
    check_name(name, source)
    is_relative = not os.path.isabs(name) and not os.path.splitdrive(name)[0] and not name.startswith("/")
    parts = name.replace(os.sep, "/").split("/")
    if not is_relative or ".." in parts:
        what = f"the name {short(name)} leads out of the folder {str(folder)!r}"
        raise FileNameError(source, what, "write names relative to that folder, without '..'")
    if all(part in ("", ".") for part in parts):
        raise FileNameError(source, f"the name {name!r} is that of a folder", "name a file")
    return Path(folder) / name


def check_name(name: Any, source: str) -> None:
    """Refuses what cannot be the name of any file; where it leads does not matter here.

    Raises:
        FileNameError: it is no text, empty, has a NUL or half of a character in it, or a part of it is too long.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise FileNameError(source, f"{short(name)} is no name of a file", "write the name as text")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise FileNameError(source, f"{short(name)} is no name of a file", "write the name in Unicode") from error
    if max(map(len, encoded.split(b"/"))) > _MAX_COMPONENT:
        raise FileNameError(source, f"the name {short(name)} is too long", f"allowed: {_MAX_COMPONENT} bytes")


def open_regular_file(path: str | Path) -> BinaryIO:
    """Opens a file of bytes for reading; never waits for a writer, as a named pipe would.

    Raises:
        OSError: it cannot be opened, or is a pipe, socket or device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "it is a folder" if code == errno.EISDIR else "it is a pipe or device", str(path))
    return os.fdopen(descriptor, "rb")


def short(value: Any, length: int = 120) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"

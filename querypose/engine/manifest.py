"""`checkpoints.json`: the checkpoints of a run, oldest first, with the checksum of each."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from querypose.d2 import atomic_write
from querypose.paths import FileNameError, path_within

MANIFEST = "checkpoints.json"


class Entry(NamedTuple):
    """A checkpoint of the folder."""

    file: str
    iteration: int
    num_bytes: int
    sha256: str
    has_state: bool  # else it holds weights alone, from which no run can go on


class Condition(Enum):
    """How a file compares with the manifest."""

    INTACT = "intact"
    UNLISTED = "not listed in checkpoints.json, so that its checksum is not known"
    MISSING = "missing"
    DAMAGED = "damaged: its checksum is not the one in checkpoints.json"


class Manifest:
    """The list of a folder. An entry is written before its file takes its name, so that no whole file lacks one."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def entries(self) -> list[Entry]:
        """The entries, oldest first; none if there is no list, or it cannot be read."""
        return self._read()[0]

    def begin(self, earlier: Sequence[Path]) -> None:
        """Empties the list for a new run in the folder; `earlier` are files of runs before it, which stay there."""
        self._write([], {file.name: _identity(file) for file in earlier})

    def is_of_earlier_run(self, file: Path) -> bool:
        """Whether it is a file that was there when the run began, and has not been written since."""
        return file.is_file() and self._read()[1].get(file.name) == _identity(file)

    def add(self, entry: Entry) -> None:
        """Adds the newest entry. One of the same name stays, as the new file may never come, but no third."""
        others, earlier = self._read()
        same = [other for other in others if other.file == entry.file]
        self._write([other for other in others if other not in same[:-1]] + [entry], earlier)

    def forget(self, files: Sequence[str]) -> None:
        entries, earlier = self._read()
        self._write([entry for entry in entries if entry.file not in files], earlier)

    def condition_of(self, file: str) -> Condition:
        """Compares a file's content with its checksum, which reads the whole file."""
        path = self._folder / file
        if not path.is_file():
            return Condition.MISSING
        entries, earlier = self._read()
        listed = [entry for entry in entries if entry.file == file]
        if not listed:
            return Condition.UNLISTED
        if earlier.get(file) == _identity(path):  # listed, but killed before the new file took the name
            return Condition.MISSING
        possible = {entry.sha256 for entry in listed if entry.num_bytes == path.stat().st_size}
        if not possible:  # the size alone says so; nothing needs to be read
            return Condition.DAMAGED
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while chunk := stream.read(2**22):
                digest.update(chunk)
        return Condition.INTACT if digest.hexdigest() in possible else Condition.DAMAGED

    def _read(self) -> tuple[list[Entry], dict[str, list[int]]]:
        """The entries, and the identities of files of earlier runs by name."""
        try:
            content = json.loads((self._folder / MANIFEST).read_bytes())
            entries = [Entry(**entry) for entry in content["checkpoints"]]
            if not all(map(self._is_sound, entries)):
                raise ValueError("an entry has values that no run writes")
            return entries, dict(content.get("of_earlier_runs", {}))
        except (FileNotFoundError, NotADirectoryError):
            return [], {}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logging.getLogger(__name__).warning(f"{self._folder / MANIFEST} cannot be read, so it is ignored: {error}")
            return [], {}

    def _is_sound(self, entry: Entry) -> bool:
        """Whether its values are of the types of the fields, and the file is one of the folder."""
        types = (str, int, int, str, bool)
        has_types = all(type(value) is kind for value, kind in zip(entry, types, strict=True))
        return has_types and is_name_beside(self._folder / MANIFEST, entry.file)

    def _write(self, entries: Sequence[Entry], earlier: Mapping[str, list[int]]) -> None:
        content = {"checkpoints": [entry._asdict() for entry in entries], "of_earlier_runs": earlier}
        with atomic_write(self._folder / MANIFEST, "w") as stream:
            json.dump(content, stream, indent=1)


def is_name_beside(file: Path, name: str) -> bool:
    """Whether a name that `file` has in it is that of a file in the same folder, and not elsewhere."""
    try:
        return path_within(file.parent, name, str(file)).name == name
    except FileNameError:
        return False


def _identity(file: Path) -> list[int]:
    """Size and time of the last change: another one after the file was written again, with whatever content."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


class HashingStream:
    """A stream to write to that knows the checksum and the size of what was written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, content: Any) -> int:
        self._digest.update(content)
        self.num_bytes += len(content)
        return int(self._stream.write(content))

    def flush(self) -> None:
        self._stream.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

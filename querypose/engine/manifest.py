"""`checkpoints.json`: the checkpoints of a run, oldest first, with the checksum of each."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from querypose.d2 import atomic_write

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
        try:
            return [Entry(**entry) for entry in json.loads((self._folder / MANIFEST).read_text())["checkpoints"]]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as error:
            logging.getLogger(__name__).warning(f"{self._folder / MANIFEST} cannot be read, so it is ignored: {error}")
            return []

    def add(self, entry: Entry) -> None:
        """Adds the newest entry. One of the same name stays, as the new file may never come, but no third."""
        others = self.entries()
        same = [other for other in others if other.file == entry.file]
        self._write([other for other in others if other not in same[:-1]] + [entry])

    def forget(self, files: Sequence[str]) -> None:
        self._write([entry for entry in self.entries() if entry.file not in files])

    def condition_of(self, file: str) -> Condition:
        """Compares a file's content with its checksum, which reads the whole file."""
        path = self._folder / file
        if not path.is_file():
            return Condition.MISSING
        listed = [entry for entry in self.entries() if entry.file == file]
        if not listed:
            return Condition.UNLISTED
        possible = {entry.sha256 for entry in listed if entry.num_bytes == path.stat().st_size}
        if not possible:  # the size alone says so; nothing needs to be read
            return Condition.DAMAGED
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while chunk := stream.read(2**22):
                digest.update(chunk)
        return Condition.INTACT if digest.hexdigest() in possible else Condition.DAMAGED

    def _write(self, entries: list[Entry]) -> None:
        with atomic_write(self._folder / MANIFEST, "w") as stream:
            json.dump({"checkpoints": [entry._asdict() for entry in entries]}, stream, indent=1)


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

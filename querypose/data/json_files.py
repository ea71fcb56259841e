"""The one reader of json files that a user gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from querypose.data.problems import DatasetError


class JsonError(DatasetError):
    """A file that is no json.

    Attributes:
        what: what is wrong, without the name of the file.
        remedy: what to do about it.
    """

    def __init__(self, path: str | Path, what: str, remedy: str) -> None:
        super().__init__(path, what, remedy)
        self.path = path
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}."


def read_json(path: str | Path) -> Any:
    """The content of a json file.

    Deviates: a name that is twice in an object is refused; the usual reader forgets what stood there first.

    Raises:
        JsonError: there is no such file, it cannot be read, or it is not json in UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise JsonError(path, "there is no such file", "correct the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JsonError(path, f"it cannot be read ({error.strerror})", "make it readable") from error
    return parse_json(path, content)


def parse_json(path: str | Path, content: bytes) -> Any:
    """What the content of a json file says; `path` only names the file.

    Raises:
        JsonError: it is not json in UTF-8.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise JsonError(path, "it is not valid json: it is nested too deeply", "write it again") from error
    except ValueError as error:
        raise JsonError(path, f"it is not valid json ({error})", "download or create it again") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {double!r} is twice in one object")
    return content

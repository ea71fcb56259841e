"""Writes the reference of all YAML keys: python -m querypose.config docs/config.md (without a file: prints it)."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from querypose.config.keys import KEYS, OWNERS, Key, kind_of

_BEGINNING = """# Config reference

Every YAML key: its default, what it allows, and its meaning. This page is generated from the keys; write it anew with

```bash
python -m querypose.config docs/config.md
```

An experiment is a YAML file with the keys that differ from their defaults; `_BASE_: other.yaml` takes over those of
another file, and `KEY VALUE` pairs at the end of a command line change single ones. A key that is unknown, or a value
that is not allowed, is refused by name. `--import my_project` (or `IMPORTS` in the file) imports your own modules
first: what they register is allowed, and they add keys of their own with `querypose.config.add_keys`.

A key that detectron2 has too keeps its name and its meaning. Its other keys are accepted, with a warning where nothing
reads them.

A run that goes on with `--resume` compares its config with that of the checkpoint, key by key. The last column says
what happens to a key that has another value: *obeyed*, from the next iteration on, and named in the log; or *refused*,
by name, before anything is trained, because the weights of the checkpoint would not fit or would mean something else.
An obeyed key that makes parameters appear or go (a loss with weights of its own) is refused too.
"""


def reference() -> str:
    """The page, one table an owner."""
    lines = [_BEGINNING]
    for owner, keys in groupby(KEYS.values(), lambda key: OWNERS[key.name]):
        lines += [
            f"## {(sys.modules[owner].__doc__ or owner).splitlines()[0].rstrip('.')}",
            "",
            f"`{owner.replace('.', '/')}.py`",
            "",
            "| key | default | allowed | meaning | changed under --resume |",
            "| --- | --- | --- | --- | --- |",
            *map(_row, keys),
            "",
        ]
    return "\n".join(lines)


def _row(key: Key) -> str:
    allowed = kind_of(key.default) if key.allowed is None else key.allowed.description
    resumed = "refused" if key.is_fixed else "obeyed"
    cells = (f"`{key.name}`", f"`{key.default!r}`", allowed, key.meaning, resumed)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        print(reference(), end="")

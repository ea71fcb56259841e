"""docs/deviations.md names keys and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from querypose.config import KEYS

ROOT = Path(__file__).resolve().parents[2]


def test_keys_and_files_exist() -> None:
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"\b(?:MODEL|SOLVER|TEST|INPUT|DATASETS|DATALOADER)(?:\.[A-Z_]+)+", text))
    assert len(keys) >= 8
    assert keys - KEYS.keys() <= {"MODEL.QUERYPOSE", "MODEL.POET.LOSS"}
    paths = re.findall(r"\b(?:tests|tools|configs)/[\w/]+(?:\.\w+)?", text)
    assert len(paths) >= 6
    for path in paths:
        assert (ROOT / path).exists(), path

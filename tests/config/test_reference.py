"""docs/config.md is what the keys say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from querypose.d2 import ENGINE
from tests.scripts import ROOT


@pytest.mark.skipif(ENGINE == "detectron2", reason="its registries have more models and backbones")
def test_the_page_is_current() -> None:
    # In a process of its own, where no test has registered anything.
    command = [sys.executable, "-m", "querypose.config"]
    page = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    current = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == current, "write it anew: python -m querypose.config docs/config.md"

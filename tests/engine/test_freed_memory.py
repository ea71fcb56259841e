"""Memory of freed tensors stays with the process."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.toy_pose import write_toy_config

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the policy is of glibc's allocator alone"),
    pytest.mark.skipif(
        HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(),
        reason="counts pages, which are huge on this machine",
    ),
]

NUM_TENSORS = 20
PAGES_OF_A_TENSOR = 2**26 // resource.getpagesize()
# New pages of tensors of 64 MB, each of which is freed before the next one is made. A small block that came to lie
# where one of them was can push the next one aside, so that even of those that are kept a few are new.
_NEW_PAGES = f"""
import resource, sys, torch
import tests.engine.toy_pose
from querypose.d2 import default_argument_parser
from querypose.engine import setup
setup(default_argument_parser().parse_args(sys.argv[1:]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({NUM_TENSORS}):
    torch.ones(1 << 24)
print("pages", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _new_pages(*arguments: str, **environment: str) -> int:
    malloc = ("MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(malloc)}
    run = subprocess.run(
        [sys.executable, "-c", _NEW_PAGES, *arguments],
        env=inherited | environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(run.stdout.split("pages")[-1])


def test_freed_memory_is_used_again_without_the_kernel(tmp_path: Path) -> None:
    config = ["--config-file", str(write_toy_config(tmp_path)), "MODEL.DEVICE", "cpu"]
    kept = _new_pages(*config)
    returned = _new_pages(*config, "KEEP_FREED_MEMORY", "False")
    assert kept < NUM_TENSORS // 2 * PAGES_OF_A_TENSOR
    assert returned > (NUM_TENSORS - 1) * PAGES_OF_A_TENSOR


def test_the_environment_of_the_user_comes_first(tmp_path: Path) -> None:
    config = ["--config-file", str(write_toy_config(tmp_path)), "MODEL.DEVICE", "cpu"]
    assert _new_pages(*config, MALLOC_MMAP_THRESHOLD_="1000000") > (NUM_TENSORS - 1) * PAGES_OF_A_TENSOR

"""Memory of freed tensors stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.toy_pose import write_toy_config

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the policy is of glibc's allocator alone")

# New pages of the second of two tensors of 256 MB, the first of which was freed before.
_FAULTS_OF_A_SECOND_TENSOR = """
import resource, sys, torch
import tests.engine.toy_pose
from querypose.d2 import default_argument_parser
from querypose.engine import setup
setup(default_argument_parser().parse_args(sys.argv[1:]))
torch.ones(1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 26)
print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*arguments: str, **environment: str) -> int:
    malloc = ("MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(malloc)}
    run = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_A_SECOND_TENSOR, *arguments],
        env=inherited | environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(run.stdout.split("faults")[-1])


def test_freed_memory_is_used_again_without_the_kernel(tmp_path: Path) -> None:
    config = ["--config-file", str(write_toy_config(tmp_path)), "MODEL.DEVICE", "cpu"]
    kept = _faults(*config)
    returned = _faults(*config, "KEEP_FREED_MEMORY", "False")
    assert kept < 1000
    assert returned > 10 * kept + 1000


def test_the_environment_of_the_user_comes_first(tmp_path: Path) -> None:
    config = ["--config-file", str(write_toy_config(tmp_path)), "MODEL.DEVICE", "cpu"]
    assert _faults(*config, MALLOC_MMAP_THRESHOLD_="1000000") > 1000

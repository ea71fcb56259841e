"""Where the tests of this folder compute: on a GPU, and on the CPU where that proves the test itself."""

from __future__ import annotations

import os

import pytest
import torch

# cuBLAS reads it when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the GPU."""
    return _present(torch.device(request.param))


@pytest.fixture
def gpu() -> torch.device:
    """The GPU; for tests that say nothing on a CPU. They are marked `gpu` themselves."""
    return _present(torch.device("cuda"))


def _present(device: torch.device) -> torch.device:
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return device

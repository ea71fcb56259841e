"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from querypose import d2
from tests.loggers import restored_loggers

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    # The tests run side by side; more threads than cores would only get in each other's way.
    torch.set_num_threads(1)
    if d2.ENGINE == "detectron2":
        # It opens metrics.json when a trainer is built and closes it when training ends, and opens the config file for
        # the log without closing it: a trainer that is never trained warns.
        config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _restored_loggers() -> Iterator[None]:
    with restored_loggers():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos with annotations, which are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real photos are not beside the repository (../shared/data)")
    return SHARED_DATA

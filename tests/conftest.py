"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure() -> None:
    # The tests run side by side; more threads than cores would only get in each other's way.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos with annotations, which are not part of the repository."""
    return _folder_or_skip(SHARED / "data", "real photos")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Reference tensors of the authors' code, which are not part of the repository."""
    return _folder_or_skip(SHARED / "fixtures", "reference tensors")


def _folder_or_skip(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no {what} beside the repository (../shared/{folder.name})")
    return folder

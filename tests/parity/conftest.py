"""The reference tensors, opened once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.golden import Fixture


@pytest.fixture(scope="session")
def rle(shared_fixtures: Path) -> Fixture:
    return Fixture(shared_fixtures, "rle")


@pytest.fixture(scope="session")
def tiny_light(shared_fixtures: Path) -> Fixture:
    return Fixture(shared_fixtures, "tiny_light")


@pytest.fixture(scope="session")
def swap_by_target(shared_fixtures: Path) -> Fixture:
    return Fixture(shared_fixtures, "tiny_light_swap_by_target")

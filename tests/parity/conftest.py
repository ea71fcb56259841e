"""The reference tensors, opened once."""

from __future__ import annotations

import pytest

from tests.parity.golden import Fixture


@pytest.fixture(scope="session")
def rle() -> Fixture:
    return Fixture("rle")


@pytest.fixture(scope="session")
def tiny_light() -> Fixture:
    return Fixture("tiny_light")

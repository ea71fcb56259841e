"""What the tests of the seam share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from querypose import d2
from tests.d2 import toy


@pytest.fixture
def toy_dataset() -> Iterator[str]:
    toy.register()
    yield toy.DATASET
    d2.DatasetCatalog.remove(toy.DATASET)
    d2.MetadataCatalog.remove(toy.DATASET)

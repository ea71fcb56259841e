"""What the tests of the data part share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from querypose.d2 import DatasetCatalog, MetadataCatalog
from querypose.data import register_builtin_datasets


@pytest.fixture
def engine_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `caplog` see the log also where a logger was set up before not to hand records on."""
    monkeypatch.setattr(logging.getLogger("querypose"), "propagate", True)


@pytest.fixture
def datasets_root(tmp_path: Path) -> Iterator[Path]:
    """The built-in names registered under an empty folder; afterwards as before."""
    names = set(DatasetCatalog.list())
    register_builtin_datasets(tmp_path)
    yield tmp_path
    for name in set(DatasetCatalog.list()) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_builtin_datasets()

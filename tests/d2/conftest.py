"""What the tests of the seam share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from querypose import d2
from tests.d2 import toy


def pytest_configure(config: pytest.Config) -> None:
    if d2.ENGINE == "detectron2":
        # It opens metrics.json when a trainer is built and closes it when training ends, and opens the config file for
        # the log without closing it: a trainer that is never trained warns.
        config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """setup_logger adds handlers, which hold files open, and stops propagation, which caplog lives on."""
    loggers = [logging.getLogger(name) for name in ("querypose", "detectron2", "fvcore")]
    before = [(list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = propagate
        logger.setLevel(level)


@pytest.fixture
def toy_dataset() -> Iterator[str]:
    toy.register()
    yield toy.DATASET
    d2.DatasetCatalog.remove(toy.DATASET)
    d2.MetadataCatalog.remove(toy.DATASET)

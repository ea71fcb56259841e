"""Takes back what `setup_logger` does, so that no test logs into the streams and files of another one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from querypose.d2 import setup_logger

NAMES = ("querypose", "detectron2", "fvcore")


@contextlib.contextmanager
def restored_loggers() -> Iterator[None]:
    """Within the context the loggers propagate, to pytest's capture too; afterwards they are as they were before."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.propagate = True
    try:
        yield
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            for handler in [handler for handler in logger.handlers if handler not in handlers]:
                logger.removeHandler(handler)
                with contextlib.suppress(OSError):  # a test's full disk; logging ignores it too where a program ends
                    handler.close()
        if hasattr(setup_logger, "cache_clear"):  # detectron2 remembers which loggers it has set up
            setup_logger.cache_clear()

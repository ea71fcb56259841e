"""Logs and metrics that cannot be written, as on a full disk: the run goes on, says so once, and again at the end."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

_lost: Counter[str] = Counter()


def note_loss(where: str, error: OSError) -> None:
    """Notes that something could not be written to `where`; the first time it is said."""
    _lost[where] += 1
    if _lost[where] == 1:
        _say(f"{where} cannot be written: {error.strerror or error}. The run goes on without it.")


@contextlib.contextmanager
def losses_said_again() -> Iterator[None]:
    """When the context ends, in whatever way, what could not be written within it is said once more."""
    try:
        yield
    finally:
        for where, count in _lost.items():
            times = f"{count} times" if count > 1 else "once"
            _say(f"{where} is not complete: it could not be written {times} (see above). Checkpoints are not affected.")
        _lost.clear()


def watch_loggers(loggers: Iterable[logging.Logger]) -> None:
    """Lets handlers of these loggers note what they cannot write; other errors of theirs are printed as ever."""
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.handleError = _NoteOrPrint(handler)  # type: ignore[method-assign]


class _NoteOrPrint:
    """Takes the place of a handler's `handleError`."""

    def __init__(self, handler: logging.StreamHandler) -> None:
        self._handler = handler

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            stream = self._handler.stream  # None where the file could not be opened
            note_loss(str(getattr(self._handler, "baseFilename", getattr(stream, "name", "the log"))), error)
        else:
            type(self._handler).handleError(self._handler, record)


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be lost too
        print(message, file=sys.stderr, flush=True)

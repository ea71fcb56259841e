"""Logging to the console and to log.txt."""

from __future__ import annotations

import logging
import os
import sys

from termcolor import colored

from querypose.d2.builtin.file_io import PathManager

_PACKAGE = "querypose"
_BUILTIN = "querypose.d2.builtin"
_PLAIN_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_DATE_FORMAT = "%m/%d %H:%M:%S"


class _ConsoleFormatter(logging.Formatter):
    """Short logger names, and colors where the console shows them."""

    def __init__(self, root_name: str, abbrev_name: str, color: bool) -> None:
        prefix = "[%(asctime)s %(name)s]: "
        super().__init__((colored(prefix, "green") if color else prefix) + "%(message)s", datefmt=_DATE_FORMAT)
        self._root_name, self._abbrev_name, self._color = root_name, abbrev_name, color

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, RUF100  # logging's own name
        name = record.name
        record.name = name.replace(_BUILTIN, "d2", 1).replace(self._root_name, self._abbrev_name, 1)
        try:
            message = super().formatMessage(record)
        finally:
            record.name = name  # other handlers get the same record
        if record.levelno < logging.WARNING:
            return message
        level = colored(record.levelname, "red") if self._color else record.levelname
        return f"{level} {message}"


def setup_logger(
    output: str | os.PathLike[str] | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = _PACKAGE,
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Lets a logger write to the console (rank 0) and to a file (every rank). Calling it again adds nothing twice.

    Args:
        output: a folder, for log.txt in it, or a file that ends in .txt or .log; None for no file. Ranks above 0 write
            beside it, with ".rankN" at the end.
        distributed_rank: of this process.
        color: colors on the console.
        name: of the logger. Deviates: the default is this package; detectron2's is "detectron2".
        abbrev_name: what the console shows for `name`.
        enable_propagation: hand records on to the parent logger.
        configure_stdout: whether to write to the console at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if configure_stdout and distributed_rank == 0 and not _handler(logger, "stdout"):
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(_ConsoleFormatter(name, name if abbrev_name is None else abbrev_name, color))
        _add(logger, console, "stdout")
    if output is not None:
        file = os.fspath(output)
        if not file.endswith((".txt", ".log")):
            file = os.path.join(file, "log.txt")
        file = os.path.abspath(file) + (f".rank{distributed_rank}" if distributed_rank > 0 else "")
        if not _handler(logger, file):
            PathManager.mkdirs(os.path.dirname(file) or ".")
            writer = logging.FileHandler(file, "a", "utf-8", delay=True, errors="backslashreplace")
            writer.setFormatter(logging.Formatter(_PLAIN_FORMAT, datefmt=_DATE_FORMAT))
            _add(logger, writer, file)
    return logger


def _handler(logger: logging.Logger, name: str) -> logging.Handler | None:
    return next((handler for handler in logger.handlers if handler.get_name() == f"{logger.name}:{name}"), None)


def _add(logger: logging.Logger, handler: logging.Handler, name: str) -> None:
    handler.setLevel(logging.DEBUG)
    # The handler's name says what it writes to, so that a second call finds it. Names are unique in the process.
    handler.set_name(f"{logger.name}:{name}")
    logger.addHandler(handler)

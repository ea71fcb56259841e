"""Errors that a tool reports in one line with their remedy, in place of a traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import IO

import torch
import torch.distributed as dist

from querypose.d2 import comm
from querypose.errors import UserError
from querypose.paths import short


class NonFiniteError(UserError, FloatingPointError):
    """A loss or a gradient is infinite or NaN: names the iteration, the losses, the remedy, and the dump if any."""


class LostProcessError(UserError, RuntimeError):
    """A process of the run ended or does not answer."""

    met_by_all = False


USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # these two as a shell gives them, for SIGINT and SIGPIPE
UNREAD_EXIT_CODE = 141

_FULL = "The disk is full. Free space or choose another folder (OUTPUT_DIR), then go on with --resume."
_DENIED = "Choose a folder that you may write (OUTPUT_DIR), or change the permissions of this one."
_NO_FOLDER = "A file stands where a folder should be. Choose another path (OUTPUT_DIR), or move that file."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _DENIED,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "A folder stands where a file should be. Name a file.",
    errno.ENOENT: "Correct the path.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or lower DATALOADER.NUM_WORKERS.",
}
_OUT_OF_GPU_MEMORY = (
    "The GPU is out of memory. Raise SOLVER.ACCUMULATION_STEPS, lower SOLVER.IMS_PER_BATCH or INPUT.MAX_SIZE_TRAIN "
    "(in evaluation TEST.IMS_PER_BATCH), or set SOLVER.AMP.ENABLED True."
)
_OUT_OF_MEMORY = (
    "The machine is out of memory. Lower SOLVER.IMS_PER_BATCH, INPUT.MAX_SIZE_TRAIN or DATALOADER.NUM_WORKERS."
)
_LOST_PROCESS = (
    "Another process of the run has ended, or did not answer within --timeout. Its own log (log.txt.rankN in "
    "OUTPUT_DIR) or its console says why, at the end. Go on with --resume."
)


@contextlib.contextmanager
def report_user_errors(program: str) -> Iterator[None]:
    """Turns an error that `explain` explains into one line on stderr and exit code 2; others keep their traceback.

    Within the context, and after it, text that the terminal or its encoding cannot show is printed as escapes.

    Args:
        program: name of the tool, which begins the line.

    Raises:
        SystemExit: in place of the error; with 130 in place of a KeyboardInterrupt, with 141 where nobody reads the
            output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print(f"\n{program}: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT_CODE) from error
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _has_reader(sys.stdout):
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what is left to flush goes nowhere
            raise SystemExit(UNREAD_EXIT_CODE) from error
        message = explain(error)
        if message is None:
            raise
        if comm.get_local_rank() == 0 or not (isinstance(error, UserError) and error.met_by_all):
            print(f"{program}: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE) from error


def _has_reader(stream: IO[str]) -> bool:
    """Whether anyone still reads the output; `head` ends when it has had enough."""
    try:
        stream.flush()
    except BrokenPipeError:
        return False
    return True


def explain(error: Exception) -> str | None:
    """What went wrong and what helps, in one line; None for an error that only its traceback explains."""
    message = str(error)
    if "Original Traceback" in message:  # a process of the data loader hands an error on with its traceback in the text
        message = message.strip().splitlines()[-1].partition(": ")[2]
    first_sentence = message.partition("\n")[0].partition(". ")[0].strip()
    if isinstance(error, UserError):
        return message
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f"{_OUT_OF_GPU_MEMORY} ({first_sentence})"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in message:
        return _OUT_OF_MEMORY
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, dist.DistError) or "gloo/transport" in message:
        return f"{_LOST_PROCESS} ({first_sentence})"
    return None


def _explain_os_error(error: OSError) -> str:
    if error.errno is None:  # raised in this project or by Python's own libraries, with a message of its own
        return str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = f" {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{where}{error.strerror or short(error)}.{remedy}"

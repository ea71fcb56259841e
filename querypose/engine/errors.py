"""Errors that a tool reports in one line with their remedy, in place of a traceback."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from querypose.config import ConfigError
from querypose.d2 import CheckpointError, comm
from querypose.data import DatasetError, ImageReadError, ImageSizeError, LoaderError
from querypose.evaluation import EvaluationError
from querypose.modeling.backbone import BackboneError
from querypose.skeleton import SkeletonError


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is infinite or NaN: names the iteration, the losses, the remedy, and the dump if any."""


class LostProcessError(RuntimeError):
    """A process of the run ended or does not answer."""


# Every process of a run meets the same errors of the first kind, so that one of a machine reports them.
USER_ERRORS: tuple[type[Exception], ...] = (
    ConfigError, SkeletonError, DatasetError, EvaluationError, BackboneError, CheckpointError, NonFiniteError,
)  # fmt: skip
IMAGE_ERRORS: tuple[type[Exception], ...] = (ImageReadError, ImageSizeError, LoaderError)
USER_ERROR_EXIT_CODE = 2
_EXPLAINED: tuple[type[Exception], ...] = (*USER_ERRORS, *IMAGE_ERRORS, OSError, MemoryError, RuntimeError)

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

    Args:
        program: name of the tool, which begins the line.

    Raises:
        SystemExit: in place of the error.
    """
    try:
        yield
    except _EXPLAINED as error:
        message = explain(error)
        if message is None:
            raise
        if comm.get_local_rank() == 0 or not isinstance(error, USER_ERRORS):
            print(f"{program}: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE) from error


def explain(error: Exception) -> str | None:
    """What went wrong and what helps, in one line; None for an error that only its traceback explains."""
    message = str(error)
    if "Original Traceback" in message:  # a process of the data loader hands an error on with its traceback in the text
        message = message.strip().splitlines()[-1].partition(": ")[2]
    first_sentence = message.partition("\n")[0].partition(". ")[0].strip()
    if isinstance(error, (*USER_ERRORS, *IMAGE_ERRORS, LostProcessError)):
        return message
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f"{_OUT_OF_GPU_MEMORY} ({first_sentence})"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in message:
        return _OUT_OF_MEMORY
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return str(error)  # raised in this project, with a message of its own
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}. {_REMEDIES[error.errno]}"
    if isinstance(error, dist.DistError) or "gloo/transport" in message:
        return f"{_LOST_PROCESS} ({first_sentence})"
    return None

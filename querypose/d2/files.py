"""Files: written whole or not at all, and checkpoints read without running code that they bring."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from querypose.d2.errors import CheckpointError
from querypose.paths import short

# What torch.load raises for files that are damaged, cut off, or no checkpoints at all.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    MemoryError, struct.error,
)  # fmt: skip


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that takes the place of `path` when the block ends, and not at all if it fails.

    A process that is killed at any moment leaves the old file whole; its folder must be there.

    Raises:
        OSError: the disk is full, or the folder cannot be written; names `path`, whatever torch makes of it.
    """
    target = Path(path)
    # A fixed name: what a killed process left of it is overwritten when the file is written again.
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary.is_file():
            temporary.unlink()
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # torch.save hides a full disk behind an error of its own
        if cause is not None and cause.errno is not None:
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        raise
    _sync_directory(target.parent)


def read_checkpoint(path: str | os.PathLike[str], *, mmap: bool = False) -> dict[Any, Any]:
    """What `torch.save` wrote: tensors on the CPU and plain values, never anything that would run code.

    Args:
        path: of the file.
        mmap: read a tensor when it is used, where the format allows: what is never used is then never read.

    Raises:
        CheckpointError: the file brings Python objects, is damaged, or holds no dict.
        OSError: the file cannot be opened.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or it holds Python objects, which cannot be read without running code from the file. "
            f"If you trust the file, save only its weights to another file: torch.save({{'model': state_dict}}, …). "
            f"({_first_line(error)})"
        ) from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise _damaged(path, error) from error  # an archive in which a part begins before the file
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    return content


def _damaged(path: str | os.PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole checkpoint file: copy or download it again, or take an earlier checkpoint. "
        f"({_first_line(error)})"
    )


def check_weights(
    weights: Any, model_weights: Mapping[str, Tensor], source: str, *, allow_non_finite: bool = False
) -> None:
    """Refuses what cannot be the weights of a model, whether or not they are those of this one.

    Args:
        weights: tensors by name, as a file has them.
        model_weights: those of the model; names and shapes may differ.
        source: of the weights, for messages.
        allow_non_finite: accept infinity and NaN.

    Raises:
        CheckpointError: there are no tensors by name; or one that the model has too is of another kind of number
            (complex, integer or quantized for floating-point), sparse, or infinite or NaN in the model's precision.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{source} has no weights: tensors by name are needed, not {short(weights)}.")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {name!r} is a {type(value).__name__}, not a tensor.")
        if name not in model_weights:
            continue
        needed = model_weights[name]
        fits = (
            value.layout is torch.strided
            and not value.is_quantized
            and value.is_floating_point() == needed.is_floating_point()
            and value.is_complex() == needed.is_complex()
            and (value.dtype == torch.bool) == (needed.dtype == torch.bool)
        )
        if not fits:
            raise CheckpointError(
                f"{source}: {name!r} is a tensor of {value.layout} {value.dtype}, which would lose its meaning as "
                f"{needed.dtype}. Save the weights as {needed.dtype}."
            )
        if not allow_non_finite and not value.is_meta and not value.to(needed.dtype).isfinite().all():
            raise CheckpointError(
                f"{source}: {name!r} has values that are infinite or NaN. The model that was saved had diverged; use "
                "an earlier checkpoint."
            )


def refuse_pickle(path: str) -> None:
    """Refuses files of detectron2's model zoo in the format of pickle.

    Raises:
        CheckpointError: the name ends in .pkl.
    """
    if path.endswith(".pkl"):
        raise CheckpointError(f"{path}: pickle files can run code, so they are not loaded. Convert it to .pth first.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _sync_directory(directory: Path) -> None:
    """Makes the renaming itself survive a power cut; Windows cannot open a directory, and needs none of it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

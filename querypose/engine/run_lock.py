"""One run owns its OUTPUT_DIR: a lock that the system takes back when the run ends, however it ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from querypose.config import ConfigError
from querypose.d2 import comm

LOCK = ".run.lock"

# Open lock files of this process, by folder. A process of the data loader that outlives this one must not keep a lock.
_held: dict[Path, int] = {}

# A file system without locks, such as some that are mounted over the network.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def own_output_dir(folder: str | os.PathLike[str]) -> None:
    """Takes the lock of a folder for this process, until it ends; makes the folder if need be.

    All processes of a run must call it together; the main one takes the lock. Taking it again changes nothing.

    Raises:
        ConfigError: another run has it.
        OSError: the folder cannot be written.
    """
    problem = _take_lock(Path(folder).resolve()) if comm.is_main_process() else ""
    if problem := comm.all_gather(problem)[0]:
        raise ConfigError(problem)


def _take_lock(folder: Path) -> str:
    """Why it cannot be taken, or ""."""
    if folder in _held:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in _UNSUPPORTED:
            logging.getLogger(__name__).warning(f"{file} cannot be locked ({error.strerror}): start one run at a time.")
            return ""
        return (
            f"OUTPUT_DIR is {str(folder)!r}, and another run is writing there ({owner or 'its process is not known'}). "
            "Wait until it has ended, or choose another OUTPUT_DIR."
        )
    _held[folder] = descriptor
    with contextlib.suppress(OSError):  # the name of the owner is for the message alone
        began = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {began}\n".encode(), 0)
    return ""


def _forget_locks() -> None:
    """In a forked process: the parent alone owns its folders."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forget_locks)

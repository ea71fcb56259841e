"""What the C library does with the memory of freed tensors: on a CPU it decides a quarter of a training iteration."""

from __future__ import annotations

import ctypes
import os
import platform

_ENVIRONMENT = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that tensors on the CPU have freed, for the next ones.

    By default glibc returns every freed block of 32 MB or more to the kernel, which zeroes each of its pages anew when
    the next tensor needs them. Does nothing with another C library, or where the environment already says how
    glibc shall allocate.

    Returns:
        whether memory is kept.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _ENVIRONMENT):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

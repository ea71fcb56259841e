"""The states of every global random generator of a process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """States of the generators of random, numpy, torch, and torch on the current GPU if it is used; plain values."""
    version, numbers, next_gauss = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  # the one that libraries draw from
    states = {
        "python": [version, torch.tensor(numbers), next_gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Sets the generators to what `random_states` gave; a GPU's state is left out where there is no GPU."""
    version, numbers, next_gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), next_gauss))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def untouched_random_states() -> Iterator[None]:
    """Whatever is drawn within the context, the generators go on afterwards as if it had not been."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)

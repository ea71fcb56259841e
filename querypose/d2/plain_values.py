"""States in types that torch loads with `weights_only`: nothing in a checkpoint can run code."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from querypose.d2.errors import CheckpointError


def to_plain(value: Any, where: str, convert_tensor: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor) -> Any:
    """The value in tensors, numbers, strings, and lists and dicts of those; numpy's become torch's.

    Args:
        value: what a `state_dict` gives.
        where: its name, for the error; its parts are named "where.key" and "where[index]".
        convert_tensor: applied to every tensor and its name.

    Raises:
        CheckpointError: a part is of another type; names it.
    """
    if isinstance(value, Tensor):
        return convert_tensor(where, value.detach())
    if value is None or type(value) in (bool, int, float, str, torch.dtype, torch.Size):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return convert_tensor(where, torch.from_numpy(value))
    if isinstance(value, Mapping):
        entries = {key: to_plain(entry, f"{where}.{key}", convert_tensor) for key, entry in value.items()}
        if not hasattr(value, "_metadata"):
            return entries
        state: OrderedDict[str, Any] = OrderedDict(entries)
        state._metadata = value._metadata  # type: ignore[attr-defined]  # the versions of a model's modules
        return state
    if isinstance(value, list | tuple | set):
        parts = [to_plain(part, f"{where}[{index}]", convert_tensor) for index, part in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise CheckpointError(
        f"Checkpoint entry {where} is a {type(value).__module__}.{type(value).__qualname__}, which could not be loaded "
        "safely again; put tensors, numbers, strings, lists and dicts into state_dict()."
    )

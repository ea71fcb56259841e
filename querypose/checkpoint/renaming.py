"""Renaming the entries of a state dict by rules, so that none is lost and none is used twice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from querypose.d2 import CheckpointError

StateDict = dict[str, Tensor]

SHOWN = 8
"""How many entries an error message names."""


class Rule(NamedTuple):
    """What an entry is called here: `pattern` matches the whole foreign name, `replacement` may refer to its groups."""

    pattern: str
    replacement: str


def rename_entries(state_dict: Mapping[str, Tensor], rules: Sequence[Rule], dead: Sequence[str]) -> StateDict:
    """Renames every entry by the first rule whose pattern is its whole name.

    Args:
        state_dict: entries by foreign name.
        rules: what they are called here.
        dead: patterns of foreign entries that are known to do nothing; they are left out.

    Returns:
        the same tensors by new name.

    Raises:
        CheckpointError: an entry fits no rule, or two are to get the same name.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: StateDict = {}
    left_over = []
    for name, value in state_dict.items():
        new_name = next((match.expand(to) for pattern, to in compiled if (match := pattern.fullmatch(name))), None)
        if any(re.fullmatch(pattern, name) for pattern in dead):
            continue
        if new_name is None:
            left_over.append(name)
        elif new_name in renamed:
            raise CheckpointError(f"Two entries of the checkpoint become {new_name!r}; the second one is {name!r}.")
        else:
            renamed[new_name] = value
    if left_over:
        raise CheckpointError(
            f"{len(left_over)} entries of the checkpoint are not known here: {shorten(left_over)}. Is the "
            "checkpoint of another kind than the one that you named?"
        )
    return renamed


def shorten(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f", … ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

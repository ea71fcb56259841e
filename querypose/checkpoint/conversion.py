"""From a foreign checkpoint file to one for MODEL.WEIGHTS: read safely, convert, compare with the model, write."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from querypose.checkpoint.backbones import (
    BOTTOM_UP,
    POSE_HRNET_ABSENT,
    SWIN_ABSENT,
    convert_pose_hrnet,
    convert_swin,
)
from querypose.checkpoint.poet_official import convert_poet_official
from querypose.checkpoint.querypose_official import convert_querypose_official
from querypose.checkpoint.renaming import StateDict, shorten
from querypose.checkpoint.sharpose_official import convert_sharpose_official
from querypose.d2 import CfgNode, CheckpointError, atomic_write, build_model, check_weights, read_checkpoint
from querypose.errors import UserError
from querypose.progress import progress
from querypose.skeleton import skeleton_of_datasets

WRAPPERS = ("model", "state_dict")
"""Keys under which training codes keep the weights beside the state of their optimizer."""


class Kind(NamedTuple):
    """A kind of foreign checkpoint.

    Attributes:
        meaning: one line for the user.
        convert: from foreign entries and the parts of the config's skeleton to ours.
        scope: prefix of the entries of the model that the checkpoint covers; "" is all.
        absent: pattern of the entries in `scope` (without it) that the checkpoint is known not to have.
    """

    meaning: str
    convert: Callable[[Mapping[str, Tensor], CfgNode], StateDict]
    scope: str = ""
    absent: str | None = None


def _convert_querypose_official(state_dict: Mapping[str, Tensor], cfg: CfgNode) -> StateDict:
    skeleton = skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return convert_querypose_official(state_dict, skeleton.parts(cfg.MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME))


KINDS: Mapping[str, Kind] = {
    "querypose-official": Kind("a whole model of the QueryPose authors' code", _convert_querypose_official),
    "poet-official": Kind(
        "a whole model of the POET authors' code",
        lambda state_dict, cfg: convert_poet_official(state_dict),
    ),
    "sharpose-official": Kind(
        "a whole model of the SHaRPose authors' code",
        lambda state_dict, cfg: convert_sharpose_official(state_dict),
    ),
    "pose-hrnet": Kind(
        "an HRNet trained for single-person pose (pose_hrnet_w32_384x288.pth, …): the backbone alone",
        lambda state_dict, cfg: convert_pose_hrnet(state_dict),
        scope=BOTTOM_UP,
        absent=POSE_HRNET_ABSENT,
    ),
    "swin": Kind(
        "a Swin Transformer of the original code (swin_tiny_patch4_window7_224.pth, …): the backbone alone",
        lambda state_dict, cfg: convert_swin(state_dict),
        scope=BOTTOM_UP,
        absent=SWIN_ABSENT,
    ),
}


def convert_state_dict(kind: str, state_dict: Mapping[str, Tensor], cfg: CfgNode) -> StateDict:
    """Converts foreign weights and makes sure that they are what the model of a config needs, no more and no less.

    Args:
        kind: a name in KINDS.
        state_dict: the foreign entries.
        cfg: describes the model; no weights are loaded for it and none of its memory is taken.

    Returns:
        entries of the model: all of them, or those of the backbone.

    Raises:
        CheckpointError: an entry is not known, missing, or of another shape than the model's.
    """
    if kind not in KINDS:
        raise CheckpointError(f"There is no kind of checkpoint {kind!r}; known: {', '.join(KINDS)}.")
    try:
        converted = KINDS[kind].convert(state_dict, cfg)
    except UserError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError) as error:  # entries of a wrong shape, merged or unfolded
        raise CheckpointError(f"The entries of the checkpoint are not of the shapes of a {kind} ({error}).") from error
    check_fits(converted, build_on_meta(cfg), KINDS[kind])
    return converted


def check_fits(state_dict: Mapping[str, Tensor], model: nn.Module, kind: Kind) -> None:
    """Compares names and shapes with those of the model, in the scope of the kind of checkpoint.

    Raises:
        CheckpointError: names what is too much, missing, infinite, or of another kind or shape, and what that is a sign
            of.
    """
    needed = {name: value for name, value in model.state_dict().items() if name.startswith(kind.scope)}
    check_weights(state_dict, needed, "The checkpoint")
    unexpected = [name for name in state_dict if name not in needed]
    missing = [
        name
        for name in needed
        if name not in state_dict
        and not (kind.absent is not None and re.fullmatch(kind.absent, name.removeprefix(kind.scope)))
    ]
    misshapen = [
        f"{name} {tuple(value.shape)}, not {tuple(needed[name].shape)}"
        for name, value in state_dict.items()
        if name in needed and value.shape != needed[name].shape
    ]
    problems = (
        ("The checkpoint has entries that are not in the model of the config", unexpected),
        ("The checkpoint lacks entries of the model of the config", missing),
        ("Entries of the checkpoint have another shape than the model of the config", misshapen),
    )
    messages = [f"{what} ({len(names)}): {shorten(names)}." for what, names in problems if names]
    if messages:
        raise CheckpointError(" ".join([*messages, _hint([*unexpected, *missing, *misshapen])]))


def _hint(names: list[str]) -> str:
    if any(".refinement." in name for name in names):
        return "One is the light version, the other is the full one: see MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION."
    if any(name.startswith("backbone.") for name in names):
        return "The backbones differ: see MODEL.BACKBONE.NAME, ARCH and NORM, and MODEL.FPN.TYPE."
    if any(".class_head." in name for name in names):
        return "The classes differ: those of the POET authors have an empty one, see MODEL.POET.EMPTY_CLASS."
    return (
        "The config describes another model: see MODEL.META_ARCHITECTURE, the keys of that architecture, and the "
        "skeleton of DATASETS.TRAIN."
    )


def build_on_meta(cfg: CfgNode) -> nn.Module:
    """The model of a config on the meta device: names and shapes without memory, weights or downloads."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.BACKBONE.PRETRAINED = True
    cfg.MODEL.WEIGHTS = "converted"  # in place of the pretrained backbone, which so is not looked for
    with torch.device("meta"):
        return build_model(cfg)


def load_state_dict_file(path: str | Path) -> StateDict:
    """Reads the weights in a checkpoint file; code in the file is refused, never run.

    Args:
        path: a file of `torch.save`: a state dict, or one under `model` or `state_dict`, whatever is beside it.

    Raises:
        CheckpointError: there is no such file, it holds more than tensors and plain values, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {str(path)!r}. Correct the path.")
    # Mapped: an optimizer's state beside the weights is then never read. A namespace holds a command line's values, and
    # training codes keep theirs beside the weights; to build one runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: Any = read_checkpoint(path, mmap=True)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise CheckpointError(
            f"{path} holds no state dict (names and tensors), neither by itself nor under {' or '.join(WRAPPERS)}."
        )
    return dict(content)


def save_model(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes weights as a checkpoint that MODEL.WEIGHTS takes; a file of that name is replaced in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        # Cloned so that entries that share memory, or are parts of a greater tensor, are not written in full. What was
        # mapped is read here.
        entries = progress(state_dict.items(), "converting", unit="entry")
        torch.save({"model": {name: value.clone() for name, value in entries}}, file)

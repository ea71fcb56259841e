"""Keys that all meta-architectures share."""

from __future__ import annotations

import torch

from querypose.config import ConfigError, Key, add_keys, is_finite, list_of_names, registered, sequence_of
from querypose.d2 import META_ARCH_REGISTRY, CfgNode

_THREE_NUMBERS = sequence_of("numbers, one per channel", is_finite, length=3)


def available_device() -> str:
    """What MODEL.DEVICE "auto" means on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(cfg: CfgNode) -> None:
    """Refuses a device that torch does not know or that this machine does not have."""
    device = cfg.MODEL.DEVICE
    unknown = f"MODEL.DEVICE is {device!r}; allowed: 'auto', 'cpu', 'cuda' or 'cuda:N'."
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ConfigError(unknown) from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(unknown)
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {device!r}, but torch finds no GPU here; set MODEL.DEVICE cpu or auto.")
    if kind == "cuda" and index is not None and index >= torch.cuda.device_count():
        raise ConfigError(
            f"MODEL.DEVICE is {device!r}, but this machine has {torch.cuda.device_count()} GPUs, numbered from 0."
        )


# fmt: off
add_keys((
    Key("MODEL.META_ARCHITECTURE", "QueryPose", "class in META_ARCH_REGISTRY", registered(META_ARCH_REGISTRY)),
    Key("MODEL.DEVICE", "auto", "'auto' (a GPU where there is one, else the CPU), 'cpu', 'cuda' or 'cuda:N'",
        resolve=lambda value: available_device() if value == "auto" else value, fixed=False),
    Key("MODEL.WEIGHTS", "", "checkpoint to start from; '' starts from the initialization"),
    Key("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "per channel, range 0..255, order of INPUT.FORMAT",
        _THREE_NUMBERS),
    Key("MODEL.PIXEL_STD", [58.395, 57.12, 57.375], "per channel, range 0..255, order of INPUT.FORMAT",
        sequence_of("numbers > 0, one per channel", lambda value: is_finite(value) and value > 0, length=3)),
    Key("MODEL.SYNC_BATCH_NORM", False, "every BatchNorm shares its statistics over the processes (GPU only)",
        fixed=False),
    Key("MODEL.CHANNELS_LAST", False,
        "convolutions keep the channels of a cell side by side in memory (channels_last); equal but for rounding",
        fixed=False),
    Key("MODEL.COMPILE", [],
        "components that torch.compile translates at their first call: names in the model's `components`, as backbone",
        list_of_names(), fixed=False),
    Key("MODEL.RECOMPUTE", [],
        "components whose activations the backward pass computes again instead of keeping them (activation "
        "checkpointing): less memory, more time; names as in MODEL.COMPILE", list_of_names(), fixed=False),
), check_device)
# fmt: on

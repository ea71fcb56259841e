"""What the values of a config must fulfil: each by itself, and one with another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from querypose import d2
from querypose.d2 import CfgNode


class ConfigError(ValueError):
    """A configuration that cannot be used: says which key, which value and what is allowed."""


class Allowed(NamedTuple):
    """What a value must fulfil: `description` completes the sentence "allowed: …"."""

    description: str
    test: Callable[[Any], bool]


class Key(NamedTuple):
    """One YAML key. `name` is its dotted path, `meaning` one line for the user."""

    name: str
    default: Any
    meaning: str
    allowed: Allowed | None = None


def one_of(*values: Any) -> Allowed:
    """One of some values."""
    return Allowed(", ".join(repr(value) for value in values), lambda value: value in values)


def is_finite(value: Any) -> bool:
    """Whether it is a number, neither infinite nor NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def at_least(minimum: float) -> Allowed:
    """A number not below a bound."""
    return Allowed(f"a number >= {minimum}", lambda value: is_finite(value) and value >= minimum)


def above(bound: float) -> Allowed:
    """A number above a bound."""
    return Allowed(f"a number > {bound}", lambda value: is_finite(value) and value > bound)


def between(low: float, high: float) -> Allowed:
    """A number in a closed interval."""
    return Allowed(f"a number in [{low}, {high}]", lambda value: is_finite(value) and low <= value <= high)


def sequence_of(description: str, test: Callable[[Any], bool], length: int | None = None) -> Allowed:
    """A list of values of which each passes a test; of a fixed length where one is given."""
    count = "a list of" if length is None else f"{length}"
    return Allowed(
        f"{count} {description}",
        lambda value: (
            isinstance(value, list | tuple) and (length is None or len(value) == length) and all(map(test, value))
        ),
    )


def validate_config(cfg: CfgNode, keys: Sequence[Key]) -> None:
    """Refuses values that no run can use.

    Args:
        cfg: has every key.
        keys: all of them, with what each allows by itself.

    Raises:
        ConfigError: names the key, its value, and what is allowed there.
    """
    for key in keys:
        value = lookup(cfg, key.name)
        if value is None:  # which the merge takes for any key
            raise ConfigError(f"{key.name} is None; allowed: type {type(key.default).__name__}. ({key.meaning})")
        if key.allowed is not None and not key.allowed.test(value):
            raise ConfigError(f"{key.name} is {value!r}; allowed: {key.allowed.description}. ({key.meaning})")
    if (version := d2.get_cfg().VERSION) != cfg.VERSION:
        raise ConfigError(f"VERSION is {cfg.VERSION!r}; allowed: {version}, that of this config's keys.")
    _validate_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, d2.META_ARCH_REGISTRY)
    _validate_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, d2.BACKBONE_REGISTRY)
    _validate_device(cfg.MODEL.DEVICE)
    _validate_query_pose(cfg.MODEL.QUERYPOSE, hidden_dim=cfg.MODEL.FPN.OUT_CHANNELS)
    _validate_poet(cfg.MODEL.POET)
    if list(cfg.SOLVER.STEPS) != sorted(cfg.SOLVER.STEPS):
        raise ConfigError(f"SOLVER.STEPS is {cfg.SOLVER.STEPS}; allowed: iterations in increasing order.")
    if cfg.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError("DETERMINISTIC and CUDNN_BENCHMARK are True; allowed: one of them, as cuDNN's choice varies.")
    for name in ("INPUT.CROP.SIZE", "INPUT.COARSE_DROPOUT.SHARE", "INPUT.COARSE_DROPOUT.GRID"):
        smallest, largest = bounds = lookup(cfg, name)
        if smallest > largest:
            raise ConfigError(f"{name} is {bounds}; allowed: [smallest, largest].")
    if cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATION_STEPS:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}; allowed: a divisor of "
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH})."
        )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS goes with one dataset, but DATASETS.TEST is {list(cfg.DATASETS.TEST)}; "
            "name one, or leave the expected results empty."
        )


def _validate_registered(key: str, name: str, registry: Any) -> None:
    if name not in registry:
        known = ", ".join(sorted(registered for registered, _ in registry))
        raise ConfigError(f"{key} is {name!r}; allowed: {known}.")


def _validate_device(device: str) -> None:
    allowed = "allowed: 'auto', 'cpu', 'cuda' or 'cuda:N'."
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {device!r}; {allowed}") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"MODEL.DEVICE is {device!r}; {allowed}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {device!r}, but torch sees no GPU here; use MODEL.DEVICE cpu or auto.")
    if index is not None and kind == "cuda" and index >= torch.cuda.device_count():
        raise ConfigError(f"MODEL.DEVICE is {device!r}, but this machine has {torch.cuda.device_count()} GPUs.")


def _validate_query_pose(query_pose: CfgNode, hidden_dim: int) -> None:
    heads = query_pose.NUM_HEADS
    for key, width in (
        ("MODEL.FPN.OUT_CHANNELS", hidden_dim),
        ("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", query_pose.KEYPOINT.PART_DIM),
    ):
        if width % heads:
            raise ConfigError(f"{key} is {width}; allowed: multiples of MODEL.QUERYPOSE.NUM_HEADS ({heads}).")
    _validate_query_type(query_pose.INSTANCE_QUERY_ITERATION, query_pose.KEYPOINT)


def _validate_poet(poet: CfgNode) -> None:
    for factor, reason in ((4, "for the position encoding"), (poet.NUM_HEADS, "MODEL.POET.NUM_HEADS")):
        if poet.DIM % factor:
            raise ConfigError(f"MODEL.POET.DIM is {poet.DIM}; allowed: multiples of {factor} ({reason}).")


def _validate_query_type(instance_query_iteration: str, keypoint: CfgNode) -> None:
    prefix, query_type = "MODEL.QUERYPOSE.KEYPOINT.", keypoint.QUERY_TYPE
    if query_type != "part" and keypoint.ITERATION != "none":
        raise ConfigError(
            f"{prefix}QUERY_TYPE is {query_type!r}, which leaves no part queries to iterate; that needs "
            f"{prefix}ITERATION: none, not {keypoint.ITERATION!r}."
        )
    if query_type == "none" and keypoint.INTERACTION != "average_pooling":
        raise ConfigError(
            f"{prefix}QUERY_TYPE is 'none', which leaves no query to interact with; that needs "
            f"{prefix}INTERACTION: average_pooling, not {keypoint.INTERACTION!r}."
        )
    if query_type == "none" and keypoint.DYNAMIC_INTERACTION:
        raise ConfigError(
            f"{prefix}DYNAMIC_INTERACTION is True, but with {prefix}QUERY_TYPE 'none' nothing reads the instance query "
            "that it refines; set one of them otherwise."
        )
    if instance_query_iteration == "serial" and not (keypoint.DYNAMIC_INTERACTION or query_type == "instance"):
        raise ConfigError(
            f"MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION is 'serial'; that needs {prefix}DYNAMIC_INTERACTION: True or "
            f"{prefix}QUERY_TYPE: instance, which refines the query it passes on."
        )


def lookup(cfg: CfgNode, name: str) -> Any:
    """The value, or the section, of a dotted path.

    Raises:
        KeyError: there is none.
    """
    node: Any = cfg
    for part in name.split("."):
        if not isinstance(node, CfgNode):
            raise KeyError(name)
        node = node[part]
    return node

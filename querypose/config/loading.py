"""From defaults, a YAML file and the command line to a config that a run can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querypose import d2
from querypose.config.keys import KEYS, ConfigError, check_config, lookup
from querypose.config.merging import merge_file, merge_overrides
from querypose.config.tables import read_table
from querypose.d2 import CfgNode


def add_querypose_config(cfg: CfgNode) -> None:
    """Adds every key of the project to `cfg`, with its default; keys that detectron2 set before are overwritten."""
    for key in KEYS.values():
        *parents, leaf = key.name.split(".")
        node = cfg
        for parent in parents:
            if parent not in node:
                node[parent] = CfgNode()
            node = node[parent]
        node[leaf] = key.default.copy() if isinstance(key.default, list) else key.default
    _resolve(cfg)


def get_cfg() -> CfgNode:
    """A new `CfgNode` with every key of the project (on detectron2: and every one of detectron2's) at its default."""
    cfg = d2.get_cfg()
    add_querypose_config(cfg)
    return cfg


def load_config(
    config_file: str | Path | None = None, overrides: Sequence[Any] = (), *, row: str | None = None
) -> CfgNode:
    """Reads an experiment: defaults, then `config_file` with its `_BASE_`, then KEY VALUE `overrides`.

    Args:
        config_file: a YAML file, or None for the defaults.
        overrides: `["SOLVER.MAX_ITER", "100", …]`, as they stand on the command line.
        row: name of a row where `config_file` is a table of ablations (see `config.tables`).

    Returns:
        the checked config, `MODEL.DEVICE` resolved to a device; not frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: a key is unknown, a value has the wrong type or is not allowed.
    """
    cfg = get_cfg()
    if config_file is not None:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"There is no config file {str(config_file)!r}.")
        if (table := read_table(config_file)) is not None:
            config_file, overrides = table.base, [*table.row(row).overrides, *overrides]
        elif row is not None:
            raise ConfigError(f"--row {row}: {config_file} is a config, not a table of ablations with `rows`.")
        merge_file(cfg, str(config_file))
    merge_overrides(cfg, overrides)
    _resolve(cfg)
    if (version := d2.get_cfg().VERSION) != cfg.VERSION:
        raise ConfigError(f"VERSION is {cfg.VERSION!r}; allowed: {version}, that of this config's keys.")
    check_config(cfg)
    return cfg


def _resolve(cfg: CfgNode) -> None:
    """Puts in place of values such as "auto" what they stand for, which detectron2's own functions need."""
    for key in KEYS.values():
        if key.resolve is not None:
            section, _, leaf = key.name.rpartition(".")
            node = lookup(cfg, section) if section else cfg
            node[leaf] = key.resolve(node[leaf])

"""From defaults, a YAML file and the command line to a config that a run can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querypose import d2
from querypose.config.detectron2_keys import warn_of_unread_keys
from querypose.config.imports import import_modules
from querypose.config.keys import KEYS, ConfigError, check_config, lookup
from querypose.config.merging import evaluated, merge_mapping, merge_overrides, override_pairs, read_config_file
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
    config_file: str | Path | None = None,
    overrides: Sequence[Any] = (),
    imports: Sequence[str] = (),
    *,
    row: str | None = None,
) -> CfgNode:
    """Reads an experiment: defaults, then `config_file` with its `_BASE_`, then KEY VALUE `overrides`.

    The modules of `imports` and of IMPORTS are imported before, so that the keys that they add are known.

    Args:
        config_file: a YAML file, or None for the defaults.
        overrides: `["SOLVER.MAX_ITER", "100", …]`, as on the command line.
        imports: names or paths of modules, as of --import; IMPORTS of the result has them too.
        row: name of a row where `config_file` is a table of ablations (see `config.tables`).

    Returns:
        the checked config, `MODEL.DEVICE` resolved to a device; not frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: a module cannot be imported, a key is unknown, a value has the wrong type or is not allowed.
    """
    content: dict[str, Any] = {}
    of_row: list[Any] = []
    if config_file is not None:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"There is no config file {str(config_file)!r}.")
        if (table := read_table(config_file)) is not None:
            config_file, of_row = table.base, table.row(row).overrides
        elif row is not None:
            raise ConfigError(f"--row {row}: {config_file} is a config, not a table of ablations with `rows`.")
        content = read_config_file(config_file)
    own = evaluated(dict(override_pairs([*of_row, *overrides])).get("IMPORTS", content.get("IMPORTS", [])))
    if not isinstance(own, list | tuple) or not all(isinstance(name, str) for name in own):
        raise ConfigError(f"IMPORTS is {own!r}; allowed: a list of names or paths of modules.")
    modules = list(dict.fromkeys([*imports, *own]))
    import_modules(modules)

    cfg = get_cfg()
    left_out = merge_mapping(cfg, content, str(config_file))
    left_out += merge_overrides(cfg, of_row, f"row {row}")
    left_out += merge_overrides(cfg, overrides)
    cfg.IMPORTS = modules
    _resolve(cfg)
    if (version := d2.get_cfg().VERSION) != cfg.VERSION:
        raise ConfigError(f"VERSION is {cfg.VERSION!r}; allowed: {version}, the version of the keys here.")
    check_config(cfg)
    warn_of_unread_keys(cfg, left_out)
    return cfg


def config_of_mapping(content: dict[str, Any], source: str) -> CfgNode:
    """The config of keys that came with a model, without running code: IMPORTS is left out, `_BASE_` is not followed.

    Args:
        content: sections and keys, as a YAML file has them.
        source: for messages.

    Raises:
        ConfigError: as `load_config`; a key that only a module of IMPORTS declares is unknown.
    """
    cfg = get_cfg()
    merge_mapping(cfg, {name: value for name, value in content.items() if name not in ("IMPORTS", "_BASE_")}, source)
    _resolve(cfg)
    check_config(cfg)
    return cfg


def _resolve(cfg: CfgNode) -> None:
    """Replaces values such as "auto" by what they mean here: detectron2's own functions need the meaning."""
    for key in KEYS.values():
        if key.resolve is not None:
            section, _, leaf = key.name.rpartition(".")
            node = lookup(cfg, section) if section else cfg
            node[leaf] = key.resolve(node[leaf])

"""How a YAML file and the command line go into a config; errors in the words of the user."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from querypose.config.keys import ConfigError, lookup
from querypose.d2 import CfgNode

_TYPE_MISMATCH = re.compile(  # as yacs words it
    r"Type mismatch \(<class '(?P<old_type>.*?)'> vs. <class '(?P<new_type>.*?)'>\) "
    r"with values \(.* vs. (?P<new>.*)\) for config key: (?P<key>\S+)",
    re.DOTALL,
)
_INTEGER = re.compile(r"[+-]?\d+")
_NO_MAPPING = "it must hold a mapping of keys, not a list or a single value."


def merge_file(cfg: CfgNode, config_file: str) -> None:
    """Merges a YAML file, and those that it names as its `_BASE_`, into `cfg`.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    try:
        loaded = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)  # detectron2's default runs code
        cfg.merge_from_other_cfg(CfgNode(_integers_to_floats(loaded, cfg)))
    except yaml.YAMLError as error:
        raise ConfigError(f"{config_file} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{config_file} is nested without end, or its _BASE_ leads back to itself.") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{config_file}: its _BASE_ {error.filename!r} does not exist.") from error
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{config_file}: {_explain(cfg, error)}") from error


def merge_overrides(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Merges KEY VALUE pairs, as they stand on the command line, into `cfg`.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    pairs: list[Any] = []
    for index in range(0, len(overrides), 2):
        name, *value = overrides[index : index + 2]
        try:
            default = lookup(cfg, name)
        except KeyError as error:
            raise ConfigError(f"command line {list(overrides)}: {_unknown_key(cfg, name)}") from error
        if isinstance(default, float):
            value = [f"{text}.0" if _INTEGER.fullmatch(str(text)) else text for text in value]
        pairs += [name, *value]
    try:
        cfg.merge_from_list(pairs)
    except RecursionError as error:
        raise ConfigError("command line: a value is nested too deeply.") from error
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, SyntaxError) as error:
        raise ConfigError(f"command line {list(overrides)}: {_explain(cfg, error)}") from error


def _integers_to_floats(loaded: Any, cfg: CfgNode) -> dict[str, Any]:
    """`loaded` with an integer made a float where the key of `cfg` is a float: `BASE_LR: 1` says what it means.

    Raises:
        TypeError: it is no mapping, or has a key that is not text.
    """
    if not isinstance(loaded, dict):
        raise TypeError(_NO_MAPPING)
    converted = {}
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is not the name of a key.")
        default = cfg.get(name)
        if isinstance(default, CfgNode) and isinstance(value, dict):
            value = _integers_to_floats(value, default)
        elif isinstance(default, float) and type(value) is int:
            value = float(value)
        converted[name] = value
    return converted


def _explain(cfg: CfgNode, error: Exception) -> str:
    """The message of a failed merge in this project's words, with the nearest existing keys where one is unknown."""
    message = str(error.args[0]) if error.args else str(error)
    if found := _TYPE_MISMATCH.match(message):
        expected = "a section of keys" if found["old_type"].endswith("CfgNode") else f"type {found['old_type']}"
        return f"{found['key']} is {found['new']} of type {found['new_type']}; allowed: {expected}."
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8."
    if "NoneType" in message:
        return "it is empty."
    if "is not iterable" in message:
        return _NO_MAPPING
    if isinstance(error, AttributeError):
        return "its _BASE_ is not the name of a file."
    if "Non-existent" not in message:
        return message
    return _unknown_key(cfg, message.rpartition(": ")[2].strip())


def _unknown_key(cfg: CfgNode, unknown: str) -> str:
    names = list(_leaf_names(cfg))
    near = difflib.get_close_matches(unknown, names, n=3, cutoff=0.5)
    near += [name for name in names if name.rpartition(".")[2] == unknown.rpartition(".")[2] and name not in near]
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    return f"there is no key {unknown}.{hint} All keys are listed in docs/config.md."


def _leaf_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaf_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

"""Merging of YAML files and the command line into a config; errors name the file, the key and the value."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from querypose.config.detectron2_keys import is_key_of_detectron2
from querypose.config.keys import KEYS, ConfigError, kind_of, leaf_names, unset
from querypose.d2 import CfgNode

_MERGE_TAG = "tag:yaml.org,2002:merge"
# Values that a file may have once its aliases (*name) are written out: a kilobyte of aliases of aliases has billions.
_MAX_VALUES = 100_000


def read_config_file(path: str | Path, _children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a YAML file, merged over the file, or the files, that its `_BASE_` names.

    Raises:
        ConfigError: the file, or one of its bases, is missing or is not a mapping of keys.
    """
    path = Path(path)
    if path.resolve() in _children:
        raise ConfigError(f"{path}: its _BASE_ leads back to itself; name another file there.")
    content = read_yaml(path)
    bases = content.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "\0" in base:
            raise ConfigError(f"{path}: its _BASE_ is {base!r}; allowed: the name of a file, or a list of names.")
        base_path = path.parent / Path(base).expanduser()
        if not base_path.is_file():
            raise ConfigError(f"{path}: its _BASE_ {str(base_path)!r} does not exist.")
        _lay_over(merged, read_config_file(base_path, (*_children, path.resolve())))
    _unset_replaced(merged, content)
    _lay_over(merged, content)
    return merged


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Deviates: a key that is twice in a section is refused; YAML's usual reader forgets the first one.

    Raises:
        ConfigError: the file is not YAML in UTF-8, is empty, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{path}{line}: this is not valid YAML ({error.problem}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not valid YAML ({str(error).splitlines()[0]}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not text in UTF-8.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: its values are nested too deeply.") from error
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: a value cannot be read ({error}).") from error
    if content is None:
        raise ConfigError(f"{path}: it is empty.")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: it must hold a mapping of keys, not a list or a single value.")
    return content


def merge_mapping(cfg: CfgNode, content: Mapping[Any, Any], source: str) -> list[str]:
    """Merges what a file holds into `cfg`.

    Args:
        cfg: receives the values.
        content: nested as the file is.
        source: the name of the file, which begins every message.

    Returns:
        names of detectron2's keys that `cfg` lacks, and that are left out for this.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    _unset_replaced(cfg, content)
    return _merge(cfg, content, source, root=cfg, prefix="")


def merge_overrides(cfg: CfgNode, overrides: Sequence[Any], source: str = "command line") -> list[str]:
    """Merges KEY VALUE pairs, as on the command line, into `cfg`; see `merge_mapping`."""
    contents = []
    for name, value in override_pairs(overrides):
        content: Any = value
        for part in reversed(name.split(".")):
            content = {part: content}
        contents.append(content)
    together: dict[str, Any] = {}
    for content in contents:
        _lay_over(together, content)
    _unset_replaced(cfg, together)
    return [name for content in contents for name in _merge(cfg, content, source, root=cfg, prefix="")]


def override_pairs(overrides: Sequence[Any]) -> list[tuple[str, Any]]:
    """`["KEY", "VALUE", …]` as pairs.

    Raises:
        ConfigError: the last one has no value, or the list is not made of keys and values.
    """
    for name in overrides[::2]:
        if str(name).startswith("-"):
            raise ConfigError(f"command line: {name!r} is not a key; write options before the KEY VALUE pairs.")
        if "=" in str(name):
            raise ConfigError(f"command line: {name!r} is not a key; write KEY VALUE with a space between the two.")
    if len(overrides) % 2:
        raise ConfigError(f"command line: {overrides[-1]!r} has no value; give pairs of KEY VALUE.")
    return [(str(name), value) for name, value in zip(overrides[::2], overrides[1::2], strict=True)]


def evaluated(value: Any) -> Any:
    """The value of a text such as `"[1, 2]"` on the command line; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


class _DuplicateKeyError(ValueError):
    """A key is twice in one mapping."""


class _StrictLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key which is twice in a mapping."""

    def compose_document(self) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_document()
        if node is not None and _count_values(node, {}) > _MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {_MAX_VALUES} values")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here merges ("<<") are not resolved yet: a key may replace one that a merge brings.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _DuplicateKeyError(
                    f"{key.value} is in line {lines[key.value]} and again in line {line}; write it once, with all of "
                    "its values."
                )
            lines[key.value] = line
        return node


def _count_values(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Of a node, those of its aliases each time; `counts` has those that are known.

    Raises:
        ValueError: an alias stands within the value that it names.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node not in counts:
        counts[node] = -1
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        counts[node] = 1 + sum(_count_values(part, counts) for part in parts)
    if counts[node] < 0:
        raise ValueError("an alias stands within the value that it names")
    return counts[node]


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _lay_over(below[name], value)
        else:
            below[name] = value


def _unset_replaced(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> None:
    """Unsets in `below` the keys in whose place `above` sets another one (`Key.instead_of`)."""
    pairs = [(key.name, key.instead_of) for key in KEYS.values() if key.instead_of]
    for name, replaced in [*pairs, *((other, name) for name, other in pairs)]:
        (upper, leaf), (lower, replaced_leaf) = (path.rsplit(".", 1) for path in (name, replaced))
        if leaf in _section(above, upper) and replaced_leaf not in _section(above, lower):
            section = _section(below, lower)
            if replaced_leaf in section:
                section[replaced_leaf] = unset(KEYS[replaced].default)


def _section(content: Mapping[Any, Any], name: str) -> Any:
    """The mapping at a dotted path; an empty one where there is none."""
    for part in name.split("."):
        content = content.get(part, {}) if isinstance(content, Mapping) else {}
    return content if isinstance(content, Mapping) else {}


def _merge(node: CfgNode, content: Mapping[Any, Any], source: str, *, root: CfgNode, prefix: str) -> list[str]:
    left_out: list[str] = []
    for leaf, value in content.items():
        name = f"{prefix}{leaf}"
        if leaf not in node:
            if not is_key_of_detectron2(name):
                raise ConfigError(f"{source}: {_unknown_key(root, name)}")
            left_out += [name]
        elif isinstance(node[leaf], CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {name} is {value!r}; allowed: a section of keys.")
            left_out += _merge(node[leaf], value, source, root=root, prefix=f"{name}.")
        else:
            try:
                node[leaf] = _converted(value, node[leaf])
            except TypeError:
                if isinstance(value, dict) and value:
                    unknown = f"{name}.{next(iter(value))}"
                    raise ConfigError(f"{source}: {_unknown_key(root, unknown)}") from None
                meaning = f" ({KEYS[name].meaning})" if name in KEYS else ""
                raise ConfigError(f"{source}: {name} is {value!r}; allowed: {kind_of(node[leaf])}.{meaning}") from None
    return left_out


def _converted(value: Any, default: Any) -> Any:
    """`value` in the type of `default`; None fits every type.

    Raises:
        TypeError: it cannot be converted.
    """
    read = evaluated(value)
    if isinstance(default, str) and not isinstance(read, str):
        read = value  # a folder may be called 1e5
    if read is None or default is None or type(read) is type(default):
        return read
    if isinstance(default, float) and type(read) is int and abs(read) < 2**1000:
        return float(read)
    if isinstance(default, list | tuple) and isinstance(read, list | tuple):
        return type(default)(read)
    raise TypeError


def _unknown_key(cfg: CfgNode, unknown: str) -> str:
    names = list(leaf_names(cfg))
    near = difflib.get_close_matches(unknown, names, n=3, cutoff=0.5)
    near += [name for name in names if name.rpartition(".")[2] == unknown.rpartition(".")[2] and name not in near]
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    return f"there is no key {unknown}.{hint} All keys are listed in docs/config.md."

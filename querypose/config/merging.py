"""Merging of YAML files and the command line into a config; errors name the file, the key and the value."""

from __future__ import annotations

import ast
import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from querypose.config.detectron2_keys import is_key_of_detectron2
from querypose.config.keys import KEYS, ConfigError, kind_of, leaf_names, unset
from querypose.d2 import CfgNode
from querypose.paths import check_name

_MERGE_TAG = "tag:yaml.org,2002:merge"
# Of a config file, as many as a dataset in it may have keypoints, edges and so on, and far more.
_MAX_VALUES = 100_000


def read_config_file(
    path: str | Path, _children: tuple[Path, ...] = (), _known: dict[Path, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The content of a YAML file, merged over the file, or the files, that its `_BASE_` names.

    Raises:
        ConfigError: the file, or one of its bases, is missing or is not a mapping of keys.
    """
    path = Path(path)
    if path.resolve() in _children:
        raise ConfigError(f"{path}: its _BASE_ leads back to itself; name another file there.")
    content = read_yaml(path)
    known = {} if _known is None else _known  # a base of many files is read once
    bases = content.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        check_name(base, f"{path}: _BASE_")
        base_path = path.parent / Path(base).expanduser()
        if not base_path.is_file():
            raise ConfigError(f"{path}: its _BASE_ {str(base_path)!r} does not exist.")
        base_content = known.get(base_path.resolve())
        if base_content is None:
            base_content = read_config_file(base_path, (*_children, path.resolve()), known)
            known[base_path.resolve()] = base_content
        _lay_over(merged, copy.deepcopy(base_content))
    _unset_replaced(merged, content)
    _lay_over(merged, content)
    return merged


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; see `parse_yaml`.

    Raises:
        ConfigError: the file is not YAML in UTF-8, is empty, or holds something else.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not text in UTF-8.") from error


def parse_yaml(text: str, source: str | Path) -> dict[Any, Any]:
    """The mapping that a YAML text is.

    Deviates: a key that is twice in a section is refused; YAML's usual reader forgets the first one.

    Args:
        text: of a file.
        source: its name, for messages.

    Raises:
        ConfigError: the text is not YAML, is empty, or holds something else.
    """
    try:
        content = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{source}{line}: this is not valid YAML ({error.problem}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: this is not valid YAML ({str(error).splitlines()[0]}).") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: its values are nested too deeply.") from error
    except _DuplicateKeyError as error:
        raise ConfigError(f"{source}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{source}: a value cannot be read ({error}).") from error
    if content is None:
        raise ConfigError(f"{source}: it is empty.")
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: it must hold a mapping of keys, not a list or a single value.")
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
    """A safe YAML loader that refuses what is twice in a mapping, and aliases that unfold to more than a config has."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _unfolded_size(node, {}) > _MAX_VALUES:
            raise ValueError(f"its aliases unfold to more than {_MAX_VALUES:,} values")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here merges ("<<") are not resolved yet: a key may replace one that a merge brings.
        node = super().compose_mapping_node(anchor)
        self._refuse_doubles(node.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Whoever writes a section again means to add to it, but all that the merge brought in it would be lost.
        self._refuse_doubles([(key, value) for key, value in node.value if isinstance(value, yaml.MappingNode)])

    def _refuse_doubles(self, entries: list[tuple[yaml.Node, yaml.Node]]) -> None:
        lines: dict[Any, int] = {}
        for key, _ in entries:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # 1 and 0x1 are the same key, and so are yes and true.
            name = key.value if key.tag == _MERGE_TAG else self.construct_object(key)
            line = key.start_mark.line + 1
            if (type(name), name) in lines:
                raise _DuplicateKeyError(
                    f"{key.value} is in line {lines[type(name), name]} and again in line {line}; write it once, with "
                    "all of its values."
                )
            lines[type(name), name] = line


def _unfolded_size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for once every alias in it is replaced; infinite if it has itself in it."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_unfolded_size(child, known) for child in children)
    return known[id(node)]


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

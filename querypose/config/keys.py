"""What a YAML key is, the list of all keys, and the conditions for their values: each by itself, and together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from querypose.d2 import CfgNode, Registry
from querypose.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used: the message names the key, its value and what is allowed."""


class Allowed:
    """The condition for the value of a key.

    Args:
        description: completes the sentence "allowed: …"; a function where it may change until a config is checked.
        test: whether a value meets it.
    """

    def __init__(self, description: str | Callable[[], str], test: Callable[[Any], bool]) -> None:
        self._description = description
        self._test = test

    @property
    def description(self) -> str:
        """What is allowed, as it is now."""
        return self._description if isinstance(self._description, str) else self._description()

    def problem(self, key: str, value: Any) -> str | None:
        """What is wrong with `value` of the key of that name, and what is allowed; None where it is allowed."""
        return None if self._test(value) else f"{key} is {value!r}; allowed: {self.description}."


class Key(NamedTuple):
    """One YAML key.

    Attributes:
        name: its dotted path.
        default: its value where a config has none; values of other types are refused.
        meaning: a line for the user.
        allowed: the condition for its values, beside their type.
        resolve: turns a value such as "auto" into what it means on this machine.
        fixed: whether a run that goes on with --resume must have the value that it began with; None decides by the
            name: what a model is stays, what it is trained for may change. Other values are obeyed from then on.
        instead_of: another key that says the same in another unit. Of the two one is set, the other 0 or []: a file, or
            a command line, that sets one of them unsets the other of what it is laid over.
    """

    name: str
    default: Any
    meaning: str
    allowed: Allowed | None = None
    resolve: Callable[[Any], Any] | None = None
    fixed: bool | None = None
    instead_of: str = ""

    @property
    def is_fixed(self) -> bool:
        """Whether --resume refuses another value than that of the checkpoint."""
        if self.fixed is not None:
            return self.fixed
        section, *rest = self.name.split(".")
        return section == "MODEL" and not _TRAINING_SECTIONS.intersection(rest)


# Of a model's keys, those that change neither its parameters nor what they mean.
_TRAINING_SECTIONS = frozenset({"LOSS", "MATCHER", "DECODING"})

Check = Callable[[CfgNode], None]

KEYS: dict[str, Key] = {}
"""Every key by its name, in the order in which their owners were imported."""

OWNERS: dict[str, str] = {}
"""The module that added a key, by the key's name."""

_CHECKS: list[Check] = []


def add_keys(keys: Sequence[Key], check: Check | None = None) -> None:
    """Declares the YAML keys of the calling module; call it once, when the module is imported.

    Args:
        keys: with their defaults and what they allow.
        check: raises ConfigError where values that are allowed one by one do not go together. It is called with
            every config that is loaded, also those of models that have nothing to do with the keys.

    Raises:
        ConfigError: a key is there already with another default, or is a section of other keys.
    """
    owner = sys._getframe(1).f_globals["__name__"]
    for key in keys:
        if key.name in KEYS and KEYS[key.name].default != key.default:
            raise ConfigError(
                f"{owner} adds the key {key.name} with the default {key.default!r}, but {OWNERS[key.name]} has "
                f"added it with {KEYS[key.name].default!r}; choose another name."
            )
        for other in KEYS:
            if other.startswith(f"{key.name}.") or key.name.startswith(f"{other}."):
                raise ConfigError(
                    f"{owner} adds the key {key.name}, but {OWNERS[other]} has added {other}: one name cannot be a key "
                    "and a section of keys; choose another name."
                )
        KEYS[key.name] = key
        OWNERS.setdefault(key.name, owner)
    if check is not None:
        _CHECKS.append(check)


def check_config(cfg: CfgNode) -> None:
    """Refuses values that no run can use.

    Raises:
        ConfigError: names the key, its value, and what is allowed there.
    """
    for key in KEYS.values():
        value = lookup(cfg, key.name)
        if value is None:  # the merge accepts None for every key
            raise ConfigError(f"{key.name} is None; allowed: {kind_of(key.default)}. ({key.meaning})")
        if key.allowed is not None and (problem := key.allowed.problem(key.name, value)):
            raise ConfigError(f"{problem} ({key.meaning})")
    require_one_unit(cfg)
    for check in _CHECKS:
        check(cfg)


_KINDS: Mapping[type, str] = {
    bool: "True or False", int: "an integer", float: "a number", str: "text", list: "a list", tuple: "a list",
}  # fmt: skip


def require_one_unit(cfg: CfgNode) -> None:
    """Refuses a key that is set beside the one that it replaces.

    Raises:
        ConfigError: names both, and their values.
    """
    for key in KEYS.values():
        if key.instead_of:
            value, other = lookup(cfg, key.name), lookup(cfg, key.instead_of)
            if value and other:
                raise ConfigError(
                    f"{key.name} is {value}, and {key.instead_of} is {other}; allowed: one of the two, with the other "
                    f"one {unset(other)!r}."
                )


def unset(value: Any) -> Any:
    """What stands for "not set" where the value, of a key that another one replaces, is of this kind: 0 or []."""
    return type(value)()


def kind_of(default: Any) -> str:
    """What the values of a key with this default are, in words."""
    return _KINDS.get(type(default), type(default).__name__)


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


def leaf_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys in a config."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaf_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def one_of(*values: Any) -> Allowed:
    """One of some values."""
    return Allowed(", ".join(repr(value) for value in values), lambda value: value in values)


def registered(registry: Registry | Mapping[str, Any], without: Iterable[str] = ()) -> Allowed:
    """A name in a registry or table, as it is when a config is checked: what a user's module registers counts.

    Args:
        registry: whose names are allowed.
        without: names in it that this key does not take.
    """

    def names() -> list[str]:
        return [name for name in registered_names(registry) if name not in without]

    return Allowed(lambda: ", ".join(map(repr, names())), lambda value: value in names())


def registered_names(registry: Registry | Mapping[str, Any]) -> list[str]:
    """Names in a registry or table, in the order in which they came into it."""
    return list(registry) if isinstance(registry, Mapping) else [name for name, _ in registry]


def is_finite(value: Any) -> bool:
    """Whether it is a number of a float's range, neither infinite nor NaN; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_integer(value: Any) -> bool:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def at_least(minimum: float) -> Allowed:
    """A number not below a bound."""
    return Allowed(f"a number >= {minimum}", lambda value: is_finite(value) and value >= minimum)


def above(bound: float) -> Allowed:
    """A number above a bound."""
    return Allowed(f"a number > {bound}", lambda value: is_finite(value) and value > bound)


def between(low: float, high: float) -> Allowed:
    """A number in a closed interval."""
    return Allowed(f"a number in [{low}, {high}]", lambda value: is_finite(value) and low <= value <= high)


def below(low: float, high: float) -> Allowed:
    """A number in an interval without its upper end."""
    return Allowed(f"a number in [{low}, {high})", lambda value: is_finite(value) and low <= value < high)


ORDERED = Allowed("[smallest, largest]", lambda value: value[0] <= value[1])
"""Two numbers in their order; beside the condition for each of them."""


def sequence_of(description: str, test: Callable[[Any], bool], length: int | None = None) -> Allowed:
    """A list of values of which each passes a test; of a fixed length where one is given."""
    count = "a list of" if length is None else f"{length}"
    return Allowed(
        f"{count} {description}",
        lambda value: (
            isinstance(value, list | tuple) and (length is None or len(value) == length) and all(map(test, value))
        ),
    )


def list_of_names(registry: Registry | Mapping[str, Any] | None = None) -> Allowed:
    """A list of names; where there is a registry, of names in it when a config is checked."""

    def is_known(name: Any) -> bool:
        return isinstance(name, str) and (registry is None or name in registered_names(registry))

    def description() -> str:
        if registry is None:
            return "a list of names"
        names = ", ".join(map(repr, registered_names(registry)))
        return f"a list of names among {names}" if names else "[], until a module of yours registers names"

    return Allowed(description, lambda value: isinstance(value, list | tuple) and all(map(is_known, value)))

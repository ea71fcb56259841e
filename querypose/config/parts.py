"""Parts that YAML lists with their arguments: `[{name: RandomFlip, probability: 0.5}, …]`, each a registered class."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from querypose.config.keys import Allowed, ConfigError, is_finite, registered_names
from querypose.d2 import Registry

_ENTRY = "{name: …, argument: value, …}"


def part_list(registry: Registry | Mapping[str, Any], given: Iterable[str] = (), words: Iterable[str] = ()) -> Allowed:
    """A list of mappings: `name` of a registered class, and arguments of its constructor by their names.

    Args:
        registry: of the classes.
        given: arguments that the code gives (see `build_part`); YAML must not give them.
        words: what may stand in place of a mapping.
    """
    supplied, known_words = tuple(given), tuple(words)

    class _PartList(Allowed):
        def problem(self, key: str, value: Any) -> str | None:
            if not isinstance(value, list | tuple):
                return f"{key} is {value!r}; allowed: {self.description}."
            try:
                for index, entry in enumerate(value):
                    if isinstance(entry, str) and known_words:
                        if entry not in known_words:
                            return f"{key}[{index}] is {entry!r}; allowed: {', '.join(known_words)}, {_ENTRY}."
                    else:
                        _arguments(registry, entry, f"{key}[{index}]", supplied)
            except ConfigError as error:
                return str(error)
            return None

    return _PartList(
        lambda: (
            f"a list of {''.join(f'{word}, ' for word in known_words)}{_ENTRY}, name one of "
            f"{', '.join(registered_names(registry))}"
        ),
        lambda value: True,
    )


def build_part(registry: Registry | Mapping[str, Any], entry: Mapping[str, Any], key: str, **given: Any) -> Any:
    """Builds the part that an entry of a list describes.

    Args:
        registry: has its class.
        entry: `name`, and arguments of the class's constructor; an integer fits float, and a list fits tuple.
        key: the YAML key of the list, for messages.
        given: further arguments; a class that does not take one of them is built without it.

    Raises:
        ConfigError: the name, an argument or its value is not allowed, or the constructor refuses it by a ValueError.
    """
    part, arguments = _arguments(registry, entry, key, tuple(given))
    taken = {name: value for name, value in given.items() if name in inspect.signature(part).parameters}
    try:
        return part(**arguments, **taken)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key} has {dict(entry)}: {error}") from error


def _arguments(
    registry: Registry | Mapping[str, Any], entry: Any, key: str, given: Sequence[str]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class of an entry and its arguments, converted to what its annotations say."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"{key} is {entry!r}; allowed: {_ENTRY}.")
    name = entry["name"]
    known = registered_names(registry)
    if name not in known:
        raise ConfigError(f"{key} has the name {name!r}; allowed: {', '.join(map(repr, known))}.")
    part = registry[name] if isinstance(registry, Mapping) else registry.get(name)
    annotations = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part, include_extras=True)
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(part).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and parameter.name not in given
    }
    allowed = ", ".join(_describe(parameter, annotations) for parameter in parameters.values()) or "none"
    arguments = {}
    for argument, value in entry.items():
        if argument == "name":
            continue
        if argument not in parameters:
            raise ConfigError(f"{key} gives {name!r} the argument {argument!r}; allowed: {allowed}.")
        try:
            arguments[argument] = _convert(value, annotations.get(argument, Any))
        except TypeError:
            raise ConfigError(
                f"{key} gives {name!r} the argument {argument!r} with {value!r}; allowed: "
                f"{_describe(parameters[argument], annotations)}."
            ) from None
    required = [parameter.name for parameter in parameters.values() if parameter.default is parameter.empty]
    if missing := [argument for argument in required if argument not in arguments]:
        raise ConfigError(f"{key} does not give {name!r} the argument {missing[0]!r}; it takes: {allowed}.")
    return part, arguments


def _describe(parameter: inspect.Parameter, annotations: Mapping[str, Any]) -> str:
    annotation = annotations.get(parameter.name, Any)
    kind = "" if annotation is Any else f": {_describe_annotation(annotation)}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}{kind}{default}"


def _describe_annotation(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        plain, *conditions = typing.get_args(annotation)
        described = [condition.description for condition in conditions if isinstance(condition, Allowed)]
        return ", ".join(described) or _describe_annotation(plain)
    return inspect.formatannotation(annotation).replace("collections.abc.", "")


def _convert(value: Any, annotation: Any) -> Any:
    """`value` in the type of its annotation.

    Raises:
        TypeError: it has another type, or is none of what an `Allowed` in `Annotated[type, Allowed]` allows.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        converted = _convert(value, inner[0])
        if any(isinstance(condition, Allowed) and condition.problem("", converted) for condition in inner[1:]):
            raise TypeError
        return converted
    if origin in (Union, types.UnionType):
        for option in inner:
            try:
                return _convert(value, option)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        fits = value in inner
    elif annotation is float:
        if not is_finite(value):
            raise TypeError
        return float(value)
    elif origin is not None and issubclass(origin, Sequence):
        return _convert_sequence(value, origin, inner)
    else:
        plain = types.NoneType if annotation is None else origin or annotation
        # A boolean is an integer to Python, but not to a reader of YAML.
        fits = isinstance(value, plain) and (plain is bool or type(value) is not bool)
    if not fits:
        raise TypeError
    return value


def _convert_sequence(value: Any, kind: type, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError
    if kind is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise TypeError
        return tuple(_convert(element, annotation) for element, annotation in zip(value, inner, strict=True))
    converted = [_convert(element, inner[0]) for element in value]
    return tuple(converted) if kind is tuple else converted

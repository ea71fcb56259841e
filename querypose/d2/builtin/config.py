"""`CfgNode`, the default config, and the decorator that lets a class or function be built from a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as FvcoreCfgNode

CONFIG_VERSION = 2


class CfgNode(FvcoreCfgNode):
    """fvcore's config node: nested attributes, `_BASE_` in files, typed merging.

    Deviates: YAML tags that run code are never evaluated, and a config of VERSION 1 is not converted. detectron2 does
    both by default.
    """

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merges a YAML file, after the files that its `_BASE_` names.

        Raises:
            FileNotFoundError: the file or one of its bases does not exist.
            KeyError: the file has a key that this config lacks.
            ValueError: a value has another type than the default, or `allow_unsafe` is set.
        """
        if allow_unsafe:
            raise ValueError(f"{cfg_filename}: allow_unsafe would run code from the file; write plain YAML instead.")
        super().merge_from_file(str(cfg_filename), allow_unsafe=False)


def get_cfg() -> CfgNode:
    """A new config with VERSION alone; a project adds its own keys to it."""
    cfg = CfgNode()
    cfg.VERSION = CONFIG_VERSION
    return cfg


def configurable(init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., Any] | None = None) -> Any:
    """Lets a class or a function be called with a `CfgNode` in place of its arguments.

    `@configurable` stands on an `__init__` whose class has a classmethod `from_config(cls, cfg, …)`;
    `@configurable(from_config=f)` stands on a function. A call whose first argument (or keyword `cfg`) is a `CfgNode`
    goes through `from_config`, which returns the arguments as a dict; keyword arguments that `from_config` does not
    take are handed on, and win. Any other call is left alone.

    Raises:
        AttributeError: at any call, when the class has no `from_config`.
        TypeError: `from_config` is not a classmethod (a function), or its first parameter is not `cfg`.
    """
    if init_func is not None:
        if from_config is not None or not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
            raise AssertionError("@configurable stands on an __init__; on a function use @configurable(from_config=…).")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    if not inspect.isfunction(from_config):
        raise AssertionError(f"from_config of @configurable must be a function, not {from_config!r}.")
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        translate = getattr(type(self), "from_config", None)
        if translate is None:
            raise AttributeError(f"{type(self).__name__} is @configurable and needs a classmethod from_config.")
        if not inspect.ismethod(translate):
            raise TypeError(f"{type(self).__name__}.from_config must be a classmethod.")
        if _has_cfg(args, kwargs):
            args, kwargs = (), _translate(translate, args, kwargs)
        init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(function: Callable[..., Any], from_config: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _has_cfg(args, kwargs):
            return function(**_translate(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config  # type: ignore[attr-defined]  # detectron2 exposes it in this way too
    return wrapped


def _has_cfg(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    first = args[0] if args else kwargs.get("cfg")
    return isinstance(first, FvcoreCfgNode)


def _translate(from_config: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `from_config` makes of a call, plus those of the call that it does not take."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{getattr(from_config, '__qualname__', from_config)} must take 'cfg' as its first argument.")
    takes_any = any(
        parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters.values()
    )
    taken = kwargs if takes_any else {name: value for name, value in kwargs.items() if name in parameters}
    passed_on = {name: value for name, value in kwargs.items() if name not in taken}
    return {**from_config(*args, **taken), **passed_on}

"""The catalogs of datasets: how to load each, and what is known about it.

These two are the one place with state for the whole process: a name that is registered anywhere is known everywhere.
"""

from __future__ import annotations

import builtins
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

LoadFunction = Callable[[], list[dict[str, Any]]]


class Metadata(SimpleNamespace):
    """What is known about one dataset, as attributes. An attribute that is set cannot change its value."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(f"Metadata of dataset {self.name!r} has no {key!r}; it has {sorted(self.__dict__)}.")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise AssertionError(
                f"{key!r} in the metadata of dataset {self.name!r} is {self.__dict__[key]!r} and cannot "
                f"become {value!r}; choose another name, or call MetadataCatalog.remove first."
            )
        super().__setattr__(key, value)

    def set(self, **kwargs: Any) -> Metadata:
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class _DatasetCatalog(UserDict[str, LoadFunction]):
    def register(self, name: str, func: LoadFunction) -> None:
        """Registers a dataset.

        Args:
            name: what a config calls it.
            func: takes nothing, gives a list of dicts, the same at every call.

        Raises:
            AssertionError: the name is taken, or `func` is not callable.
        """
        if not callable(func):
            raise AssertionError(f"Dataset {name!r} must be registered with a function, not {func!r}.")
        if name in self:
            raise AssertionError(f"Dataset {name!r} is already registered; DatasetCatalog.remove it first.")
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]  # as detectron2: it loads, and has no default
        """Loads a dataset.

        Raises:
            KeyError: it is not registered.
        """
        if name not in self:
            raise KeyError(f"Dataset {name!r} is not registered; registered: {', '.join(sorted(self)) or 'none'}.")
        return self[name]()

    def list(self) -> builtins.list[str]:
        return [*self]

    def remove(self, name: str) -> None:
        del self[name]


class _MetadataCatalog(UserDict[str, Metadata]):
    def get(self, name: str) -> Metadata:  # type: ignore[override]  # as detectron2: it makes what is not there
        """The metadata of a dataset; made, with nothing but the name, at the first call."""
        if not name:
            raise AssertionError("A dataset needs a name to have metadata.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> builtins.list[str]:
        return [*self]

    def remove(self, name: str) -> None:
        del self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()

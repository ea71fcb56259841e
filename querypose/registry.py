"""Registries of exchangeable parts, which a user's own module may add to."""

from __future__ import annotations

from typing import Any

from querypose.d2 import CfgNode, Registry


class PartRegistry(Registry):
    """detectron2's `Registry` for parts that configs name: `@REGISTRY.register(name="spatial_attention")`.

    A part with hyper-parameters of its own declares their keys in its file (`querypose.config.add_keys`) and has a
    classmethod `from_config(cfg)` that gives them as keyword arguments of its constructor.
    """

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Registers a class or function, under its own name by default; a decorator where `obj` is not given."""
        if obj is None:
            return lambda decorated: self.register(decorated, name=name)
        self._do_register(name or obj.__name__, obj)
        return obj

    def build(self, name: str, cfg: CfgNode, **given: Any) -> Any:
        """Builds the part `name` from the arguments that every part here gets and from those of its `from_config`."""
        part = self.get(name)
        return part(**given, **(part.from_config(cfg) if hasattr(part, "from_config") else {}))

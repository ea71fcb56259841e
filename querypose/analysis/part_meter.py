"""Shares what a forward pass costs (time, operations) among the parts of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

Reading = TypeVar("Reading")

REST = "(rest)"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
"""Passes of a training step."""


def part_name(module_name: str, depth: int) -> str:
    """The part that a module belongs to: the first `depth` names of its path, without numbers.

    Stages and levels thus belong together: `decoder.box_stages.3.attention` to `decoder.box_stages` at depth 2,
    `backbone.fpn_lateral4` to `backbone.fpn_lateral`. The model itself is `REST`.
    """
    names = [name.rstrip("0123456789") for name in module_name.split(".")]
    return ".".join([name for name in names if name][:depth]) or REST


@dataclass(frozen=True)
class Span(Generic[Reading]):
    part: str
    start: Reading
    end: Reading


class PartMeter(Generic[Reading]):
    """Notes which part of a model is running, and reads a meter whenever that changes.

    The innermost module that is running counts, so that no cost counts twice; what the model does in no submodule is
    `REST`. The same meter serves operations and seconds. Of any meta-architecture the parts are its named children.

    Args:
        model: the model that will be called.
        depth: how many names of a module's path tell parts apart.
        read: gives the reading of the moment.
        outside: the part that runs while the model does not.

    Attributes:
        spans: in order, after the `with` block.
    """

    def __init__(self, model: nn.Module, depth: int, read: Callable[[], Reading], outside: str = REST) -> None:
        self.spans: list[Span[Reading]] = []
        self._read = read
        self._parts = {module: part_name(name, depth) for name, module in model.named_modules()}
        self._running = [outside]
        self._handles: list[RemovableHandle] = []
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}

    def __enter__(self) -> PartMeter[Reading]:
        inside_compiled: set[nn.Module] = set()
        for module in self._parts:
            if module in inside_compiled:
                continue
            if module._compiled_call_impl is None:
                self._handles.append(module.register_forward_pre_hook(lambda part, _: self._push(self._parts[part])))
                self._handles.append(module.register_forward_hook(lambda *_: self._pop(), always_call=True))
            else:
                # Hooks would be compiled along, so the compiled call is wrapped; inside there are no parts.
                inside_compiled.update(module.modules())
                self._compiled[module] = module._compiled_call_impl
                module._compiled_call_impl = self._timed(module, module._compiled_call_impl)
        self._start = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_span(self._running[-1])
        for handle in self._handles:
            handle.remove()
        for module, call in self._compiled.items():
            module._compiled_call_impl = call

    @contextlib.contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Within the context `part` is running, as if it were a module."""
        self._push(part)
        try:
            yield
        finally:
            self._pop()

    def _timed(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running(self._parts[module]):
                return call(*args, **kwargs)

        return timed

    def _push(self, part: str) -> None:
        if part != self._running[-1]:
            self._end_span(self._running[-1])
        self._running.append(part)

    def _pop(self) -> None:
        ended = self._running.pop()
        if ended != self._running[-1]:
            self._end_span(ended)

    def _end_span(self, part: str) -> None:
        now = self._read()
        self.spans.append(Span(part, self._start, now))
        self._start = now

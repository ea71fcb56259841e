"""The scalars (and pictures) of a training, by name and iteration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fvcore.common.history_buffer import HistoryBuffer

# The storages that `with` statements have opened, innermost last: how a module deep in a model finds the trainer's.
_OPEN_STORAGES: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost `with EventStorage(…)`.

    Raises:
        AssertionError: there is none.
    """
    if not _OPEN_STORAGES:
        raise AssertionError("get_event_storage() works inside of 'with EventStorage(…)' alone: as in training.")
    return _OPEN_STORAGES[-1]


class EventStorage:
    """Keeps the history of every scalar. Use it in a `with` statement. Deviates: detectron2's has histograms too.

    Attributes:
        iter: the current iteration, which new values are stored with.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._histories: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._prefix = ""
        self._iter = start_iter
        self._vis_data: list[tuple[str, Any, int]] = []

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Stores a value.

        Args:
            name: of the scalar; the name scope is put before it.
            value: anything that `float` takes.
            smoothing_hint: whether writers should show a median over recent values, because it is noisy.
            cur_iter: the iteration, if not the current one.

        Raises:
            AssertionError: the scalar had another hint before.
        """
        name = self._prefix + name
        iteration = self._iter if cur_iter is None else cur_iter
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise AssertionError(f"Scalar {name!r} was stored with smoothing_hint={not smoothing_hint} before.")
        value = float(value)
        self._histories[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Stores a picture for TensorBoard: 3 x H x W, RGB, uint8 or float in [0, 1]."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def clear_images(self) -> None:
        """Forgets the pictures, once they are written."""
        self._vis_data = []

    def history(self, name: str) -> HistoryBuffer:
        """All values of a scalar.

        Raises:
            KeyError: nothing was stored under that name.
        """
        if name not in self._histories:
            raise KeyError(f"There is no scalar {name!r}; there are {sorted(self._histories)}.")
        return self._histories[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._histories

    def latest(self) -> dict[str, tuple[float, int]]:
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As `latest`, with the median over the past `window_size` iterations for scalars that should be smoothed."""
        return {
            name: (self.smoothed(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self._latest.items()
        }

    def smoothed(self, name: str, window_size: int = 20) -> float:
        return float(self._histories[name].median(self.count_samples(name, window_size)))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values a scalar got in the past `window_size` iterations, counted from its latest."""
        values = self._histories[name].values()
        first = values[-1][1] - window_size
        count = 0
        while count < len(values) and values[-1 - count][1] > first:
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    def step(self) -> None:
        """Goes to the next iteration; a trainer sets `iter` instead."""
        self._iter += 1

    @property
    def iter(self) -> int:
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Puts `name/` before the name of everything that is stored in the block."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def __enter__(self) -> EventStorage:
        _OPEN_STORAGES.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _OPEN_STORAGES.pop()

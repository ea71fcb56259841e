"""What becomes of the scalars of a training: metrics.json and TensorBoard events."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from functools import cached_property
from typing import IO, Any

from querypose.d2.builtin.events import get_event_storage


class EventWriter:
    """Base class: `write` takes what is new from the current event storage."""

    def write(self) -> None:
        """Writes what is new. A subclass must define it."""
        raise NotImplementedError(f"{type(self).__name__} must define write.")

    def close(self) -> None:
        """Ends the writing."""


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object a line, one line an iteration, with its key "iteration"."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """Opens no file yet.

        Args:
            json_file: it is made, or continued.
            window_size: iterations that noisy scalars are smoothed over.
        """
        self._json_file = json_file
        self._window_size = window_size
        self._last_write = -1

    @cached_property
    def _file_handle(self) -> IO[str]:
        # Opened at the first line, so that a trainer that never trains leaves no open file behind.
        return open(self._json_file, "a", encoding="utf-8")

    def write(self) -> None:
        rows: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                rows[iteration][name] = value
        if not rows:
            return
        for iteration in sorted(rows):
            self._file_handle.write(json.dumps({**rows[iteration], "iteration": iteration}, sort_keys=True) + "\n")
            self._last_write = iteration
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        if "_file_handle" in self.__dict__:
            self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes all scalars, and the pictures, to a TensorBoard events file."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """Makes no file yet.

        Args:
            log_dir: folder of the events file.
            window_size: iterations that noisy scalars are smoothed over.
            kwargs: further arguments of `torch.utils.tensorboard.SummaryWriter`.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        # Imported at the first use: it takes a second, and tensorboard is not needed to evaluate.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()

"""What becomes of the scalars of a training: metrics.json, TensorBoard events, a progress line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch

from querypose.d2.builtin.events import EventStorage, get_event_storage
from querypose.d2.builtin.file_io import PathManager

_MEGABYTE = 1024.0 * 1024.0


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
            json_file: it is made, or continued. A last line that a killed process left unfinished is dropped.
            window_size: iterations that noisy scalars are smoothed over.
        """
        self._json_file = json_file
        self._window_size = window_size
        self._last_write = -1

    @cached_property
    def _file_handle(self) -> IO[str]:
        # Opened at the first line, so that a trainer that never trains leaves no open file behind.
        _drop_unfinished_line(self._json_file)
        handle: IO[str] = PathManager.open(self._json_file, "a")
        return handle

    def write(self) -> None:
        """Appends the scalars that are newer than the last line."""
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
        if hasattr(self._file_handle, "fileno"):
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        """Closes the file, if there is one."""
        if "_file_handle" in self.__dict__:
            self._file_handle.close()


def _drop_unfinished_line(json_file: str) -> None:
    if "://" in json_file or not os.path.exists(json_file):
        return
    content = Path(json_file).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logging.getLogger(__name__).warning("%s ends in an unfinished line, which is dropped.", json_file)
        os.truncate(json_file, whole)


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
        """Writes the scalars that are newer than the last ones, and all pictures."""
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
        """Ends the file, if there is one."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs a progress line: ETA, iteration, losses, times, learning rate, GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """Logs to this module's logger.

        Args:
            max_iter: iterations in all, for the ETA; None: no ETA.
            window_size: iterations that losses are smoothed over.
        """
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def write(self) -> None:
        """Logs one line; after the last iteration nothing."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        parts = []
        if eta := self._eta(storage):
            parts.append(f"eta: {eta}")
        parts.append(f"iter: {storage.iter}")
        for wanted in ("loss", "[metric]"):
            parts += [
                f"{name}: {storage.smoothed(name, self._window_size):.4g}"
                for name in storage.histories()
                if wanted in name
            ]
        parts += self._times(storage)
        lr = storage.latest().get("lr")
        parts.append(f"lr: {lr[0]:.5g}" if lr else "lr: N/A")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / _MEGABYTE:.0f}M")
        self.logger.info(" %s", "  ".join(parts))

    def _times(self, storage: EventStorage) -> list[str]:
        """Average and last seconds of an iteration, and of waiting for data; nothing in the first iterations."""
        parts = []
        if "time" in storage.histories():
            time_history = storage.history("time")
            parts += [f"time: {time_history.global_avg():.4f}", f"last_time: {time_history.latest():.4f}"]
        if "data_time" in storage.histories():
            data_history = storage.history("data_time")
            average = data_history.avg(storage.count_samples("data_time", self._window_size))
            parts += [f"data_time: {average:.4f}", f"last_data_time: {data_history.latest():.4f}"]
        return parts

    def _eta(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        remaining = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = float(storage.history("time").median(1000)) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return str(timedelta(seconds=int(seconds)))
        now = time.perf_counter()
        eta = None
        if self._last_write is not None and storage.iter > self._last_write[0]:
            per_iteration = (now - self._last_write[1]) / (storage.iter - self._last_write[0])
            eta = str(timedelta(seconds=int(per_iteration * remaining)))
        self._last_write = (storage.iter, now)
        return eta

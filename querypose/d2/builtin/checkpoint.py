"""Checkpoints that are written whole or not at all, and that cannot run code when they are loaded."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from querypose.d2.builtin import comm
from querypose.d2.builtin.file_io import PathManager, atomic_write
from querypose.d2.errors import CheckpointError
from querypose.d2.files import read_checkpoint, refuse_pickle
from querypose.d2.plain_values import to_plain

_LAST_CHECKPOINT = "last_checkpoint"
_DDP_PREFIX = "module."
# Buffers that follow from the config: a checkpoint without them is complete.
_CONFIG_BUFFERS = ("pixel_mean", "pixel_std")


class IncompatibleKeys(NamedTuple):
    """What did not fit between a checkpoint and a model; shapes are (key, in the checkpoint, in the model)."""

    missing_keys: list[str]
    unexpected_keys: list[str]
    incorrect_shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


class Checkpointer:
    """Saves and loads a model, and anything else with `state_dict` and `load_state_dict`.

    A checkpoint is a dict with "model", one key per checkpointable, and what `save` is given besides. It holds tensors,
    numbers, strings, and lists and dicts of those, nothing else, so that torch loads it with `weights_only`.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool = True, **checkpointables: Any
    ) -> None:
        """Touches no file.

        Args:
            model: also one wrapped for several processes; its own names are saved either way.
            save_dir: folder of the checkpoints.
            save_to_disk: False makes `save` do nothing.
            checkpointables: what else to save, by keyword.
        """
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel | DataParallel) else model
        self.checkpointables: dict[str, Any] = {}
        self.logger = logging.getLogger(__name__)
        self.save_dir = save_dir
        self.save_to_disk = save_to_disk
        self.path_manager = PathManager
        for key, checkpointable in checkpointables.items():
            self.add_checkpointable(key, checkpointable)

    def add_checkpointable(self, key: str, checkpointable: Any) -> None:
        """Adds something to save under `key`.

        Raises:
            KeyError: the key is taken.
            TypeError: it has no `state_dict`.
        """
        if key in self.checkpointables:
            raise KeyError(f"The checkpointer has {key!r} already.")
        if not hasattr(checkpointable, "state_dict"):
            raise TypeError(f"{key!r} cannot be saved: {type(checkpointable).__name__} has no state_dict().")
        self.checkpointables[key] = checkpointable

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `{name}.pth` and notes it in the file last_checkpoint.

        Args:
            name: a file name without ".pth".
            kwargs: further entries of the checkpoint.

        Raises:
            CheckpointError: an entry could not be loaded again.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        checkpoint: dict[str, Any] = {"model": self.model.state_dict()}
        checkpoint.update({key: entry.state_dict() for key, entry in self.checkpointables.items()})
        checkpoint.update(kwargs)
        basename = f"{name}.pth"
        if os.path.basename(basename) != basename:
            raise AssertionError(f"A checkpoint's name is a file name, not a path: {name!r}.")
        file = os.path.join(self.save_dir, basename)
        self.logger.info("Saving checkpoint to %s", file)
        plain = {key: to_plain(entry, key) for key, entry in checkpoint.items()}
        self.path_manager.mkdirs(self.save_dir)
        with atomic_write(file) as stream:
            torch.save(plain, stream)
        self.tag_last_checkpoint(basename)

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint; logs every key that does not fit.

        Args:
            path: a file, or a URL that the path manager knows; "" loads nothing.
            checkpointables: which of them to load besides the model; None: all that the checkpoint has.

        Returns:
            the entries of the checkpoint that were not loaded into anything.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is damaged or not a plain checkpoint, or no key of it fits the model.
        """
        if not path:
            self.logger.info("No checkpoint found. Initializing model from scratch")
            return {}
        self.logger.info("[%s] Loading from %s ...", type(self).__name__, path)
        file = self.path_manager.get_local_path(path)
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"There is no checkpoint {path!r}; correct MODEL.WEIGHTS, or train without --resume."
            )
        checkpoint = self._load_file(file)
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:
            self._log_incompatible_keys(incompatible)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.logger.info("Loading %s from %s ...", key, path)
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Loads all of the last checkpoint, if `resume` and there is one; else the model alone, from `path`."""
        if resume and self.has_checkpoint():
            return self.load(self.get_checkpoint_file())
        return self.load(path, checkpointables=[])

    def has_checkpoint(self) -> bool:
        """Whether the folder has a last checkpoint."""
        return bool(self.path_manager.exists(os.path.join(self.save_dir, _LAST_CHECKPOINT)))

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint; "" if there is none."""
        try:
            with self.path_manager.open(os.path.join(self.save_dir, _LAST_CHECKPOINT), "r") as stream:
                return os.path.join(self.save_dir, stream.read().strip())
        except OSError:
            return ""

    def get_all_checkpoint_files(self) -> list[str]:
        """Paths of all checkpoints in the folder."""
        return [
            os.path.join(self.save_dir, name) for name in self.path_manager.ls(self.save_dir) if name.endswith(".pth")
        ]

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes a checkpoint of the folder as the last one."""
        with atomic_write(os.path.join(self.save_dir, _LAST_CHECKPOINT), "w") as stream:
            stream.write(last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> IncompatibleKeys | None:
        """Takes "model" out of the checkpoint and loads what fits of it."""
        weights = checkpoint.pop("model")
        self._convert_ndarray_to_tensor(weights)
        if weights and all(key.startswith(_DDP_PREFIX) for key in weights):
            weights = {key.removeprefix(_DDP_PREFIX): value for key, value in weights.items()}
        model_state = self.model.state_dict()
        shapes = [
            (key, tuple(value.shape), tuple(model_state[key].shape))
            for key, value in weights.items()
            if key in model_state and value.shape != model_state[key].shape
        ]
        unfit = {key for key, _, _ in shapes}
        fitting = {key: value for key, value in weights.items() if key in model_state and key not in unfit}
        if model_state and not fitting:
            raise CheckpointError(
                "No key of the checkpoint fits the model. The checkpoint has "
                f"{_some(weights)}; the model has {_some(model_state)}. Is it a checkpoint of another model?"
            )
        self.model.load_state_dict(fitting, strict=False)
        loaded_storages = {model_state[key].data_ptr() for key in fitting if model_state[key].numel()}
        missing = [
            key
            for key, value in model_state.items()
            if key not in fitting
            and key not in unfit
            and key not in _CONFIG_BUFFERS
            and value.data_ptr() not in loaded_storages  # a shared parameter is loaded under one of its names
        ]
        return IncompatibleKeys(missing, [key for key in weights if key not in model_state], shapes)

    def _log_incompatible_keys(self, incompatible: IncompatibleKeys) -> None:
        for key, in_checkpoint, in_model in incompatible.incorrect_shapes:
            self.logger.warning(
                "Skip loading '%s': its shape is %s in the checkpoint and %s in the model.",
                key,
                in_checkpoint,
                in_model,
            )
        if incompatible.missing_keys:
            self.logger.warning(
                "Not in the checkpoint, so left as initialised:\n%s", _grouped(incompatible.missing_keys)
            )
        if incompatible.unexpected_keys:
            self.logger.warning("In the checkpoint, but not in the model:\n%s", _grouped(incompatible.unexpected_keys))

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        for key, value in state_dict.items():
            if isinstance(value, np.ndarray):
                state_dict[key] = torch.from_numpy(value)
            elif not isinstance(value, Tensor):
                raise CheckpointError(f"Checkpoint entry {key!r} is a {type(value).__name__}, not a tensor.")


class DetectionCheckpointer(Checkpointer):
    """A `Checkpointer` that writes on the main process alone, and also reads files that are nothing but weights."""

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Deviates: detectron2 unpickles model-zoo files, which can run any code that they bring.
        refuse_pickle(filename)
        loaded = super()._load_file(filename)
        return loaded if "model" in loaded else {"model": loaded}


class PeriodicCheckpointer:
    """Saves every `period` iterations, and as `{file_prefix}_final` at the end."""

    def __init__(
        self,
        checkpointer: Any,
        period: int,
        max_iter: int | None = None,
        max_to_keep: int | None = None,
        file_prefix: str = "model",
    ) -> None:
        """Saves nothing yet.

        Args:
            checkpointer: does the saving.
            period: iterations between two checkpoints.
            max_iter: iterations in all; None: there is no end.
            max_to_keep: delete older periodic checkpoints than the last so many; None: keep all.
            file_prefix: of the files.
        """
        if max_to_keep is not None and max_to_keep <= 0:
            raise AssertionError(f"max_to_keep is {max_to_keep}; allowed: positive, or None for all.")
        self.checkpointer = checkpointer
        self.period = int(period)
        self.max_iter = max_iter
        self.max_to_keep = max_to_keep
        self.file_prefix = file_prefix
        self.recent_checkpoints: list[str] = []

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Saves if it is time.

        Args:
            iteration: that just ended, from 0.
            kwargs: further entries of the checkpoint.
        """
        iteration = int(iteration)
        entries = {"iteration": iteration, **kwargs}
        if (iteration + 1) % self.period == 0:
            self.checkpointer.save(f"{self.file_prefix}_{iteration:07d}", **entries)
            if self.max_to_keep is not None:
                self.recent_checkpoints.append(self.checkpointer.get_checkpoint_file())
                self._delete_old(self.max_to_keep)
        if self.max_iter is not None and iteration >= self.max_iter - 1:
            self.checkpointer.save(f"{self.file_prefix}_final", **entries)

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves now, as `Checkpointer.save`."""
        self.checkpointer.save(name, **kwargs)

    def _delete_old(self, max_to_keep: int) -> None:
        path_manager = self.checkpointer.path_manager
        while len(self.recent_checkpoints) > max_to_keep:
            old = self.recent_checkpoints.pop(0)
            if path_manager.exists(old):
                path_manager.rm(old)


def _grouped(keys: Iterable[str]) -> str:
    """Keys one line per module: "  box_head.{bias, weight}"."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        module, _, name = key.rpartition(".")
        groups[module].append(name)
    lines = []
    for module, names in sorted(groups.items()):
        tail = names[0] if len(names) == 1 else "{" + ", ".join(sorted(names)) + "}"
        lines.append(f"  {module}.{tail}" if module else f"  {tail}")
    return "\n".join(lines)


def _some(keys: Iterable[str], count: int = 3) -> str:
    names = list(keys)
    shown = ", ".join(names[:count])
    return f"{shown}, … ({len(names)} keys)" if len(names) > count else shown or "no keys"

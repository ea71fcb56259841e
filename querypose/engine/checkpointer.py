"""The checkpoints of a run: written in the background, whole or not at all, and verified when they are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from torch import Tensor

from querypose.d2 import (
    CheckpointError,
    DetectionCheckpointer,
    atomic_write,
    check_weights,
    comm,
    download,
    to_plain,
)
from querypose.engine.manifest import MANIFEST, Condition, Entry, HashingStream, Manifest, is_name_beside

_LAST_CHECKPOINT = "last_checkpoint"
_CHECKPOINTS = "model_*.pth"


class _Found(NamedTuple):
    """The checkpoint to go on from, "" for none; or why there are some and none can be used."""

    file: str = ""
    problem: str = ""


class RunCheckpointer(DetectionCheckpointer):
    """The engine's checkpointer, whose files and `last_checkpoint` it keeps, with promises about what is on the disk.

    * A file appears under its name when it is whole and on the disk, and `last_checkpoint` names it after that.
    * Its checksum stands in checkpoints.json and is verified before it is loaded; a run goes on from the newest
      checkpoint that is intact.
    * `save` returns when the state is copied in memory; a thread writes the file. The next save, `wait`, or `check`
      raises what went wrong.

    Attributes:
        resumed_from: name of the checkpoint that `resume` has loaded; "" before.
    """

    def __init__(self, model: Any, save_dir: str = "", **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._manifest = Manifest(save_dir)
        self._buffers = _SnapshotBuffers()
        # An interpreter that ends waits for this thread, and so for the file that it writes.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint writer")
        self._job: Future[Any] | None = None
        self.resumed_from = ""
        self._check_content: Callable[[Mapping[str, Any]], None] | None = None

    def save(self, name: str, *, keep: int = 0, **kwargs: Any) -> None:
        """Saves everything as `{name}.pth`, which becomes the last checkpoint; returns before the file is there.

        Args:
            name: a file name without ".pth".
            keep: then delete all but the newest so many checkpoints of this run, of those that have a number in their
                name; 0 keeps all.
            kwargs: further entries of the checkpoint.

        Raises:
            CheckpointError: an entry could not be loaded again.
            OSError: the save before could not be written.
        """
        entries = {key: part.state_dict() for key, part in self.checkpointables.items()}
        self._write(name, {"model": self.model.state_dict(), **entries, **kwargs}, keep, has_state=True)

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Saves the weights, and the averaged ones if there are, as `{name}.pth`: to evaluate, not to go on from."""
        average = {"ema": self.checkpointables["ema"].state_dict()} if "ema" in self.checkpointables else {}
        self._write(name, {"model": self.model.state_dict(), **average, **kwargs}, keep=0, has_state=False)

    def prepare(self) -> None:
        """Gets the memory for the copies ready, in the background, so that the first save is as short as the others."""
        if self._saves():
            state = {"model": self.model.state_dict()}
            state |= {key: part.state_dict() for key, part in self.checkpointables.items()}
            self.wait()
            self._job = self._writer.submit(to_plain, state, "checkpoint", self._buffers.prepare)

    def wait(self) -> None:
        """Waits until what was saved is on the disk; raises OSError, which names the file, if it cannot be written."""
        if self._job is not None:
            job, self._job = self._job, None  # what went wrong is raised once
            job.result()

    def check(self) -> None:
        """Raises OSError if a save has failed meanwhile; waits for nothing."""
        if self._job is not None and self._job.done():
            self.wait()

    def resume(self, path: str, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Loads everything from a checkpoint of this folder, once `check` has accepted its content.

        Args:
            path: of the file.
            check: called with the content before any of it is used; raises what is wrong with it.

        Returns:
            the entries that are no state of the model or of the checkpointables.
        """
        self._check_content, self.resumed_from = check, Path(path).name
        try:
            return self.load(path)
        finally:
            self._check_content = None

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:
        """As the engine's; refuses a file that is not the one that was written.

        Raises:
            CheckpointError: the file's checksum is not that in the checkpoints.json beside it, or it cannot be read.
        """
        if "://" in path:
            path = str(download(path))
        elif path:
            condition = Manifest(Path(path).parent).condition_of(Path(path).name)
            if condition is Condition.DAMAGED:
                raise CheckpointError(f"{path} is {condition.value}; take another checkpoint.")
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:  # of both engines
        check_weights(checkpoint["model"], self.model.state_dict(), "The checkpoint")
        return super()._load_model(checkpoint)

    def get_checkpoint_file(self) -> str:
        """Path of the newest checkpoint of the run that is intact, beginning with the one in last_checkpoint.

        All processes must call it together; the main one reads the files.

        Returns:
            "" where the run has saved none yet.

        Raises:
            CheckpointError: there are checkpoints, but none of them is intact, or nothing says which are the run's.
        """
        found = self._newest_intact() if comm.is_main_process() and self.save_dir else _Found("")
        found = comm.all_gather(found)[0]
        if found.problem:
            raise CheckpointError(
                f"{found.problem} To start from the beginning, leave out --resume. MODEL.WEIGHTS can name weights of "
                "another folder."
            )
        return os.path.join(self.save_dir, found.file) if found.file else ""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / _LAST_CHECKPOINT, "w") as stream:
            stream.write(last_filename_basename)

    def begin(self, anew: bool) -> None:
        """Tidies the folder up before a training begins.

        Args:
            anew: forget the checkpoints of an earlier run in the folder, without deleting them.
        """
        if not self._saves():
            return
        folder = Path(self.save_dir)
        for unfinished in folder.glob(".*.tmp"):  # of a run that was killed while it saved
            unfinished.unlink()
        if not anew:
            return
        last = folder / _LAST_CHECKPOINT
        entries = self._manifest.entries()
        earlier = [*folder.glob(_CHECKPOINTS), *folder.glob(_LAST_CHECKPOINT)]
        if not earlier and not entries:
            return
        of_weights = {entry.file for entry in entries if not entry.has_state}
        if states := [file.name for file in earlier if file.name not in {_LAST_CHECKPOINT, *of_weights}]:
            listed = [entry.file for entry in entries if entry.file in states]
            name = self._named_last() or (listed or sorted(states))[-1]
            logging.getLogger(__name__).warning(
                f"{folder} has checkpoints of an earlier run. This run starts anew and may overwrite them. To go on "
                f"with the earlier run instead: stop, write {name} into {last}, and use --resume."
            )
        # One step: a run that is killed before it goes on with the earlier one, and after it starts from the beginning.
        self._manifest.begin(earlier)
        last.unlink(missing_ok=True)

    def _saves(self) -> bool:
        return bool(self.save_dir and self.save_to_disk)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content: dict[str, Any] = super()._load_file(filename)
        if self._check_content is not None:
            self._check_content(content)
        return content

    def _newest_intact(self) -> _Found:
        logger = logging.getLogger(__name__)
        folder = Path(self.save_dir)
        last = self._named_last()
        listed = dict.fromkeys(entry.file for entry in reversed(self._manifest.entries()) if entry.has_state)
        conditions = {}
        for file in dict.fromkeys([*filter(None, [last]), *listed]):
            conditions[file] = condition = self._manifest.condition_of(file)
            if condition in (Condition.INTACT, Condition.UNLISTED):
                if not last:
                    logger.warning(
                        f"{folder / _LAST_CHECKPOINT} does not name a checkpoint. The newest one in {MANIFEST} that is "
                        f"intact is {file}."
                    )
                return _Found(file)
            if condition is Condition.DAMAGED or file == last:
                logger.warning(f"{folder / file} is {condition.value}. Trying the checkpoint before it.")
        if last or Condition.DAMAGED in conditions.values():
            return _Found(
                problem=f"None of the checkpoints in {folder} is intact: all in {_LAST_CHECKPOINT} and {MANIFEST} are "
                "damaged or missing."
            )
        known = {entry.file for entry in self._manifest.entries()}
        strays = [file for file in folder.glob(_CHECKPOINTS) if file.name not in known]
        if unknown := [file.name for file in strays if not self._manifest.is_of_earlier_run(file)]:
            return _Found(
                problem=f"{folder} has checkpoints ({', '.join(sorted(unknown))}), but neither {_LAST_CHECKPOINT} nor "
                f"{MANIFEST} names one. To go on, write the name of one into {folder / _LAST_CHECKPOINT}."
            )
        return _Found("")

    def _named_last(self) -> str:
        """What last_checkpoint names; "" where it is missing, empty, no name of a file, or left by an earlier run."""
        file = Path(self.save_dir) / _LAST_CHECKPOINT
        if not file.is_file() or self._manifest.is_of_earlier_run(file):
            return ""
        name = file.read_text(encoding="utf-8", errors="replace").strip()
        is_name = name.isprintable() and "\ufffd" not in name and is_name_beside(file, name)
        if name and not is_name:
            logging.getLogger(__name__).warning(f"{file} holds {name[:60]!r}, which is no name of a file beside it.")
        return name if is_name else ""

    def _write(self, name: str, state: dict[str, Any], keep: int, has_state: bool) -> None:
        if not self._saves():
            return
        self.wait()  # the buffers are free again only then
        snapshot = {key: to_plain(part, f"checkpoint.{key}", self._buffers.copy) for key, part in state.items()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # once for all copies
        iteration = int(snapshot.get("iteration", -1))
        self._job = self._writer.submit(self._write_file, f"{name}.pth", iteration, snapshot, keep, has_state)

    def _write_file(self, file: str, iteration: int, snapshot: dict[str, Any], keep: int, has_state: bool) -> None:
        path = Path(self.save_dir) / file
        logging.getLogger(__name__).info(f"Saving checkpoint to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            hashing = HashingStream(stream)
            torch.save(snapshot, cast(IO[bytes], hashing))
            self._manifest.add(Entry(file, iteration, hashing.num_bytes, hashing.sha256, has_state))
        if has_state:
            self.tag_last_checkpoint(file)
        states = dict.fromkeys(entry.file for entry in self._manifest.entries() if entry.has_state)
        numbered = [file for file in states if Path(file).stem.rpartition("_")[2].isdigit()]
        if keep and (old := numbered[:-keep]):
            for file in old:
                (Path(self.save_dir) / file).unlink(missing_ok=True)
            self._manifest.forget(old)


class _SnapshotBuffers:
    """Copies of tensors in host memory, in buffers that are used again by the next copy.

    Memory that is used for the first time costs ten times what the copy costs; so `prepare` can do that beforehand.
    What lies on a GPU goes to page-locked memory, all of it at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def prepare(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).zero_()
            self._buffers[name] = buffer
        return buffer

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy, valid until the next one under that name; from a GPU it is complete once that is synchronized."""
        return self.prepare(name, tensor).copy_(tensor, non_blocking=True)

"""Kills a training at every one of its file-system operations, and the run that goes on from there at every one of its.

    python -m tests.engine.kill_harness                     # every operation; about ten minutes on one core
    python -m tests.engine.kill_harness --every 10          # every tenth
    python -m tests.engine.kill_harness --model LQR

A process imports everything once and forks a child for each kill. The child counts its operations: what it opens for
writing, every write to the disk, flush, renaming, removal and new folder. Before (or, of a write, in the midst of) the
n-th it is gone, as by kill -9. Then the run goes on with --resume until it ends, and must have come to what a run has
come to that was never killed: the same checkpoints, metrics and results, bit by bit, and a folder without remains.

The thread that writes checkpoints takes part in two ways: it writes "at once", when a save is asked for, or "late",
when somebody waits for it. Between the two lies every order in which a real thread may do it.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # imported once, before the processes are forked

import querypose.engine.checkpointer as checkpointer_module
from querypose.d2 import default_argument_parser
from querypose.engine import setup
from querypose.engine.manifest import Condition, Manifest
from tests.engine import mortal_run
from tests.tiny import ARCHITECTURES, TINY_MODEL

# Six iterations with checkpoints after the second, fourth and sixth, an evaluation after the third and the last.
SETTINGS: dict[str, Any] = {
    "LOG_PERIOD": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.STEPS": [4],
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.CHECKPOINTS_TO_KEEP": 2,
    "TEST.EVAL_PERIOD": 3,
    "TEST.BEST_METRIC": "keypoints/AP",
}
WRITERS = ("at once", "late")
# TensorBoard writes in a thread of its own, at times of its own; nothing is read back from there.
_NOT_COUNTED = ("events.out.tfevents",)


class Operations:
    """Counts the operations of this process in a folder, and ends it at one of them.

    Args:
        folder: operations elsewhere do not count.
        last: the number of the operation, from 1, that does not take place; 0: none.
    """

    def __init__(self, folder: Path, last: int = 0) -> None:
        self.names: list[str] = []
        self._folder = str(folder)
        self._last = last

    def install(self) -> None:
        """Watches the functions through which Python changes files, for the rest of this process."""
        self._open = builtins.open
        builtins.open = io.open = self._watched_open
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate"):
            self._watch(name, lambda path, *_, **__: path)
        self._watch("open", lambda path, flags=0, *_, **__: path if flags & os.O_CREAT else "")
        for name in ("fsync", "ftruncate", "pwrite"):
            self._watch(name, lambda descriptor, *_, **__: os.readlink(f"/proc/self/fd/{descriptor}"))

    def count(self, name: str, path: Any, before_death: Callable[[], None] = lambda: None) -> None:
        """Notes an operation that is about to take place."""
        if not str(path).startswith(self._folder) or any(part in str(path) for part in _NOT_COUNTED):
            return
        self.names.append(f"{name} {Path(str(path)).name}")
        if len(self.names) == self._last:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def _watch(self, name: str, path_of: Callable[..., Any]) -> None:
        original = getattr(os, name)

        def watched(*arguments: Any, **settings: Any) -> Any:
            self.count(name, path_of(*arguments, **settings))
            return original(*arguments, **settings)

        setattr(os, name, watched)

    def _watched_open(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **settings: Any) -> Any:
        if not set(mode) & set("wax+") or not isinstance(file, str | os.PathLike):
            return self._open(file, mode, buffering, *rest, **settings)
        self.count(f"open {mode}", os.path.abspath(file))
        buffered = io.BufferedWriter(_WatchedFile(os.path.abspath(file), mode.replace("b", "").replace("t", ""), self))
        if "b" in mode:
            return buffered
        stream = io.TextIOWrapper(buffered, encoding=settings.get("encoding"), errors=settings.get("errors"))
        stream.mode = mode  # type: ignore[misc]  # as open does
        return stream


class _WatchedFile(io.FileIO):
    """A file of which every write to the disk is an operation; one that is cut short leaves its first half."""

    def __init__(self, path: str, mode: str, operations: Operations) -> None:
        super().__init__(path, mode)
        self._operations = operations

    def write(self, content: Any, /) -> int:
        def write_half() -> None:
            os.write(self.fileno(), bytes(content)[: len(content) // 2])

        self._operations.count("write", self.name, write_half)
        return super().write(content) or 0


class _PunctualWriter:
    """In place of the thread that writes checkpoints; `prepare` and the writing are its jobs.

    Args:
        late: a job runs when somebody waits for its end, and not when it is handed over.
    """

    def __init__(self, late: bool) -> None:
        self._late = late

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future = _Waiting(lambda: job(*arguments))
        if not self._late:
            future.result()
        return future


class _Waiting(Future[Any]):
    """Runs its job at the first call of `result`."""

    def __init__(self, job: Callable[[], Any]) -> None:
        super().__init__()
        self._job: Callable[[], Any] | None = job

    def result(self, timeout: float | None = None) -> Any:
        if (job := self._job) is not None:
            self._job = None
            self.set_result(job())
        return super().result(timeout)


class Harness:
    """Runs one training again and again.

    Args:
        folder: receives a folder for each run, one at a time.
        model: "toy", or one of `tests.tiny.ARCHITECTURES`.
        writer: one of WRITERS.
    """

    def __init__(self, folder: Path, model: str = "toy", writer: str = "at once") -> None:
        self._folder = folder
        self._writer = writer
        self._config_file = mortal_run.write_config(folder / "config", **SETTINGS)
        self._overrides: list[str] = []
        if model != "toy":
            self._overrides = [
                *("MODEL.META_ARCHITECTURE", "QueryPose", *TINY_MODEL, *ARCHITECTURES[model]),
                *("SOLVER.BASE_LR", "0.001", "SOLVER.AMP.ENABLED", "False"),
            ]
        self.output = folder / "output"
        self.reference = folder / "reference" / "output"
        self.operations = self.run(0)
        self.output.parent.joinpath("reference").mkdir()
        shutil.copytree(self.output, self.reference)
        assert len(list(self.reference.glob("*.pth"))) == 4

    def run(self, last: int, *arguments: str) -> list[str]:
        """Trains in a process that ends before its operation `last`; gives the operations that it was about to do.

        Raises:
            AssertionError: the process ended otherwise: with 0 there is no such operation.
        """
        notes = self._folder / "operations.json"
        notes.unlink(missing_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._train(last, notes, arguments)
        _, status = os.waitpid(child, 0)
        if last:
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, self.log()
            return []
        assert os.waitstatus_to_exitcode(status) == 0, self.log()
        operations: list[str] = json.loads(notes.read_text())
        return operations

    def kills(self, every: int = 1, offset: int = 0) -> Iterator[int]:
        """The numbers of the operations to kill a run at."""
        return iter(range(1 + offset % every, len(self.operations) + 1, every))

    def kill_and_resume(self, first: int, second: int = 0) -> list[str]:
        """Kills a run at an operation, and if there is a second number, the run that goes on too; then lets it end.

        Returns:
            the operations of the run that ended.

        Raises:
            AssertionError: it has not come to the same end as a run that was never killed.
        """
        shutil.rmtree(self.output, ignore_errors=True)
        self.run(first)
        if second:
            self.run(second, "--resume")
        operations = self.run(0, "--resume")
        self.check_end()
        return operations

    def check_end(self) -> None:
        """Raises AssertionError unless the folder holds what a run that was never killed leaves."""
        mortal_run.assert_same_run(self._folder, self.reference.parent)
        for folder in (self.output, self.reference):
            manifest = Manifest(folder)
            assert {entry.file for entry in manifest.entries()} == {file.name for file in folder.glob("*.pth")}
            assert all(manifest.condition_of(entry.file) is Condition.INTACT for entry in manifest.entries())
        ours, theirs = (
            {
                str(file.relative_to(folder)): file.read_bytes() if file.parent.name == "inference" else None
                for file in folder.rglob("*")
                if file.is_file() and not any(part in file.name for part in _NOT_COUNTED)
            }
            for folder in (self.output, self.reference)
        )
        assert ours == theirs, "files and results"
        assert (self.output / "last_checkpoint").read_text() == "model_final.pth"

    def notices_a_loss(self) -> bool:
        """Whether `check_end` refuses a run that lacks a row of metrics.json; else it would prove nothing."""
        self.kill_and_resume(len(self.operations))
        metrics = self.output / "metrics.json"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
        try:
            self.check_end()
        except AssertionError:
            return True
        return False

    def log(self) -> str:
        """What the last process has printed."""
        file = self._folder / "printed.txt"
        return file.read_text(errors="replace")[-6000:] if file.is_file() else ""

    def _train(self, last: int, notes: Path, arguments: tuple[str, ...]) -> None:
        """The rest of a forked process."""
        code = 1
        with open(self._folder / "printed.txt", "w") as stream, redirect_stdout(stream), redirect_stderr(stream):
            try:
                operations = Operations(self.output, last)
                operations.install()
                vars(checkpointer_module)["ThreadPoolExecutor"] = lambda *_, **__: _PunctualWriter(
                    self._writer == "late"
                )
                command = ["--config-file", self._config_file, *arguments, *self._overrides]
                command += ["OUTPUT_DIR", str(self.output)]
                args = default_argument_parser().parse_args(command)
                trainer = mortal_run.FickleTrainer(setup(args))
                trainer.resume_or_load(resume=args.resume)
                trainer.train()
                notes.write_text(json.dumps(operations.names))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                stream.flush()
                os._exit(code)


@contextmanager
def harness(model: str = "toy", writer: str = "at once") -> Iterator[Harness]:
    """A `Harness` in a folder of its own; in memory where there is such a place, since a kill is not a power cut."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Harness(Path(folder), model, writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th operation only")
    parser.add_argument("--model", default="toy", choices=["toy", *ARCHITECTURES])
    parser.add_argument("--second-at", type=int, default=2, help="at so many of the kills the run that goes on is too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    failures = 0
    for writer in WRITERS:
        begin, count = time.monotonic(), 0
        with harness(args.model, writer) as tries:
            firsts = list(tries.kills(args.every))
            middles = [(2 * index + 1) * len(firsts) // (2 * args.second_at) for index in range(args.second_at)]
            chosen = {firsts[middle] for middle in middles}
            for first in firsts:
                seconds = [0]
                for second in seconds:
                    try:
                        operations = tries.kill_and_resume(first, second)
                    except AssertionError as error:
                        failures += 1
                        where = tries.operations[first - 1] + (f", then operation {second}" if second else "")
                        print(f"FAILED, killed at operation {first} ({where}): {str(error)[-2000:]}", flush=True)
                        continue
                    count += 1
                    if first in chosen and not second:
                        seconds += range(1, len(operations) + 1, args.every)
            if not tries.notices_a_loss():
                failures += 1
                print("FAILED: a lost row of metrics.json is not noticed", flush=True)
            print(
                f"{args.model}, writer {writer}: {len(tries.operations)} operations, {count} runs killed and resumed "
                f"to the same end, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()

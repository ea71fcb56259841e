"""Trainings of a toy in processes of their own, which can be killed at chosen moments, and their comparison."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tests.engine.toy_pose
from querypose.d2 import META_ARCH_REGISTRY, CfgNode, default_argument_parser
from querypose.data.loading import Samples
from querypose.engine import PoseTrainer, TrainStep, launch, setup
from querypose.engine.checkpointer import RunCheckpointer
from querypose.engine.hooks import PeriodicWriter
from querypose.engine.stop_signal import StopSignal
from querypose.modeling.pose_model import Batch

MAX_ITER = 20
# What a run computes is in none of these scalars of a row.
TIMINGS = {"time", "data_time", "eta_seconds", "images_per_second"}
# Everything that has a state, and a random choice wherever one can be made.
SETTINGS: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "NoisyToyPose",
    "LOG_PERIOD": 3,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MIN_SIZE_TRAIN": [40, 48, 56],
    "INPUT.CROP.PROBABILITY": 0.5,
    "INPUT.CROP.MIN_SIZE": [44, 48],
    "INPUT.CROP.SIZE": [30, 40],
    "SOLVER.MAX_ITER": MAX_ITER,
    "SOLVER.WARMUP_ITERS": 6,
    "SOLVER.STEPS": [14],
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.ACCUMULATION_STEPS": 2,
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.AMP.PRECISION": "float16",
    "TEST.EVAL_PERIOD": 5,
}


@META_ARCH_REGISTRY.register()
class NoisyToyPose(tests.engine.toy_pose.ToyPose):
    """The toy with noise from every random generator that a model may draw from."""

    def keypoints(self, batch: Batch) -> Tensor:
        keypoints = super().keypoints(batch)
        if not self.training:
            return keypoints
        noise = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002  # the generator in question
        return F.dropout(keypoints, 0.2) * noise


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def _in_iteration(iteration: int, act: Callable[[], None], rank: int = 0) -> None:
    original = TrainStep.accumulate_gradients

    def accumulate_gradients(self: TrainStep, *given: Any) -> Any:
        result = original(self, *given)
        if self.iter == iteration and int(os.environ.get("RANK", 0)) == rank:
            act()
        return result

    TrainStep.accumulate_gradients = accumulate_gradients  # type: ignore[method-assign, assignment]  # dies in it


def _while_writing(iteration: int) -> None:
    original = torch.save

    def save(snapshot: Any, stream: Any, **options: Any) -> None:
        if isinstance(snapshot, dict) and snapshot["iteration"] == iteration:
            stream.write(b"half of a checkpoint" * 1000)
            stream.flush()
            kill()
        original(snapshot, stream, **options)

    torch.save = save  # type: ignore[assignment]  # dies in it


def _before_renaming(file: str) -> None:
    original = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == file:
            kill()
        original(source, target)

    os.replace = replace  # type: ignore[assignment]  # dies in it


def _before_tagging(file: str) -> None:
    original = RunCheckpointer.tag_last_checkpoint

    def tag(self: RunCheckpointer, name: str) -> None:
        if name == file:
            kill()
        original(self, name)

    RunCheckpointer.tag_last_checkpoint = tag  # type: ignore[method-assign, assignment]  # dies in it


def _in_evaluation(iteration: int) -> None:
    original = PoseTrainer._evaluate

    def evaluate(self: PoseTrainer) -> Any:
        self.checkpointer.wait()
        result = original(self)
        if self.iter == iteration:
            kill()
        return result

    PoseTrainer._evaluate = evaluate  # type: ignore[method-assign]  # dies in it


def _in_line(iteration: int) -> None:
    """Leaves half of a line of metrics.json."""
    original = PeriodicWriter.after_step

    def after_step(self: PeriodicWriter) -> None:
        if self.trainer.iter == iteration:
            with open(self._metrics_file, "a") as stream:
                stream.write('{"iteration": 11, "lo')
            kill()
        original(self)

    PeriodicWriter.after_step = after_step  # type: ignore[method-assign]  # dies in it


def _signal_everything(number: int) -> None:
    """As a cluster does: this process and its loader processes get a signal from elsewhere."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    subprocess.run(["kill", f"-{number}", *map(str, processes)], check=True)


def _stop_loading(stop: Callable[[], None]) -> None:
    """Loader processes stop, and so the run waits; then SIGTERM comes."""
    StopSignal.PATIENCE = 0.5
    stop()
    threading.Timer(2.0, kill, (signal.SIGTERM,)).start()


def _stop_loader_processes() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGSTOP)


def _stop_loading_in_evaluation(iteration: int) -> None:
    original = PoseTrainer._evaluate

    def stop(self: Samples, draw: Any) -> Any:
        kill(signal.SIGSTOP)

    def evaluate(self: PoseTrainer) -> Any:
        if self.iter == iteration:
            _stop_loading(lambda: setattr(Samples, "__getitem__", stop))
        return original(self)

    PoseTrainer._evaluate = evaluate  # type: ignore[method-assign]  # waits in it


def _interrupt_twice() -> None:
    kill(signal.SIGINT)
    kill(signal.SIGINT)


DEATHS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: _in_iteration(2, kill),
    "in the midst of an iteration": lambda: _in_iteration(13, kill),
    "in rank 1": lambda: _in_iteration(13, kill, rank=1),
    "while a checkpoint is written": lambda: _while_writing(9),
    "before a checkpoint has its name": lambda: _before_renaming("model_0000009.pth"),
    "before last_checkpoint names it": lambda: _before_tagging("model_0000009.pth"),
    "before last_checkpoint names the final one": lambda: _before_tagging("model_final.pth"),
    "in an evaluation": lambda: _in_evaluation(14),
    "in a line of metrics.json": lambda: _in_line(11),
    "by SIGTERM": lambda: _in_iteration(11, lambda: _signal_everything(signal.SIGTERM)),
    "by SIGINT": lambda: _in_iteration(11, lambda: _signal_everything(signal.SIGINT)),
    "by SIGTERM where an evaluation is due": lambda: _in_iteration(14, lambda: kill(signal.SIGTERM)),
    "by SIGTERM between two rows of metrics.json": lambda: _in_iteration(12, lambda: kill(signal.SIGTERM)),
    "by SIGTERM while loader processes are stopped": lambda: _in_iteration(
        11, lambda: _stop_loading(_stop_loader_processes)
    ),
    "by SIGTERM while loader processes of an evaluation are stopped": lambda: _stop_loading_in_evaluation(9),
    "by SIGTERM to rank 1": lambda: _in_iteration(11, lambda: kill(signal.SIGTERM), rank=1),
    "by two SIGINT": lambda: _in_iteration(11, _interrupt_twice),
}


def _run(arguments: Sequence[str], death: str | None, environment: Mapping[str, str], log: str) -> None:
    """In a process of its own."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for loader processes that start at once
    torch.set_num_threads(1)
    with open(log, "a") as stream, redirect_stdout(stream), redirect_stderr(stream):
        if death is not None:
            DEATHS[death]()
        try:
            launch(_main, default_argument_parser().parse_args(list(arguments)))
        except Exception:
            traceback.print_exc()
            raise


class FickleTrainer(PoseTrainer):
    """Evaluates, and then gives an AP that follows from the weights but rises and falls."""

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        results = super().test(cfg, model, evaluators)
        if results:
            weights = torch.cat([parameter.double().flatten() for parameter in model.parameters()])
            results["keypoints"]["AP"] = weights.abs().sum().item() * 1000 % 100
        return results


def _main(args: Any) -> None:
    cfg = setup(args)
    trainer = FickleTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def write_config(folder: Path, **settings: Any) -> str:
    """Writes the toy's config file, with `SETTINGS` and `settings` as in `train`; gives its path."""
    folder.mkdir(exist_ok=True)
    file = tests.engine.toy_pose.write_toy_config(folder)
    config = json.loads(file.read_text())
    for key, value in (SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}).items():
        *parents, leaf = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    file.write_text(json.dumps(config))
    return str(file)


def train(
    folder: Path, *arguments: str, death: str | None = None, processes: int = 1, **settings: Any
) -> list[int | None]:
    """Trains the toy into `folder`/output; gives the exit codes of the processes.

    Args:
        folder: `folder`/log.txt receives what the processes print.
        arguments: of the command line.
        death: one of `DEATHS`, or None.
        processes: number of them; they exchange gradients by gloo.
        settings: YAML keys with __ for the dots.
    """
    command = ["--config-file", write_config(folder, **settings), *arguments]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for rank in range(processes):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        log = str(folder / f"log{rank}.txt")
        run = (command, death, environment if processes > 1 else {}, log)
        started.append(context.Process(target=_run, args=run))
        started[-1].start()
    for process in started:
        process.join(600)  # far more than it needs on a busy machine
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"A process of {folder} does not end:\n{log_of(folder)}")
    return [process.exitcode for process in started]


def log_of(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("log*.txt")))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.json, without what depends on the clock."""
    lines = (folder / "output" / "metrics.json").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def assert_same_run(folder: Path, reference: Path) -> None:
    """Weights, optimizer, schedule, averages, scaler, random states, best checkpoint, and metrics, bit by bit."""
    for file in ("model_final.pth", "model_best.pth"):
        ours, theirs = (torch.load(run / "output" / file, weights_only=True) for run in (folder, reference))
        _assert_same(_without_timings(ours), _without_timings(theirs), file)
    assert metrics_of(folder) == metrics_of(reference)


def _without_timings(state: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint without the pending scalars that depend on the clock, and the config, which has paths."""
    if "trainer" in state:
        writer = state["trainer"]["hooks"]["PeriodicWriter"]
        state["run"].pop("config")
        writer["pending"] = [scalar for scalar in writer["pending"] if scalar[0] not in TIMINGS]
    return state


def _assert_same(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, Mapping):
        assert list(ours) == list(theirs), where
        for key, value in ours.items():
            _assert_same(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, value in enumerate(ours):
            _assert_same(value, theirs[index], f"{where}[{index}]")
    else:
        assert ours == theirs, where


def _train_from_command_line() -> None:
    """One of torchrun's processes, or the launcher; MORTAL_RUN_DEATH in the environment kills its first start."""
    if "MORTAL_RUN_DEATH" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        DEATHS[os.environ["MORTAL_RUN_DEATH"]]()
    torch.set_num_threads(1)
    launch(_main, default_argument_parser().parse_args())


if __name__ == "__main__":
    _train_from_command_line()

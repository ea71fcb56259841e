"""What a benchmark measures: a training iteration, inference, loading, and the count of operations.

A subject prepares everything when it is built: `step` alone is timed. Each lives in a process of its own, so that the
peak of its memory is its own.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from querypose.analysis.complexity import measure_complexity
from querypose.analysis.operation_meter import COSTS, KINDS, Operation, OperationMeter, measure_best_rates
from querypose.analysis.part_meter import BACKWARD, FORWARD, UPDATE, PartMeter, Reading
from querypose.config import ConfigError, load_config
from querypose.d2 import CfgNode, EventStorage, seed_all_rng
from querypose.data import build_test_loader, register_custom_datasets
from querypose.engine import PoseTrainer
from querypose.engine.predictor import PosePredictor
from querypose.engine.progress import peak_memory
from querypose.engine.schedule import with_iterations
from querypose.engine.setup import prepare_process
from querypose.modeling import PoseModel
from querypose.modeling.pose_model import Batch

NUM_BATCHES = 4
EPOCH = 1000.0
STEPS_BEFORE_OPERATIONS = 2
"""Of which the first makes the optimizer's state; then memory that is freed is found again."""


@dataclass(frozen=True)
class Workload:
    """What a subject works on.

    Attributes:
        config_file: the experiment, None for the defaults.
        overrides: KEY VALUE pairs.
        imports: modules to import first, as of --import.
        image_size: height and width of the random images, in pixels.
        persons: in every random image.
        batch_size: images of a step; None is 2 in training and 1 in inference.
        depth: how many names of a module's path tell parts apart.
        real_data: train and infer on batches of the config's own loaders in place of random ones.
        row: of the config file, where that is a table of ablations.
    """

    config_file: str | None
    overrides: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    image_size: tuple[int, int] = (800, 1066)
    persons: int = 4
    batch_size: int | None = None
    depth: int = 2
    real_data: bool = False
    row: str | None = None

    def load(self) -> CfgNode:
        """The config, with its datasets registered.

        Raises:
            ConfigError: there is no such file, or it cannot be used.
        """
        try:
            cfg = load_config(self.config_file, self.overrides, self.imports, row=self.row)
        except FileNotFoundError as error:
            raise ConfigError(f"--config-file: {error}") from error
        register_custom_datasets(cfg)
        return cfg


class Clock:
    """Readings of time, of the GPU's own where there is one, so that nothing waits for a reading."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def read(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two readings, once the device has come past them."""
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds from the call until the device has finished; torch's timer waits for the device."""
    start = timer()
    work()
    return float(timer() - start)


class Subject:
    """Something to measure.

    Attributes:
        images_per_step: what throughput counts.
        steady: whether steps take the same time each; else throughput is over all of them, not the median's.
    """

    images_per_step = 0
    steady = True

    def step(self) -> float:
        """Does it once; seconds."""
        raise NotImplementedError

    def parts(self) -> dict[str, float]:
        """Does it once more, noting which part runs; seconds by part."""
        return {}

    def result(self) -> dict[str, Any]:
        """What there is to say besides times."""
        return {"peak_memory": peak_memory()}

    def trace(self, file: Path) -> None:
        """Does it once under torch.profiler, and writes what ran when."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with torch.profiler.profile() as profile:
            self.step()
        profile.export_chrome_trace(str(file))


class TrainingSubject(Subject):
    """One iteration of the trainer. Parts: those of the forward pass, backward, and update: clipping and optimizer."""

    def __init__(self, workload: Workload) -> None:
        # Without data an epoch has no length; this one is longer than any measurement.
        cfg = with_iterations(_prepared(workload, batch_size=2), EPOCH)
        cfg.LOG_PERIOD = 10**9  # logging is not what is measured
        cfg.DATASETS.CHECK = "off"
        self._trainer = _TrainerWithoutData(cfg)
        self._trainer.resume_or_load(resume=False)
        self._trainer.model.train()
        self._trainer.iter = 0
        self._model = self._trainer.step.pose_model
        batches = _batches(workload, self._model, cfg, lambda: PoseTrainer.build_train_loader(cfg))
        self._trainer.step.data_loader = itertools.cycle(batches)
        self._clock = Clock(torch.device(cfg.MODEL.DEVICE))
        self._depth = workload.depth
        self._storage = EventStorage(0)
        self.images_per_step = len(batches[0])

    def step(self) -> float:
        with self._storage:
            seconds = seconds_of(self._trainer.run_step)
        self._trainer.iter += 1
        return seconds

    def parts(self) -> dict[str, float]:
        return _by_part(self._step_in_parts(self._clock.read), self._clock)

    def _step_in_parts(self, read: Callable[[], Reading]) -> PartMeter[Reading]:
        """Does it once more, under a meter."""
        step = self._trainer.step
        accumulate = step.accumulate_gradients
        with PartMeter(self._model, self._depth, read, outside=UPDATE) as meter:

            def metered(*given: Any) -> tuple[tuple[str, ...], Tensor]:
                with meter.running(BACKWARD):  # less the forward pass, whose parts come on top
                    return accumulate(*given)

            step.accumulate_gradients = metered  # type: ignore[method-assign, assignment]  # for this step alone
            try:
                self.step()
            finally:
                del step.accumulate_gradients
        return meter


class OperationsSubject(TrainingSubject):
    """The operations of one training iteration on a CPU: what they cost, and what the machine can do at best.

    Raises:
        ConfigError: MODEL.DEVICE is a GPU, which computes them later than they are called.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        if (device := next(self._model.parameters()).device.type) != "cpu":
            raise ConfigError(
                f"--what operations measures a CPU, but MODEL.DEVICE is {device}. Set MODEL.DEVICE cpu, or see what a "
                "GPU does with --what train --trace DIR."
            )

    def result(self) -> dict[str, Any]:
        """Core seconds, floating-point operations and bytes by pass and kind, and the best rates of a core."""
        for _ in range(STEPS_BEFORE_OPERATIONS):
            self.step()
        with OperationMeter() as operation_meter:
            meter = self._step_in_parts(lambda: len(operation_meter.operations))
        found: defaultdict[tuple[str, str], list[Operation]] = defaultdict(list)
        for span in meter.spans:
            part = span.part if span.part in (BACKWARD, UPDATE) else FORWARD
            for operation in operation_meter.operations[span.start : span.end]:
                found[part, operation.kind].append(operation)
        work = {
            part: {
                kind: {cost: sum(getattr(operation, cost) for operation in found[part, kind]) for cost in COSTS}
                for kind in KINDS
            }
            for part in (FORWARD, BACKWARD, UPDATE)
        }
        return {"work": work, "best_rates": measure_best_rates()._asdict()}


class InferenceSubject(Subject):
    """The model as the predictor uses it: a batch in, poses on the CPU out. Reading and resizing are not in it."""

    def __init__(self, workload: Workload) -> None:
        cfg = _prepared(workload, batch_size=1)
        self._predict = PosePredictor(cfg).model
        self._model: PoseModel = self._predict.model
        batches = _batches(workload, self._model, cfg, lambda: build_test_loader(cfg, cfg.DATASETS.TEST[0]))
        self._batches = itertools.cycle(batches)
        self._clock = Clock(torch.device(cfg.MODEL.DEVICE))
        self._depth = workload.depth
        self.images_per_step = len(batches[0])
        self._refined: list[bool] = []

    def step(self) -> float:
        batch = next(self._batches)

        def infer() -> None:
            for output in self._predict(batch):
                instances = output["instances"].to("cpu")
                if instances.has("refined_patches"):
                    self._refined.append(bool(instances.refined_patches.any()))

        with torch.inference_mode():
            return seconds_of(infer)

    def result(self) -> dict[str, Any]:
        """Also the share of the crops that a coarse-to-fine model refined."""
        share = {"refined": sum(self._refined) / len(self._refined)} if self._refined else {}
        return {**super().result(), **share}

    def parts(self) -> dict[str, float]:
        with PartMeter(self._model, self._depth, self._clock.read) as meter:
            self.step()
        return _by_part(meter, self._clock)


class LoadingSubject(Subject):
    """A batch of the training loader: reading, augmenting, and handing over by the workers."""

    steady = False  # workers hand over in bursts

    def __init__(self, workload: Workload) -> None:
        cfg = workload.load()
        if workload.batch_size is not None:
            cfg.SOLVER.IMS_PER_BATCH = workload.batch_size
        self._loader = iter(PoseTrainer.build_train_loader(cfg))
        self.images_per_step = cfg.SOLVER.IMS_PER_BATCH

    def step(self) -> float:
        return seconds_of(lambda: next(self._loader))


class ComplexitySubject(Subject):
    """Parameters and operations by part; nothing is timed."""

    def __init__(self, workload: Workload) -> None:
        self._complexity = measure_complexity(workload.load(), image_size=workload.image_size, depth=workload.depth)

    def result(self) -> dict[str, Any]:
        complexity = self._complexity
        return {
            "image_size": list(complexity.image_size),
            "parameters": dict(complexity.parameters),
            "flops": dict(complexity.flops),
        }


SUBJECTS: Mapping[str, Callable[[Workload], Subject]] = {
    "complexity": ComplexitySubject,
    "train": TrainingSubject,
    "operations": OperationsSubject,
    "inference": InferenceSubject,
    "data": LoadingSubject,
}
UNTIMED = ("complexity", "operations")
"""Subjects with a result, but without steps to time."""


def _prepared(workload: Workload, batch_size: int) -> CfgNode:
    """The config of a run in this process, now prepared and seeded; pretrained weights are not fetched."""
    cfg = workload.load()
    prepare_process(cfg)
    seed_all_rng(0)
    cfg.MODEL.BACKBONE.PRETRAINED = False
    cfg.SOLVER.IMS_PER_BATCH = cfg.TEST.IMS_PER_BATCH = workload.batch_size or batch_size
    return cfg


class _TrainerWithoutData(PoseTrainer):
    """Gets its batches later, as those of noise are made by its model; no dataset needs to be there."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        return ()


def _batches(workload: Workload, model: PoseModel, cfg: CfgNode, loader: Callable[[], Any]) -> list[Batch]:
    """Batches to compute on, in memory: of noise, or of `loader`."""
    if workload.real_data:
        return list(itertools.islice(loader(), NUM_BATCHES))
    size, num_images = workload.image_size, cfg.SOLVER.IMS_PER_BATCH
    return [
        model.example_batch(size, num_images=num_images, num_instances=workload.persons, seed=seed)
        for seed in range(NUM_BATCHES)
    ]


def _by_part(meter: PartMeter[Any], clock: Clock) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for span in meter.spans:
        seconds[span.part] += clock.seconds(span.start, span.end)
    return dict(seconds)

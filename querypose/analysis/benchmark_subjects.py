"""What a benchmark measures: a training iteration, inference, loading, evaluation, and the count of operations.

A subject prepares everything when it is built, so that `step` is what is timed. Each lives in a process of its own, for
the peak of its memory to be its own.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer

from querypose.analysis.complexity import measure_complexity
from querypose.analysis.part_meter import PartMeter
from querypose.analysis.random_data import (
    ImageSize,
    random_batch,
    random_coco,
    random_detections,
)
from querypose.config import ConfigError, load_config
from querypose.d2 import META_ARCH_REGISTRY, CfgNode, EventStorage, seed_all_rng
from querypose.data import read_annotations, register_custom_datasets
from querypose.engine import PoseTrainer
from querypose.engine.predictor import PosePredictor
from querypose.engine.progress import peak_memory
from querypose.engine.setup import prepare_process
from querypose.evaluation import find_metric, read_detections
from querypose.skeleton import skeleton_of_datasets

NUM_RANDOM_BATCHES = 4
EVALUATION_IMAGES = 5000
EVALUATION_DETECTIONS = 20
EVALUATION_PERSONS = 3

Batch = list[dict[str, Any]]


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
    image_size: ImageSize = (800, 1066)
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
        """The reading of the moment."""
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
        cfg = _prepared(workload.load())
        cfg.LOG_PERIOD = 10**9  # logging is not what is measured
        loader = PoseTrainer.build_train_loader if workload.real_data else None
        batches = _batches(workload, cfg, 2, loader)
        self._trainer = _trainer_on(batches, cfg)
        self._trainer.resume_or_load(resume=False)
        self._trainer.model.train()
        self._trainer.iter = 0
        self._clock = Clock(torch.device(cfg.MODEL.DEVICE))
        self._model = _meta_architecture(self._trainer.model, cfg)
        self._depth = workload.depth
        self._storage = EventStorage(0)
        self.images_per_step = len(batches[0])

    def step(self) -> float:
        """One iteration."""
        with self._storage:
            seconds = seconds_of(self._trainer.run_step)
        self._trainer.iter += 1
        return seconds

    def parts(self) -> dict[str, float]:
        """One iteration, noting its parts."""
        step = self._trainer._trainer
        accumulate = step.accumulate_gradients
        with PartMeter(self._model, self._depth, self._clock.read, outside="update") as meter:

            def metered(*given: Any) -> tuple[tuple[str, ...], Tensor]:
                with meter.running("backward"):  # less the forward pass, whose parts come on top
                    return accumulate(*given)

            step.accumulate_gradients = metered  # type: ignore[method-assign, assignment]  # for this step alone
            try:
                self.step()
            finally:
                del step.accumulate_gradients
        return _by_part(meter, self._clock)


class InferenceSubject(Subject):
    """The model as the predictor uses it: a batch in, poses on the CPU out. Reading and resizing are not in it."""

    def __init__(self, workload: Workload) -> None:
        cfg = _prepared(workload.load())
        self._predict = PosePredictor(cfg).model
        loader = None
        if workload.real_data:
            loader = lambda cfg: PoseTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])  # noqa: E731
        self._batches = itertools.cycle(_batches(workload, cfg, 1, loader))
        self._clock = Clock(torch.device(cfg.MODEL.DEVICE))
        self._model = _meta_architecture(self._predict, cfg)
        self._depth = workload.depth
        self.images_per_step = workload.batch_size or 1
        self._refined: list[bool] = []

    def step(self) -> float:
        """One batch."""
        batch = next(self._batches)
        return seconds_of(lambda: self._infer(batch))

    def result(self) -> dict[str, Any]:
        """Also the share of the crops that a coarse-to-fine model refined."""
        share = {"refined": sum(self._refined) / len(self._refined)} if self._refined else {}
        return {**super().result(), **share}

    def parts(self) -> dict[str, float]:
        """One batch, noting its parts."""
        with PartMeter(self._model, self._depth, self._clock.read) as meter:
            self.step()
        return _by_part(meter, self._clock)

    @torch.inference_mode()
    def _infer(self, batch: Batch) -> None:
        for output in self._predict(batch):
            instances = output["instances"].to("cpu")
            if instances.has("refined_patches"):
                self._refined.append(bool(instances.refined_patches.any()))


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
        """The next batch."""
        return seconds_of(lambda: next(self._loader))


class EvaluationSubject(Subject):
    """The metrics of 5,000 images with 20 detections each, from annotations and results in memory."""

    images_per_step = EVALUATION_IMAGES

    def __init__(self, workload: Workload) -> None:
        cfg = workload.load()
        random = np.random.default_rng(0)
        skeleton = skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        coco = random_coco(random, EVALUATION_IMAGES, (480, 640), EVALUATION_PERSONS, skeleton)
        self._results = random_detections(random, coco, EVALUATION_DETECTIONS)
        with tempfile.TemporaryDirectory() as folder:
            json_file = Path(folder) / "annotations.json"
            json_file.write_text(json.dumps(coco), encoding="utf-8")
            self._annotations = read_annotations(json_file, None, skeleton)
        self._metric = find_metric("coco", "the metric")

    def step(self) -> float:
        """One evaluation."""
        return seconds_of(lambda: self._metric(self._annotations, read_detections(self._results, self._annotations)))


class ComplexitySubject(Subject):
    """Parameters and operations by part; nothing is timed."""

    def __init__(self, workload: Workload) -> None:
        self._complexity = measure_complexity(workload.load(), image_size=workload.image_size, depth=workload.depth)

    def result(self) -> dict[str, Any]:
        """The counts."""
        complexity = self._complexity
        return {
            "image_size": list(complexity.image_size),
            "parameters": dict(complexity.parameters),
            "flops": dict(complexity.flops),
        }


SUBJECTS: Mapping[str, Callable[[Workload], Subject]] = {
    "complexity": ComplexitySubject,
    "train": TrainingSubject,
    "inference": InferenceSubject,
    "data": LoadingSubject,
    "evaluation": EvaluationSubject,
}


def _prepared(cfg: CfgNode) -> CfgNode:
    """The config of a run in this process, now prepared and seeded; pretrained weights are not fetched."""
    prepare_process(cfg)
    seed_all_rng(0)
    cfg.MODEL.BACKBONE.PRETRAINED = False
    return cfg


def _trainer_on(batches: Sequence[Batch], cfg: CfgNode) -> PoseTrainer:
    """A trainer whose loader gives these batches, round and round."""

    class TrainerOnBatches(PoseTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Iterator[Batch]:
            return itertools.cycle(batches)

    cfg.DATASETS.CHECK = "off"  # none is read
    return TrainerOnBatches(cfg)


def _meta_architecture(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """The model itself, where it is wrapped in others."""
    kind = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return next(module for module in model.modules() if isinstance(module, kind))


def _batches(
    workload: Workload, cfg: CfgNode, default_size: int, loader: Callable[[CfgNode], Any] | None
) -> list[Batch]:
    """Batches to compute on, in memory."""
    num_images = workload.batch_size or default_size
    if loader is None:
        skeleton = skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        random = np.random.default_rng(0)
        size, persons = workload.image_size, workload.persons
        if cfg.INPUT.PIPELINE == "person_crops":
            size, persons = tuple(cfg.INPUT.PERSON_CROP.SIZE), 1
        return [random_batch(random, num_images, size, persons, skeleton) for _ in range(NUM_RANDOM_BATCHES)]
    cfg = cfg.clone()
    cfg.SOLVER.IMS_PER_BATCH = cfg.TEST.IMS_PER_BATCH = num_images
    return list(itertools.islice(loader(cfg), NUM_RANDOM_BATCHES))


def _by_part(meter: PartMeter[Any], clock: Clock) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for span in meter.spans:
        seconds[span.part] += clock.seconds(span.start, span.end)
    return dict(seconds)

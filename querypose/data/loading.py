"""Loading in two layers: `Samples` makes a sample of a record and a seed; a batch sampler chooses records and order.

torch's `DataLoader` does the rest; a batch is a list of samples.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from querypose.d2 import CfgNode, comm
from querypose.data.bad_images import BadImages
from querypose.data.image_io import ImageReadError, ImageSizeError
from querypose.data.loader_failures import WatchedLoader
from querypose.data.pipelines import Pipeline, build_pipeline
from querypose.data.training_order import Draw, TrainingOrder

Batch = list[dict[str, Any]]


class Samples(Dataset[dict[str, Any]]):
    """The samples that a pipeline makes of records, each with random numbers of its own.

    Records are kept pickled in one tensor. Forked loader processes read it in place: a list of dicts would be copied
    page by page, since Python counts references in it. Spawned processes get the tensor in shared memory.
    """

    def __init__(
        self, records: Sequence[dict[str, Any]], pipeline: Pipeline, max_bad_images: float | None = None
    ) -> None:
        """Pickles the records.

        Args:
            records: of the pipeline.
            pipeline: makes a sample of a record.
            max_bad_images: share of the images that may be bad; another record takes the place of each. None: a bad
                image is an error.
        """
        pickled = [np.frombuffer(pickle.dumps(record, protocol=-1), dtype=np.uint8) for record in records]
        self._ends = torch.from_numpy(np.cumsum([len(record) for record in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *pickled]))
        self._pipeline = pipeline
        self.bad_images: BadImages | None = None
        if max_bad_images is not None:
            self.bad_images = BadImages(len({record["file_name"] for record in records}), max_bad_images)

    def __len__(self) -> int:
        return len(self._ends)

    def record(self, index: int) -> dict[str, Any]:
        """A fresh copy."""
        begin = int(self._ends[index - 1]) if index else 0
        record: dict[str, Any] = pickle.loads(self._bytes[begin : int(self._ends[index])].numpy().data)
        return record

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The sample of a place in the order: the same for the same record and seed, in any process.

        Raises:
            ImageReadError, ImageSizeError: the image cannot be used, and no image may be skipped.
            TooManyBadImagesError: too many images cannot be used.
        """
        index = draw.record
        with seeded_generators(draw.seed):
            generator = np.random.default_rng(np.random.randint(2**32, dtype=np.uint64))  # noqa: NPY002  # seeded above
            while True:
                record = self.record(index)
                try:
                    sample = self._pipeline.sample(record, generator)
                except (ImageReadError, ImageSizeError) as error:
                    if self.bad_images is None:
                        raise
                    self.bad_images.add(str(record["file_name"]), error)
                    index = random.randrange(len(self))
                else:
                    if self.bad_images is not None:
                        self.bad_images.end_row()
                    return sample


def build_train_loader(cfg: CfgNode) -> WatchedLoader:
    """Endless batches of DATASETS.TRAIN, augmented, without the images that cannot be read."""
    pipeline = build_pipeline(cfg, is_train=True)
    records = pipeline.records(cfg.DATASETS.TRAIN)
    is_grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    groups = np.array([is_grouped and pipeline.is_landscape(record) for record in records])
    return data_loader(
        Samples(records, pipeline, cfg.DATALOADER.MAX_BAD_IMAGES),
        TrainingOrder(groups, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED),
        cfg.DATALOADER.NUM_WORKERS,
        cfg.DATALOADER.TIMEOUT,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> WatchedLoader:
    """Every sample of a dataset once over all processes, TEST.IMS_PER_BATCH at a time.

    An image that cannot be read is an error. If it were left out, it would count as an image without a detection, and
    the metrics would be wrong.
    """
    pipeline = build_pipeline(cfg, is_train=False)
    samples = Samples(pipeline.records([dataset_name]), pipeline)
    # Each process takes one contiguous run; lengths differ by one at most.
    bounds = np.linspace(0, len(samples), comm.get_world_size() + 1).round().astype(int).tolist()
    begin, end = bounds[comm.get_rank() :][:2]
    draws = [Draw(index, (0, index)) for index in range(begin, end)]
    size = cfg.TEST.IMS_PER_BATCH
    batches = [draws[first : first + size] for first in range(0, len(draws), size)]
    return data_loader(samples, batches, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TIMEOUT)


def data_loader(
    samples: Samples, batches: Iterable[list[Draw]], num_workers: int, timeout: float = 600.0
) -> WatchedLoader:
    """A loader of `batches`; its processes ignore the signals that stop a run, and end when the run ends.

    Args:
        samples: what the batches draw from.
        batches: the batch sampler.
        num_workers: loader processes; 0 loads in this one.
        timeout: seconds without a batch after which loader processes are given up.
    """
    return WatchedLoader(
        samples,
        batch_sampler=batches,
        timeout=timeout,
        num_workers=num_workers,
        worker_init_fn=_outlive_stop_signals,
        generator=torch.Generator(),  # else a loader draws from the generator that the model draws from
    )


@contextlib.contextmanager
def seeded_generators(seed: Sequence[int]) -> Iterator[None]:
    """Within the context the generators of random, numpy and torch (CPU) start from `seed`; then they are restored.

    So an augmentation that draws from one of them, instead of the generator that it is given, is reproducible too.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(seed).generate_state(3).tolist()
    try:
        random.seed(python_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002
        torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed would seed the GPU's too
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def _outlive_stop_signals(worker_id: int) -> None:
    """Makes a loader process ignore the signals that Ctrl-C or a cluster sends to every process of a run.

    After such a signal the training process finishes its iteration and saves, and needs its loader processes for that.
    They end when its queues tell them to, or when it has ended; a `WatchedLoader` kills those that do not.
    """
    # Of the whole process: a mask would be that of one thread, and a library's thread would take the signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

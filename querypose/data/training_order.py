"""Which image stands where in a training, and which random numbers it meets there: a function of seed and place alone.

A training reads an endless stream of samples: one shuffle of the dataset after the other. `TrainingOrder` cuts the
stream into the batches of all processes together, and then cuts each batch into the shares of the processes; so the
number of processes and of loader processes changes neither a batch nor the order of batches. `SeededSamples` seeds
every random generator for each sample anew, by the sample's position in the stream. Nothing of this has a memory:
to go on at batch n, begin at batch n.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from querypose.d2 import DatasetFromList, build_detection_train_loader, comm

# Keep the random numbers of shuffles and of samples apart.
_SHUFFLE, _SAMPLE = 0, 1
_ATTEMPTS = 100


class Sample(NamedTuple):
    """A place in a training: `position` in the stream of samples, and the number of the `record` there."""

    position: int
    record: int


class TrainingOrder(Sampler[Sample]):
    """The samples of this process, batch after batch from the batch `start` on, without end.

    Attributes:
        start: the batch (of all processes together) to begin with, from 0.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int) -> None:
        """Takes rank and number of processes from `comm`.

        Args:
            groups: (number of records,), any values; a batch has records of one group alone.
            batch_size: samples of a batch over all processes, a multiple of their number.
            seed: of the shuffles, the same in all processes.
        """
        self.start = 0
        self.batch_size = batch_size
        self._groups = groups
        self._seed = seed
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[Sample]:
        share = self.batch_size // self._world_size
        for batch in self.batches(self.start):
            yield from batch[self._rank * share : (self._rank + 1) * share]

    def batches(self, start: int = 0) -> Iterator[list[Sample]]:
        """The batches of all processes together, from the `start`-th on.

        Every group fills batches of its own in the order of the stream; a batch comes when its last sample has come.
        """
        size = len(self._groups)
        counts = {group: int(count) for group, count in zip(*np.unique(self._groups, return_counts=True), strict=True)}
        # Every shuffle has all records of a group, so that the batches that were full before it are known at once.
        epoch = start * self.batch_size // size
        full = {group: epoch * count // self.batch_size for group, count in counts.items()}
        of_groups = [self._batches_of_group(group, counts[group], full[group]) for group in counts]
        in_order = heapq.merge(*of_groups, key=lambda batch: batch[-1].position)
        return itertools.islice(in_order, start - sum(full.values()), None)

    def _batches_of_group(self, group: Any, count: int, start: int) -> Iterator[list[Sample]]:
        samples = self._samples_of_group(group, *divmod(start * self.batch_size, count))
        while True:
            yield list(itertools.islice(samples, self.batch_size))

    def _samples_of_group(self, group: Any, epoch: int, skipped: int) -> Iterator[Sample]:
        size = len(self._groups)
        while True:
            shuffle = np.random.default_rng((self._seed, _SHUFFLE, epoch)).permutation(size)
            for place in np.flatnonzero(self._groups[shuffle] == group)[skipped:].tolist():
                yield Sample(epoch * size + place, int(shuffle[place]))
            epoch, skipped = epoch + 1, 0


class SeededSamples(Dataset[Any]):
    """Mapped records, each with random numbers of its own: a mapper may draw from random, numpy and torch."""

    def __init__(self, records: Any, mapper: Callable[[dict[str, Any]], Any], seed: int) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, sample: Sample) -> Any:
        """The mapped record. Where the mapper gives None another record is drawn, by the sample's random numbers.

        Raises:
            ValueError: it gave None for many records in a row.
        """
        record = sample.record
        with seeded_generators((self._seed, _SAMPLE, sample.position)):
            for _ in range(_ATTEMPTS):
                if (mapped := self._mapper(self._records[record])) is not None:
                    return mapped
                record = random.randrange(len(self))
        raise ValueError(f"The mapper gave None {_ATTEMPTS} times in a row, the first time for record {sample.record}.")


class TrainingBatches:
    """Endless training batches of this process: lists of mapped records.

    Attributes:
        start: the batch to begin with when the next iterator is made.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        *,
        batch_size: int,
        seed: int,
        aspect_ratio_grouping: bool,
        num_workers: int,
    ) -> None:
        """Loads nothing yet.

        Args:
            records: of the dataset.
            mapper: makes a sample of a record.
            batch_size: samples of a batch over all processes.
            seed: of order and augmentation; negative draws one, the same for all processes, all of which must call.
            aspect_ratio_grouping: a batch has images that are wider than high, or images that are not; by the
                "width" and "height" of the records. Deviates: detectron2 groups in each process by itself, so that its
                batches depend on the number of processes.
            num_workers: loader processes; 0 loads in this one.
        """
        self.start = 0
        self.batch_size = batch_size
        self.num_records = len(records)
        self._seed = comm.shared_random_seed() if seed < 0 else seed
        self._groups = np.array([aspect_ratio_grouping and record["width"] > record["height"] for record in records])
        self._records, self._mapper = DatasetFromList(records), mapper
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[list[Any]]:
        order = TrainingOrder(self._groups, self.batch_size, self._seed)
        order.start = self.start
        loader: Iterable[list[Any]] = build_detection_train_loader(
            SeededSamples(self._records, self._mapper, self._seed),
            mapper=None,
            sampler=order,
            total_batch_size=self.batch_size,
            aspect_ratio_grouping=False,  # the order has grouped them
            num_workers=self._num_workers,
            seed=self._seed,  # else the loader draws one from the generator that the model draws from
        )
        return iter(loader)

    def state_dict(self) -> dict[str, int]:
        """What the order follows from, besides the batch it has come to."""
        return {"seed": self._seed, "batch_size": self.batch_size, "num_records": self.num_records}

    def resume(self, state: Mapping[str, int], batches_read: int) -> list[str]:
        """Takes up the order of a stopped run where it was.

        Args:
            state: that run's.
            batches_read: how many batches it had read.

        Returns:
            what keeps the rest of the order from being that of the stopped run; nothing if it is.
        """
        self._seed = state["seed"]
        self.start = batches_read * state["batch_size"] // self.batch_size
        now = self.state_dict()
        return [
            f"{name} was {state[key]} and is {now[key]}"
            for key, name in (("batch_size", "SOLVER.IMS_PER_BATCH"), ("num_records", "the number of images"))
            if state[key] != now[key]
        ]


@contextlib.contextmanager
def seeded_generators(seed: Sequence[int]) -> Iterator[None]:
    """Within the context the generators of random, numpy and torch (CPU) start from `seed`; afterwards they go on."""
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

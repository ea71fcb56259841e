"""The order of the records in a training, and the random numbers of each sample, as a function of seed and position.

A training reads an endless stream of samples: one shuffle of the records after the other. `TrainingOrder` cuts the
stream into the batches of all processes together, and then cuts each batch into the shares of the processes. So the
number of processes and of loader processes changes neither a batch nor the order of batches. The seed of a sample is
its position in the stream. The order has no state: to resume at batch n, it starts at batch n.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from querypose.d2 import comm

# Part of every seed, so that shuffles and samples never draw the same random numbers.
_SHUFFLE, _SAMPLE = 0, 1


class Draw(NamedTuple):
    """A place in the order of loading: the number of the `record` there, and the `seed` of its random numbers."""

    record: int
    seed: tuple[int, ...]


class TrainingOrder(Sampler[list[Draw]]):
    """A DataLoader's batch sampler: this process's shares of the batches, from the batch `start` on, without end.

    Attributes:
        start: the batch (of all processes together) with which the next iterator begins, from 0.
        batch_size: samples of a batch over all processes.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int) -> None:
        """Takes rank and number of processes from `comm`.

        Args:
            groups: (number of records,), any values; a batch has records of one group only. Deviates: detectron2
                groups within each process, so that its batches depend on the number of processes.
            batch_size: samples of a batch over all processes, a multiple of their number.
            seed: of the shuffles and samples. If it is negative, all processes draw one together; all must call then.
        """
        self.start = 0
        self.batch_size = batch_size
        self._groups = groups
        self._seed = comm.shared_random_seed() if seed < 0 else seed
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[list[Draw]]:
        share = self.batch_size // self._world_size
        for batch in self.batches(self.start):
            yield [
                Draw(record, (self._seed, _SAMPLE, position))
                for position, record in batch[self._rank * share : (self._rank + 1) * share]
            ]

    def batches(self, start: int = 0) -> Iterator[list[tuple[int, int]]]:
        """The batches of all processes together, from number `start` on: pairs of position in the stream and record.

        Every group fills batches of its own in the order of the stream. Batches are in the order of their last samples.
        """
        size = len(self._groups)
        counts = {group: int(count) for group, count in zip(*np.unique(self._groups, return_counts=True), strict=True)}
        # Every shuffle has all records of a group, so that the number of full batches before an epoch is known without
        # a look at the shuffles before it.
        epoch = start * self.batch_size // size
        full = {group: epoch * count // self.batch_size for group, count in counts.items()}
        of_groups = [self._batches_of_group(group, counts[group], full[group]) for group in counts]
        in_order = heapq.merge(*of_groups, key=lambda batch: batch[-1][0])
        return itertools.islice(in_order, start - sum(full.values()), None)

    def _batches_of_group(self, group: Any, count: int, start: int) -> Iterator[list[tuple[int, int]]]:
        samples = self._samples_of_group(group, *divmod(start * self.batch_size, count))
        while True:
            yield list(itertools.islice(samples, self.batch_size))

    def _samples_of_group(self, group: Any, epoch: int, skipped: int) -> Iterator[tuple[int, int]]:
        size = len(self._groups)
        while True:
            shuffle = np.random.default_rng((self._seed, _SHUFFLE, epoch)).permutation(size)
            for place in np.flatnonzero(self._groups[shuffle] == group)[skipped:].tolist():
                yield epoch * size + place, int(shuffle[place])
            epoch, skipped = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """What the order depends on, besides `start`."""
        return {"seed": self._seed, "batch_size": self.batch_size, "num_records": len(self._groups)}

    def resume(self, state: Mapping[str, int], batches_read: int) -> list[str]:
        """Continues the order of a stopped run.

        Args:
            state: `state_dict` of that run.
            batches_read: how many batches it had read.

        Returns:
            the reasons why the order differs from that of the stopped run; empty if it does not.
        """
        self._seed = state["seed"]
        self.start = batches_read * state["batch_size"] // self.batch_size
        now = self.state_dict()
        return [
            f"{name} was {state[key]} and is {now[key]}"
            for key, name in (("batch_size", "SOLVER.IMS_PER_BATCH"), ("num_records", "the number of images"))
            if state[key] != now[key]
        ]

"""Which images each process loads, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from querypose.d2.builtin import comm


class TrainingSampler(Sampler[int]):
    """An endless stream of indices: one shuffle of the dataset after the other, dealt out to the processes in turn."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        """Takes rank and number of processes from `comm`.

        Args:
            size: number of images.
            shuffle: else in order, again and again.
            seed: of the shuffles, the same in all processes; None or negative: drawn, by all processes together.

        Raises:
            TypeError: `size` is not an integer.
            ValueError: `size` is not positive.
        """
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler: size must be an int, not {type(size).__name__}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler: size must be positive, not {size}.")
        self._size = size
        self._shuffle = shuffle
        # Deviates: detectron2 takes -1, the config's "draw one", for a seed, so that every run has the same order.
        self._seed = comm.shared_random_seed() if seed is None or seed < 0 else int(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._all_indices(), self._rank, None, self._world_size)

    def _all_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler[int]):
    """Every index exactly once over all processes: each takes one contiguous run of them."""

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise AssertionError(f"InferenceSampler: size must be positive, not {size}.")
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share, remainder = divmod(size, world_size)
        begin = rank * share + min(rank, remainder)
        self._indices = range(begin, begin + share + (rank < remainder))

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

"""Data loaders: from the dicts of registered datasets to batches, which are lists of mapped dicts."""

from __future__ import annotations

import logging
import operator
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import data

from querypose.d2.builtin import comm
from querypose.d2.builtin.catalog import DatasetCatalog
from querypose.d2.builtin.config import CfgNode, configurable
from querypose.d2.builtin.defaults import seed_all_rng
from querypose.d2.builtin.samplers import InferenceSampler, TrainingSampler

Mapper = Callable[[dict[str, Any]], Any]
Batch = list[Any]
_MAP_ATTEMPTS_BEFORE_WARNING = 3


class DatasetFromList(data.Dataset[Any]):
    """A list as a dataset; every access gives a fresh copy.

    The entries are kept pickled in one tensor. Forked loader processes read it in place, since nothing counts
    references in it; to spawned ones torch hands it over in shared memory. Neither copies the entries.
    """

    def __init__(self, entries: Sequence[Any]) -> None:
        pickled = [np.frombuffer(pickle.dumps(entry, protocol=-1), dtype=np.uint8) for entry in entries]
        self._ends = torch.from_numpy(np.cumsum([len(entry) for entry in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(pickled) if pickled else np.empty(0, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is out of range: the dataset has {len(self)} entries.")
        begin = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._bytes[begin : int(self._ends[index])].numpy().data)


class MapDataset(data.Dataset[Any]):
    """A dataset with a function applied to each entry. Where it gives None, another entry is taken at random.

    Deviates: which one follows from the entry alone; in detectron2 also from what this loader process read before.
    """

    def __init__(self, dataset: Any, map_func: Mapper) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        current, tried = int(index), {int(index)}
        draws = random.Random(current)
        while (mapped := self._map_func(self._dataset[current])) is None:
            if len(tried) == len(self):
                raise ValueError("The mapper gave None for every entry of the dataset: nothing is left to load.")
            if len(tried) >= _MAP_ATTEMPTS_BEFORE_WARNING:
                logging.getLogger(__name__).warning(
                    "The mapper gave None %d times in a row (entry %d)", len(tried), index
                )
            while current in tried:
                current = draws.randrange(len(self))
            tried.add(current)
        return mapped


class _SampledDataset(data.IterableDataset[Any]):
    """A dataset read in a sampler's order. Of several loader processes each takes its share of the sampler's chunks.

    DataLoader takes from its processes in turn, so that with chunks as long as what it takes at a time the order does
    not depend on the number of processes.
    """

    def __init__(self, dataset: Any, sampler: Iterable[int], chunk_size: int) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._chunk_size = chunk_size

    def __iter__(self) -> Iterator[Any]:
        worker = data.get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for position, index in enumerate(self._sampler):
            if position // self._chunk_size % num_workers == worker_id:
                yield self._dataset[index]


class AspectRatioGroupedDataset(data.IterableDataset[Batch]):
    """Batches of images that are all wider than high, or all not, so that they need less padding.

    It keeps the order of the entries (dicts with "width" and "height") as far as the grouping allows.
    """

    def __init__(self, dataset: Iterable[Any], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        groups: dict[bool, Batch] = {False: [], True: []}
        for entry in self.dataset:
            is_landscape = entry["width"] > entry["height"]
            groups[is_landscape].append(entry)
            if len(groups[is_landscape]) == self.batch_size:
                batch, groups[is_landscape] = groups[is_landscape], []
                yield batch


class _CollatedDataset(data.IterableDataset[Any]):
    """Batches with a collate function applied to each."""

    def __init__(self, batches: Iterable[Batch], collate_fn: Callable[[Batch], Any]) -> None:
        self._batches = batches
        self._collate_fn = collate_fn

    def __iter__(self) -> Iterator[Any]:
        return map(self._collate_fn, self._batches)


def get_detection_dataset_dicts(names: str | Sequence[str], filter_empty: bool = True) -> list[dict[str, Any]]:
    """The dicts of registered datasets, one after the other.

    Args:
        names: of the datasets.
        filter_empty: leave out images without any annotation that is no crowd region.

    Raises:
        AssertionError: no dataset is named, or no image is left.
        KeyError: a dataset is not registered.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise AssertionError("No dataset is named; set DATASETS.TRAIN (DATASETS.TEST) to registered names.")
    dicts = [entry for name in names for entry in _load_not_empty(name)]
    if filter_empty and "annotations" in dicts[0]:
        count = len(dicts)
        dicts = [entry for entry in dicts if any(not person.get("iscrowd", 0) for person in entry["annotations"])]
        logging.getLogger(__name__).info(
            "Removed %d images with no usable annotations. %d images left.", count - len(dicts), len(dicts)
        )
        if not dicts:
            raise AssertionError(f"No image of {', '.join(names)} has an annotation that is no crowd region.")
    return dicts


def _load_not_empty(name: str) -> list[dict[str, Any]]:
    dicts: list[dict[str, Any]] = DatasetCatalog.get(name)
    if not dicts:
        raise AssertionError(f"Dataset {name!r} is empty.")
    return dicts


def _need_mapper(mapper: Mapper | None, function: str) -> Mapper:
    # Deviates: detectron2 has a mapper for boxes and masks to fall back on; here every mapper is the project's own.
    if mapper is None:
        raise ValueError(f"{function}(cfg, …) needs a mapper: pass mapper=PoseMapper(cfg, is_train=…).")
    return mapper


def _train_loader_from_config(
    cfg: CfgNode, mapper: Mapper | None = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    return {
        "dataset": dataset,
        "sampler": TrainingSampler(len(dataset), seed=cfg.SEED) if sampler is None else sampler,
        "mapper": _need_mapper(mapper, "build_detection_train_loader"),
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: data.Sampler[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[Batch], Any] | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """An endless loader of training batches, each a list of mapped entries. Also takes (cfg, mapper=…).

    Args:
        dataset: a list of dicts, or a dataset with a length.
        mapper: applied to each entry in the loader processes; None: entries as they are.
        sampler: the order; by default a `TrainingSampler`.
        total_batch_size: images of a batch over all processes.
        aspect_ratio_grouping: see `AspectRatioGroupedDataset`; the mapped entries need "width" and "height".
        num_workers: loader processes; 0 loads in the calling one.
        collate_fn: applied to each batch; None: it stays a list.
        seed: of the loader processes' generators; None: they follow from torch's.
        kwargs: further arguments of `torch.utils.data.DataLoader`.

    Raises:
        AssertionError: the number of processes does not divide the batch size.
    """
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        raise AssertionError(
            f"The batch of {total_batch_size} images cannot be shared by {world_size} processes; "
            "set SOLVER.IMS_PER_BATCH to a multiple of their number."
        )
    batch_size = total_batch_size // world_size
    mapped = _mapped(dataset, mapper)
    if sampler is None:
        sampler = TrainingSampler(len(mapped))
    options = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if not aspect_ratio_grouping:
        return data.DataLoader(
            _SampledDataset(mapped, sampler, chunk_size=batch_size),
            batch_size=batch_size,
            drop_last=True,
            collate_fn=collate_fn or trivial_batch_collator,
            **options,
        )
    single = data.DataLoader(
        _SampledDataset(mapped, sampler, chunk_size=1), batch_size=1, collate_fn=operator.itemgetter(0), **options
    )
    batches = AspectRatioGroupedDataset(single, batch_size)
    return batches if collate_fn is None else _CollatedDataset(batches, collate_fn)


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Mapper | None = None
) -> dict[str, Any]:
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": _need_mapper(mapper, "build_detection_test_loader"),
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: data.Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[Batch], Any] | None = None,
) -> data.DataLoader[Any]:
    """A loader that gives every entry once over all processes, in order. Also takes (cfg, dataset_name, mapper=…).

    Args:
        dataset: a list of dicts, or a dataset with a length.
        mapper: applied to each entry in the loader processes; None: entries as they are.
        sampler: the order; by default an `InferenceSampler`.
        batch_size: images of a batch in one process; the last batch may be smaller.
        num_workers: loader processes; 0 loads in the calling one.
        collate_fn: applied to each batch; None: it stays a list.
    """
    mapped = _mapped(dataset, mapper)
    return data.DataLoader(
        mapped,
        batch_size=batch_size,
        sampler=InferenceSampler(len(mapped)) if sampler is None else sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def _mapped(dataset: Any, mapper: Mapper | None) -> Any:
    dataset = DatasetFromList(dataset) if isinstance(dataset, list) else dataset
    return dataset if mapper is None else MapDataset(dataset, mapper)


def trivial_batch_collator(batch: Batch) -> Batch:
    """A batch is the list of its entries."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seeds random, numpy and torch of a loader process: differently in each, and by the seed of the run."""
    # torch has seeded the process by the run's seed plus `worker_id`; that seed becomes random's and numpy's too.
    seed_all_rng(torch.initial_seed() % 2**31)

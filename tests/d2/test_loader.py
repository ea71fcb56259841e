"""The loaders: order, seeds, grouping, loader processes, what is left out."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from querypose.d2 import ENGINE, build_detection_test_loader, build_detection_train_loader, seed_all_rng
from tests.d2 import toy


def _ids(loader: Any, batches: int) -> list[list[int]]:
    return [[entry["image_id"] for entry in batch] for batch in itertools.islice(loader, batches)]


def _random_mapper(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "noise": (random.random(), float(np.random.rand()), float(torch.rand(())))}  # noqa: NPY002


def test_every_epoch_has_every_entry_once(toy_dataset: str, tmp_path: Path) -> None:
    cfg = toy.config(tmp_path)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    batches = _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 6)
    assert all(len(batch) == 4 for batch in batches)
    epochs = [[index for batch in half for index in batch] for half in (batches[:3], batches[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(toy.NUM_ENTRIES))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_order_follows_from_the_seed(toy_dataset: str, tmp_path: Path) -> None:
    cfg = toy.config(tmp_path)
    first = _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 5)
    assert _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 5) == first
    cfg.SEED += 1
    assert _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 5) != first


def test_batches_are_all_landscape_or_all_portrait(toy_dataset: str, tmp_path: Path) -> None:
    cfg = toy.config(tmp_path)
    batches = list(itertools.islice(build_detection_train_loader(cfg, mapper=toy.mapper), 9))
    kinds = [{entry["width"] > entry["height"] for entry in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True} in kinds
    assert {False} in kinds
    assert all(len(batch) == 4 for batch in batches)


@pytest.mark.skipif(ENGINE == "detectron2", reason="there the order depends on the number of loader processes")
@pytest.mark.parametrize("grouping", [True, False])
def test_order_does_not_depend_on_the_loader_processes(toy_dataset: str, tmp_path: Path, grouping: bool) -> None:
    cfg = toy.config(tmp_path)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    expected = _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 6)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 6) == expected


def test_loader_processes_share_the_entries_and_draw_differently(toy_dataset: str, tmp_path: Path) -> None:
    cfg = toy.config(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    runs = []
    for _ in range(2):
        seed_all_rng(3)
        loader = build_detection_train_loader(cfg, mapper=_random_mapper)
        entries = [entry for batch in itertools.islice(loader, 3) for entry in batch]
        runs.append([(entry["image_id"], entry["noise"]) for entry in entries])
    assert runs[0] == runs[1], "the seed of the run decides what loader processes draw"
    assert sorted(image_id for image_id, _ in runs[0]) == list(range(toy.NUM_ENTRIES))
    for position in range(3):
        drawn = [noise[position] for _, noise in runs[0]]
        assert len(set(drawn)) == len(drawn), "no two loader processes draw the same"


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_gives_every_entry_once_in_order(toy_dataset: str, tmp_path: Path, workers: int) -> None:
    cfg = toy.config(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_detection_test_loader(cfg, toy_dataset, mapper=toy.mapper)
    assert _ids(loader, 100) == [[index] for index in range(toy.NUM_ENTRIES)]
    loader = build_detection_test_loader(cfg, toy_dataset, mapper=toy.mapper, batch_size=5)
    assert len(loader) == 3
    assert [len(batch) for batch in loader] == [5, 5, 2]


def test_loaders_take_a_list_too() -> None:
    entries = toy.load()
    loader = build_detection_train_loader(
        entries, mapper=toy.mapper, total_batch_size=2, aspect_ratio_grouping=False, num_workers=0
    )
    batch = next(iter(loader))
    assert len(batch) == 2
    assert batch[0]["y"].item() == pytest.approx(2 * batch[0]["x"].item() + 1)
    assert "y" not in entries[0]
    tested = build_detection_test_loader(entries, mapper=toy.mapper, collate_fn=len)
    assert list(tested) == [1] * toy.NUM_ENTRIES


def test_mapper_cannot_change_the_dataset() -> None:
    def spoil(entry: dict[str, Any]) -> dict[str, Any]:
        entry["seen"] = entry.get("seen", 0) + 1
        return entry

    loader = build_detection_test_loader(toy.load(), mapper=spoil)
    assert [batch[0]["seen"] for _ in range(2) for batch in loader] == [1] * (2 * toy.NUM_ENTRIES)


def test_entries_that_map_to_none_are_replaced() -> None:
    loader = build_detection_train_loader(
        toy.load(),
        mapper=lambda entry: entry if entry["image_id"] < 9 else None,
        total_batch_size=4,
        aspect_ratio_grouping=False,
    )
    ids = [index for batch in _ids(loader, 9) for index in batch]
    assert len(ids) == 36
    assert max(ids) == 8


def test_crowd_only_images_are_left_out_of_training(toy_dataset: str, tmp_path: Path) -> None:
    from querypose.d2 import DatasetCatalog, MetadataCatalog

    def load() -> list[dict[str, Any]]:
        persons = {0: [], 1: [{"iscrowd": 1, "category_id": 0}], 2: [{"iscrowd": 0, "category_id": 0}]}
        return [{**entry, "annotations": persons[entry["image_id"] % 3]} for entry in toy.load()]

    DatasetCatalog.register("toy_crowd", load)
    MetadataCatalog.get("toy_crowd").thing_classes = ["person"]
    try:
        cfg = toy.config(tmp_path)
        cfg.DATASETS.TRAIN = ["toy_crowd"]
        ids = {
            image_id for batch in _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 8) for image_id in batch
        }
        assert ids == {2, 5, 8, 11}
        assert len(build_detection_test_loader(cfg, "toy_crowd", mapper=toy.mapper)) == toy.NUM_ENTRIES
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        ids = {
            image_id for batch in _ids(build_detection_train_loader(cfg, mapper=toy.mapper), 8) for image_id in batch
        }
        assert ids == set(range(toy.NUM_ENTRIES))
    finally:
        DatasetCatalog.remove("toy_crowd")
        MetadataCatalog.remove("toy_crowd")


def test_unusable_input_is_refused(toy_dataset: str, tmp_path: Path) -> None:
    cfg = toy.config(tmp_path)
    with pytest.raises(KeyError, match="no_such_dataset"):
        build_detection_test_loader(cfg, "no_such_dataset", mapper=toy.mapper)
    cfg.DATASETS.TRAIN = []
    with pytest.raises(AssertionError):
        build_detection_train_loader(cfg, mapper=toy.mapper)

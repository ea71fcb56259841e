"""Loader processes read the records where they are, instead of having a copy each."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from querypose.d2 import build_detection_test_loader


def test_spawned_loader_process_gets_a_handle_of_the_records_not_the_records() -> None:
    records = [{"image_id": index, "annotations": [[float(index)] * 51]} for index in range(2000)]
    loader = build_detection_test_loader(records, mapper=None)
    assert len(ForkingPickler.dumps(records)) > 500_000
    handle = ForkingPickler.dumps(loader.dataset)
    assert len(handle) < 10_000
    assert ForkingPickler.loads(handle)[1234] == records[1234]


def test_forked_loader_process_does_not_touch_the_memory_of_the_records() -> None:
    # What a process of its own must not do is write: tensors have no counts of references in their memory.
    records = [{"image_id": index} for index in range(50)]
    dataset: Any = build_detection_test_loader(records, mapper=None).dataset
    before = [tensor.clone() for tensor in _tensors(dataset)]
    assert before
    assert [dataset[index] for index in range(50)] == records
    assert all(torch.equal(*pair) for pair in zip(before, _tensors(dataset), strict=True))
    assert not any(isinstance(value, list | dict) for value in vars(dataset).values())


def _tensors(dataset: Any) -> list[torch.Tensor]:
    """Those that hold the records; detectron2 has them one level deeper."""
    inner = vars(getattr(dataset, "_lst", dataset))
    return [value for value in inner.values() if isinstance(value, torch.Tensor)]

"""The order of samples and their random numbers are functions of seed and place."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querypose.d2 import ENGINE, comm
from querypose.data.training_order import Sample, TrainingBatches, TrainingOrder, seeded_generators

SIZE, BATCH = 22, 4
GROUPS = np.arange(SIZE) % 3 == 0


def first(order: TrainingOrder, count: int, start: int = 0) -> list[list[Sample]]:
    return list(itertools.islice(order.batches(start), count))


def noise() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  # what mappers draw from


def batches(processes: int, rank: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> TrainingBatches:
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    if ENGINE == "detectron2":  # its loader has taken the name out of the module
        monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: processes)
    records = [{"id": index, "width": 10 + index % 3, "height": 11} for index in range(SIZE)]
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 5, "aspect_ratio_grouping": True, "num_workers": 0}
    return TrainingBatches(records, lambda record: (record["id"], noise()), **{**options, **changes})


def test_every_shuffle_has_every_record_once_and_is_another() -> None:
    stream = [sample for batch in first(TrainingOrder(np.zeros(SIZE), 2, seed=1), SIZE) for sample in batch]
    assert [sample.position for sample in stream] == list(range(2 * SIZE))
    shuffles = [[sample.record for sample in stream[low : low + SIZE]] for low in (0, SIZE)]
    assert sorted(shuffles[0]) == sorted(shuffles[1]) == list(range(SIZE))
    assert shuffles[0] != shuffles[1]


def test_batches_are_of_one_group_and_lose_no_sample() -> None:
    drawn = first(TrainingOrder(GROUPS, BATCH, seed=1), 11 * 5)
    assert {len({bool(GROUPS[sample.record]) for sample in batch}) for batch in drawn} == {1}
    assert [batch[-1].position for batch in drawn] == sorted(batch[-1].position for batch in drawn)
    positions = sorted(sample.position for batch in drawn for sample in batch)
    assert len(set(positions)) == len(positions)
    assert set(range(positions[-1] + 1 - 2 * SIZE)) <= set(positions), "a sample waits for its batch, but comes"


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    batch_size=st.integers(1, 12),
    start=st.integers(0, 60),
    seed=st.integers(0, 2**32),
)
def test_beginning_later_gives_the_rest(groups: list[int], batch_size: int, start: int, seed: int) -> None:
    order = TrainingOrder(np.array(groups), batch_size, seed)
    assert first(order, 5, start) == first(order, start + 5)[start:]


def test_another_seed_is_another_order() -> None:
    assert first(TrainingOrder(GROUPS, BATCH, seed=1), 5) != first(TrainingOrder(GROUPS, BATCH, seed=2), 5)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("grouping", [True, False])
def test_samples_depend_neither_on_processes_nor_on_loader_processes(
    monkeypatch: pytest.MonkeyPatch, processes: int, num_workers: int, grouping: bool
) -> None:
    def drawn(processes: int, num_workers: int) -> list[Any]:
        shares = []
        for rank in range(processes):
            loader = batches(processes, rank, monkeypatch, num_workers=num_workers, aspect_ratio_grouping=grouping)
            shares.append(list(itertools.islice(iter(loader), 9)))
        return [[sample for share in batch for sample in share] for batch in zip(*shares, strict=True)]

    expected = drawn(1, 0)
    assert drawn(processes, num_workers) == expected
    values = Counter(value for batch in expected for _, noise in batch for value in noise)
    assert max(values.values()) == 1, "no two samples have the same random numbers"


def test_loading_leaves_the_generators_of_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded_generators((1, 2)):
        expected = noise()
    with seeded_generators((1, 2)):
        next(iter(batches(1, 0, monkeypatch)))
        assert noise() == expected


def test_a_record_that_maps_to_none_is_replaced_by_the_same_one_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(mapper: Any) -> list[int]:
        loader = batches(1, 0, monkeypatch)
        loader._mapper = mapper
        return [sample for batch in itertools.islice(iter(loader), 12) for sample in batch]

    whole = ids(lambda record: record["id"])
    without_low = ids(lambda record: record["id"] if record["id"] > 9 else None)
    assert min(without_low) > 9
    assert [new for new, old in zip(without_low, whole, strict=True) if old > 9] == [old for old in whole if old > 9]
    assert ids(lambda record: record["id"] if record["id"] > 9 else None) == without_low
    with pytest.raises(ValueError, match="None 100 times in a row"):
        ids(lambda record: None)


def test_resuming_takes_seed_and_position_of_the_stopped_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, resumed = batches(1, 0, monkeypatch, seed=-1), batches(1, 0, monkeypatch)
    assert resumed.resume(stopped.state_dict(), batches_read=7) == []
    whole = list(itertools.islice(iter(stopped), 10))
    assert list(itertools.islice(iter(resumed), 3)) == whole[7:]


def test_resuming_with_another_batch_size_goes_on_near_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = batches(1, 0, monkeypatch, batch_size=2)
    problems = resumed.resume(batches(1, 0, monkeypatch).state_dict(), batches_read=7)
    assert problems == ["SOLVER.IMS_PER_BATCH was 4 and is 2"]
    assert resumed.start == 14

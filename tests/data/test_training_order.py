"""The order of samples is a function of seed and place."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from querypose.data.training_order import TrainingOrder

SIZE, BATCH = 22, 4
GROUPS = np.arange(SIZE) % 3 == 0


def first(order: TrainingOrder, count: int, start: int = 0) -> list[list[tuple[int, int]]]:
    """Batches of pairs of position and record."""
    return list(itertools.islice(order.batches(start), count))


def test_every_shuffle_has_every_record_once_and_is_another() -> None:
    stream = [sample for batch in first(TrainingOrder(np.zeros(SIZE), 2, seed=1), SIZE) for sample in batch]
    assert [position for position, _ in stream] == list(range(2 * SIZE))
    shuffles = [[record for _, record in stream[low : low + SIZE]] for low in (0, SIZE)]
    assert sorted(shuffles[0]) == sorted(shuffles[1]) == list(range(SIZE))
    assert shuffles[0] != shuffles[1]


def test_batches_are_of_one_group_and_lose_no_sample() -> None:
    drawn = first(TrainingOrder(GROUPS, BATCH, seed=1), 11 * 5)
    assert {len({bool(GROUPS[record]) for _, record in batch}) for batch in drawn} == {1}
    assert [batch[-1] for batch in drawn] == sorted(batch[-1] for batch in drawn)
    positions = sorted(position for batch in drawn for position, _ in batch)
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


def test_resuming_takes_seed_and_position_of_the_stopped_run() -> None:
    stopped, resumed = TrainingOrder(GROUPS, BATCH, seed=-1), TrainingOrder(GROUPS, BATCH, seed=5)
    assert resumed.resume(stopped.state_dict(), batches_read=7) == []
    whole = list(itertools.islice(iter(stopped), 10))
    assert list(itertools.islice(iter(resumed), 3)) == whole[7:]


def test_resuming_with_another_batch_size_goes_on_near_the_same_image() -> None:
    resumed = TrainingOrder(GROUPS, 2, seed=5)
    problems = resumed.resume(TrainingOrder(GROUPS, BATCH, seed=5).state_dict(), batches_read=7)
    assert problems == ["SOLVER.IMS_PER_BATCH was 4 and is 2"]
    assert resumed.start == 14

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch

from querypose.engine.scalars import ScalarQueue, _Arriving


class Copy:
    """Stands in for the CUDA event of a copy under way."""

    def __init__(self) -> None:
        self.has_arrived = False

    def synchronize(self) -> None:
        self.has_arrived = True


@pytest.fixture
def checked() -> list[tuple[int, dict[str, float]]]:
    return []


@pytest.fixture
def queue(checked: list[tuple[int, dict[str, float]]]) -> ScalarQueue:
    def check(iteration: int, scalars: Mapping[str, float]) -> bool:
        checked.append((iteration, dict(scalars)))
        return scalars.get("a") != -1.0

    return ScalarQueue(check)


def test_means_are_over_the_iterations_since_the_last_call(queue: ScalarQueue) -> None:
    queue.put(0, ["a", "b"], torch.tensor([1.0, 5.0]))
    queue.put(1, ["a"], torch.tensor([3.0]))
    assert queue.means() == {"a": 2.0, "b": 5.0}
    queue.put(2, ["a"], torch.tensor([7.0]))
    assert queue.means() == {"a": 7.0}
    assert queue.means() == {}


def test_scalars_that_are_not_finite_are_checked_but_not_averaged(queue: ScalarQueue, checked: list[Any]) -> None:
    queue.put(0, ["a", "b"], torch.tensor([1.0, math.inf]))
    queue.put(1, ["a", "b"], torch.tensor([math.nan, math.inf]))
    assert [iteration for iteration, _ in checked] == [0, 1]
    assert checked[0][1]["b"] == math.inf
    assert queue.means() == {"a": 1.0}


def test_iterations_that_do_not_count_are_not_averaged(queue: ScalarQueue) -> None:
    for value in (1.0, -1.0, 3.0):
        queue.put(0, ["a", "b"], torch.tensor([value, value]))
    assert queue.means() == {"a": 2.0, "b": 2.0}


def test_a_copy_under_way_is_waited_for_only_when_it_is_needed(queue: ScalarQueue, checked: list[Any]) -> None:
    queue._lag = 3
    copies = [Copy(), Copy()]
    for iteration, copy in enumerate(copies):
        event = cast(torch.cuda.Event, copy)
        queue._arriving.append(_Arriving(iteration, ("a",), torch.tensor([float(iteration)]), event))
    queue.put(2, ["a"], torch.tensor([2.0]))
    assert checked == []
    queue.put(3, ["a"], torch.tensor([3.0]))
    assert checked == [(0, {"a": 0.0})]
    assert [copy.has_arrived for copy in copies] == [True, False]
    queue.wait()
    assert [iteration for iteration, _ in checked] == [0, 1, 2, 3]
    assert copies[1].has_arrived
    assert queue.means() == {"a": 1.5}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_figures_of_a_gpu_arrive(queue: ScalarQueue, checked: list[Any]) -> None:
    for iteration in range(5):
        queue.put(iteration, ["a"], torch.full((1,), float(iteration), device="cuda"))
    assert queue.means() == {"a": 2.0}
    assert [iteration for iteration, _ in checked] == list(range(5))

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from querypose.analysis.benchmark_report import format_benchmark
from querypose.analysis.benchmark_subjects import OperationsSubject, TrainingSubject, Workload
from querypose.analysis.operation_meter import (
    CONVOLUTIONS,
    OTHERS,
    PRODUCTS,
    OperationMeter,
    measure_best_rates,
)
from querypose.config import ConfigError
from tests.analysis.test_benchmark import TINY


def test_work_that_can_be_counted_by_hand() -> None:
    image, weight = torch.rand(2, 3, 8, 8), torch.rand(5, 3, 3, 3)
    a, b = torch.rand(4, 6), torch.rand(6, 7)
    row = torch.rand(1, 100)
    with OperationMeter() as meter:
        F.conv2d(image, weight, padding=1)
        a @ b
        row.expand(50, 100).neg()
        row.neg_()
        row.t()
    convolution, product, *_, expanded, negated, seen = meter.operations
    assert (convolution.kind, convolution.flops) == (CONVOLUTIONS, 2 * 2 * 64 * 5 * 27)
    assert convolution.bytes == 4 * (2 * 3 * 64 + 5 * 27 + 2 * 5 * 64)
    assert (product.kind, product.flops, product.bytes) == (PRODUCTS, 2 * 4 * 6 * 7, 4 * (24 + 42 + 28))
    assert (expanded.kind, expanded.flops, expanded.bytes) == (OTHERS, 0, 4 * (100 + 5000))
    assert negated.bytes == 4 * 200  # read and written
    assert seen.bytes == 0
    assert all(operation.seconds >= 0 for operation in meter.operations)


def test_an_operation_that_returns_nothing_writes_to_what_it_reads() -> None:
    tensors = [torch.rand(10), torch.rand(20)]
    with OperationMeter() as meter:
        torch._foreach_mul_(tensors, 2.0)
    assert [operation.bytes for operation in meter.operations] == [2 * 4 * 30]


def test_best_rates() -> None:
    rates = measure_best_rates(repetitions=1, scale=16)
    assert rates.flops > 0
    assert rates.bytes > 0


def test_a_training_step_is_counted_whole() -> None:
    subject = OperationsSubject(TINY)
    work = subject.result()["work"]
    with FlopCounterMode(display=False) as counter:
        subject.step()
    # The number of matched queries is that of the persons, so that steps have the same work.
    assert sum(cost["flops"] for kinds in work.values() for cost in kinds.values()) == counter.get_total_flops()
    assert work["forward"][CONVOLUTIONS]["flops"] < work["backward"][CONVOLUTIONS]["flops"]
    assert work["update"][CONVOLUTIONS]["flops"] == 0
    moments = 2 * 4 * sum(parameter.numel() for parameter in subject._trainer.step._parameters)
    assert work["update"][OTHERS]["bytes"] > 2 * moments  # which are read and written


def test_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(subject: TrainingSubject, workload: Workload) -> None:
        subject._model = nn.Linear(1, 1, device="meta")  # type: ignore[assignment]

    monkeypatch.setattr(TrainingSubject, "__init__", prepare)
    with pytest.raises(ConfigError, match=r"measures a CPU, but MODEL.DEVICE is meta"):
        OperationsSubject(TINY)


def test_the_table_says_how_far_the_step_is_from_the_limit() -> None:
    nothing = {"seconds": 0.0, "flops": 0, "bytes": 0}
    work = {
        "forward": {
            CONVOLUTIONS: {"seconds": 2.0, "flops": 200e9, "bytes": 1e9},
            PRODUCTS: nothing,
            OTHERS: {"seconds": 1.0, "flops": 0, "bytes": 20e9},
        }
    }
    measured = {"work": work, "best_rates": {"flops": 200e9, "bytes": 40e9}}
    shown = format_benchmark({"variants": {"config": {"workload": {}, "operations": measured}}, "machine": {}})
    rows = [line.split() for line in shown.splitlines()]
    assert ["forward", "convolutions", "2000", "67%", "200.0", "100.0", "1.0", "0.5"] in rows
    assert ["all", "3000", "100%", "200.0", "66.7", "21.0", "7.0"] in rows
    assert "take 1000 ms and all other bytes 500 ms: the step takes 2.00 times that." in shown
    assert max(map(len, shown.splitlines())) <= 120

"""Training on the device: the same run twice, killed and resumed, in float16, without waiting, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import querypose.modeling.assignment
from querypose.d2 import ENGINE, EventStorage, build_model
from querypose.engine import TrainStep, build_optimizer, report_user_errors
from querypose.engine.setup import use_deterministic_algorithms
from querypose.layers import RegionPooler
from querypose.modeling.pose_model import Batch
from tests.engine.mortal_run import assert_same_run, log_of, train
from tests.tiny import ARCHITECTURES, WHOLE_IMAGES, random_batch, tiny_config

COCO = 17
SIZES = [(64, 96), (96, 64), (64, 64), (96, 96), (32, 96)]


def _batches(sizes: Sequence[tuple[int, int]] = SIZES[:1]) -> list[Batch]:
    torch.manual_seed(1)
    return [random_batch([2, 1], COCO, size) for size in sizes]


def _step(
    architecture: str,
    device: torch.device,
    batches: Sequence[Batch],
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model,
    **options: Any,
) -> TrainStep:
    torch.manual_seed(0)
    model = build_model(tiny_config(*ARCHITECTURES[architecture])).to(device)
    optimizer = build_optimizer(model, base_lr=1e-3, weight_decay=0.0, weight_decay_norm=0.0, weight_decay_bias=0.0)
    return TrainStep(wrap(model), itertools.cycle(batches), optimizer, log_period=10**9, **options)


def _run(step: TrainStep, iterations: int) -> list[Tensor]:
    """The weights after so many more iterations."""
    with EventStorage(step.iter) as storage:
        for iteration in range(step.iter, step.iter + iterations):
            step.iter = storage.iter = iteration
            step.run_step()
        step.flush()
    return [parameter.detach().cpu().clone() for parameter in step.pose_model.parameters()]


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    use_deterministic_algorithms()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_deterministic_runs_are_equal_bit_by_bit(architecture: str, device: torch.device) -> None:
    with _deterministic():
        runs = [_run(_step(architecture, device, _batches()), 3) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(gpu: torch.device, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"MODEL__DEVICE": gpu.type, "DETERMINISTIC": True}
    assert train(tmp_path / "unbroken", **settings) == [0], log_of(tmp_path / "unbroken")
    train(tmp_path / "killed", death="in the midst of an iteration", **settings)
    assert train(tmp_path / "killed", "--resume", **settings) == [0], log_of(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float16_with_a_scaled_loss(architecture: str, device: torch.device) -> None:
    step = _step(architecture, device, _batches(), precision=torch.float16)
    before = [parameter.detach().cpu().clone() for parameter in step.pose_model.parameters()]
    after = _run(step, 14)  # the first ones overflow, and halve the scale
    assert all(weight.isfinite().all() for weight in after)
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert step.grad_scaler.get_scale() >= 1.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_process_of_a_group_trains_as_none(architecture: str, device: torch.device) -> None:
    """Over NCCL on a GPU, gloo on a CPU."""
    with _deterministic():
        expected = _run(_step(architecture, device, _batches()), 2)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
        try:
            ids = [torch.cuda.current_device()] if device.type == "cuda" else None
            step = _step(architecture, device, _batches(), lambda model: DistributedDataParallel(model, device_ids=ids))
            found = _run(step, 2)
        finally:
            dist.destroy_process_group()
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


class Waits(TorchDispatchMode):
    """Notes the operations whose results have a size, or decide a branch, that only the device knows."""

    ALWAYS = frozenset(["_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"])

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in (args[1] or ()) if len(args) > 1
        )
        if name in self.ALWAYS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(
    ENGINE == "detectron2",
    reason="its ImageList computes sizes in tensors of the host, which look alike here",
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_operation_of_an_iteration_would_wait_for_a_gpu(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told from the operations that a CPU runs; the regions are pooled as on a GPU."""
    monkeypatch.setattr(RegionPooler, "_pool_indexed", RegionPooler._pool_masked)
    step = _step(architecture, torch.device("cpu"), _batches())
    _run(step, 1)
    with EventStorage(0), Waits() as waits:
        step.run_step()
    assert not waits.found


def test_waits_are_found() -> None:
    values = torch.arange(3.0)
    with Waits() as waits:
        values[values > 1].sum()
        values.max().item()
        (values > 0).nonzero()
    assert len(waits.found) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_iteration_waits_for_the_device_in_the_matcher_alone(
    architecture: str, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/performance.md names the wait: the costs of all stages cross to the host, where the matching is found."""
    to_host = querypose.modeling.assignment.to_host

    def allowed(costs: Tensor) -> np.ndarray[Any, Any]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return to_host(costs)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(querypose.modeling.assignment, "to_host", allowed)
    step = _step(architecture, gpu, _batches())
    _run(step, 2)  # workspaces and lazy buffers
    with EventStorage(step.iter):
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.run_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("architecture", WHOLE_IMAGES)
def test_memory_does_not_grow(architecture: str, gpu: torch.device) -> None:
    """Over 200 iterations of changing sizes."""
    step = _step(architecture, gpu, _batches(SIZES))
    _run(step, 2 * len(SIZES))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    _run(step, 200)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.gpu
def test_out_of_memory_names_the_remedies(gpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), report_user_errors("train_net.py"):
        torch.empty(2**46, device=gpu)
    assert "SOLVER.ACCUMULATION_STEPS" in capsys.readouterr().err

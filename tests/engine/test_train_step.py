from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from querypose.d2 import EventStorage, build_model
from querypose.engine import TrainStep, build_optimizer
from querypose.engine.train_step import cut_batch
from querypose.modeling.pose_model import Batch
from tests.engine.toy_pose import ToyPose, toy_batch, toy_model
from tests.tiny import ARCHITECTURES, exact_model, hold_batch_norms, random_batch, tiny_config


def make_step(model: nn.Module, batch: Sequence[dict[str, Any]], lr: float = 0.01, **settings: Any) -> TrainStep:
    optimizer = build_optimizer(model, base_lr=lr, weight_decay=0.0, weight_decay_norm=0.0, weight_decay_bias=0.0)
    return TrainStep(model, itertools.repeat(batch), optimizer, **settings)


def run(step: TrainStep, iterations: int = 1) -> EventStorage:
    with EventStorage(0) as storage:
        for step.iter in range(iterations):
            storage.iter = step.iter
            step.run_step()
    return storage


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("persons", [[1, 2, 1, 2], [1, 5, 0, 2], [3, 1, 0, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("num_micro_batches", [2, 3, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(persons: list[int], num_micro_batches: int) -> None:
    batch = toy_batch(persons)
    whole = toy_model()
    losses = whole(batch)
    sum(losses.values()).backward()
    cut = toy_model()
    names, values = make_step(cut, batch, num_micro_batches=num_micro_batches).accumulate_gradients(batch)
    assert names == tuple(losses)
    torch.testing.assert_close(values, torch.stack([loss.detach() for loss in losses.values()]))
    torch.testing.assert_close(gradients(cut), gradients(whole), rtol=1e-10, atol=1e-12)
    assert any(persons) == any(gradient.abs().sum() > 0 for gradient in gradients(whole))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("persons", [[3, 1], [0, 9], [2, 0, 1]])
def test_accumulation_is_exact_for_every_model(architecture: str, persons: list[int]) -> None:
    whole, batch = exact_model(*ARCHITECTURES[architecture]), random_batch(persons, 17)
    cut = copy.deepcopy(whole)
    steps = [make_step(whole, batch), make_step(cut, batch, num_micro_batches=len(batch))]
    for step in steps:
        hold_batch_norms(step.model)
    (names, values), (cut_names, cut_values) = (step.accumulate_gradients(batch) for step in steps)
    assert cut_names == names
    torch.testing.assert_close(cut_values, values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(cut), gradients(whole), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("items", "parts", "lengths"), [(4, 2, [2, 2]), (5, 2, [2, 3]), (3, 3, [1, 1, 1]), (7, 1, [7])]
)
def test_a_batch_is_cut_in_order(items: int, parts: int, lengths: list[int]) -> None:
    pieces = cut_batch([{"image_id": index} for index in range(items)], parts)
    assert [len(piece) for piece in pieces] == lengths
    assert [item["image_id"] for piece in pieces for item in piece] == list(range(items))


def test_more_micro_batches_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples cannot be cut into 3 micro-batches"):
        cut_batch(toy_batch([1, 1]), 3)


def test_accumulated_steps_end_at_the_weights_of_whole_steps() -> None:
    batch = toy_batch([2, 1, 0, 3])
    whole, cut = toy_model(), toy_model()
    run(make_step(whole, batch, clip_norm=1.0), 4)
    run(make_step(cut, batch, clip_norm=1.0, num_micro_batches=4), 4)
    torch.testing.assert_close(whole.state_dict(), cut.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_clipping_is_torchs_over_the_whole_model(norm_type: float) -> None:
    batch = toy_batch([2, 1])
    ours, reference = toy_model(), toy_model()
    storage = run(make_step(ours, batch, clip_norm=0.05, clip_norm_type=norm_type))
    sum(reference(batch).values()).backward()
    norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.05, norm_type, foreach=False)
    assert norm > 0.05
    torch.testing.assert_close(gradients(ours), gradients(reference))
    assert storage.latest()["grad_norm"][0] == pytest.approx(float(norm))


def test_without_clipping_gradients_stay_as_they_are_and_their_norm_is_reported() -> None:
    batch = toy_batch([2, 1])
    ours, reference = toy_model(), toy_model()
    storage = run(make_step(ours, batch))
    sum(reference(batch).values()).backward()
    torch.testing.assert_close(gradients(ours), gradients(reference))
    norm = torch.cat([gradient.flatten() for gradient in gradients(reference)]).norm()
    assert storage.latest()["grad_norm"][0] == pytest.approx(float(norm))


def test_figures_are_means_over_the_iterations_since_the_last_report() -> None:
    batch = toy_batch([2, 1])
    every, seldom = toy_model(), toy_model()
    single = run(make_step(every, batch, log_period=1), 6)
    means = run(make_step(seldom, batch, log_period=3), 6)
    for name in ("loss_keypoint", "loss_keypoint_0", "total_loss"):
        values = [value for value, _ in single.history(name).values()]
        expected = [(sum(values[:3]) / 3, 2), (sum(values[3:]) / 3, 5)]
        for (mean, iteration), (value, at) in zip(means.history(name).values(), expected, strict=True):
            assert (mean, iteration) == (pytest.approx(value), at)
    assert single.latest()["total_loss"][0] == pytest.approx(
        sum(single.latest()[name][0] for name in ("loss_keypoint", "loss_keypoint_0"))
    )
    assert means.latest()["data_time"][0] >= 0


def test_bfloat16_keeps_float32_weights_and_stays_near_float32() -> None:
    batch = toy_batch([2, 1, 1])
    low, full = toy_model(dtype=torch.float32), toy_model(dtype=torch.float32)
    low_losses = run(make_step(low, batch, precision=torch.bfloat16, clip_norm=1.0), 3).latest()
    full_losses = run(make_step(full, batch, clip_norm=1.0), 3).latest()
    assert all(parameter.dtype == torch.float32 for parameter in low.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in low.parameters())
    assert low_losses["total_loss"][0] == pytest.approx(full_losses["total_loss"][0], rel=0.02)
    assert low_losses["total_loss"][0] != full_losses["total_loss"][0]


def test_float16_scales_the_loss_and_reports_it_unscaled() -> None:
    batch = toy_batch([2, 1, 1])
    low, full = toy_model(dtype=torch.float32), toy_model(dtype=torch.float32)
    step = make_step(low, batch, precision=torch.float16, clip_norm=1e9)
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    low_figures = run(step).latest()
    full_figures = run(make_step(full, batch, clip_norm=1e9)).latest()
    for name in ("total_loss", "grad_norm"):
        assert low_figures[name][0] == pytest.approx(full_figures[name][0], rel=0.02)
    torch.testing.assert_close(gradients(low), gradients(full), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_real_models_train_in_either_precision(architecture: str, precision: torch.dtype | None) -> None:
    model = build_model(tiny_config(*ARCHITECTURES[architecture]))
    before = copy.deepcopy(model.state_dict())
    scalars = run(make_step(model, random_batch([2, 0, 1], 17), precision=precision, clip_norm=1.0), 2).latest()
    assert math.isfinite(scalars["total_loss"][0])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name, _ in model.named_parameters()}


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, math.inf)


class Overflowing(ToyPose):
    def keypoints(self, batch: Batch) -> Tensor:
        return InfiniteGradient.apply(super().keypoints(batch))


def test_float16_skips_an_overflow_and_lowers_the_scale() -> None:
    model = Overflowing().train()
    before = copy.deepcopy(model.state_dict())
    step = make_step(model, toy_batch([1, 1]), precision=torch.float16, clip_norm=1.0)
    scale = step.grad_scaler.get_scale()
    scalars = run(step).latest()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert step.grad_scaler.get_scale() == scale / 2
    assert "grad_norm" not in scalars


def test_an_infinite_gradient_without_scaling_ends_the_run_before_it_spoils_the_weights() -> None:
    model = Overflowing().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="gradient became infinite or NaN at iteration 0"):
        run(make_step(model, toy_batch([1, 1]), clip_norm=1.0))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_names_iteration_and_losses() -> None:
    model = toy_model()
    step = make_step(model, toy_batch([1, 1]), log_period=100)
    run(step, 3)
    model.unit_of_loss = math.nan
    before = copy.deepcopy(model.state_dict())
    step.iter = 3
    with pytest.raises(FloatingPointError, match=r"at iteration 3 .*{'loss_keypoint': nan") as caught:
        step.run_step()
    assert "'loss_keypoint_0': nan" not in str(caught.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_state_restores_optimizer_and_scaler() -> None:
    batch = toy_batch([2, 1])
    first = make_step(toy_model(dtype=torch.float32), batch, precision=torch.float16, clip_norm=1.0)
    run(first, 3)
    first.grad_scaler.update(1234.0)
    second = make_step(copy.deepcopy(first.model), batch, precision=torch.float16, clip_norm=1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.grad_scaler.get_scale() == 1234.0
    run(first, 2)
    run(second, 2)
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0)


def test_a_run_without_scaler_goes_on_from_one_with() -> None:
    batch = toy_batch([2, 1])
    scaled = make_step(toy_model(dtype=torch.float32), batch, precision=torch.float16)
    plain = make_step(toy_model(dtype=torch.float32), batch)
    plain.load_state_dict(scaled.state_dict())
    scaled.load_state_dict(plain.state_dict())
    assert scaled.grad_scaler.get_scale() > 1


def test_a_model_in_evaluation_mode_is_refused() -> None:
    step = make_step(toy_model(), toy_batch([1]))
    step.model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run(step)

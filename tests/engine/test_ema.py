from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.d2 import CheckpointError, DetectionCheckpointer
from querypose.engine import ExponentialMovingAverage, load_evaluation_weights
from tests.engine.toy_pose import toy_model


class Small(nn.Module):
    statistic: Tensor
    count: Tensor

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.full((2,), value, dtype=torch.float64), requires_grad=False)
        self.register_buffer("statistic", torch.full((3,), value, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(int(value)))


def test_closed_form_after_the_ramp() -> None:
    model = Small(1.0)
    average = ExponentialMovingAverage(model, decay=0.1)  # n / (n + 9) >= 0.1: no ramp
    values = [2.0, -3.0, 5.0, 8.0]
    for value in values:
        model.weight.data.fill_(value)
        model.statistic.fill_(10 * value)
        average.update()
    weights = [0.9 * 0.1 ** (len(values) - 1 - index) for index in range(len(values))]
    expected = 0.1 ** len(values) * 1.0 + sum(w * value for w, value in zip(weights, values, strict=True))
    average.copy_to_model()
    assert model.weight.tolist() == pytest.approx([expected] * 2)
    assert model.statistic.tolist() == pytest.approx([10 * expected - 9 * 0.1 ** len(values)] * 3)


def test_the_ramp_forgets_the_initialisation() -> None:
    average = ExponentialMovingAverage(Small(), decay=0.9998)
    assert [average.decay_of_update(update) for update in (1, 9, 10**6)] == pytest.approx([0.1, 0.5, 0.9998])
    model = Small(100.0)
    average = ExponentialMovingAverage(model, decay=0.9998)
    model.weight.data.fill_(0.0)
    for _ in range(50):
        average.update()
    average.copy_to_model()
    assert model.weight.abs().max() < 1e-6


def test_only_what_changes_in_training_is_averaged() -> None:
    model = Small(1.0)
    assert set(ExponentialMovingAverage(model, decay=0.5).state_dict()["weights"]) == {"weight", "statistic"}


def test_the_model_has_the_average_within_the_context_only() -> None:
    model = Small(1.0)
    average = ExponentialMovingAverage(model, decay=0.0)
    model.weight.data.fill_(2.0)
    model.count.fill_(7)

    def fail_inside() -> None:
        with average.in_model():
            assert model.weight.tolist() == [1.0, 1.0]
            assert int(model.count) == 7
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert model.weight.tolist() == [2.0, 2.0]
    assert average.state_dict()["weights"]["weight"].tolist() == [1.0, 1.0]


def test_reset_starts_from_the_present_weights() -> None:
    model = Small(1.0)
    average = ExponentialMovingAverage(model, decay=0.9)
    average.update()
    model.weight.data.fill_(4.0)
    average.reset()
    assert average.num_updates == 0
    assert average.state_dict()["weights"]["weight"].tolist() == [4.0, 4.0]


def test_state_round_trip_continues_equally() -> None:
    model = Small(1.0)
    first = ExponentialMovingAverage(model, decay=0.7)
    model.weight.data.fill_(3.0)
    first.update()
    second = ExponentialMovingAverage(copy.deepcopy(model), decay=0.7)
    second.load_state_dict(first.state_dict())
    first.update()
    second.update()
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_state_of_another_model_is_refused() -> None:
    average = ExponentialMovingAverage(Small(), decay=0.7)
    with pytest.raises(
        CheckpointError, match=r"another model: this one has no flow\.bias, flow\.weight, hidden\.bias, … \(7 in all\)"
    ):
        average.load_state_dict(ExponentialMovingAverage(toy_model(), decay=0.7).state_dict())
    state = average.state_dict()
    state["weights"]["weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"weight is \[5\] there and \[2\] here"):
        average.load_state_dict(state)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Trained weights 5, averaged weights 1."""
    model = Small(1.0)
    average = ExponentialMovingAverage(model, decay=0.9)
    average.update()
    model.weight.data.fill_(5.0)
    DetectionCheckpointer(model, str(tmp_path), ema=average).save("model_final")
    return tmp_path / "model_final.pth"


def test_evaluation_uses_the_average_where_the_config_asks_for_it(checkpoint: Path) -> None:
    model = Small()
    load_evaluation_weights(model, str(checkpoint), use_average=True)
    assert model.weight.tolist() == [1.0, 1.0]
    load_evaluation_weights(model, str(checkpoint), use_average=False)
    assert model.weight.tolist() == [5.0, 5.0]


def test_evaluation_resumes_from_the_last_checkpoint(checkpoint: Path) -> None:
    model = Small()
    load_evaluation_weights(model, "", use_average=True, output_dir=str(checkpoint.parent), resume=True)
    assert model.weight.tolist() == [1.0, 1.0]


def test_weights_without_an_average_are_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DetectionCheckpointer(Small(5.0), str(tmp_path)).save("plain")
    model = Small()
    load_evaluation_weights(model, str(tmp_path / "plain.pth"), use_average=True)
    assert model.weight.tolist() == [5.0, 5.0]
    assert "no averaged weights" in caplog.text


def test_the_average_fits_a_model_that_freezes_more(checkpoint: Path) -> None:
    model = Small().requires_grad_(False)
    load_evaluation_weights(model, str(checkpoint), use_average=True)
    assert model.weight.tolist() == [1.0, 1.0]


def test_an_average_that_lacks_what_is_trained_cannot_be_resumed() -> None:
    average = ExponentialMovingAverage(Small(), decay=0.7)
    state = average.state_dict()
    del state["weights"]["weight"]
    with pytest.raises(CheckpointError, match="of another model: they have no weight"):
        average.load_state_dict(state)


def test_no_weights_leave_the_initialisation() -> None:
    model = Small(3.0)
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is ''.*--random-weights"):
        load_evaluation_weights(model, "", use_average=True)
    load_evaluation_weights(model, "", use_average=True, random_weights=True)
    assert model.weight.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("weight"), r"Missing in the file: weight\."),
        (lambda weights: weights.update(bias=torch.zeros(3)), r"Of another shape: bias \(3,\), not \(2,\)"),
        (lambda weights: weights.update(head=torch.zeros(3)), r"Not in the model: head\."),
    ],
)
def test_nothing_evaluates_weights_that_fit_in_part(tmp_path: Path, change: Any, message: str) -> None:
    weights = nn.Linear(2, 2).state_dict()
    change(weights)
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"another model than the config describes.*{message}.*config\.yaml"):
        load_evaluation_weights(nn.Linear(2, 2), str(tmp_path / "other.pth"), use_average=False)

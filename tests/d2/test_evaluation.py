"""Running a model over a dataset, tables of figures, expected results."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch

from querypose.config import get_cfg
from querypose.d2 import (
    DatasetEvaluator,
    DatasetEvaluators,
    build_detection_test_loader,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from tests.d2 import toy


class _Count(DatasetEvaluator):
    def __init__(self, task: str) -> None:
        self.task = task
        self.count = -100

    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += len(outputs)

    def evaluate(self) -> dict[str, Any]:
        return {self.task: {"count": self.count}}


def _loader(batch_size: int = 5) -> Any:
    return build_detection_test_loader(toy.load(), mapper=toy.mapper, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_every_image_is_evaluated_once(batch_size: int) -> None:
    evaluator = toy.ToyEvaluator()
    results = inference_on_dataset(toy.ToyModel(), _loader(batch_size), evaluator)
    assert results["line"]["count"] == toy.NUM_ENTRIES
    assert evaluator.image_ids == list(range(toy.NUM_ENTRIES))


def test_model_is_in_evaluation_mode_meanwhile() -> None:
    model = toy.ToyModel()
    model.train()
    modes: list[tuple[bool, bool]] = []
    model.register_forward_hook(lambda *_: modes.append((model.training, torch.is_grad_enabled())))
    inference_on_dataset(model, _loader(), None)
    assert set(modes) == {(False, False)}
    assert model.training


def test_several_evaluators() -> None:
    results = inference_on_dataset(toy.ToyModel(), _loader(), [_Count("a"), _Count("b")])
    assert results == {"a": {"count": 12}, "b": {"count": 12}}
    with pytest.raises(AssertionError):
        inference_on_dataset(toy.ToyModel(), _loader(), DatasetEvaluators([_Count("a"), _Count("a")]))


def test_no_evaluator_and_callbacks() -> None:
    calls: list[str] = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: (lambda name=name: calls.append(name)) for name in names}
    assert inference_on_dataset(toy.ToyModel(), _loader(), None, callbacks=callbacks) == {}
    assert calls == ["on_start", *["before_inference", "after_inference"] * 3, "on_end"]


def test_speed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        inference_on_dataset(toy.ToyModel(), _loader(1), None)
    assert any(message.startswith("Total inference time: ") for message in caplog.messages)
    assert "Start inference on 12 batches" in caplog.messages


def test_csv_format(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        print_csv_format({"keypoints": {"AP": 12.345678, "AP-person": 1.0, "APm": math.nan}})
    assert caplog.messages == ["copypaste: Task: keypoints", "copypaste: AP,APm", "copypaste: 12.3457,nan"]


def test_expected_results() -> None:
    cfg = get_cfg()
    results = {"keypoints": {"AP": 50.0, "AR": math.nan}}
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["keypoints", "AP", 50.4, 0.5]]
    assert verify_results(cfg, results)
    for expected in (["keypoints", "AP", 51.0, 0.5], ["keypoints", "AR", 1.0, 9.0], ["keypoints", "AP75", 1.0, 9.0]):
        cfg.TEST.EXPECTED_RESULTS = [expected]
        with pytest.raises(SystemExit):
            verify_results(cfg, results)

"""The loop, its hooks and what DefaultTrainer adds, on the toy model: learning, files, resuming, evaluation."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from querypose import d2
from querypose.d2 import CfgNode
from tests.d2 import toy


def _rows(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]


@pytest.fixture
def cfg(toy_dataset: str, tmp_path: Path) -> CfgNode:
    return toy.config(tmp_path)


def test_learns_and_stores_scalars(cfg: CfgNode, tmp_path: Path) -> None:
    trainer = toy.ToyTrainer(cfg)
    trainer.train()
    rows = _rows(tmp_path)
    assert rows[1]["loss_square"] < 0.25 * rows[0]["loss_square"], "the medians of iterations 0 to 19 and 20 to 39"
    assert [row["iteration"] for row in rows] == [19, 39, 40]
    assert {"loss_square", "loss_absolute", "lr", "time"} <= rows[0].keys()
    assert rows[0]["lr"] == pytest.approx(0.2)
    assert rows[1]["lr"] == pytest.approx(0.02)
    assert rows[-1]["line/error"] < 0.1
    assert rows[-1]["line/count"] == toy.NUM_ENTRIES
    assert trainer.iter == trainer.max_iter == 40


def test_a_trainer_that_goes_on_has_its_optimizer_schedule_and_iteration(cfg: CfgNode, tmp_path: Path) -> None:
    whole = toy.ToyTrainer(cfg)
    whole.train()

    class Killed(toy.ToyTrainer):
        def after_step(self) -> None:
            super().after_step()
            if self.iter == 23:
                self.checkpointer.save("model_0000023")
                raise KeyboardInterrupt  # no exception that the trainer would log: as a signal

    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        Killed(cfg).train()
    checkpoint = torch.load(tmp_path / "killed" / "model_0000023.pth", weights_only=True)
    assert set(checkpoint) == {"model", "trainer"}
    assert checkpoint["trainer"]["iteration"] == 23
    assert checkpoint["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 24
    assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"].shape == (1, 1)

    resumed = toy.ToyTrainer(cfg)
    resumed.checkpointer.resume_or_load("", resume=True)
    resumed.start_iter = resumed.iter + 1
    resumed.train()
    for name, value in toy.weights(whole.model).items():
        assert torch.equal(toy.weights(resumed.model)[name], value)


def test_evaluation_period(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.TEST.EVAL_PERIOD = 10
    toy.ToyTrainer(cfg).train()
    evaluated = [row["iteration"] for row in _rows(tmp_path) if "line/error" in row]
    assert evaluated[-1] == 40
    assert len(evaluated) == 3, "at 10, 20, 30 and 40; writers keep the latest of each 20 iterations"


@pytest.mark.parametrize(("result", "message"), [([1.0], "dict"), ({"line": {"error": "low"}}, "line/error")])
def test_an_evaluation_gives_numbers_by_name(cfg: CfgNode, result: Any, message: str) -> None:
    trainer = toy.ToyTrainer(cfg)
    hook = d2.hooks.EvalHook(1, lambda: result)
    trainer.register_hooks([hook])
    with d2.EventStorage() as trainer.storage, pytest.raises((AssertionError, ValueError), match=message):
        hook.after_step()


def test_metrics_of_several_datasets_stand_under_their_names(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.DATASETS.TEST = [toy.DATASET, toy.DATASET + "_again"]
    d2.DatasetCatalog.register(cfg.DATASETS.TEST[1], toy.load)
    try:
        with caplog.at_level(logging.INFO):
            results = toy.ToyTrainer.test(cfg, toy.ToyModel().eval())
    finally:
        d2.DatasetCatalog.remove(cfg.DATASETS.TEST[1])
    assert list(results) == cfg.DATASETS.TEST
    assert all(metrics["line"]["count"] == toy.NUM_ENTRIES for metrics in results.values())
    assert "copypaste: Task: line" in caplog.messages
    assert "copypaste: error,count" in caplog.messages
    assert any(message.startswith("Total inference time: ") for message in caplog.messages)
    with pytest.raises(AssertionError):
        toy.ToyTrainer.test(cfg, toy.ToyModel().eval(), toy.ToyEvaluator())


def test_expected_results(cfg: CfgNode) -> None:
    cfg.TEST.EXPECTED_RESULTS = [["line", "error", 0.0, 0.2], ["line", "count", toy.NUM_ENTRIES, 0]]
    trainer = toy.ToyTrainer(cfg)
    assert trainer.train()["line"]["count"] == toy.NUM_ENTRIES
    results = {"line": {"error": 0.1, "count": math.nan}}
    for wrong in (["line", "error", 5.0, 0.1], ["line", "count", 1.0, 9.0], ["line", "AP75", 1.0, 9.0]):
        cfg.TEST.EXPECTED_RESULTS = [wrong]
        with pytest.raises(SystemExit):
            d2.verify_results(cfg, results)


def test_hooks_are_called_in_order(cfg: CfgNode) -> None:
    calls: list[tuple[str, int]] = []

    class Recorder(d2.HookBase):
        def before_train(self) -> None:
            calls.append(("before_train", self.trainer.iter))

        def before_step(self) -> None:
            calls.append(("before_step", self.trainer.iter))

        def after_step(self) -> None:
            calls.append(("after_step", self.trainer.storage.iter))

        def after_train(self) -> None:
            calls.append(("after_train", self.trainer.iter))

    cfg.SOLVER.MAX_ITER = 2
    cfg.SOLVER.STEPS = []
    trainer = toy.ToyTrainer(cfg)
    trainer.register_hooks([Recorder(), None])
    trainer.train()
    assert calls == [
        ("before_train", 0), ("before_step", 0), ("after_step", 0), ("before_step", 1), ("after_step", 1),
        ("after_train", 2),
    ]  # fmt: skip


def test_a_hook_keeps_its_state(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    class Counter(d2.HookBase):
        count = 0

        def after_step(self) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    trainer, counter = toy.ToyTrainer(cfg), Counter()
    trainer.register_hooks([counter])
    trainer.train()
    state = trainer.state_dict()
    other, other_counter = toy.ToyTrainer(cfg), Counter()
    other.register_hooks([other_counter])
    other.load_state_dict(state)
    assert other_counter.count == 40
    toy.ToyTrainer(cfg).load_state_dict(state)
    assert any("Counter" in record.getMessage() for record in caplog.records), "the hook that is not there is named"


def test_what_fails_in_training_is_raised_after_the_hooks_have_ended(cfg: CfgNode) -> None:
    ended: list[int] = []

    class Failing(d2.HookBase):
        def after_step(self) -> None:
            if self.trainer.iter == 2:
                raise ValueError("broken")

        def after_train(self) -> None:
            ended.append(self.trainer.iter)

    trainer = toy.ToyTrainer(cfg)
    trainer.register_hooks([Failing()])
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
    assert ended == [2]


def test_trainer_refuses_what_is_no_hook(cfg: CfgNode) -> None:
    with pytest.raises(AssertionError):
        toy.ToyTrainer(cfg).register_hooks(["hook"])  # type: ignore[list-item]  # that is the point

"""DefaultTrainer and the hooks on the toy model: learning, files on disk, resuming, evaluation, failures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from querypose import d2
from querypose.d2 import CfgNode
from tests.d2 import toy


def _rows(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]


def _train(cfg: CfgNode, resume: bool = False) -> toy.ToyTrainer:
    trainer = toy.ToyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.fixture
def cfg(toy_dataset: str, tmp_path: Path) -> CfgNode:
    return toy.config(tmp_path)


def test_learns_and_leaves_the_usual_files(cfg: CfgNode, tmp_path: Path) -> None:
    trainer = _train(cfg)
    rows = _rows(tmp_path)
    losses = [row["total_loss"] for row in rows if "total_loss" in row]
    assert losses[-1] < 0.25 * losses[0], "the medians of iterations 0 to 19 and 20 to 39"
    assert {row["iteration"] for row in rows} == {19, 39, 40}
    for name in ("loss_square", "loss_absolute", "total_loss", "lr", "time", "data_time"):
        assert name in rows[0]
    assert rows[0]["lr"] == pytest.approx(0.2)
    assert rows[1]["lr"] == pytest.approx(0.02)
    assert rows[-1]["line/error"] < 0.1
    assert rows[-1]["line/count"] == toy.NUM_ENTRIES
    names = {file.name for file in tmp_path.iterdir()}
    assert {"last_checkpoint", "model_0000014.pth", "model_0000029.pth", "model_final.pth", "metrics.json"} <= names
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    assert trainer.iter == trainer.max_iter == 40


def test_checkpoint_has_plain_types_in_the_layout_of_detectron2(cfg: CfgNode, tmp_path: Path) -> None:
    _train(cfg)
    checkpoint = torch.load(tmp_path / "model_0000029.pth", weights_only=True)
    assert set(checkpoint) == {"model", "trainer", "iteration"}
    assert checkpoint["iteration"] == 29
    assert set(checkpoint["model"]) == {"line.weight", "line.bias", "steps"}
    assert checkpoint["trainer"]["iteration"] == 29
    assert checkpoint["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 30
    assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"].shape == (1, 1)


def test_resuming_goes_on_as_if_nothing_had_happened(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.SOLVER.CHECKPOINT_PERIOD = 12  # whole epochs of 3 batches, so that both runs see the same batches from there
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = toy.NUM_ENTRIES
    whole = _train(cfg)

    class Killed(toy.ToyTrainer):
        def after_step(self) -> None:
            super().after_step()
            if self.iter == 26:
                raise KeyboardInterrupt  # no exception that the trainer would log and survive: as a signal

    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    killed = Killed(cfg)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000023.pth"

    resumed = toy.ToyTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 24
    assert resumed.optimizer.state_dict()["state"][0]["momentum_buffer"].abs().sum() > 0
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    resumed.train()
    for name, value in toy.weights(whole.model).items():
        torch.testing.assert_close(toy.weights(resumed.model)[name], value)
    assert [row["iteration"] for row in _rows(tmp_path / "killed")][-2:] == [39, 40]


def test_without_resume_weights_are_loaded_and_training_begins_anew(cfg: CfgNode, tmp_path: Path) -> None:
    first = _train(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    cfg.OUTPUT_DIR = str(tmp_path / "second")
    second = toy.ToyTrainer(cfg)
    second.resume_or_load(resume=False)
    assert second.start_iter == 0
    assert torch.equal(toy.weights(second.model)["line.weight"], toy.weights(first.model)["line.weight"])
    assert second.optimizer.state_dict()["state"] == {}


def test_resume_without_a_checkpoint_begins_anew(cfg: CfgNode) -> None:
    trainer = toy.ToyTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


def test_evaluation_period(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.TEST.EVAL_PERIOD = 10
    _train(cfg)
    evaluated = [row["iteration"] for row in _rows(tmp_path) if "line/error" in row]
    assert evaluated[-1] == 40
    assert len(evaluated) == 3, "at 10, 20, 30 and 40; writers keep the latest of each 20 iterations"


def test_expected_results(cfg: CfgNode) -> None:
    cfg.TEST.EXPECTED_RESULTS = [["line", "error", 0.0, 0.2], ["line", "count", toy.NUM_ENTRIES, 0]]
    trainer = toy.ToyTrainer(cfg)
    assert trainer.train()["line"]["count"] == toy.NUM_ENTRIES
    cfg.TEST.EXPECTED_RESULTS = [["line", "error", 5.0, 0.1]]
    with pytest.raises(SystemExit):
        toy.ToyTrainer(cfg).train()


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


def test_a_hook_keeps_its_state_in_checkpoints(cfg: CfgNode) -> None:
    class Counter(d2.HookBase):
        count = 0

        def after_step(self) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    counters = []
    for max_iter in (15, 20):
        cfg.SOLVER.MAX_ITER = max_iter
        cfg.SOLVER.STEPS = []
        trainer = toy.ToyTrainer(cfg)
        # Before the checkpointer, so that its own iteration is in the checkpoint.
        counters.append(Counter())
        trainer._hooks.insert(0, counters[-1])
        counters[-1].trainer = trainer
        trainer.resume_or_load(resume=True)
        trainer.train()
    assert [counter.count for counter in counters] == [15, 20]


def test_non_finite_loss_stops_and_names_iteration_and_losses(cfg: CfgNode) -> None:
    class Diverging(toy.ToyModel):
        count = 0

        def forward(self, batch: list[dict[str, Any]]) -> Any:
            losses = super().forward(batch)
            self.count += 1
            return {**losses, "loss_bad": losses["loss_square"] * (math.nan if self.count > 3 else 1.0)}

    class Trainer(toy.ToyTrainer):
        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            return Diverging()

    trainer = Trainer(cfg)
    with pytest.raises(FloatingPointError, match=r"(?s)iteration=3.*loss_bad") as error:
        trainer.train()
    assert "loss_square" in str(error.value)
    assert all(value.isfinite().all() for value in toy.weights(trainer.model).values()), "the bad step was not taken"


def test_simple_trainer_on_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = toy.ToyModel()
    loader = d2.build_detection_train_loader(toy.load(), mapper=toy.mapper, total_batch_size=6)
    trainer = d2.SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.2))
    totals: list[float] = []

    class Recorder(d2.HookBase):
        def after_step(self) -> None:
            totals.append(self.trainer.storage.latest()["total_loss"][0])

    trainer.register_hooks([Recorder()])
    trainer.train(0, 20)
    assert len(totals) == 20
    assert totals[-1] < 0.1 * totals[0]


def test_hooks_periodic_checkpointer_and_best_checkpointer(cfg: CfgNode, tmp_path: Path) -> None:
    errors = iter([0.5, 0.2, 0.3, 0.4])

    class Trainer(toy.ToyTrainer):
        @classmethod
        def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
            return {"line": {"error": next(errors)}}

        def build_hooks(self) -> list[Any]:
            hooks = super().build_hooks()
            best = d2.hooks.BestCheckpointer(10, self.checkpointer, "line/error", mode="min")
            return [*hooks[:-1], best, hooks[-1]]

    cfg.TEST.EVAL_PERIOD = 10
    trainer = Trainer(cfg)
    trainer.train()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 19
    if d2.ENGINE == "builtin":  # detectron2 would resume from the best, and has forgotten what the best was
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)
        assert resumed["trainer"]["hooks"]["BestCheckpointer"] == {"best_metric": 0.2, "best_iter": 19}


def test_old_periodic_checkpoints_are_deleted(tmp_path: Path) -> None:
    checkpointer = d2.Checkpointer(toy.ToyModel(), str(tmp_path))
    periodic = d2.PeriodicCheckpointer(checkpointer, period=2, max_iter=9, max_to_keep=2, file_prefix="toy")
    for iteration in range(9):
        periodic.step(iteration)
    files = sorted(Path(file).name for file in checkpointer.get_all_checkpoint_files())
    assert files == ["toy_0000005.pth", "toy_0000007.pth", "toy_final.pth"]


def test_trainer_refuses_what_is_no_hook(cfg: CfgNode) -> None:
    with pytest.raises(AssertionError):
        toy.ToyTrainer(cfg).register_hooks(["hook"])  # type: ignore[list-item]  # that is the point

"""How long a training lasts: epochs that become iterations, and minutes of a clock that the test moves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from querypose.config import ConfigError, load_config
from querypose.d2 import CfgNode, HookBase, comm
from querypose.data import register_custom_datasets
from querypose.engine import PoseTrainer
from querypose.engine.schedule import TimeLimit, iterations_per_epoch, with_iterations
from tests.engine.toy_pose import write_toy_config

EPOCHS = [
    *("SOLVER.MAX_EPOCHS", "210", "SOLVER.STEP_EPOCHS", "[170, 200]", "SOLVER.CHECKPOINT_EPOCHS", "10"),
    *("TEST.EVAL_EPOCHS", "0.5"),
]


def toy_cfg(folder: Path, *overrides: Any) -> CfgNode:
    """Six images, four an iteration: an epoch is 1.5 iterations."""
    cfg = load_config(write_toy_config(folder), ["LOG_PERIOD", 1, *overrides])
    register_custom_datasets(cfg)
    torch.manual_seed(cfg.SEED)
    return cfg


def lengths(cfg: CfgNode) -> tuple[Any, ...]:
    return cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [
        (56599, 64, (185715, [150341, 176872], 8844, 442)),  # of the closed form 56599 / 64 * epochs, rounded
        (100, 10, (2100, [1700, 2000], 100, 5)),
        (1, 16, (13, [11, 12], 1, 1)),
    ],
)
def test_epochs_become_iterations(images: int, batch: int, expected: tuple[Any, ...]) -> None:
    cfg = load_config(None, EPOCHS)
    cfg.freeze()
    loader = SimpleNamespace(dataset=range(images))
    in_iterations = with_iterations(cfg, iterations_per_epoch(loader, batch))
    assert lengths(in_iterations) == expected
    assert in_iterations.is_frozen()
    assert lengths(with_iterations(in_iterations, None)) == expected, "no epochs are left in it"
    assert lengths(cfg) == (0, [], 0, 0)


def test_epochs_of_data_without_a_length_are_refused() -> None:
    assert iterations_per_epoch(iter([]), 4) is None
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_EPOCHS is 210.0, .* allowed here: SOLVER\.MAX_ITER"):
        with_iterations(load_config(None, EPOCHS), None)


def test_what_is_set_last_replaces_its_other_unit(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 300, STEPS: [200]}\nTEST: {EVAL_PERIOD: 50}\n")
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: base.yaml\nSOLVER: {MAX_EPOCHS: 20, STEP_EPOCHS: [15.5]}\n")
    solver = load_config(child).SOLVER
    assert (solver.MAX_ITER, solver.MAX_EPOCHS, solver.STEPS, solver.STEP_EPOCHS) == (0, 20, [], [15.5])
    assert load_config(child).TEST.EVAL_PERIOD == 50
    cfg = load_config(child, ["SOLVER.MAX_ITER", "7", "SOLVER.STEPS", "[]", "TEST.EVAL_EPOCHS", "2"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.STEP_EPOCHS) == (7, 0, [])
    assert (cfg.TEST.EVAL_PERIOD, cfg.TEST.EVAL_EPOCHS) == (0, 2)
    (tmp_path / "dumped.yaml").write_text(load_config(child).dump())
    assert lengths(load_config(tmp_path / "dumped.yaml")) == lengths(load_config(child))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["SOLVER.MAX_ITER", "9", "SOLVER.MAX_EPOCHS", "2"],
            r"SOLVER\.MAX_EPOCHS is 2\.0, and SOLVER\.MAX_ITER is 9; allowed: one of the two, with the other one 0\.",
        ),
        (["SOLVER.STEPS", "[5]", "SOLVER.STEP_EPOCHS", "[1]"], r"SOLVER\.STEP_EPOCHS is \[1\].*SOLVER\.STEPS is \[5\]"),
        (["SOLVER.MAX_EPOCHS", "0"], r"SOLVER\.MAX_ITER is 0, and so is SOLVER\.MAX_EPOCHS; allowed: one of the two"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], r"SOLVER\.CHECKPOINT_PERIOD is 0, and so is SOLVER\.CHECKPOINT_EPOCHS"),
        (["SOLVER.MAX_EPOCHS", "-1"], r"SOLVER\.MAX_EPOCHS is -1\.0; allowed: a number >= 0"),
        (["SOLVER.MAX_MINUTES", "-1"], r"SOLVER\.MAX_MINUTES is -1\.0; allowed: a number >= 0"),
        (["SOLVER.STEP_EPOCHS", "[3, 2]"], r"SOLVER\.STEP_EPOCHS is \[3, 2\]; allowed: epochs in increasing order"),
        (["SOLVER.STEP_EPOCHS", "['a']"], r"SOLVER\.STEP_EPOCHS is \['a'\]; allowed: a list of numbers > 0"),
    ],
)
def test_units_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_a_trainer_refuses_two_units(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4)
    cfg.SOLVER.MAX_ITER = 9
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_EPOCHS is 4\.0, and SOLVER\.MAX_ITER is 9"):
        PoseTrainer(cfg)


class Notes(HookBase):
    """Notes learning rate and progress of every iteration."""

    def __init__(self) -> None:
        self.lr: list[float] = []
        self.progress: list[float] = []

    def before_step(self) -> None:
        self.lr.append(self.trainer.optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        self.progress.append(self.trainer.step.pose_model.progress)


def test_a_run_of_epochs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="querypose")  # else the trainer sets up a log of its own
    epochs = ["SOLVER.MAX_EPOCHS", 4, "SOLVER.STEP_EPOCHS", "[2]", "SOLVER.CHECKPOINT_EPOCHS", 2, "TEST.EVAL_EPOCHS", 2]
    cfg = toy_cfg(tmp_path, *epochs)
    trainer, notes = PoseTrainer(cfg), Notes()
    trainer.register_hooks([notes])
    trainer.train()
    assert notes.lr == pytest.approx([0.05] * 3 + [0.005] * 3)
    assert notes.progress == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    output = Path(cfg.OUTPUT_DIR)
    assert {path.stem for path in output.glob("model_0*.pth")} == {"model_0000002", "model_0000005"}
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "keypoints/AP" in row] == [2, 6]
    assert "iter 3/6  epoch 2.00" in next(line for line in caplog.messages if line.startswith("iter 3/"))


class Clock:
    """Six seconds go by from one look to the next."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        self.seconds += 6
        return self.seconds


MINUTES = ["SOLVER.MAX_MINUTES", 1, "SOLVER.MAX_ITER", 1000, "SOLVER.STEPS", "[500]", "SOLVER.CHECKPOINT_PERIOD", 4]


def timed(cfg: CfgNode, clock: Callable[[], float], *, resume: bool = False) -> tuple[PoseTrainer, Notes]:
    trainer, notes = PoseTrainer(cfg), Notes()
    trainer.register_hooks([notes])
    assert trainer.time_limit is not None
    trainer.time_limit._clock = clock
    trainer.resume_or_load(resume=resume)
    return trainer, notes


def test_minutes_end_a_run_after_saving_and_evaluating(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, *MINUTES, "LOG_PERIOD", 4, "SOLVER.WARMUP_ITERS", 200, "SOLVER.WARMUP_FACTOR", "0.0")
    trainer, notes = timed(cfg, Clock())
    trainer.train()
    # Ten iterations take the minute; in them the schedule of 1000 is run through.
    assert trainer.iter == trainer.max_iter == 10
    assert notes.lr == pytest.approx([0, 0.025, 0.05, 0.05, 0.05, *[0.005] * 5])
    assert notes.progress == pytest.approx([index / 10 for index in range(10)])
    output = Path(cfg.OUTPUT_DIR)
    assert {path.stem for path in output.glob("model_*.pth")} == {"model_0000003", "model_0000007", "model_final"}
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 9
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [3, 7, 9]
    assert "keypoints/AP" in rows[-1]
    again, _ = timed(cfg, Clock(), resume=True)
    again.train()
    assert (again.start_iter, again.max_iter) == (10, 10), "its minutes are over"


def test_minutes_go_on_where_they_were(tmp_path: Path) -> None:
    weights = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        cfg = toy_cfg(tmp_path / name, *MINUTES, "SOLVER.EMA.ENABLED", "True")
        trainer, notes = timed(cfg, Clock())
        if name == "killed":
            hook = HookBase()

            def kill(hook: HookBase = hook) -> None:
                if hook.trainer.iter == 6:
                    raise KeyboardInterrupt

            hook.before_step = kill  # type: ignore[method-assign]
            trainer.register_hooks([hook])
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            trainer.checkpointer.wait()
            trainer, notes = timed(cfg, Clock(), resume=True)
            assert trainer.start_iter == 4
            assert trainer.time_limit is not None
            assert trainer.time_limit.seconds == 24, "what was not saved is done again"
        trainer.train()
        assert notes.lr[-5:] == pytest.approx([0.005] * 5)
        weights.append(torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True))
    whole, killed = weights
    assert whole["iteration"] == killed["iteration"] == 9
    for part in ("model", "ema"):
        torch.testing.assert_close(killed[part], whole[part], rtol=0, atol=0)


def test_the_first_process_has_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "all_gather", lambda seconds: [42.0, seconds])

    class Trainer:
        scheduler = HookBase()

    limit, trainer = TimeLimit(7.0, max_iter=100, clock=Clock()), Trainer()
    limit.trainer = trainer
    limit.before_train()
    limit.after_step()
    assert limit.seconds == 42
    assert trainer.scheduler.last_epoch == pytest.approx(9)  # type: ignore[attr-defined]

"""A user's own hooks, and the lines of metrics.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from querypose.config import ConfigError, load_config
from querypose.d2 import CfgNode, EventStorage, HookBase
from querypose.data import register_custom_datasets
from querypose.engine import HOOK_REGISTRY, PoseTrainer
from querypose.engine.hooks import BestCheckpointer, CPUTime, PeriodicCheckpointer, drop_lines_after
from tests.engine.toy_pose import write_toy_config


class HalvingHook(HookBase):
    """Halves every gradient, and notes what it sees."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: list[float] = []

    @classmethod
    def from_config(cls, cfg: CfgNode, trainer: PoseTrainer) -> dict[str, Any]:
        assert trainer.cfg is cfg
        return {"factor": 0.5 if cfg.HOOKS else 1.0}

    def after_backward(self) -> None:
        gradients = [parameter.grad for parameter in self.trainer.model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        torch._foreach_mul_(gradients, self.factor)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms}


class PlainHook(HookBase):
    """Has no arguments."""


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for hook in (HalvingHook, PlainHook):
        HOOK_REGISTRY.register(hook)
    yield
    for hook in (HalvingHook, PlainHook):
        del HOOK_REGISTRY._obj_map[hook.__name__]


def _cfg(folder: Path, *overrides: Any) -> CfgNode:
    cfg = load_config(write_toy_config(folder), ["SOLVER.MAX_ITER", "3", *map(str, overrides)])
    register_custom_datasets(cfg)
    return cfg


def test_a_users_hooks_are_named_in_the_config_and_come_before_the_checkpoint(tmp_path: Path) -> None:
    trainer = PoseTrainer(_cfg(tmp_path, "HOOKS", "['HalvingHook', 'PlainHook']", "SOLVER.AMP.ENABLED", "False"))
    names = [type(hook).__name__ for hook in trainer._hooks]
    place = names.index("HalvingHook")
    assert names[place + 1 : place + 3] == ["PlainHook", PeriodicCheckpointer.__name__]
    trainer.train()
    [hook] = [hook for hook in trainer._hooks if isinstance(hook, HalvingHook)]
    assert len(hook.norms) == 3
    assert min(hook.norms) > 0
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert saved["trainer"]["hooks"]["HalvingHook"]["norms"] == hook.norms, "also of the iteration that is saved"


def test_after_backward_comes_between_the_gradient_and_the_update(tmp_path: Path) -> None:
    """The norm that is reported, and clipped, is that of the gradient which the hook has left."""
    trainer = PoseTrainer(_cfg(tmp_path, "HOOKS", "['HalvingHook']", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "[]"))
    trainer.train()
    [hook] = [hook for hook in trainer._hooks if isinstance(hook, HalvingHook)]
    assert trainer.storage.latest()["grad_norm"][0] == pytest.approx(hook.norms[0] / 2, rel=1e-4)


def test_cpu_time_leaves_out_what_comes_between_the_iterations() -> None:
    times = iter([3.0, 4.5, 10.0, 11.0])
    hook = CPUTime(clock=lambda: next(times))
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        for _ in range(2):
            hook.before_step()
            hook.after_step()
        assert storage.latest()["cpu_seconds"][0] == 2.5
    resumed = CPUTime()
    resumed.load_state_dict(hook.state_dict())
    assert resumed.seconds == 2.5


def test_a_hook_that_nobody_registered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HOOKS is \['Halving'\]; allowed: .*'HalvingHook'"):
        _cfg(tmp_path, "HOOKS", "['Halving']")


def _train_with_values(cfg: CfgNode, values: list[float], monkeypatch: pytest.MonkeyPatch) -> PoseTrainer:
    """A training whose evaluations give these values, one after the other."""
    remaining = iter(values)
    monkeypatch.setattr(PoseTrainer, "test", lambda *_: {"progress": {"OKS": next(remaining)}})
    trainer = PoseTrainer(cfg)
    trainer.train()
    return trainer


EARLY = ("TEST.EARLY_STOPPING.PATIENCE", 2, "TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "progress/OKS")


def test_a_training_ends_early_when_the_metric_no_longer_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr("querypose.engine.hooks._logger.info", messages.append)
    cfg = _cfg(tmp_path, *EARLY, "SOLVER.MAX_ITER", 20)
    trainer = _train_with_values(cfg, [10.0, 30.0, float("nan"), 30.0, 5.0], monkeypatch)
    assert trainer.iter == 9  # evaluated after 2, 4, 6, 8 iterations; the ninth one is the last
    assert any("progress/OKS has not risen above 30.00 in the last 2 evaluations" in message for message in messages)
    assert torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["iteration"] == 8
    assert torch.load(tmp_path / "output" / "model_best.pth", weights_only=True)["iteration"] == 3


def test_a_training_whose_metric_rises_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _cfg(tmp_path, *EARLY, "SOLVER.MAX_ITER", 8)
    assert _train_with_values(cfg, [1.0, 0.0, 2.0, 3.0], monkeypatch).iter == 8


def test_early_stopping_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"PATIENCE counts evaluations, but TEST.EVAL_PERIOD and .* are 0"):
        _cfg(tmp_path, "TEST.EARLY_STOPPING.PATIENCE", 2, "TEST.EVAL_PERIOD", 0)


@pytest.mark.parametrize(
    ("key", "refused", "taken"),
    [
        (
            "TEST.BEST_METRIC",
            ("AP", "keypoints/PCKh", "progress/"),
            ("keypoints", "keypoints/AP75", "progress"),
        ),
        ("TEST.EARLY_STOPPING.METRIC", ("OKS", "progress"), ("keypoints/AP", "progress/PCK")),
    ],
)
@pytest.mark.parametrize("datasets", [["toy"], ["toy", "toy_again"]])
def test_a_metric_that_no_evaluation_gives_is_refused_before_the_training(
    tmp_path: Path, key: str, refused: tuple[str, ...], taken: tuple[str, ...], datasets: list[str]
) -> None:
    files = {"json": str(tmp_path / "data" / "toy.json"), "images": str(tmp_path / "data"), "skeleton": "coco"}
    settings = (
        *("TEST.EARLY_STOPPING.PATIENCE", 2, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", datasets),
        *("DATASETS.CUSTOM", [{"name": name, **files} for name in ("toy", "toy_again")]),
    )
    first = f"{datasets[0]}/" if len(datasets) > 1 else ""
    for metric in refused:
        message = rf"{key} is '{metric}'; the evaluation gives .*{first}keypoints/AP, .*progress/OKS.*Choose one"
        with pytest.raises(ConfigError, match=message):
            PoseTrainer(_cfg(tmp_path, *settings, key, repr(metric)))
    for metric in taken:
        PoseTrainer(_cfg(tmp_path, *settings, key, metric))


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[1]", b"null", b'{"a": 1}', b'{"iteration": "x"}', b"\xff\xfe\x00", b"7", b'{"iteration": 1' * 99],
)
def test_damaged_lines_are_dropped_and_the_others_stay(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "metrics.json"
    good = [b'{"iteration": 0}\n', b'{"iteration": 1}\n']
    file.write_bytes(good[0] + damage + b"\n" + good[1])
    drop_lines_after(file, float("inf"))
    assert file.read_bytes() == b"".join(good)


@pytest.mark.parametrize(("last", "kept"), [(0, 1), (float("inf"), 2)])
def test_lines_after_the_checkpoint_and_an_unfinished_one_are_dropped(tmp_path: Path, last: float, kept: int) -> None:
    file = tmp_path / "metrics.json"
    lines = ['{"iteration": 0}\n', '{"iteration": 1}\n', '{"iteration": 2, "lo']
    file.write_text("".join(lines))
    drop_lines_after(file, last)
    assert file.read_text() == "".join(lines[:kept])
    drop_lines_after(tmp_path / "none.json", last)


@pytest.mark.parametrize(
    ("chosen", "metric"),
    [("keypoints", "keypoints/PCKh"), ("keypoints/PCKh@0.1", "keypoints/PCKh@0.1"), ("pck", "pck/PCK20"), ("AP", None)],
)
def test_best_weights_by_a_metric_or_by_the_first_one_of_a_task(
    chosen: str, metric: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved: list[dict[str, Any]] = []
    checkpointer: Any = SimpleNamespace(save_weights=lambda name, iteration, best: saved.append(best))
    hook = BestCheckpointer(checkpointer, chosen, period=1)
    with EventStorage(0) as storage:
        hook.trainer = SimpleNamespace(iter=4, max_iter=9, storage=storage)
        for storage.iter, better in enumerate((0.0, 1.0, -5.0)):
            for name, value in {
                "lr": 9.0,
                "keypoints/PCKh": 40.0,
                "keypoints/PCKh@0.1": 70.0,
                "pck/PCK20": 3.0,
            }.items():
                storage.put_scalar(name, value + better, smoothing_hint=False)
            hook.after_step()
    assert [best["metric"] for best in saved] == ([] if metric is None else [metric] * 2)
    assert ("TEST.BEST_METRIC is 'AP', and the evaluation gives" in caplog.text) == (metric is None)
    if metric is not None:
        again = BestCheckpointer(checkpointer, chosen, period=1)
        again.load_state_dict(hook.state_dict())
        assert again.best == {"metric": metric, "value": saved[1]["value"], "iteration": 1}
        again.load_state_dict({"metric": "other/AP", "value": 99.0, "iteration": 0})
        assert again.best == {}

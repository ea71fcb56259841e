from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from querypose.config import ConfigError
from querypose.d2 import CfgNode, comm
from querypose.data import DatasetError, register_custom_datasets
from querypose.engine import PoseTrainer
from querypose.engine.inference import InferenceModel
from querypose.engine.trainer import synchronize_batch_norm
from tests.engine.toy_pose import ToyPose, toy_cfg, write_toy_config

MakeCfg = Callable[..., CfgNode]


@pytest.fixture
def make_cfg(tmp_path: Path) -> MakeCfg:
    """A config of the toy, with overrides KEY VALUE …; `folder` tells runs apart."""

    def make(*overrides: Any, folder: str = "run") -> CfgNode:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        cfg = toy_cfg(write_toy_config(path))
        cfg.merge_from_list(list(overrides))
        register_custom_datasets(cfg)
        torch.manual_seed(cfg.SEED)
        return cfg

    return make


def trained(cfg: CfgNode, resume: bool = False) -> PoseTrainer:
    trainer = PoseTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def rows(cfg: CfgNode) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]


def checkpoint_of(cfg: CfgNode, name: str) -> dict[str, Any]:
    return torch.load(Path(cfg.OUTPUT_DIR) / name, weights_only=True)


def test_training_learns_and_leaves_its_files(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.MAX_ITER", 60, "SOLVER.STEPS", [40], "SOLVER.CHECKPOINT_PERIOD", 20, "TEST.EVAL_PERIOD", 20)
    trained(cfg)
    output = Path(cfg.OUTPUT_DIR)
    assert {path.name for path in output.glob("*.pth")} == {
        "model_0000019.pth", "model_0000039.pth", "model_0000059.pth", "model_best.pth", "model_final.pth",
    }  # fmt: skip
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert list(output.glob("events.out.tfevents.*"))
    poses = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert len(poses) == 6
    assert set(poses[0]) >= {"image_id", "category_id", "keypoints", "score"}
    metrics = rows(cfg)
    assert [row["iteration"] for row in metrics if "total_loss" in row] == list(range(4, 60, 5))
    assert [row["iteration"] for row in metrics if "keypoints/AP" in row] == [19, 39, 60]
    first, last = metrics[0], [row for row in metrics if "total_loss" in row][-1]
    assert set(last) >= {
        "data_time", "eta_seconds", "grad_norm", "images_per_second", "iteration", "loss_keypoint", "loss_keypoint_0",
        "lr", "time", "total_loss",
    }  # fmt: skip
    assert last["total_loss"] == pytest.approx(last["loss_keypoint"] + last["loss_keypoint_0"])
    assert last["total_loss"] < first["total_loss"] / 3
    assert (first["lr"], last["lr"]) == (0.05, pytest.approx(0.005))
    assert metrics[-1]["keypoints/AP"] > 30


def test_the_last_iteration_is_reported_whatever_the_period(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.MAX_ITER", 7)
    trained(cfg)
    assert [row["iteration"] for row in rows(cfg) if "total_loss" in row] == [4, 6]


SETTINGS = (
    "SOLVER.EMA.ENABLED", True, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16", "SOLVER.WARMUP_ITERS", 8,
    "SOLVER.ACCUMULATION_STEPS", 2,
)  # fmt: skip


def test_resuming_restores_weights_average_optimizer_schedule_scaler_and_iteration(make_cfg: MakeCfg) -> None:
    cfg = make_cfg(*SETTINGS, "SOLVER.MAX_ITER", 10)
    first = trained(cfg)
    cfg = cfg.clone()
    cfg.SOLVER.MAX_ITER = 20
    second = PoseTrainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 10
    for part in ("model", "optimizer", "scheduler", "ema"):
        torch.testing.assert_close(
            getattr(second, part).state_dict(), getattr(first, part).state_dict(), rtol=0, atol=0, msg=part
        )
    assert second._trainer.grad_scaler.state_dict() == first._trainer.grad_scaler.state_dict()
    assert second.ema is not None
    assert second.ema.num_updates == 10
    second.train()
    assert second.iter == 20
    assert second.ema.num_updates == 20
    assert checkpoint_of(cfg, "model_final.pth")["trainer"]["iteration"] == 19


def test_resuming_a_finished_run_evaluates_it_again(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    first = trained(cfg)
    second = trained(cfg, resume=True)
    assert second.start_iter == cfg.SOLVER.MAX_ITER
    assert second._last_eval_results["keypoints"] == pytest.approx(first._last_eval_results["keypoints"], nan_ok=True)
    assert [row["iteration"] for row in rows(cfg) if "total_loss" in row] == [4, 9]


def test_weights_that_are_not_there_are_refused_where_they_are_needed(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("MODEL.WEIGHTS", "nowhere.pth")
    trainer = PoseTrainer(cfg)
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is 'nowhere\.pth'; there is no such file"):
        trainer.resume_or_load(resume=True)
    trainer.train()
    PoseTrainer(cfg).resume_or_load(resume=True)


def test_without_resume_weights_alone_are_loaded(make_cfg: MakeCfg) -> None:
    first = make_cfg(*SETTINGS)
    trained(first)
    weights = str(Path(first.OUTPUT_DIR) / "model_final.pth")
    second = PoseTrainer(make_cfg(*SETTINGS, "MODEL.WEIGHTS", weights, folder="second"))
    second.resume_or_load(resume=False)
    assert second.start_iter == 0
    assert not second.optimizer.state_dict()["state"]
    torch.testing.assert_close(second.model.state_dict(), checkpoint_of(first, "model_final.pth")["model"])
    assert second.ema is not None
    average = second.ema.state_dict()
    assert average["num_updates"] == 0
    for name, weight in average["weights"].items():
        assert torch.equal(weight, second.model.state_dict()[name])


def test_averaged_weights_are_saved_beside_the_trained_and_evaluated(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_cfg("SOLVER.EMA.ENABLED", True)
    evaluated: list[torch.Tensor] = []

    def test(cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        itself = model.model if isinstance(model, InferenceModel) else model
        evaluated.append(itself.state_dict()["flow.weight"].clone())
        return {"keypoints": {"AP": 0.0}}

    monkeypatch.setattr(PoseTrainer, "test", staticmethod(test))
    trained(cfg)
    checkpoint = checkpoint_of(cfg, "model_final.pth")
    assert torch.equal(evaluated[0], checkpoint["ema"]["weights"]["flow.weight"])
    assert not torch.equal(evaluated[0], checkpoint["model"]["flow.weight"])
    weights = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    PoseTrainer.evaluate_weights(make_cfg("SOLVER.EMA.ENABLED", True, "MODEL.WEIGHTS", weights, folder="second"))
    assert torch.equal(evaluated[1], evaluated[0])
    PoseTrainer.evaluate_weights(make_cfg("MODEL.WEIGHTS", weights, folder="third"))
    assert torch.equal(evaluated[2], checkpoint["model"]["flow.weight"])


def test_evaluation_alone_gives_the_figures_of_the_end_of_training(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.MAX_ITER", 40)
    trainer = trained(cfg)
    again = PoseTrainer.evaluate_weights(cfg, resume=True)
    assert again["keypoints"] == pytest.approx(trainer._last_eval_results["keypoints"], nan_ok=True)


def test_expected_results_are_verified(make_cfg: MakeCfg) -> None:
    met, missed = (
        make_cfg("TEST.EXPECTED_RESULTS", [["keypoints", "AP", *row]]) for row in ((0.0, 101.0), (250.0, 1.0))
    )
    PoseTrainer.evaluate_weights(met, random_weights=True)
    with pytest.raises(SystemExit):
        PoseTrainer.evaluate_weights(missed, random_weights=True)


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint_of_it(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.CHECKPOINT_PERIOD", 4, "LOG_PERIOD", 1000)
    trainer = PoseTrainer(cfg)
    assert isinstance(trainer.model, ToyPose)
    trainer.model.unit_of_loss = float("inf")
    with pytest.raises(FloatingPointError, match="iteration 0"):
        trainer.train()
    assert not list(Path(cfg.OUTPUT_DIR).glob("*.pth"))


@pytest.mark.parametrize(
    ("processes", "overrides", "message"),
    [
        (3, (), "SOLVER.IMS_PER_BATCH is 4; allowed: multiples of the 3 processes"),
        (2, ("SOLVER.ACCUMULATION_STEPS", 4), "SOLVER.ACCUMULATION_STEPS is 4; allowed: at most the 2 images"),
    ],
)
def test_batch_sizes_that_cannot_be_shared_out_are_refused(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, processes: int, overrides: tuple[Any, ...], message: str
) -> None:
    cfg = make_cfg(*overrides)
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    with pytest.raises(ConfigError, match=message):
        PoseTrainer(cfg)


def test_an_unknown_dataset_is_named(make_cfg: MakeCfg) -> None:
    with pytest.raises((DatasetError, ValueError), match="'nowhere'"):
        PoseTrainer(make_cfg("DATASETS.TRAIN", ["nowhere"]))


def test_synchronised_batch_norm_on_the_cpu_is_refused(make_cfg: MakeCfg) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.SYNC_BATCH_NORM is True with MODEL.DEVICE 'cpu'"):
        PoseTrainer(make_cfg("MODEL.SYNC_BATCH_NORM", True))


def test_synchronised_batch_norm_keeps_parameters_and_activations() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(BatchNormAct2d(4)), nn.LayerNorm(2))
    parameters = list(model.parameters())
    converted = synchronize_batch_norm(model, torch.device("cuda"))
    kinds = [isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules()]
    assert sum(kinds) == 2
    assert isinstance(converted.get_submodule("1.0.act"), nn.ReLU)
    assert all(ours is theirs for ours, theirs in zip(converted.parameters(), parameters, strict=True))

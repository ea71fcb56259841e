"""An iteration that is not finite changes nothing, ends the run or is skipped, and can be run again from its dump."""

from __future__ import annotations

import copy
import errno
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from querypose.d2 import CheckpointError, EventStorage, build_model
from querypose.data.transforms import rotate
from querypose.engine import NonFiniteError, TrainStep, build_optimizer
from querypose.engine.dumps import DumpWriter, read_dumps
from querypose.engine.non_finite import RunningStatistics, gradient_norms, nan_unless_finite
from querypose.engine.replay import format_replay, replay
from querypose.engine.scalars import ScalarQueue
from querypose.engine.trainer import PoseTrainer
from querypose.modeling.pose_model import Batch
from tests.engine.toy_pose import ToyPose, toy_batch, toy_cfg, toy_model, write_toy_config
from tests.scripts import load_script, run_script
from tests.tiny import random_batch, tiny_config


def spoilt(batch: Batch, value: float = math.inf) -> Batch:
    """The batch with a box at infinity and, in the first image, a keypoint."""
    batch = copy.deepcopy(list(batch))
    batch[0]["instances"].gt_boxes.tensor[0, 2] = value
    batch[0]["instances"].gt_keypoints.tensor[0, 0] = torch.tensor([value, value, 2.0])
    return batch


def make_step(
    model: nn.Module, batches: Sequence[Batch], lag: int = 0, fused: bool = True, **settings: Any
) -> TrainStep:
    optimizer: torch.optim.Optimizer
    if fused:
        optimizer = build_optimizer(model, base_lr=0.01, weight_decay=0.1, weight_decay_norm=0.0, weight_decay_bias=0.0)
        assert hasattr(optimizer, "_step_supports_amp_scaling")  # what masks the update
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = TrainStep(model, batches, optimizer, **settings)
    step.scalars = ScalarQueue(step._guard.check, lag)  # 1 is how a GPU does it
    return step


def run(step: TrainStep, iterations: int) -> EventStorage:
    with EventStorage(0) as storage:
        for iteration in range(step.iter, step.iter + iterations):
            step.iter = storage.iter = iteration
            step.run_step()
        step.flush()
    return storage


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config())


GOOD = [random_batch([1, 2], 17), random_batch([2, 1], 17), random_batch([1, 1], 17)]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_iteration_leaves_no_trace(lag: int, fused: bool) -> None:
    """Weights, momenta, step counts and running statistics are those of a run that never saw the bad batch."""
    runs = []
    for batches in (GOOD, [GOOD[0], spoilt(GOOD[1]), spoilt(GOOD[2]), *GOOD[1:]]):
        step = make_step(tiny_model(), batches, lag, fused, guard={"skip": True}, clip_norm=1.0, log_period=100)
        run(step, len(batches))
        runs.append((step.model.state_dict(), step.optimizer.state_dict()["state"]))
    counts = [name for name in runs[0][0] if name.endswith("num_batches_tracked")]
    for weights, _ in runs:
        for name in counts:
            del weights[name]  # counts forward passes, and nothing reads it
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_run_stops_with_the_weights_from_before(lag: int, tmp_path: Path) -> None:
    step = make_step(tiny_model(), [GOOD[0], spoilt(GOOD[1]), GOOD[2]], lag, log_period=100)
    run(step, 1)
    before = {name: weight.clone() for name, weight in step.model.named_parameters()}
    step.iter = 1
    with pytest.raises(NonFiniteError, match=r"loss became infinite or NaN at iteration 1 .*SOLVER\.BASE_LR"):
        run(step, 2)
    assert step.iter == 1 + lag
    torch.testing.assert_close(dict(step.model.named_parameters()), before, rtol=0, atol=0)


def test_skips_in_a_row_are_bounded_and_a_good_one_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    bad = spoilt(toy_batch([1, 1]))
    batches = [bad, bad, toy_batch([1, 1]), bad, bad, bad]
    step = make_step(toy_model(), batches, guard={"skip": True, "max_consecutive": 2})
    with caplog.at_level(logging.WARNING):
        run(step, 5)
    assert caplog.text.count("is skipped") == 4
    step.iter = 5
    with pytest.raises(NonFiniteError, match=r"3 iterations in a row .*MAX_CONSECUTIVE \(2\)"):
        run(step, 1)


def test_figures_of_skipped_iterations_are_not_reported() -> None:
    good, bad = toy_batch([1, 1]), spoilt(toy_batch([1, 1]))
    step = make_step(toy_model(), [good, bad, good, bad], guard={"skip": True}, log_period=2)
    storage = run(step, 4)
    values = [value for value, _ in storage.history("total_loss").values()]
    assert len(values) == 2
    assert all(map(math.isfinite, values))
    assert "non_finite" not in storage.latest()


def test_a_gradient_that_is_infinite_for_ever_ends_a_run_with_scaled_loss() -> None:
    class Endless(ToyPose):
        def losses(self, batch: Batch, normalizers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            # Its gradient at 0, where the weights start, is infinite or NaN, whatever the scale.
            return {"loss": self.flow.weight.abs().sqrt().sum()}

    step = make_step(Endless(), [toy_batch([1])] * 60, precision=torch.float16)
    with pytest.raises(NonFiniteError, match="gradient became infinite or NaN at iteration 50"):
        run(step, 60)


def test_running_statistics_are_put_back_where_it_went_wrong() -> None:
    norms = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.LayerNorm(3))
    statistics = RunningStatistics(norms)
    before = statistics.copy()
    assert before is not None
    assert before.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    norms[0](torch.randn(4, 2, 3, 3))
    norms[2](torch.full((4, 3, 3, 3), math.nan))
    statistics.restore_unless(torch.tensor(True), before)
    assert not torch.equal(norms.state_dict()["0.running_mean"], torch.zeros(2))
    statistics.restore_unless(torch.tensor(False), before)
    assert torch.equal(statistics.copy(), before)  # type: ignore[arg-type]  # there are some
    assert RunningStatistics(nn.Linear(2, 2)).copy() is None


def test_the_gradient_of_a_loss_that_is_not_finite_is_nan_and_else_untouched() -> None:
    for factor, expected in ((3.0, 3.0), (math.inf, math.nan)):
        weight = nn.Parameter(torch.ones(2))
        nan_unless_finite((weight * 3).sum() + (0 if factor == 3.0 else math.inf)).backward()
        torch.testing.assert_close(weight.grad, torch.full((2,), expected), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_norms_are_those_of_each_parameter(norm_type: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 0.0, 0.0])
    expected = [torch.linalg.vector_norm(torch.tensor([3.0, 4.0]), norm_type).item(), 1.0, 0.0]
    assert gradient_norms(parameters, norm_type).tolist() == pytest.approx(expected)


def dumped(tmp_path: Path, cfg: Any, model: nn.Module, batches: Sequence[Batch], **settings: Any) -> TrainStep:
    guard = {"dumps": DumpWriter(tmp_path / "dumps", cfg.dump(), 3), "skip": True, **settings.pop("guard", {})}
    return make_step(model, batches, guard=guard, **settings)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_dump_replays_to_the_same_numbers(tmp_path: Path, lag: int, precision: torch.dtype | None) -> None:
    settings = ["SOLVER.AMP.ENABLED", str(precision is not None), "SOLVER.ACCUMULATION_STEPS", "2"]
    cfg = tiny_config(*settings, "MODEL.BACKBONE.DROP_PATH_RATE", "0.3")
    torch.manual_seed(0)
    model = build_model(cfg)
    batches = [GOOD[0], spoilt(GOOD[1]), GOOD[2]]
    step = dumped(tmp_path, cfg, model, batches, lag=lag, precision=precision, num_micro_batches=2, log_period=100)
    run(step, 3)
    (folder,) = (tmp_path / "dumps").iterdir()
    assert folder.name == "iteration_0000001"
    result = replay(folder, "cpu")
    assert result.is_reproduced
    (process,) = result.processes
    assert process.replayed == pytest.approx(process.recorded, rel=1e-6, nan_ok=True)
    finite = {name for name, value in process.recorded.items() if math.isfinite(value)}
    assert "loss_cls" in finite
    assert finite < process.recorded.keys()
    assert process.first_output is not None
    assert process.first_output.startswith("criterion (SetCriterion)")


def test_a_dump_names_the_images_the_module_and_the_parameters(tmp_path: Path) -> None:
    batch = random_batch([1, 1], 17)
    for index, item in enumerate(batch):
        item.update(image_id=40 + index, file_name=f"photos/{index}.jpg")
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("decoder.box_stages.1.feed_forward.reduce.bias")[0] = math.inf
    run(dumped(tmp_path, tiny_config(), model, [batch]), 1)
    result = replay(tmp_path / "dumps" / "iteration_0000000", "cpu")
    assert result.is_reproduced
    report = format_replay(result)
    assert "photos/0.jpg (id 40), photos/1.jpg (id 41)" in report
    assert "decoder.box_stages.1.feed_forward.reduce (Linear), whose input is finite" in report
    bad = [name for name, norm in result.recorded_norms.items() if not math.isfinite(norm)]
    assert "decoder.box_stages.1.cls_logit.weight" in bad
    assert f"parameters whose gradient is not finite: {len(bad)} of {len(result.recorded_norms)} " in report
    assert report.endswith("Reproduced.")


def test_a_gradient_that_alone_is_not_finite_is_traced(tmp_path: Path) -> None:
    """Here a hook makes it, which no dump can have, so that it does not show again."""

    def spoil(module: nn.Module, inputs: Any, outputs: Any) -> tuple[torch.Tensor]:
        return (torch.full_like(inputs[0], math.nan),)

    model = tiny_model()
    model.get_submodule("decoder.box_stages.0.box_deltas").register_full_backward_hook(spoil)
    run(dumped(tmp_path, tiny_config(), model, [GOOD[0]]), 1)
    result = replay(tmp_path / "dumps" / "iteration_0000000", "cpu")
    bad = {name for name, norm in result.recorded_norms.items() if not math.isfinite(norm)}
    assert "decoder.box_stages.0.reg_layers.0.weight" in bad
    assert "decoder.box_stages.1.box_deltas.weight" not in bad
    assert all(map(math.isfinite, result.processes[0].recorded.values()))
    assert not result.is_reproduced
    assert format_replay(result).endswith("NOT reproduced: other losses or gradients are not finite now.")


def test_a_replay_finds_the_first_gradient() -> None:
    from querypose.engine.replay import _first_non_finite

    class Root(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return value.abs().sqrt()  # finite at 0, its gradient is not

    model = nn.Sequential(nn.Linear(2, 2), Root(), nn.Linear(2, 1))
    for parameter in model[0].parameters():
        nn.init.zeros_(parameter)
    with _first_non_finite(model) as first:
        model(torch.ones(1, 2)).sum().backward()
    assert first == {"gradient": "0 (Linear), at its output"}
    assert not model[0]._forward_hooks


def test_dumps_are_few_whole_and_never_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = spoilt(toy_batch([1, 1]))
    cfg = tiny_config()
    writer = DumpWriter(tmp_path / "dumps", cfg.dump(), max_dumps=2)
    step = make_step(toy_model(), [bad] * 8, guard={"skip": True, "dumps": writer})

    def full(path: str, mode: str = "wb") -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("querypose.engine.dumps.atomic_write", full)
    with caplog.at_level(logging.WARNING):
        run(step, 1)
    assert "could not be dumped" in caplog.text
    monkeypatch.undo()
    step.iter = 1
    with caplog.at_level(logging.WARNING):
        run(step, 4)
    assert [folder.name for folder in sorted((tmp_path / "dumps").glob("*/rank_0.pth"))] == ["rank_0.pth"]
    assert caplog.text.count("python tools/replay.py") == 1
    torch.load(tmp_path / "dumps" / "iteration_0000001" / "rank_0.pth", weights_only=True)


def test_a_dump_keeps_what_a_sample_says_of_itself(tmp_path: Path) -> None:
    [item] = random_batch([1], 17)
    item.update(frame=rotate((40, 50), 30), sample_id=(7, 12), person_box=[1.5, 2.5, 30.0, 40.0])
    content = {"iteration": 0, "losses": {}, "random_state": {"cpu": torch.get_rng_state()}, "loss_scale": 1}
    DumpWriter(tmp_path, "", 1).write(content, [item], {})
    [dump] = read_dumps(tmp_path / "iteration_0000000")
    [read] = dump["batch"]
    assert (read["sample_id"], read["person_box"]) == (item["sample_id"], item["person_box"])
    assert np.array_equal(read["frame"].matrix, item["frame"].matrix)
    assert (read["frame"].source_size, read["frame"].output_size) == ((40, 50), (40, 50))
    assert torch.equal(read["instances"].gt_keypoints.tensor, item["instances"].gt_keypoints.tensor)


def test_dumps_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no dump"):
        read_dumps(tmp_path)
    run(dumped(tmp_path, tiny_config(), tiny_model(), [spoilt(GOOD[0])]), 1)
    folder = tmp_path / "dumps" / "iteration_0000000"
    dump = torch.load(folder / "rank_0.pth", weights_only=True)
    torch.save({**dump, "world_size": 2}, folder / "rank_0.pth")
    with pytest.raises(CheckpointError, match=r"processes \[0\] of 2"):
        read_dumps(folder)
    torch.save({"model": dump["model"]}, folder / "rank_0.pth")
    with pytest.raises(CheckpointError, match=r"rank_0\.pth is not a dump"):
        read_dumps(folder)
    torch.save({name: value for name, value in dump.items() if name != "model"}, folder / "rank_0.pth")
    with pytest.raises(CheckpointError, match="has no weights"):
        replay(folder, "cpu")


class FailingTrainer(PoseTrainer):
    """Gets a box at infinity in two iterations, the first among them."""

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        for iteration, batch in enumerate(super().build_train_loader(cfg)):
            yield spoilt(batch) if iteration in (0, 4) else batch


def trained(config_file: Path, overrides: Mapping[str, Any]) -> FailingTrainer:
    cfg = toy_cfg(config_file)
    cfg.merge_from_list([part for pair in overrides.items() for part in pair])
    trainer = FailingTrainer(cfg)
    trainer.train()
    return trainer


def test_a_run_skips_and_its_dumps_replay_by_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from querypose.data import register_custom_datasets

    config_file = write_toy_config(tmp_path)
    register_custom_datasets(toy_cfg(config_file))
    trainer = trained(config_file, {"SOLVER.NON_FINITE.ACTION": "skip", "SOLVER.EMA.ENABLED": True})
    assert trainer.iter == 10
    assert trainer.ema is not None
    for weights in (trainer.model.state_dict(), trainer.ema.state_dict()["weights"]):
        assert all(weight.isfinite().all() for weight in weights.values())
    dumps = sorted((tmp_path / "output" / "dumps").iterdir())
    assert [dump.name for dump in dumps] == ["iteration_0000000", "iteration_0000004"]
    tool = load_script("tools/replay.py")
    assert tool.main([str(dumps[1])]) == 0
    assert "Reproduced." in capsys.readouterr().out
    assert run_script("tools/replay.py", str(tmp_path / "output")) == 2
    with pytest.raises(NonFiniteError, match=r"iteration 0 .*python tools/replay\.py .*dumps/iteration_0000000"):
        trained(config_file, {"OUTPUT_DIR": str(tmp_path / "second")})

"""Several processes on the CPU: communication, sharding, training, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from querypose import d2
from querypose.d2 import CfgNode
from tests.d2 import toy


def _communicate(output: str) -> None:
    comm = d2.comm
    rank = comm.get_rank()
    report: dict[str, Any] = {
        "world_size": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "is_main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(rank * 10),
        "gather_on_1": comm.gather(rank * 10, dst=1),
        "seed": comm.shared_random_seed(),
        "mean": comm.reduce_dict({"loss": torch.tensor(float(rank))})["loss"].item() if rank == 0 else None,
    }
    if rank != 0:
        comm.reduce_dict({"loss": torch.tensor(float(rank))})
    comm.synchronize()
    (Path(output) / f"{rank}.json").write_text(json.dumps(report))


def _load(output: str) -> None:
    toy.register()
    cfg = toy.config(Path(output))
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    loader = iter(d2.build_detection_train_loader(cfg, mapper=toy.mapper))
    batches = [[entry["image_id"] for entry in next(loader)] for _ in range(3)]
    tested = [batch[0]["image_id"] for batch in d2.build_detection_test_loader(toy.load()[:11], mapper=toy.mapper)]
    gathered = d2.comm.gather((batches, tested))
    if d2.comm.is_main_process():
        (Path(output) / "loaded.json").write_text(json.dumps(gathered))


class _StepTrainer(toy.ToyTrainer):
    """The whole dataset in every batch, so that the number of processes changes nothing but who has which image."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return d2.build_detection_train_loader(
            toy.load(), mapper=toy.mapper, total_batch_size=toy.NUM_ENTRIES, aspect_ratio_grouping=False
        )


def _train(output: str, resume: bool, max_iter: int) -> None:
    toy.register()
    cfg = toy.config(Path(output))
    cfg.SOLVER.MAX_ITER = max_iter
    cfg.SOLVER.STEPS = []
    cfg.SOLVER.CHECKPOINT_PERIOD = 5
    trainer = _StepTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    spread = d2.comm.all_gather(toy.weights(trainer.model)["line.weight"].item())
    assert len(set(spread)) == 1, "the processes have different weights"


class _FailingModel(toy.ToyModel):
    def forward(self, batch: list[dict[str, Any]]) -> Any:
        losses = super().forward(batch)
        # One process alone has a bad batch.
        return {name: loss * (float("nan") if d2.comm.get_rank() == 1 else 1.0) for name, loss in losses.items()}


class _FailingTrainer(_StepTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return _FailingModel()


def _train_with_a_bad_loss(output: str) -> None:
    toy.register()
    _FailingTrainer(toy.config(Path(output))).train()


def _launch(function: Any, *args: Any, processes: int = 2) -> None:
    d2.launch(function, processes, dist_url="auto", args=args)


def test_communication(tmp_path: Path) -> None:
    _launch(_communicate, str(tmp_path))
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, report in enumerate(reports):
        assert report["world_size"] == 2
        assert report["local_rank"] == rank
        assert report["is_main"] is (rank == 0)
        assert report["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert [report["gather"] for report in reports] == [[0, 10], []]
    assert [report["gather_on_1"] for report in reports] == [[], [0, 10]]
    assert reports[0]["seed"] == reports[1]["seed"]
    assert reports[0]["mean"] == 0.5


def test_one_process_runs_in_place(tmp_path: Path) -> None:
    calls: list[int] = []
    d2.launch(calls.append, 1, args=(3,))
    assert calls == [3]
    comm = d2.comm
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.all_gather(5) == comm.gather(5) == [5]
    comm.synchronize()
    assert comm.reduce_dict({"loss": torch.tensor(2.0)})["loss"] == 2


def test_processes_share_the_images(tmp_path: Path) -> None:
    _launch(_load, str(tmp_path))
    (first, first_tested), (second, second_tested) = json.loads((tmp_path / "loaded.json").read_text())
    assert [len(batch) for batch in first + second] == [2] * 6, "IMS_PER_BATCH counts all processes"
    # Three batches of four images are one epoch: each image once, over both processes.
    assert sorted([index for batch in first + second for index in batch]) == list(range(toy.NUM_ENTRIES))
    assert first_tested == [0, 1, 2, 3, 4, 5]
    assert second_tested == [6, 7, 8, 9, 10]


def test_two_processes_train_as_one_and_resume(tmp_path: Path) -> None:
    _launch(_train, str(tmp_path / "two"), False, 6)
    _launch(_train, str(tmp_path / "two"), True, 12)
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "line/count" in row] == [6, 12]
    assert all(row["line/count"] == toy.NUM_ENTRIES for row in rows if "line/count" in row)
    try:
        _train(str(tmp_path / "one"), False, 6)
    finally:
        d2.DatasetCatalog.remove(toy.DATASET)
        d2.MetadataCatalog.remove(toy.DATASET)
    two = torch.load(tmp_path / "two" / "model_0000004.pth", weights_only=True)["model"]
    one = torch.load(tmp_path / "one" / "model_0000004.pth", weights_only=True)["model"]
    torch.testing.assert_close(two, one)


def test_bad_loss_in_one_process_ends_all(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Loss became infinite or NaN at iteration=0"):
        _launch(_train_with_a_bad_loss, str(tmp_path))


def test_auto_url_is_for_one_machine() -> None:
    with pytest.raises(AssertionError, match="auto"):
        d2.launch(print, 1, num_machines=2, machine_rank=0, dist_url="auto")

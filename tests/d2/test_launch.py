"""Several processes on the CPU: communication and sharing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from querypose import d2
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
    }
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


def test_one_process_runs_in_place(tmp_path: Path) -> None:
    calls: list[int] = []
    d2.launch(calls.append, 1, args=(3,))
    assert calls == [3]
    comm = d2.comm
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.all_gather(5) == comm.gather(5) == [5]
    comm.synchronize()


def test_processes_share_the_images(tmp_path: Path) -> None:
    _launch(_load, str(tmp_path))
    (first, first_tested), (second, second_tested) = json.loads((tmp_path / "loaded.json").read_text())
    assert [len(batch) for batch in first + second] == [2] * 6, "IMS_PER_BATCH counts all processes"
    # Three batches of four images are one epoch: each image once, over both processes.
    assert sorted([index for batch in first + second for index in batch]) == list(range(toy.NUM_ENTRIES))
    assert first_tested == [0, 1, 2, 3, 4, 5]
    assert second_tested == [6, 7, 8, 9, 10]


def test_auto_url_is_for_one_machine() -> None:
    with pytest.raises(AssertionError, match="auto"):
        d2.launch(print, 1, num_machines=2, machine_rank=0, dist_url="auto")

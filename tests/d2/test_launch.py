"""Several processes on the CPU: what they tell each other."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from querypose import d2


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
        "start_method": multiprocessing.get_start_method(),
    }
    comm.synchronize()
    (Path(output) / f"{rank}.json").write_text(json.dumps(report))


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
        assert report["start_method"] == multiprocessing.get_start_method(), "loader processes would be slow to start"
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


def test_auto_url_is_for_one_machine() -> None:
    with pytest.raises(AssertionError, match="auto"):
        d2.launch(print, 1, num_machines=2, machine_rank=0, dist_url="auto")

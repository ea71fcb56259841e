from __future__ import annotations

from pathlib import Path

import pytest

from querypose.analysis.ablation_runs import AblationRun, RunResult, plan_runs
from querypose.analysis.ablation_table import AblationTable, read_ablation
from querypose.config import ConfigError
from tests.analysis.rates import write_rates


@pytest.fixture
def table(tmp_path: Path) -> AblationTable:
    return read_ablation([write_rates(tmp_path)])


def begin(run: AblationRun) -> None:
    run.folder.mkdir(parents=True)
    run.file(".yaml").write_text(run.cfg.dump())


def test_plan(table: AblationTable, tmp_path: Path) -> None:
    runs = plan_runs(table, tmp_path / "out", max_iter=50, overrides=["LOG_PERIOD", "7"])
    assert [run.label for run in runs] == ["slow (seed 1)", "fast (seed 1)"]
    assert [run.cfg.SOLVER.BASE_LR for run in runs] == [0.1, 0.5]
    assert {(run.cfg.SOLVER.MAX_ITER, run.cfg.LOG_PERIOD, run.cfg.SEED) for run in runs} == {(50, 7, 1)}
    assert runs[0].folder == tmp_path / "out" / "slow" / "seed_1"
    seeds = plan_runs(table, tmp_path / "out", seeds=[4, 0])
    assert [run.label for run in seeds] == ["slow (seed 4)", "fast (seed 4)", "slow (seed 0)", "fast (seed 0)"]
    assert [run.cfg.SEED for run in seeds] == [4, 4, 0, 0]


def test_changed_settings_are_refused(table: AblationTable, tmp_path: Path) -> None:
    for run in plan_runs(table, tmp_path / "out"):
        begin(run)
    plan_runs(table, tmp_path / "out", overrides=["DATALOADER.NUM_WORKERS", "3"])  # changes nothing of the result
    with pytest.raises(ConfigError, match=r"Row slow \(seed 1\).*SOLVER.MAX_ITER was 10, is 20.*--output"):
        plan_runs(table, tmp_path / "out", overrides=["SOLVER.MAX_ITER", "20"])
    # A key that the project did not have when the run began.
    file = plan_runs(table, tmp_path / "out")[0].file(".yaml")
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "LOG_PERIOD" not in line))
    plan_runs(table, tmp_path / "out")


def test_a_training_that_stops_early_has_not_finished(table: AblationTable, tmp_path: Path) -> None:
    run = plan_runs(table, tmp_path / "out")[0]
    run.finish()
    assert not run.is_finished
    begin(run)
    for iteration, finished in ((5, False), (9, True)):
        (run.folder / "metrics.json").write_text(f'{{"iteration": {iteration}, "total_loss": 1, "keypoints/AP": 3}}\n')
        run.finish()
        assert run.is_finished == finished
    assert run.progress() == RunResult(10, None, {"AP": 3}, {"AP": [(10, 3)]})
    assert run.result().metrics == {"AP": 3}


def test_result_of_metrics() -> None:
    curves = {
        "total_loss": [(19.0, 3.0), (39.0, 2.0)],
        "time": [(19.0, 1.0), (39.0, 3.0), (59.0, 2.0)],
        "a/keypoints/AP": [(19.0, 1.0), (39.0, 2.0)],
        "a/progress/OKS": [(39.0, 5.0)],
        "b/keypoints/AP": [(39.0, 9.0)],
        "cpu_seconds": [(19.0, 10.0), (39.0, 21.0)],
    }
    expected = RunResult(40, 2.0, {"AP": 2.0}, {"AP": [(20.0, 1.0), (40.0, 2.0)], "OKS": [(40.0, 5.0)]}, 21.0)
    assert RunResult.of(curves, ["a", "b"]) == expected
    assert RunResult.of({}, ["a"]).iteration == 0

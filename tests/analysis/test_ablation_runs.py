from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from querypose.analysis.ablation import Ablation, exclusive
from querypose.analysis.ablation_runs import AblationRun, AblationRunner, Slot, make_slots, plan_runs, read_figures
from querypose.analysis.ablation_table import AblationTable, read_ablation
from querypose.config import ConfigError
from tests.engine.toy_pose import write_toy_config

# Stands in for tools/train_net.py: writes what a training writes, and what it was called with.
FAKE_TRAINING = """
import json, os, sys, yaml
file = sys.argv[sys.argv.index("--config-file") + 1]
cfg = yaml.safe_load(open(file))
folder = cfg["OUTPUT_DIR"]
calls = os.path.join(folder, "calls.jsonl")
call = {"argv": sys.argv[1:], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "omp": os.environ["OMP_NUM_THREADS"]}
open(calls, "a").write(json.dumps(call) + "\\n")
if os.path.exists(os.path.join(folder, "..", "fail")):
    sys.exit("the disk is full")
row = {"iteration": cfg["SOLVER"]["MAX_ITER"] - 1, "total_loss": 1.0, "time": 0.25}
with open(os.path.join(folder, "metrics.json"), "w") as stream:
    stream.write(json.dumps({"iteration": 1, "total_loss": 2.0, "time": 0.75, "keypoints/AP": 5.0}) + "\\n")
    stream.write(json.dumps({**row, "keypoints/AP": 100 * cfg["SOLVER"]["BASE_LR"] + cfg["SEED"]}) + "\\n")
"""


@pytest.fixture
def table(tmp_path: Path) -> AblationTable:
    config = write_toy_config(tmp_path)
    for name, rate in (("slow", 0.1), ("fast", 0.5)):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {config.name}\nSOLVER: {{BASE_LR: {rate}}}\n")
    (tmp_path / "rates.yaml").write_text(
        "title: Rates\n"
        "rows: [{name: Slow, config: slow.yaml, paper: {AP: 60.5}}, {name: Fast, config: fast.yaml, paper: {AP: 61}}]\n"
    )
    return read_ablation([tmp_path / "rates.yaml"])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "fake_training.py"
    script.write_text(FAKE_TRAINING)
    return [sys.executable, str(script)]


def train(runs: Sequence[AblationRun], command: Sequence[str], *slots: Slot) -> tuple[list[AblationRun], str]:
    messages: list[str] = []
    runner = AblationRunner(runs, command, slots or [Slot()], report=messages.append, poll_period=0.01)
    return runner.run(), "\n".join(messages)


def calls(run: AblationRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "calls.jsonl").read_text().splitlines()]


def test_plan(table: AblationTable, tmp_path: Path) -> None:
    runs = plan_runs(table, tmp_path / "out", max_iter=50, overrides=["LOG_PERIOD", "7"])
    assert [run.label for run in runs] == ["Slow (seed 1)", "Fast (seed 1)"]
    assert [run.cfg.SOLVER.BASE_LR for run in runs] == [0.1, 0.5]
    assert {(run.cfg.SOLVER.MAX_ITER, run.cfg.LOG_PERIOD, run.cfg.SEED) for run in runs} == {(50, 7, 1)}
    assert runs[0].folder == tmp_path / "out" / "slow" / "seed_1"
    seeds = plan_runs(table, tmp_path / "out", seeds=[4, 0])
    assert [run.label for run in seeds] == ["Slow (seed 4)", "Fast (seed 4)", "Slow (seed 0)", "Fast (seed 0)"]
    assert [run.cfg.SEED for run in seeds] == [4, 4, 0, 0]


def test_finished_rows_are_not_run_again_and_failed_ones_are(
    table: AblationTable, tmp_path: Path, command: list[str]
) -> None:
    def planned() -> list[AblationRun]:
        return plan_runs(table, tmp_path / "out")

    slow, fast = planned()
    slow.folder.mkdir(parents=True)
    (slow.folder.parent / "fail").touch()
    failed, messages = train([slow, fast], command)
    assert failed == [slow]
    assert "Slow (seed 1) FAILED with exit code 1" in messages
    assert "the disk is full" in messages
    assert "Fast (seed 1) has finished: AP 51.0 after 10 iterations." in messages
    assert (slow.is_finished, fast.is_finished) == (False, True)
    assert fast.result().metrics == {"AP": 51.0}
    assert fast.result().seconds_per_step == 0.5

    (slow.folder.parent / "fail").unlink()
    failed, messages = train(planned(), command)
    assert failed == []
    assert "1 of 2 runs have finished before" in messages
    assert [len(calls(run)) for run in (slow, fast)] == [2, 1]
    assert "--resume" in calls(slow)[1]["argv"]


def test_a_training_that_stops_early_has_not_finished(table: AblationTable, tmp_path: Path) -> None:
    slow, fast = plan_runs(table, tmp_path / "out")
    fast.folder.mkdir(parents=True)
    (fast.folder / "metrics.json").write_text('{"iteration": 5, "total_loss": 1.0, "keypoints/AP": 3.0}\n')
    failed, messages = train([slow, fast], [sys.executable, "-c", "pass"])
    assert failed == [slow, fast]
    assert "Fast (seed 1) was stopped after 6 iterations" in messages
    assert not fast.is_finished


def test_changed_settings_are_refused(table: AblationTable, tmp_path: Path, command: list[str]) -> None:
    train(plan_runs(table, tmp_path / "out"), command)
    plan_runs(table, tmp_path / "out", overrides=["DATALOADER.NUM_WORKERS", "3"])  # changes nothing of the result
    with pytest.raises(ConfigError, match=r"Row Slow \(seed 1\).*SOLVER.MAX_ITER was 10, is 20.*--output"):
        plan_runs(table, tmp_path / "out", overrides=["SOLVER.MAX_ITER", "20"])
    # A key that the project did not have when the run began.
    file = plan_runs(table, tmp_path / "out")[0].file(".yaml")
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "LOG_PERIOD" not in line))
    plan_runs(table, tmp_path / "out")


def test_slots(table: AblationTable, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slots = make_slots(gpus=["4", "5", "7"], gpus_per_row=2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4,5"]
    assert [slot.arguments for slot in slots] == [("--num-gpus", "2")]
    with pytest.raises(ConfigError, match="2 GPUs, but there are 1"):
        make_slots(gpus=["0"], gpus_per_row=2)
    slow, fast = plan_runs(table, tmp_path / "out")
    train([slow, fast], command, *make_slots(gpus=["4", "5"]))
    assert {calls(run)[0]["gpus"] for run in (slow, fast)} == {"4", "5"}
    assert calls(slow)[0]["argv"][-2:] == ["--num-gpus", "1"]

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("querypose.analysis.ablation_runs.available_cores", lambda: 7)
    assert [slot.environment for slot in make_slots(jobs=3)] == [{"OMP_NUM_THREADS": "2"}] * 3


def test_an_interruption_ends_the_trainings(table: AblationTable, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    endless = [
        sys.executable,
        "-c",
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)",
    ]
    runs = plan_runs(table, tmp_path / "out")

    def interrupt(message: str) -> None:
        if "iter" in message and pid_file.exists() and pid_file.read_text():
            raise KeyboardInterrupt

    runner = AblationRunner(runs, endless, report=interrupt, report_period=0.01, poll_period=0.01)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not runs[0].is_finished


def test_figures_of_metrics() -> None:
    curves = {
        "total_loss": [(19.0, 3.0), (39.0, 2.0)],
        "time": [(19.0, 1.0), (39.0, 3.0), (59.0, 2.0)],
        "a/keypoints/AP": [(19.0, 1.0), (39.0, 2.0)],
        "b/keypoints/AP": [(39.0, 9.0)],
    }
    figures = read_figures(curves, ["a", "b"])
    assert (figures.iteration, figures.seconds_per_step) == (40, 2.0)
    assert figures.metrics == {"AP": 2.0}
    assert figures.ap_curve == [(20.0, 1.0), (40.0, 2.0)]
    assert read_figures({}, ["a"]).iteration == 0


def test_the_whole_folder(table: AblationTable, tmp_path: Path, command: list[str]) -> None:
    output = tmp_path / "out"
    ablation = Ablation(table, output, plan_runs(table, output, seeds=[0, 2]))
    assert ablation.run(command, make_slots(2), report=lambda message: None, poll_period=0.01) == []
    shown = (output / "table.md").read_text()
    assert "# Rates" in shown
    assert "11.0 ± 1.4" in shown  # seeds 0 and 2 give 10 and 12
    assert "51.0 ± 1.4" in shown
    assert "60.5" in shown
    assert "toy" in shown
    for name in ("table.csv", "ap.png", "ap_curves.png"):
        assert (output / name).stat().st_size > 0, name


def test_a_folder_belongs_to_one_ablation(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock"), pytest.raises(ConfigError, match="in use"), exclusive(tmp_path / "lock"):
        pass
    with exclusive(tmp_path / "lock"):
        pass

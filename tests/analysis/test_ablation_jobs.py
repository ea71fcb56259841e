"""Trainings as jobs of submitit: processes of this machine, and those of a stand-in for SLURM."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from querypose.analysis.ablation import Ablation
from querypose.analysis.ablation_jobs import AblationJobs, Cluster
from querypose.analysis.ablation_runs import AblationRun, plan_runs
from querypose.analysis.ablation_table import AblationTable, read_ablation
from querypose.analysis.training_job import Training
from querypose.config import ConfigError
from tests.analysis.rates import write_fake_training, write_rates
from tests.scripts import ROOT

# Commands of SLURM. A submitted array runs at once, as background processes; `sacct` says that a job has ended when its
# result is there, which is what submitit then reads.
SBATCH = """#!/bin/bash
cp "$1" {folder}/submitted.sh
count=$(grep -oP -- '--array=0-\\K\\d+' "$1" || echo "")
for index in ${{count:+$(seq 0 $count)}} ${{count:-single}}; do
  [ "$index" = single ] && break
  SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$index SLURM_JOB_ID=7 SUBMITIT_EXECUTOR=slurm \\
    {python} -m submitit.core._submit {output}/jobs > {output}/jobs/7_${{index}}_0_log.out 2>&1 &
  [ "$index" = "$count" ] && break
done
echo "Submitted batch job 7"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for index in 0 1; do
  state=RUNNING
  [ -e {output}/jobs/7_${{index}}_0_result.pkl ] && state=COMPLETED
  echo "7_$index|$state|here"
done
"""

HERE = Cluster()


@pytest.fixture
def table(tmp_path: Path) -> AblationTable:
    return read_ablation([write_rates(tmp_path)])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    return [sys.executable, str(write_fake_training(tmp_path))]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    programs = tmp_path / "bin"
    programs.mkdir()
    texts = {"sbatch": SBATCH, "sacct": SACCT, "srun": "#!/bin/bash\n"}
    for name, text in texts.items():
        filled = text.format(folder=tmp_path, output=tmp_path / "out", python=sys.executable) if "{" in text else text
        (programs / name).write_text(filled)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return Cluster("slurm", jobs=1, gpus_per_node=4, hours=2.5, parameters={"partition": "large", "cpus_per_task": 3})


def train(
    runs: Sequence[AblationRun], tmp_path: Path, command: Sequence[str], cluster: Cluster = HERE, **options: Any
) -> tuple[list[AblationRun], str]:
    messages: list[str] = []
    jobs = AblationJobs(runs, tmp_path / "out", command, cluster, report=messages.append, poll_period=0.05, **options)
    return jobs.run(), "\n".join(messages)


def calls(run: AblationRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "calls.jsonl").read_text().splitlines()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_finished_rows_are_not_run_again_and_failed_ones_are(
    table: AblationTable, tmp_path: Path, command: list[str]
) -> None:
    slow, fast = plan_runs(table, tmp_path / "out")
    slow.folder.mkdir(parents=True)
    (slow.folder.parent / "fail").touch()
    failed, messages = train([slow, fast], tmp_path, command, Cluster(jobs=2))
    assert failed == [slow]
    assert "slow (seed 1) FAILED with exit code 1" in messages
    assert messages.count("the disk is full") == 1
    assert "fast (seed 1) has finished: AP 51.0 after 10 iterations." in messages
    assert (slow.is_finished, fast.is_finished) == (False, True)
    assert fast.result().metrics == {"AP": 51.0}
    assert fast.result().seconds_per_step == 0.5

    (slow.folder.parent / "fail").unlink()
    failed, messages = train(plan_runs(table, tmp_path / "out"), tmp_path, command)
    assert failed == []
    assert "1 of 2 runs have finished before" in messages
    assert [len(calls(run)) for run in (slow, fast)] == [2, 1]
    assert "--resume" in calls(slow)[1]["argv"]


def test_an_interruption_lets_the_trainings_save_and_end(
    table: AblationTable, tmp_path: Path, command: list[str]
) -> None:
    slow, fast = plan_runs(table, tmp_path / "out")
    slow.folder.mkdir(parents=True)
    (slow.folder.parent / "hang").touch()

    def interrupt() -> None:
        wait_until((slow.folder / "calls.jsonl").exists)
        os.kill(os.getpid(), signal.SIGINT)

    interruption = threading.Thread(target=interrupt)
    interruption.start()
    with pytest.raises(KeyboardInterrupt):
        train([slow, fast], tmp_path, command)
    interruption.join()
    assert (slow.folder / "saved").exists()  # before `run` returned
    assert not fast.folder.exists()  # its turn had not come
    (slow.folder.parent / "hang").unlink()
    assert train([slow, fast], tmp_path, command)[0] == []


def test_a_run_is_not_trained_twice_at_a_time(table: AblationTable, tmp_path: Path, command: list[str]) -> None:
    slow, fast = plan_runs(table, tmp_path / "out")
    slow.folder.mkdir(parents=True)
    slow.file(".job").write_text(f"local {os.getpid()}")
    with pytest.raises(ConfigError, match=rf"slow \(seed 1\) is being trained already, by process {os.getpid()}"):
        train([slow, fast], tmp_path, command)
    slow.file(".job").write_text("slurm 7_0")
    with pytest.raises(ConfigError, match="is job 7_0 of SLURM: use --cluster slurm, or delete"):
        train([slow, fast], tmp_path, command)
    slow.file(".job").write_text("local 4194305")  # beyond any process
    assert train([slow, fast], tmp_path, command)[0] == []


def test_every_training_of_a_machine_has_gpus_of_its_own(
    table: AblationTable, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(table, tmp_path / "out")
    train(runs, tmp_path, command, Cluster(gpus_per_node=2, gpus=[4, 5, 6, 7, 8]))
    assert {calls(run)[0]["gpus"] for run in runs} == {"4,5", "6,7"}
    assert all(calls(run)[0]["argv"][:2] == ["--num-gpus", "2"] for run in runs)
    for wrong, message in (
        (Cluster(gpus_per_node=2, gpus=[0]), "--gpus-per-node is 2, but this machine has 1"),
        (Cluster(jobs=2, gpus_per_node=2, gpus=[0, 1, 2]), "--jobs is 2, but the GPUs are enough for 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong.executors(tmp_path / "jobs")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("querypose.analysis.ablation_jobs.available_cores", lambda: 7)
    assert Cluster(jobs=3).environment(3) == {"OMP_NUM_THREADS": "2"}


def test_a_job_whose_time_is_up_saves_and_is_put_back(table: AblationTable, tmp_path: Path, command: list[str]) -> None:
    """What submitit does at SLURM's signal: it calls `checkpoint` within the call of the job."""
    run = plan_runs(table, tmp_path / "out")[0]
    run.folder.mkdir(parents=True)
    run.file(".yaml").write_text(run.cfg.dump())
    (run.folder.parent / "hang").touch()
    training = Training([*command, "--config-file", str(run.file(".yaml"))], {})
    resubmitted = []

    def time_is_up(*_: object) -> None:
        resubmitted.append(training.checkpoint())

    def end_time() -> None:
        wait_until((run.folder / "calls.jsonl").exists)
        os.kill(training.process.pid, signal.SIGUSR2)  # SLURM signals all processes of a job
        os.kill(os.getpid(), signal.SIGUSR2)

    former = {number: signal.signal(number, time_is_up) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        interruption = threading.Thread(target=end_time)
        interruption.start()
        assert training() == 75
        interruption.join()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert (run.folder / "saved").exists()
    (run.folder.parent / "hang").unlink()
    assert resubmitted[0].function() == 0
    assert run.progress().iteration == 10


def test_a_table_on_slurm(table: AblationTable, tmp_path: Path, command: list[str], slurm: Cluster) -> None:
    runs = plan_runs(table, tmp_path / "out")
    failed, messages = train(runs, tmp_path, command, slurm)
    assert failed == []
    assert "slow (seed 1) begins in job 7_0" in messages
    assert "fast (seed 1) has finished: AP 51.0" in messages
    lines = (tmp_path / "submitted.sh").read_text().splitlines()
    assert {
        "#SBATCH --array=0-1%1", "#SBATCH --gpus-per-node=4", "#SBATCH --partition=large", "#SBATCH --time=150",
        "#SBATCH --cpus-per-task=3", "#SBATCH --signal=USR2@90", "#SBATCH --open-mode=append",
    } <= {*lines}  # fmt: skip
    assert any("srun" in line and "submitit.core._submit" in line for line in lines)
    assert all(calls(run)[0]["argv"][:2] == ["--num-gpus", "4"] for run in runs)
    with pytest.raises(ConfigError, match=r"--cluster slurm: .*nonsense"):
        Cluster("slurm", parameters={"nonsense": 1}).executors(tmp_path / "jobs")


def test_an_interruption_leaves_the_jobs_of_slurm_which_the_next_command_follows(
    table: AblationTable, tmp_path: Path, command: list[str], slurm: Cluster
) -> None:
    runs = plan_runs(table, tmp_path / "out")
    for run in runs:
        run.folder.mkdir(parents=True)
        (run.folder.parent / "hang").touch()

    def interrupt(message: str) -> None:
        if "fast (seed 1) begins" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AblationJobs(runs, tmp_path / "out", command, slurm, report=interrupt).run()
    for run in runs:
        (run.folder.parent / "hang").unlink()
    failed, messages = train(runs, tmp_path, command, slurm)
    assert failed == []
    assert "fast (seed 1) is job 7_1 of the cluster already" in messages
    assert [len(calls(run)) for run in runs] == [1, 1]


def test_slurm_is_not_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match='--cluster slurm: Could not detect "srun"'):
        Cluster("slurm").executors(tmp_path)


def test_the_whole_folder(table: AblationTable, tmp_path: Path, command: list[str]) -> None:
    output = tmp_path / "out"
    ablation = Ablation(table, output, plan_runs(table, output, seeds=[0, 2]))
    assert ablation.run(command, Cluster(jobs=2), report=lambda message: None, poll_period=0.05) == []
    shown = (output / "table.md").read_text()
    assert "# Rates" in shown
    assert "11.0 ± 1.4" in shown  # seeds 0 and 2 give 10 and 12
    assert "51.0 ± 1.4" in shown
    assert "60.5" in shown
    assert "toy" in shown
    for name in ("table.csv", "ap.png", "curves.png"):
        assert (output / name).stat().st_size > 0, name

"""Killed is not lost: a run that was killed at any moment and goes on equals, bit by bit, one that never was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from querypose.engine.stop_signal import STOPPED_EXIT_CODE
from tests.engine import mortal_run
from tests.engine.mortal_run import assert_same_run, log_of, metrics_of, train
from tests.scripts import run_script
from tests.tiny import ARCHITECTURES, TINY_MODEL

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(folder) == [0], log_of(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(folder, processes=2) == [0, 0], log_of(folder)
    return folder


def test_the_toy_has_everything_that_can_be_lost(unbroken: Path) -> None:
    """Else the comparisons below would compare nothing."""
    state = torch.load(unbroken / "output" / "model_final.pth", weights_only=True)
    assert state["ema"]["num_updates"] == mortal_run.MAX_ITER
    assert state["trainer"]["_trainer"]["grad_scaler"]["scale"] > 1
    assert state["trainer"]["_trainer"]["optimizer"]["state"][0]["exp_avg"].any()
    assert set(state["run"]["processes"][0]["random"]) >= {"python", "numpy", "torch"}
    precision = [row["keypoints/AP"] for row in metrics_of(unbroken) if "keypoints/AP" in row]
    best = torch.load(unbroken / "output" / "model_best.pth", weights_only=True)["best"]
    assert best["value"] == max(precision)
    assert precision.index(max(precision)) not in (0, len(precision) - 1), "the best comes and goes"


def test_the_same_seed_gives_the_same_run_whatever_the_loader_processes(unbroken: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", DATALOADER__NUM_WORKERS=2) == [0]
    assert_same_run(tmp_path / "run", unbroken)


def test_another_seed_gives_another_run(unbroken: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", SEED=2) == [0]
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize(
    ("death", "exit_code", "loader_processes"),
    [
        ("before the first checkpoint", KILLED, 0),
        ("in the midst of an iteration", KILLED, 2),
        ("while a checkpoint is written", KILLED, 0),
        ("before a checkpoint has its name", KILLED, 0),
        ("before last_checkpoint names it", KILLED, 0),
        ("before last_checkpoint names the final one", KILLED, 0),
        ("in an evaluation", KILLED, 0),
        ("in a line of metrics.json", KILLED, 0),
        ("by SIGTERM", STOPPED_EXIT_CODE, 2),
        ("by SIGINT", STOPPED_EXIT_CODE, 2),
        ("by SIGTERM where an evaluation is due", STOPPED_EXIT_CODE, 0),
        ("by SIGTERM between two rows of metrics.json", STOPPED_EXIT_CODE, 0),
        ("by SIGTERM while loader processes are stopped", STOPPED_EXIT_CODE, 1),
        ("by SIGTERM while loader processes of an evaluation are stopped", STOPPED_EXIT_CODE, 1),
        ("by two SIGINT", -signal.SIGINT, 0),
    ],
)
def test_a_run_goes_on_as_if_it_had_never_stopped(
    unbroken: Path, tmp_path: Path, death: str, exit_code: int, loader_processes: int
) -> None:
    folder = tmp_path / "run"
    assert train(folder, death=death, DATALOADER__NUM_WORKERS=loader_processes) == [exit_code], log_of(folder)
    assert not (folder / "output" / "model_final.pth").exists() or "final" in death
    assert train(folder, "--resume") == [0], log_of(folder)
    assert_same_run(folder, unbroken)
    assert "bit-identical" not in log_of(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_model_goes_on_as_if_it_had_never_stopped(architecture: str, tmp_path: Path) -> None:
    words = [*TINY_MODEL, *ARCHITECTURES[architecture]]
    model = {key: yaml.safe_load(value) for key, value in zip(words[::2], words[1::2], strict=True)}
    settings: dict[str, Any] = {
        **model, "SOLVER.MAX_ITER": 15, "SOLVER.LR_FACTORS": [], "SOLVER.BASE_LR": 1e-3,
        "SOLVER.AMP.PRECISION": "bfloat16",
    }  # fmt: skip
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    assert train(unbroken, **settings) == [0], log_of(unbroken)
    assert train(folder, death="in the midst of an iteration", **settings) == [KILLED], log_of(folder)
    assert train(folder, "--resume", **settings) == [0], log_of(folder)
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize(
    ("death", "exit_codes"),
    [
        ("in rank 1", {KILLED, 1}),
        ("while a checkpoint is written", {KILLED, 1}),
        ("by SIGTERM to rank 1", {STOPPED_EXIT_CODE}),
    ],
)
def test_two_processes_go_on_as_if_they_had_never_stopped(
    unbroken_pair: Path, tmp_path: Path, death: str, exit_codes: set[int]
) -> None:
    folder = tmp_path / "run"
    assert set(train(folder, death=death, processes=2)) == exit_codes, log_of(folder)
    assert train(folder, "--resume", processes=2) == [0, 0], log_of(folder)
    assert_same_run(folder, unbroken_pair)
    assert "random states of 2 processes" in log_of(folder)


def test_a_run_on_files_goes_on_on_shards(unbroken: Path, unbroken_pair: Path, tmp_path: Path) -> None:
    """Its images are packed after it was killed; losses and weights are those of a run on files, of one and of two."""
    shards = tmp_path / "shards" / "shards.json"
    folder, pair = tmp_path / "run", tmp_path / "pair"
    assert train(folder, death="in the midst of an iteration") == [KILLED], log_of(folder)
    config_file = str(folder / "toy.yaml")
    arguments = ("toy", "--config-file", config_file, "--output", str(shards.parent), "--megabytes", "0.0005")
    assert run_script("datasets/make_shards.py", *arguments) == 0
    assert len(list(shards.parent.glob("*.tar"))) > 1
    [dataset] = json.loads(Path(config_file).read_text())["DATASETS"]["CUSTOM"]
    settings: dict[str, Any] = {"DATASETS__CUSTOM": [{**dataset, "images": str(shards)}], "DATALOADER__NUM_WORKERS": 2}
    assert train(folder, "--resume", **settings) == [0], log_of(folder)
    assert_same_run(folder, unbroken)
    assert str(shards) in (folder / "output" / "config.yaml").read_text()
    assert train(pair, processes=2, **settings) == [0, 0], log_of(pair)
    assert_same_run(pair, unbroken_pair)


def test_a_sharded_optimizer_is_killed_and_goes_on_as_a_whole_one(unbroken_pair: Path, tmp_path: Path) -> None:
    """Its checkpoint holds the state of all shards, so that an optimizer that is not sharded can go on with it too."""
    folder = tmp_path / "run"
    sharded: dict[str, Any] = {"processes": 2, "SOLVER__SHARD_OPTIMIZER": True}
    assert -signal.SIGKILL in train(folder, death="in rank 1", **sharded), log_of(folder)
    assert train(folder, "--resume", **sharded) == [0, 0], log_of(folder)
    for file in ("model_final.pth", "model_best.pth"):
        ours, theirs = (torch.load(run / "output" / file, weights_only=True) for run in (folder, unbroken_pair))
        mortal_run._assert_same(ours["model"], theirs["model"], file)
    ours, theirs = (
        state["trainer"]["_trainer"]["optimizer"]["state"] for state in map(_final_state, (folder, unbroken_pair))
    )
    mortal_run._assert_same(ours, theirs, "state of the optimizer")
    assert metrics_of(folder) == metrics_of(unbroken_pair)


def _final_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "output" / "model_final.pth", weights_only=True)
    return state


def test_the_sums_of_two_processes_are_those_of_one_but_for_rounding(tmp_path: Path) -> None:
    """Without the model's own noise, which each process draws for itself."""
    settings: dict[str, Any] = {
        "MODEL__META_ARCHITECTURE": "ToyPose", "SOLVER__AMP__ENABLED": False, "SOLVER__ACCUMULATION_STEPS": 1,
    }  # fmt: skip
    for processes in (1, 2):
        assert train(tmp_path / str(processes), processes=processes, **settings) == [0] * processes
    losses = [[row["total_loss"] for row in metrics_of(tmp_path / run) if "total_loss" in row] for run in "12"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 7


def test_a_damaged_checkpoint_gives_way_to_the_one_before(unbroken: Path, tmp_path: Path) -> None:
    folder = _stopped_copy(unbroken, tmp_path, after=14)
    _flip_a_bit(folder / "output" / "model_0000014.pth")
    assert train(folder, "--resume") == [0], log_of(folder)
    assert_same_run(folder, unbroken)
    log = (folder / "output" / "log.txt").read_text()
    assert "model_0000014.pth is damaged" in log
    assert "Resumed at iteration 10 of 20" in log


def test_without_an_intact_checkpoint_nothing_is_trained(unbroken: Path, tmp_path: Path) -> None:
    folder = _stopped_copy(unbroken, tmp_path, after=9)
    for file in (folder / "output").glob("*.pth"):
        _flip_a_bit(file)
    assert train(folder, "--resume") == [1]
    assert "None of the checkpoints" in log_of(folder)
    assert "Starting training" not in (folder / "output" / "log.txt").read_text().split("Command line")[-1]


def test_a_checkpoint_of_an_older_version_still_loads(unbroken: Path, tmp_path: Path) -> None:
    folder = _stopped_copy(unbroken, tmp_path, after=9)
    (folder / "output" / "checkpoints.json").unlink()
    file = folder / "output" / "model_0000009.pth"
    state = torch.load(file, weights_only=True)
    del state["run"], state["trainer"]["hooks"]["PeriodicWriter"], state["trainer"]["hooks"]["BestCheckpointer"]
    torch.save(state, file)
    assert train(folder, "--resume") == [0], log_of(folder)
    log = (folder / "output" / "log.txt").read_text()
    assert "not bit-identical to one that never stopped: the checkpoint has no data position" in log
    assert "no random states" in log
    iterations = [row["iteration"] for row in metrics_of(folder) if "total_loss" in row]
    assert iterations == sorted(set(iterations))


def test_another_number_of_processes_or_images_is_said(unbroken: Path, tmp_path: Path) -> None:
    folder = _stopped_copy(unbroken, tmp_path, after=9)
    assert train(folder, "--resume", processes=2, SOLVER__IMS_PER_BATCH=8) == [0, 0], log_of(folder)
    log = (folder / "output" / "log.txt").read_text()
    assert "it had 1 processes and now has 2" in log
    assert "SOLVER.IMS_PER_BATCH was 4 and is 8" in log
    assert "data position (image 40)" in log


def test_old_checkpoints_are_deleted_and_the_best_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(folder, SOLVER__CHECKPOINTS_TO_KEEP=2) == [0]
    files = {file.name for file in (folder / "output").glob("*.pth")}
    assert files == {"model_0000014.pth", "model_0000019.pth", "model_final.pth", "model_best.pth"}
    listed = [
        entry["file"] for entry in json.loads((folder / "output" / "checkpoints.json").read_text())["checkpoints"]
    ]
    assert set(listed) == files


def test_training_anew_in_the_folder_of_a_run_says_so_and_forgets_it(unbroken: Path, tmp_path: Path) -> None:
    folder = _stopped_copy(unbroken, tmp_path, after=14)
    assert train(folder, death="before the first checkpoint") == [KILLED]
    assert "write model_0000014.pth into" in (folder / "output" / "log.txt").read_text()
    assert train(folder, "--resume", SOLVER__MAX_ITER=2) == [0]
    assert "Resumed" not in (folder / "output" / "log.txt").read_text()


def test_torchrun_restarts_a_run_whose_worker_died(unbroken_pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config_file = mortal_run.write_config(folder)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, *torchrun, "-m", "tests.engine.mortal_run", "--config-file", config_file]
    subprocess.run(command, env=_environment(MORTAL_RUN_DEATH="in rank 1"), cwd=ROOT, check=True, timeout=600)
    assert_same_run(folder, unbroken_pair)
    log = (folder / "output" / "log.txt").read_text()
    assert re.search(r"Resumed at iteration (5|10) of 20", log), "that of iteration 9 may not have been written yet"


def test_a_signal_to_the_launcher_stops_all_its_processes(unbroken_pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config_file = mortal_run.write_config(folder, SOLVER__MAX_ITER=100000, SOLVER__CHECKPOINT_PERIOD=100000)
    command = [sys.executable, "-m", "tests.engine.mortal_run", "--config-file", config_file, "--num-gpus", "2"]
    process = subprocess.Popen(command, env=_environment(), cwd=ROOT)
    metrics = folder / "output" / "metrics.json"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == STOPPED_EXIT_CODE
    last = (folder / "output" / "last_checkpoint").read_text()
    state = torch.load(folder / "output" / last, weights_only=True)
    assert len(state["run"]["processes"]) == 2
    assert state["iteration"] == int(last.removeprefix("model_").removesuffix(".pth"))


def _environment(**variables: str) -> dict[str, str]:
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, **variables}


def _stopped_copy(unbroken: Path, tmp_path: Path, after: int) -> Path:
    """The folder of a run as it was when the checkpoint of iteration `after` was the last one."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    output = folder / "output"
    for file in output.glob("model_*.pth"):
        if not file.stem[-1].isdigit() or int(file.stem[-7:]) > after:
            file.unlink()
    (output / "last_checkpoint").write_text(f"model_{after:07d}.pth")
    (output / "log.txt").unlink()
    return folder


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces, each with an address of its own, which see nothing else."""
    names = [f"querypose{os.getpid()}{side}" for side in "ab"]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add veth0 netns {names[0]} type veth peer name veth0 netns {names[1]}")
    for number, name in enumerate(names, 1):
        commands.append(f"ip -n {name} address add 10.213.77.{number}/24 dev veth0")
        commands += [f"ip -n {name} link set {link} up" for link in ("lo", "veth0")]
    try:
        for command in commands:
            if shutil.which("ip") is None or subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip(f"needs the right to do: {command}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _torchrun(machines: list[str], config_file: str, *arguments: str, **environment: str) -> list[int]:
    """A process on each machine; gives the exit codes."""
    meeting = ["--nnodes", str(len(machines)), "--master-addr", "10.213.77.1", "--master-port", "29577"]
    started = []
    for rank, machine in enumerate(machines):
        launcher = ["ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run", *meeting]
        training = ["-m", "tests.engine.mortal_run", "--config-file", config_file, *arguments]
        command = [*launcher, "--node-rank", str(rank), *training]
        variables = _environment(GLOO_SOCKET_IFNAME="veth0", **environment)
        started.append(subprocess.Popen(command, env=variables, cwd=ROOT, stderr=subprocess.DEVNULL))
    return [process.wait(600) for process in started]


def test_two_machines_train_as_one_and_one_goes_on_alone(
    unbroken_pair: Path, machines: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config_file = mortal_run.write_config(folder)
    assert all(_torchrun(machines, config_file, MORTAL_RUN_DEATH="in rank 1")), "one is dead, the other gives up"
    shutil.copytree(folder, tmp_path / "alone")
    assert _torchrun(machines, config_file, "--resume") == [0, 0]
    assert_same_run(folder, unbroken_pair)
    alone = str(tmp_path / "alone" / "output")
    assert _torchrun(machines[:1], config_file, "--resume", "OUTPUT_DIR", alone) == [0]
    log = Path(alone, "log.txt").read_text()
    assert re.search(r"Resumed at iteration (5|10) of 20", log)
    assert "processes" in log.partition("Resumed at")[2], "it says that the number of processes has changed"

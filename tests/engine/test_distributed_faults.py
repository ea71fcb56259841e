"""Two gloo processes of which one goes wrong: both decide alike, or the run ends with a message; none hangs."""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from querypose import d2
from querypose.config import ConfigError
from querypose.d2 import EventStorage, comm
from querypose.engine import NonFiniteError, TrainStep, build_optimizer, launch
from querypose.engine.dumps import DumpWriter
from querypose.engine.errors import explain
from querypose.engine.replay import replay
from querypose.engine.trainer import distribute
from tests.engine.test_non_finite import spoilt
from tests.engine.toy_pose import toy_batch, toy_cfg, toy_model, write_toy_config

ROOT = Path(__file__).resolve().parents[2]
# The shares of two processes; in the second iteration the second one's is spoilt.
SHARES = (toy_batch([3]), toy_batch([1, 1], seed=1))


def train_with_a_bad_share(folder: Path, config: str) -> None:
    """One process; saves its weights after skipping, and the error that stops it, in either precision."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    outcome: dict[str, Any] = {}
    for precision in (None, torch.float16):
        for skip in (True, False):
            model = toy_model(dtype=torch.float32)
            optimizer = build_optimizer(
                model, base_lr=0.01, weight_decay=0.0, weight_decay_norm=0.0, weight_decay_bias=0.0
            )
            share = SHARES[rank]
            batches = [share, spoilt(share) if rank == 1 else share, share]
            name = f"{precision}, skip {skip}"
            guard = {"skip": skip, "dumps": DumpWriter(folder / name, config, 1)}
            step = TrainStep(distribute(model), batches, optimizer, precision=precision, clip_norm=0.5, guard=guard)
            step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision is not None)
            with EventStorage(0):
                try:
                    for iteration in range(3):
                        step.iter = iteration
                        step.run_step()
                except NonFiniteError as error:
                    outcome[f"{name}: error"] = str(error)
            outcome[name] = model.state_dict()
    torch.save(outcome, folder / f"{rank}.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_share")
    cfg = toy_cfg(write_toy_config(folder / "run"))
    d2.launch(train_with_a_bad_share, 2, dist_url="auto", args=(folder, cfg.dump()))
    return folder


@pytest.mark.parametrize("precision", [None, torch.float16])
@pytest.mark.parametrize("skip", [True, False])
def test_a_bad_loss_in_one_process_is_treated_alike_in_all(
    folder: Path, precision: torch.dtype | None, skip: bool
) -> None:
    first, second = (torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2))
    name = f"{precision}, skip {skip}"
    torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert all(weight.isfinite().all() for weight in first[name].values())
    errors = [outcome.get(f"{name}: error") for outcome in (first, second)]
    if skip:
        assert errors == [None, None]
    else:
        assert "The gradient became infinite or NaN at iteration 1 (losses of this process: " in errors[0]
        assert "The loss became infinite or NaN at iteration 1" in errors[1]


def test_the_dump_of_two_processes_replays_in_one(folder: Path) -> None:
    dump = folder / "None, skip True" / "iteration_0000001"
    assert sorted(path.name for path in dump.iterdir()) == ["rank_0.pth", "rank_1.pth"]
    result = replay(dump, "cpu")
    assert result.is_reproduced
    for process in result.processes:
        assert process.replayed == pytest.approx(process.recorded, rel=1e-6, nan_ok=True)
    assert all(torch.tensor(list(result.processes[0].recorded.values())).isfinite())


def test_norms_of_two_processes_are_those_of_the_exchanged_gradient(folder: Path, tmp_path: Path) -> None:
    """A dump whose losses are finite, made of the bad one, shows that the shares are weighted as they were."""
    dump = folder / "None, skip True" / "iteration_0000001"
    for rank in range(2):
        content = torch.load(dump / f"rank_{rank}.pth", weights_only=True)
        for item, good in zip(content["batch"], SHARES[rank], strict=True):
            item["instances"]["Instances"]["gt_keypoints"]["Keypoints"] = good["instances"].gt_keypoints.tensor
        torch.save(content, tmp_path / f"rank_{rank}.pth")
    model = toy_model(dtype=torch.float32)
    model.load_state_dict(torch.load(dump / "rank_0.pth", weights_only=True)["model"])
    sum(model([*SHARES[0], *SHARES[1]]).values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {name: float(gradient.norm()) for name, gradient in gradients.items() if gradient is not None}
    assert replay(tmp_path, "cpu").replayed_norms == pytest.approx(expected, rel=1e-5)


def train_net(config_file: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = str(ROOT / "tests" / "engine" / "toy_train_net.py")
    command = [sys.executable, program, "--config-file", str(config_file), "--num-gpus", "2", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=600)


def test_a_killed_process_ends_the_run_with_a_message(tmp_path: Path) -> None:
    result = train_net(write_toy_config(tmp_path), "--dist-url", "auto", TOY_KILL_AT="3", TOY_FAULT_RANK="1")
    assert result.returncode == 2
    message = result.stderr.strip().splitlines()[-1]
    # Whichever the launcher notices first: the killed process, or the other one, which lost its partner.
    assert "killed by SIGKILL" in result.stderr or "Another process of the run has ended" in result.stderr, message


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_with_a_message_within_the_timeout(tmp_path: Path) -> None:
    arguments = ("--dist-url", "auto", "--timeout", "0.4")
    result = train_net(write_toy_config(tmp_path), *arguments, TOY_HANG_AT="3", TOY_FAULT_RANK="1")
    assert result.returncode == 2
    assert "did not answer within --timeout" in result.stderr
    assert "Go on with --resume" in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete",
        "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:13737. GLHF!",
    ],
)
def test_what_gloo_says_of_a_lost_process_is_explained(text: str) -> None:
    for error in (RuntimeError(text), dist.DistBackendError(text)):
        message = explain(error)
        assert message is not None
        assert "Another process of the run has ended" in message
        assert "log.txt.rankN" in message
    assert explain(RuntimeError("shape mismatch")) is None


def test_the_timeout_reaches_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", resume=False)
    seen: list[Any] = []
    monkeypatch.setattr(d2, "launch", lambda *arguments, **settings: seen.append(settings["timeout"]))
    monkeypatch.setattr(dist, "init_process_group", lambda **settings: seen.append(settings["timeout"]))
    monkeypatch.setattr(dist, "rendezvous", lambda url, timeout: iter([(dist.HashStore(), 0, 1)]))
    monkeypatch.setattr(comm, "create_local_process_group", lambda size: None)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    timeout = datetime.timedelta(minutes=7)
    launch(print, args, timeout=timeout)
    torchrun = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 29500}
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for variable, value in torchrun.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ZeroDivisionError):  # after an error the group, which is not there, is not left
        launch(lambda args: 1 / 0, args, timeout=timeout)
    assert seen == [timeout, timeout]
    with pytest.raises(ConfigError, match="--timeout must be above 0"):
        launch(print, args, timeout=datetime.timedelta(0))

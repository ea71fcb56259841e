"""The command line as a user types it: processes, exit codes, files."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.toy_pose import write_toy_config
from tests.loggers import restored_loggers
from tests.tiny import ARCHITECTURES, TINY_MODEL

ROOT = Path(__file__).resolve().parents[2]
TOY_TRAIN_NET = str(ROOT / "tests" / "engine" / "toy_train_net.py")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, text=True, capture_output=True, timeout=600
    )


def train_net(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(TOY_TRAIN_NET, *arguments, **variables)


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def iterations(output: Path) -> list[int]:
    return [row["iteration"] for row in rows(output) if "total_loss" in row]


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    return str(write_toy_config(tmp_path))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs tools/train_net.py in this process; gives its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
        try:
            with restored_loggers():  # the test may call twice
                runpy.run_path(str(ROOT / "tools" / "train_net.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def test_train_then_evaluate(
    config_file: str, tmp_path: Path, in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    result = train_net("--config-file", config_file, "SOLVER.MAX_ITER", "40", "SOLVER.EMA.ENABLED", "True")
    assert result.returncode == 0, result.stderr
    for name in ("config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth"):
        assert (output / name).is_file(), name
    assert (output / "inference" / "coco_instances_results.json").is_file()
    assert list(output.glob("events.out.tfevents.*"))
    log = (output / "log.txt").read_text()
    assert "Engine: " in log.splitlines()[0]
    assert "iter 40/40  epoch 26.67  eta 0:00:00" in log
    scalars = rows(output)[-1]
    assert "keypoints/AP" in scalars

    expected = f"[['keypoints', 'AP', {scalars['keypoints/AP']}, 0.001]]"
    arguments = ("--eval-only", "--config-file", f"{output}/config.yaml", "MODEL.WEIGHTS", f"{output}/model_final.pth")
    capsys.readouterr()
    assert in_process(*arguments, "TEST.EXPECTED_RESULTS", expected) == 0
    assert "AP50" in capsys.readouterr().out
    assert in_process(*arguments, "TEST.EXPECTED_RESULTS", "[['keypoints', 'AP', 222.0, 1.0]]") != 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_model_trains_and_is_evaluated(
    config_file: str, tmp_path: Path, in_process: Callable[..., int], architecture: str
) -> None:
    model = [*TINY_MODEL, *ARCHITECTURES[architecture]]
    assert in_process("--config-file", config_file, *model, "SOLVER.LR_FACTORS", "[]", "SOLVER.MAX_ITER", "3") == 0
    scalars = rows(tmp_path / "output")[-1]
    assert 0 <= scalars["keypoints/AP"] <= 100
    poses = json.loads((tmp_path / "output" / "inference" / "coco_instances_results.json").read_text())
    assert {pose["image_id"] for pose in poses} == {1, 2, 3, 4, 5, 6}


def test_a_killed_run_goes_on_from_its_last_checkpoint(config_file: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    arguments = ("--config-file", config_file, "--resume", "SOLVER.MAX_ITER", "20")
    killed = train_net(*arguments, TOY_KILL_AT="13")
    assert killed.returncode == -9
    last = (output / "last_checkpoint").read_text()
    assert last in ("model_0000004.pth", "model_0000009.pth")  # that of iteration 9 may not have been written yet
    resumed = train_net(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert f"Starting training from iteration {int(last[6:13]) + 1}" in resumed.stdout
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(output / "model_final.pth", weights_only=True)["trainer"]["iteration"] == 19
    assert iterations(output) == [4, 9, 14, 19]


def test_two_processes_by_num_gpus(config_file: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    result = train_net(
        "--config-file", config_file, "--num-gpus", "2", "--dist-url", "auto", "SOLVER.EMA.ENABLED", "True"
    )
    assert result.returncode == 0, result.stderr
    assert iterations(output) == [4, 9]
    assert "keypoints/AP" in rows(output)[-1]
    assert len(json.loads((output / "inference" / "coco_instances_results.json").read_text())) == 6
    assert "World size: 2" in (output / "log.txt").read_text()


def test_two_processes_by_torchrun(config_file: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    result = run(*torchrun, TOY_TRAIN_NET, "--config-file", config_file)
    assert result.returncode == 0, result.stderr
    assert iterations(output) == [4, 9]
    assert len(json.loads((output / "inference" / "coco_instances_results.json").read_text())) == 6
    assert "World size: 2" in (output / "log.txt").read_text()


def test_errors_of_the_user_are_one_line_from_two_processes_too(config_file: str) -> None:
    arguments = ("--config-file", config_file, "--num-gpus", "2", "--dist-url", "auto")
    result = train_net(*arguments, "DATASETS.TRAIN", "['nowhere']")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if "error: " in line and "'nowhere'" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATASETS.TRAIN", "['nowhere']"], "'nowhere'"),
        (["SOLVER.BASE_LR", "-1.0"], "SOLVER.BASE_LR is -1.0"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS is 'nowhere.pth'"),
        (["--eval-only", "DATASETS.TEST", "['nowhere']"], "'nowhere'"),
    ],
)
def test_errors_of_the_user_are_one_line(
    config_file: str,
    in_process: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert in_process("--config-file", config_file, *arguments) == 2
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("train_net.py: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in errors


def test_help_shows_the_command_line_of_detectron2(
    in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("--help") == 0
    shown = capsys.readouterr().out
    for option in (
        "--config-file", "--resume", "--eval-only", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url",
    ):  # fmt: skip
        assert option in shown

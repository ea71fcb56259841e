"""The command line of tools/ablate.py, with real trainings of a toy model."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from querypose.analysis.ablation_jobs import Cluster
from tests.engine.toy_pose import write_toy_config
from tests.scripts import ROOT, load_script
from tests.tiny import TINY_MODEL


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    module = load_script("tools/ablate.py")
    monkeypatch.setattr(module, "TRAIN_NET", ROOT / "tests" / "engine" / "toy_train_net.py")
    return module


def write_table(folder: Path, **rows: str) -> str:
    entries = [f"  - {{name: {name}, config: {{{keys}}}, paper: {{AP: 63.8}}}}\n" for name, keys in rows.items()]
    (folder / "own_base.yaml").touch()
    (folder / "table.yaml").write_text("title: Toys\nbase: own_base.yaml\nrows:\n" + "".join(entries))
    return str(folder / "table.yaml")


def test_files_and_overrides_are_told_apart(tool: ModuleType) -> None:
    parsed = tool.parse_arguments(["a.yaml", "b.yml", "--seeds", "3,1", "SOLVER.MAX_ITER", "5", "--jobs", "2"])
    assert (parsed.files, parsed.opts) == (["a.yaml", "b.yml"], ["SOLVER.MAX_ITER", "5"])
    assert (parsed.seeds, parsed.jobs) == ([3, 1], 2)
    for wrong in (
        ["SOLVER.MAX_ITER", "5"],
        ["a.yaml", "--seeds", "1,1"],
        ["a.yaml", "--jobs", "0"],
        ["a.yaml", "--slurm", "mem"],
    ):
        with pytest.raises(SystemExit):
            tool.parse_arguments(wrong)


def test_where_rows_train(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def cluster(*arguments: str) -> Cluster:
        return tool.make_cluster(tool.parse_arguments(["a.yaml", *arguments]))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert cluster() == Cluster(gpus_per_node=1, gpus=[3, 5])
    assert cluster("--gpus-per-node", "0", "--jobs", "2") == Cluster(jobs=2, gpus=[3, 5])
    slurm = ["--cluster", "slurm", "--partition", "a", "--cpus", "8", "--timeout", "4", "--slurm", "mem=64GB"]
    assert cluster(*slurm, "--gpus-per-node", "8", "--slurm", "account=me") == Cluster(
        "slurm", gpus_per_node=8, gpus=[3, 5], hours=4,
        parameters={"partition": "a", "cpus_per_task": 8, "mem": "64GB", "account": "me"},
    )  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert cluster() == Cluster(gpus=[])
    assert cluster("--cluster", "slurm").gpus_per_node == 1  # the machine that submits needs none


def test_dry_run(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(
        tmp_path,
        none="MODEL.QUERYPOSE.KEYPOINT.ITERATION: none",
        concatenation="MODEL.QUERYPOSE.KEYPOINT.ITERATION: concatenation",
    )
    (tmp_path / "base.yaml").write_text("DATASETS: {TRAIN: [keypoints_coco_2017_train]}\n")
    base = ["--base", str(tmp_path / "base.yaml"), "--output", str(tmp_path / "out")]
    assert tool.main(tool.parse_arguments([table, "--dry-run", *base, *TINY_MODEL])) == 0
    shown = capsys.readouterr().out
    assert "Toys" in shown
    assert "keypoint_stages (M)" in shown
    differences = {line.split()[0]: float(line.split()[2]) for line in shown.splitlines() if "+" in line[10:30]}
    assert differences["none"] == 0
    assert differences["concatenation"] > 0
    assert not (tmp_path / "out").exists()
    assert tool.main(tool.parse_arguments([table, "--dry-run", "--image-size", "64x96", *base, *TINY_MODEL])) == 0
    assert "Inference of one 64x96 image." in capsys.readouterr().out


def test_rows_are_trained_and_an_interrupted_one_goes_on(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, output = str(write_toy_config(tmp_path)), tmp_path / "out"
    table = write_table(tmp_path, slow="SOLVER.BASE_LR: 0.01", fast="SOLVER.BASE_LR: 0.1")
    arguments = tool.parse_arguments(
        [table, "--base", base, "--max-iter", "20", "--output", str(output), "--jobs", "2", "TEST.EVAL_PERIOD", "10"]
    )
    monkeypatch.setenv("TOY_KILL_AT", "13")
    assert tool.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "slow (seed 1) FAILED with exit code -9" in shown
    assert "error: 2 of 2 runs failed" in shown

    monkeypatch.delenv("TOY_KILL_AT")
    assert tool.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "fast (seed 1) goes on" in shown
    # Checkpoints every tenth of the budget: 13 iterations have left that of 12, or the one before if the kill met it
    # while it was being written.
    logs = [path.read_text() for path in (output / "jobs").glob("*_log.out")]
    assert len(logs) == 4
    assert sum(bool(re.search(r"Starting training from iteration (10|12)\b", log)) for log in logs) == 2
    checkpoint = torch.load(output / "fast" / "seed_1" / "model_final.pth", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 19
    rows = list(csv.DictReader((output / "table.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["slow", "fast"]
    assert all(0 <= float(row["AP"]) <= 100 and float(row["seconds_per_step"]) > 0 for row in rows)
    assert "| slow " in (output / "table.md").read_text()
    assert (output / "ap.png").is_file()
    assert (output / "curves.png").is_file()

    assert tool.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 runs have finished before" in shown
    assert "begins" not in shown
    assert "goes on" not in shown

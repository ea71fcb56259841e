from __future__ import annotations

from pathlib import Path

import pytest

from querypose.analysis.ablation_runs import budget_overrides
from querypose.analysis.ablation_table import read_ablation
from querypose.config import ConfigError, load_config

BASE = """
MODEL: {QUERYPOSE: {NUM_QUERIES: 7, KEYPOINT: {ITERATION: summation}}}
SOLVER: {MAX_ITER: 1000, STEPS: [500, 800], WARMUP_ITERS: 300, CHECKPOINT_PERIOD: 20}
"""
TABLE = """
title: A title
base: own_base.yaml
rows:
  - {name: none, paper: {AP: 63.8}, config: {MODEL: {QUERYPOSE: {KEYPOINT: {ITERATION: none}}}}}
  - {name: rate, title: (b) Rate, config: {SOLVER: {BASE_LR: 1.0e-2}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_base.yaml").write_text("MODEL: {QUERYPOSE: {NUM_STAGES: 3}}\n")
    (tmp_path / "none.yaml").write_text("_BASE_: own_base.yaml\nMODEL: {QUERYPOSE: {KEYPOINT: {ITERATION: none}}}\n")
    (tmp_path / "rate.yaml").write_text("_BASE_: own_base.yaml\nSOLVER: {BASE_LR: 1.0e-2}\n")
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "table9.yaml").write_text(TABLE)
    return tmp_path


def test_a_table_file(folder: Path) -> None:
    table = read_ablation([folder / "table9.yaml"])
    assert (table.name, table.title) == ("table9", "A title")
    assert [(row.name, row.title) for row in table.rows] == [("none", "none"), ("rate", "(b) Rate")]
    assert table.rows[0].paper == {"AP": 63.8}
    assert table.rows[0].load().MODEL.QUERYPOSE.KEYPOINT.ITERATION == "none"


def test_a_list_of_configs_is_a_table(folder: Path) -> None:
    table = read_ablation([folder / "none.yaml", folder / "rate.yaml"])
    assert [row.name for row in table.rows] == ["none", "rate"]
    assert table.name == "none_and_1_more"


def test_files_that_are_no_ablation(folder: Path) -> None:
    with pytest.raises(ConfigError, match="table file alone"):
        read_ablation([folder / "none.yaml", folder / "table9.yaml"])
    with pytest.raises(ConfigError, match="no file"):
        read_ablation([folder / "nowhere.yaml"])
    (folder / "other").mkdir()
    (folder / "other" / "none.yaml").write_text("SEED: 1")
    with pytest.raises(ConfigError, match="none is there twice"):
        read_ablation([folder / "none.yaml", folder / "other" / "none.yaml"])


@pytest.mark.parametrize("files", [["table9.yaml"], ["none.yaml", "rate.yaml"]])
def test_a_row_on_another_base_keeps_what_is_its_own(folder: Path, files: list[str]) -> None:
    paths = [folder / file for file in files]
    assert read_ablation(paths).rows[0].load().MODEL.QUERYPOSE.NUM_STAGES == 3
    none, rate = read_ablation(paths, folder / "base.yaml").rows
    cfg = none.load()
    assert cfg.MODEL.QUERYPOSE.NUM_STAGES != 3  # its own base is not read
    assert cfg.MODEL.QUERYPOSE.NUM_QUERIES == 7
    assert cfg.MODEL.QUERYPOSE.KEYPOINT.ITERATION == "none"  # the row wins over the base
    cfg = rate.load(["SOLVER.MAX_ITER", "9"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.01, 9)
    assert cfg.MODEL.QUERYPOSE.KEYPOINT.ITERATION == "summation"


def test_errors_of_a_row_name_it_and_its_file(folder: Path) -> None:
    (folder / "bad.yaml").write_text("MODEL: {QUERYPOSE: {NUM_QUERYS: 3}}\n")
    for base, file in ((None, "bad.yaml"), (folder / "base.yaml", "base.yaml")):
        (row,) = read_ablation([folder / "bad.yaml"], base).rows
        with pytest.raises(ConfigError, match=rf"Row 'bad', which changes .*{file}.*NUM_QUERYS"):
            row.load()
    (row,) = read_ablation([folder / "none.yaml"], folder / "nowhere.yaml").rows
    with pytest.raises(ConfigError, match=r"Row 'none'.*nowhere.yaml"):
        row.load()


def test_the_budget_scales_the_schedule(folder: Path) -> None:
    cfg = load_config(folder / "base.yaml")
    cfg.merge_from_list(budget_overrides(cfg, 100))
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (100, [50, 80], 10, 10)
    cfg = load_config(folder / "base.yaml")
    cfg.merge_from_list(budget_overrides(cfg, 10000))
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.STEPS) == (10000, [5000, 8000])
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (300, 20)


def test_the_budget_scales_a_schedule_in_epochs(folder: Path) -> None:
    epochs = ["SOLVER.MAX_EPOCHS", "200", "SOLVER.STEP_EPOCHS", "[150, 170]", "SOLVER.CHECKPOINT_EPOCHS", "10"]
    cfg = load_config(folder / "base.yaml", epochs)
    solver = load_config(folder / "base.yaml", [*epochs, *budget_overrides(cfg, 100)][6:]).SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.CHECKPOINT_PERIOD) == (100, [75, 85], 10)

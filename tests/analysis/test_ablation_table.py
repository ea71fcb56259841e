from __future__ import annotations

from pathlib import Path

import pytest

from querypose.analysis.ablation_table import budget_overrides, parse_table, read_ablation, row_config
from querypose.config import ConfigError, load_config

BASE = """
MODEL: {QUERYPOSE: {NUM_QUERIES: 7, KEYPOINT: {ITERATION: summation}}}
SOLVER: {MAX_ITER: 1000, STEPS: [500, 800], WARMUP_ITERS: 300, CHECKPOINT_PERIOD: 20}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_base.yaml").write_text("MODEL: {QUERYPOSE: {NUM_STAGES: 3}}\n")
    (tmp_path / "none.yaml").write_text("_BASE_: own_base.yaml\nMODEL: {QUERYPOSE: {KEYPOINT: {ITERATION: none}}}\n")
    (tmp_path / "rate.yaml").write_text("_BASE_: own_base.yaml\nSOLVER: {BASE_LR: 1.0e-2}\n")
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def write_table(folder: Path, text: str) -> Path:
    path = folder / "table9.yaml"
    path.write_text(text)
    return path


def test_table(folder: Path) -> None:
    rows = "[{name: None, config: none.yaml, paper: {AP: 63.8, APm: 59}}, {name: '(b) Rate', config: rate.yaml}]"
    table = read_ablation([write_table(folder, f"title: A title\nrows: {rows}\n")])
    assert (table.name, table.title) == ("table9", "A title")
    assert [row.name for row in table.rows] == ["None", "(b) Rate"]
    assert [row.folder for row in table.rows] == ["none", "b_rate"]
    assert table.rows[0].paper == {"AP": 63.8, "APm": 59}
    assert table.rows[1].paper == {}
    assert row_config(table.rows[0]).MODEL.QUERYPOSE.KEYPOINT.ITERATION == "none"


def test_a_list_of_configs_is_a_table(folder: Path) -> None:
    table = read_ablation([folder / "none.yaml", folder / "rate.yaml"])
    assert [row.name for row in table.rows] == ["none", "rate"]
    assert table.name == "none_and_1_more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: []", "at least one"),
        ("rows: {name: a}", "rows must be a list"),
        ("rows: [none.yaml]", "row 1 is 'none.yaml'"),
        ("rows: [{name: a}]", "row 1 lacks config"),
        ("rows: [{name: a, config: nowhere.yaml}]", r"row 1 \(a\): there is no config file .*nowhere"),
        ("rows: [{name: a, config: none.yaml, papers: {}}]", "row 1 has unknown papers; known: config, name, paper"),
        ("rows: [{name: a, config: none.yaml, paper: {APM50: 1}}]", r"row 1 \(a\): paper has 'APM50'; known: AP, "),
        ("rows: [{name: a, config: none.yaml, paper: {AP: high}}]", "the paper's AP is 'high', not a number"),
        ("rows: [{name: a, config: none.yaml, paper: 3}]", "paper is 3"),
        ("rows: [{name: a, config: none.yaml}, {name: A!, config: none.yaml}]", "'a' and 'A!'"),
        ("headline: b\nrows: []", "the table has unknown headline"),
        ("rows: [", "not valid YAML"),
        ("- rows", "must hold a mapping"),
    ],
)
def test_a_malformed_table_is_one_clear_error(folder: Path, text: str, message: str) -> None:
    path = write_table(folder, text)
    with pytest.raises(ConfigError, match=message) as error:
        read_ablation([path])
    assert "table9" in str(error.value)


def test_files_that_do_not_go_together(folder: Path) -> None:
    table = write_table(folder, "rows: [{name: a, config: none.yaml}]")
    with pytest.raises(ConfigError, match="table file alone"):
        read_ablation([folder / "none.yaml", table])
    with pytest.raises(ConfigError, match="no file"):
        read_ablation([folder / "nowhere.yaml"])


def test_a_row_on_another_base_keeps_what_is_its_own(folder: Path) -> None:
    none, rate = read_ablation([folder / "none.yaml", folder / "rate.yaml"]).rows
    assert row_config(none).MODEL.QUERYPOSE.NUM_STAGES == 3
    cfg = row_config(none, folder / "base.yaml")
    assert cfg.MODEL.QUERYPOSE.NUM_STAGES != 3  # its _BASE_ is not read
    assert cfg.MODEL.QUERYPOSE.NUM_QUERIES == 7
    assert cfg.MODEL.QUERYPOSE.KEYPOINT.ITERATION == "none"  # the row wins over the base
    cfg = row_config(rate, folder / "base.yaml", ["SOLVER.MAX_ITER", "9"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.01, 9)
    assert cfg.MODEL.QUERYPOSE.KEYPOINT.ITERATION == "summation"


def test_errors_of_a_row_name_its_file(folder: Path) -> None:
    (folder / "bad.yaml").write_text("MODEL: {QUERYPOSE: {NUM_QUERYS: 3}}\n")
    (row,) = read_ablation([folder / "bad.yaml"]).rows
    for base in (None, folder / "base.yaml"):
        with pytest.raises(ConfigError, match=r"bad.yaml.*NUM_QUERYS"):
            row_config(row, base)


def test_a_base_that_is_not_there(folder: Path) -> None:
    (row,) = read_ablation([folder / "none.yaml"]).rows
    with pytest.raises(ConfigError, match=r"Row none .*nowhere.yaml"):
        row_config(row, folder / "nowhere.yaml")


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


def test_parse_table_needs_no_title(folder: Path) -> None:
    table = parse_table(folder / "table9.yaml", {"rows": [{"name": 5, "config": "none.yaml"}]})
    assert (table.title, table.rows[0].name) == ("table9", "5")

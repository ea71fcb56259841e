from __future__ import annotations

from pathlib import Path

import pytest

from querypose.config import ConfigError, load_config, read_table

TABLE = """
title: A title
base: base.yaml
rows:
  - {name: none, paper: {AP: 63.8, APm: 59}, config: {MODEL: {QUERYPOSE: {KEYPOINT: {ITERATION: none}}}}}
  - {name: 2x, title: (b) twice, config: {SOLVER.MAX_ITER: 200, SOLVER.BASE_LR: 1}}
"""


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("MODEL: {QUERYPOSE: {NUM_QUERIES: 7}}\nSOLVER: {MAX_ITER: 100, STEPS: []}\n")
    path = tmp_path / "table9.yaml"
    path.write_text(TABLE)
    return path


def test_table(table_file: Path) -> None:
    table = read_table(table_file)
    assert table is not None
    assert (table.title, table.base) == ("A title", table_file.with_name("base.yaml"))
    none, twice = table.rows.values()
    assert (none.name, none.title, none.paper) == ("none", "none", {"AP": 63.8, "APm": 59})
    assert none.overrides == ["MODEL.QUERYPOSE.KEYPOINT.ITERATION", "none"]
    assert (twice.name, twice.title, twice.paper) == ("2x", "(b) twice", {})
    assert read_table(table.base) is None  # a config


def test_a_row_is_the_base_with_its_keys_and_the_command_line_comes_last(table_file: Path) -> None:
    cfg = load_config(table_file, row="none")
    assert cfg.MODEL.QUERYPOSE.NUM_QUERIES == 7
    assert cfg.MODEL.QUERYPOSE.KEYPOINT.ITERATION == "none"
    assert cfg.SOLVER.MAX_ITER == 100
    cfg = load_config(table_file, row="2x")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (200, 1.0)
    assert load_config(table_file, ["SOLVER.MAX_ITER", "300"], row="2x").SOLVER.MAX_ITER == 300


def test_a_table_without_a_row_and_a_row_without_a_table(table_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"table9.yaml is a table .* several rows. Choose one with --row: none, 2x"):
        load_config(table_file)
    with pytest.raises(ConfigError, match=r"no row 'three'. Choose one with --row: none, 2x"):
        load_config(table_file, row="three")
    with pytest.raises(ConfigError, match=r"--row none: .*base.yaml is a config, not a table"):
        load_config(table_file.with_name("base.yaml"), row="none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: []", r"table9.yaml: lacks base, title"),
        ("title: a\nbase: base.yaml\nrows: []", "at least one"),
        ("title: a\nbase: base.yaml\nrows: {name: a}", "`rows` must be a list"),
        ("title: a\nbase: nowhere.yaml\nrows: [a]", r"no config file .*nowhere.yaml', which `base` names"),
        ("title: a\nbase: base.yaml\nheadline: b\nrows: []", "unknown headline; known: base, rows, title"),
    ],
)
def test_wrong_tables(table_file: Path, text: str, message: str) -> None:
    table_file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(table_file, row="a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("none.yaml", "row 2 is 'none.yaml'; write {name"),
        ("{name: a}", "row 2 lacks config"),
        ("{name: a, config: {}}", r"row 2 \(a\): config is {}"),
        ("{name: a, config: a.yaml}", r"row 2 \(a\): config is 'a.yaml'; write the keys"),
        ("{name: off, config: {SEED: 1}}", "row 2: its name is False; .* put them in quotes"),
        ("{name: a b, config: {SEED: 1}}", "row 2: its name is 'a b'; it must consist of letters"),
        ("{name: a, config: {SEED: 1}, papers: {}}", "row 2 has unknown papers; known: config, name, paper, title"),
        ("{name: a, config: {SEED: 1}, paper: {AP: high}}", r"row 2 \(a\): the paper's AP is 'high'; it must be a num"),
        ("{name: a, config: {SEED: 1}, paper: 3}", r"row 2 \(a\): paper is 3"),
        ("{name: First, config: {SEED: 1}}", "two rows have the name 'First'"),  # folders ignore case on some disks
    ],
)
def test_wrong_rows(table_file: Path, row: str, message: str) -> None:
    table_file.write_text(f"title: a\nbase: base.yaml\nrows: [{{name: first, config: {{SEED: 1}}}}, {row}]")
    with pytest.raises(ConfigError, match=message):
        read_table(table_file)


def test_a_key_that_there_is_not(table_file: Path) -> None:
    table_file.write_text("title: a\nbase: base.yaml\nrows: [{name: a, config: {MODEL: {QUERYPOSE: {NUM_QUERYS: 3}}}}]")
    with pytest.raises(ConfigError, match=r"no key MODEL.QUERYPOSE.NUM_QUERYS. Did you mean MODEL.QUERYPOSE.NUM_QUER"):
        load_config(table_file, row="a")

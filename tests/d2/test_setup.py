"""The command line, the beginning of a run with its seeds and log."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from querypose.config import get_cfg
from querypose.d2 import default_argument_parser, default_setup, seed_all_rng, setup_logger
from tests.d2 import toy


def test_command_line() -> None:
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.resume, args.eval_only) == ("", False, False)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert not args.opts
    flags = ["--config-file", "F", "--eval-only", "--resume"]
    machines = ["--num-gpus", "2", "--num-machines", "3", "--machine-rank", "1", "--dist-url", "tcp://h:1"]
    args = parser.parse_args([*flags, *machines, "SOLVER.MAX_ITER", "10"])
    assert (args.config_file, args.resume, args.eval_only) == ("F", True, True)
    assert (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url) == (2, 3, 1, "tcp://h:1")
    assert args.opts == ["SOLVER.MAX_ITER", "10"]


def _draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_seeds() -> None:
    seed_all_rng(5)
    first = _draws()
    seed_all_rng(5)
    assert _draws() == first
    seed_all_rng()
    drawn = _draws()
    assert drawn != first
    seed_all_rng()
    assert _draws() != drawn


def test_default_setup_writes_config_and_log_and_seeds(tmp_path: Path) -> None:
    output = tmp_path / "run"
    cfg = toy.config(output)
    config_file = tmp_path / "own.yaml"
    config_file.write_text("SEED: 7\n")
    args = default_argument_parser().parse_args(["--config-file", str(config_file), "SEED", "7"])
    default_setup(cfg, args)
    first = _draws()
    for logger in ("querypose", "detectron2"):
        for handler in logging.getLogger(logger).handlers:
            handler.flush()
    log = (output / "log.txt").read_text()
    for part in ("Rank of current process: 0. World size: 1", "Environment info", "PyTorch", "own.yaml", "full config"):
        assert part in log
    assert "\033[" not in log.split("Contents of args.config_file")[0], "no colors in the file"
    written = get_cfg()
    written.merge_from_file(str(output / "config.yaml"))
    for section in ("OUTPUT_DIR", "SEED", "SOLVER", "DATASETS"):
        assert str(written[section]) == str(cfg[section])
    default_setup(cfg, args)
    assert _draws() == first


def test_logger_writes_each_line_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        logger = setup_logger(str(tmp_path / "own.log"), name="querypose.seam_test", color=False)
    logger.info("once and only once")
    other_rank = setup_logger(str(tmp_path), distributed_rank=1, name="querypose.seam_test_rank")
    other_rank.info("not on the console")
    for handler in [*logger.handlers, *other_rank.handlers]:
        handler.flush()
        handler.close()
    logger.handlers.clear()
    other_rank.handlers.clear()
    assert (tmp_path / "own.log").read_text().count("once and only once") == 1
    assert "not on the console" in (tmp_path / "log.txt.rank1").read_text()
    printed = capsys.readouterr().out
    assert printed.count("once and only once") == 1
    assert "not on the console" not in printed

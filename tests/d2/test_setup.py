"""The command line, the beginning of a run, seeds, logging, and the predictor."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from querypose.config import get_cfg
from querypose.d2 import (
    META_ARCH_REGISTRY,
    CfgNode,
    DefaultPredictor,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    seed_all_rng,
    setup_logger,
)
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
    assert "\033[" not in log.split("Contents of args.config_file")[0], "no colours in the file"
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


def test_one_process_needs_no_wrapping() -> None:
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model


class SeamTestEcho(nn.Module):
    """Gives what it is fed."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, batch: list[dict[str, object]]) -> list[dict[str, object]]:
        assert not self.training
        return [{**entry, "scale": self.scale.item()} for entry in batch]


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_predictor_takes_bgr_and_resizes(tmp_path: Path, order: str) -> None:
    if "SeamTestEcho" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(SeamTestEcho)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SeamTestEcho"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    cfg.INPUT.FORMAT = order
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 50
    torch.save({"model": {"scale": torch.tensor(3.0)}}, cfg.MODEL.WEIGHTS)
    predictor = DefaultPredictor(cfg)
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    image[..., 0] = 200  # blue
    output = predictor(image)
    assert output["scale"] == 3.0
    assert (output["height"], output["width"]) == (10, 20)
    fed = output["image"]
    assert isinstance(fed, torch.Tensor)
    assert tuple(fed.shape) == (3, 20, 40)
    assert [float(channel.float().mean()) for channel in fed] == ([200.0, 0, 0] if order == "BGR" else [0, 0, 200.0])
    wide = predictor(np.zeros((10, 100, 3), dtype=np.uint8))["image"]
    assert isinstance(wide, torch.Tensor)
    assert tuple(wide.shape) == (3, 5, 50), "the long side is bounded"

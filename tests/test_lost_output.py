"""A disk that is full for logs and metrics: the run goes on, says so once, and again at the end."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from querypose.d2 import ENGINE, EventWriter, JSONWriter, TensorboardXWriter
from querypose.lost_output import losses_said_again, watch_loggers
from tests.engine.toy_pose import write_toy_config
from tests.loggers import restored_loggers
from tests.scripts import run_script

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")


def train(folder: Path, *overrides: str) -> int:
    with restored_loggers():
        config_file = str(write_toy_config(folder, MAX_ITER=6))
        return run_script("tools/train_net.py", "--config-file", config_file, "LOG_PERIOD", "1", *overrides)


@needs_full_device
@pytest.mark.skipif(ENGINE == "detectron2", reason="it opens its files itself")
@pytest.mark.parametrize("lost", [["log.txt"], ["metrics.json"], ["log.txt", "metrics.json"]])
def test_a_training_goes_on_without_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: list[str]
) -> None:
    (tmp_path / "output").mkdir()
    for name in lost:
        (tmp_path / "output" / name).symlink_to("/dev/full")
    assert train(tmp_path) == 0
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "Logging error" not in printed
    for name in lost:
        path = str(tmp_path / "output" / name)
        assert printed.count(f"{path} cannot be written: No space left on device") == 1
        assert printed.count(f"{path} is not complete") == 1
        assert printed.index("cannot be written") < printed.index("is not complete")
    assert len([line for line in printed.splitlines() if "output" in line]) == 2 * len(lost)
    assert torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["iteration"] == 5
    if "metrics.json" not in lost:
        rows = (tmp_path / "output" / "metrics.json").read_text().splitlines()
        assert len(rows) == 6 + 1, "and one of the evaluation"


@needs_full_device
@pytest.mark.skipif(ENGINE == "detectron2", reason="it opens its files itself")
def test_an_evaluation_goes_on_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "TEST.EVAL_PERIOD", "0") == 0
    (tmp_path / "output" / "log.txt").unlink()
    (tmp_path / "output" / "log.txt").symlink_to("/dev/full")
    capsys.readouterr()
    with restored_loggers():
        config_file = str(write_toy_config(tmp_path))
        assert run_script("tools/train_net.py", "--config-file", config_file, "--eval-only", "--resume") == 0
    printed = capsys.readouterr().err
    assert printed.count("cannot be written") == printed.count("is not complete") == 1


@needs_full_device
def test_a_training_goes_on_without_results_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated twice, each time with the metrics."""
    output = tmp_path / "output"
    output.mkdir()
    for name in ("inference", "pictures"):
        (output / name).write_text("a file where a folder should be")
    assert train(tmp_path, "TEST.EVAL_PERIOD", "3", "TEST.PICTURES", "1") == 0
    printed = capsys.readouterr().err
    for path in (output / "inference" / "coco_instances_results.json", output / "pictures"):
        assert printed.count(f"{path} cannot be written: ") == 1
        assert printed.count(f"{path} is not complete: it could not be written 2 times") == 1
    rows = [json.loads(row) for row in (output / "metrics.json").read_text().splitlines()]
    assert len([row for row in rows if "keypoints/AP" in row]) == 2


@pytest.mark.parametrize("moment", ["write", "close"])
@pytest.mark.parametrize("writer", [JSONWriter, TensorboardXWriter])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_every_writer_may_fail_at_any_time(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    writer: type[EventWriter],
    moment: str,
    code: int,
) -> None:
    original = getattr(writer, moment)

    def fail(self: Any) -> None:
        original(self)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writer, moment, fail)
    assert train(tmp_path, "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2") == 0
    printed = capsys.readouterr().err
    assert printed.count("cannot be written") == printed.count("is not complete") == 1
    assert os.strerror(code) in printed
    assert (tmp_path / "output" / "model_final.pth").is_file()


def test_mistakes_in_log_calls_are_printed_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("mine")
    logger.addHandler(logging.FileHandler(tmp_path / "log.txt"))
    watch_loggers([logger])
    with losses_said_again():
        logger.info("%d", "text")
    logger.handlers[0].close()
    printed = capsys.readouterr().err
    assert "Logging error" in printed
    assert "is not complete" not in printed


def test_a_disk_that_is_free_again_gets_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.Logger("mine")
    handler = logging.FileHandler(tmp_path / "log.txt")
    logger.addHandler(handler)
    watch_loggers([logger])

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with losses_said_again():
        with monkeypatch.context() as patch:
            patch.setattr(handler, "flush", full)
            logger.info("one")
            logger.info("two")
        logger.info("three")
    handler.close()
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\n"
    assert "could not be written 2 times" in capsys.readouterr().err

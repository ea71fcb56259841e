"""The progress bar: on a terminal with a rate and an ETA, silent elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from querypose.config import load_config
from querypose.data import register_custom_datasets
from querypose.engine import PoseTrainer
from querypose.progress import progress, progress_bar
from tests.engine.toy_pose import write_toy_config
from tests.loggers import restored_loggers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress([1, 2], "reading")) == [1, 2]
    with progress_bar("trainings", total=1, unit="training") as bar:
        bar.update()
    shown = terminal.getvalue()
    assert "reading: 100%" in shown
    assert "2/2" in shown
    assert "image/s" in shown
    assert "trainings: 100%" in shown
    terminal.truncate(0)
    assert list(progress([1], "reading", shown=False)) == [1]
    assert terminal.getvalue() == ""


def test_an_evaluation_shows_how_far_it_is_below_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with restored_loggers(), monkeypatch.context() as patch:
        cfg = load_config(write_toy_config(tmp_path))
        register_custom_datasets(cfg)
        logger = logging.getLogger("querypose")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.StreamHandler(terminal))
        patch.setattr(sys, "stderr", terminal)
        PoseTrainer.test(cfg, PoseTrainer.build_model(cfg))
    *_, last_state = terminal.getvalue().split("\revaluating on toy: ")
    assert last_state.startswith("100%")
    assert "batch/s" in last_state
    assert "Metrics 'keypoints' of toy" in terminal.getvalue()
    lines = [line for line in terminal.getvalue().splitlines() if "inference" in line.lower()]
    assert not any("evaluating on" in line for line in lines)


def test_elsewhere_it_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter([1, 2]), "reading", total=2)) == [1, 2]
    assert capsys.readouterr() == ("", "")

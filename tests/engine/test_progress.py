from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest

from querypose.d2 import EventStorage
from querypose.engine.progress import ProgressLine, losses_for_display, peak_memory
from querypose.engine.schedule import TimeLimit


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="querypose.engine.progress")
    return caplog


def test_line_has_what_a_user_looks_for(lines: pytest.LogCaptureFixture) -> None:
    writer = ProgressLine(max_iter=100, images_per_iteration=16, window=2)
    with EventStorage(0) as storage:
        for storage.iter in range(10):
            storage.put_scalar("time", 8.0 if storage.iter < 8 else 2.0)
        storage.put_scalars(
            total_loss=12.345678, loss_cls=1.5, loss_cls_0=9.0, loss_keypoint=7.25, smoothing_hint=False
        )
        storage.put_scalars(lr=2.5e-5, data_time=0.0125, smoothing_hint=False)
        storage.put_scalar("keypoints/AP", 43.21, smoothing_hint=False)
        storage.put_scalar("keypoints/AP50", 70.0, smoothing_hint=False)
        storage.put_scalar("progress/OKS", 61.5, smoothing_hint=False)
        writer.write()
        assert storage.latest()["images_per_second"][0] == pytest.approx(8.0)
        assert storage.latest()["eta_seconds"][0] == pytest.approx(8.0 * 90)
    assert len(lines.messages) == 1
    line = lines.messages[0]
    assert line.startswith("iter 10/100  eta 0:12:00  8.0 img/s  loss 12.35  cls 1.5  keypoint 7.25  lr 2.5e-05")
    assert "data 0.013s" in line or "data 0.012s" in line
    assert re.search(r"mem \d+\.\d+G", line)
    assert line.endswith("keypoints/AP 43.21  OKS 61.50")
    assert "9.0" not in line.replace("8.0", "")


def test_line_of_a_run_that_minutes_end(lines: pytest.LogCaptureFixture) -> None:
    limit = TimeLimit(minutes=5.0, max_iter=100)
    limit.seconds, limit.trainer = 90.0, SimpleNamespace(max_iter=10)
    writer = ProgressLine(100, images_per_iteration=16, epoch=4.0, time_limit=limit)
    with EventStorage(0) as storage:
        for storage.iter in (8, 9, 10):
            storage.put_scalar("time", 2.0)
            writer.write()
    assert [line[:46] for line in lines.messages] == [
        "iter 9  minute 1.5/5  epoch 2.25  eta 0:03:30 ", "iter 10  minute 1.5/5  epoch 2.50  eta 0:03:30"
    ]  # fmt: skip


def test_first_line_needs_nothing(lines: pytest.LogCaptureFixture) -> None:
    with EventStorage(0):
        ProgressLine(max_iter=100, images_per_iteration=16).write()
    assert lines.messages[0].startswith("iter 1/100  mem ")


def test_an_iteration_is_shown_once_and_none_after_the_last(lines: pytest.LogCaptureFixture) -> None:
    writer = ProgressLine(max_iter=5, images_per_iteration=16)
    with EventStorage(0) as storage:
        for storage.iter in (3, 3, 4, 5):
            writer.write()
    assert [line.split()[1] for line in lines.messages] == ["4/5", "5/5"]


def test_losses_of_the_last_stage_have_no_number() -> None:
    scalars = {"loss_bbox_0": 1.0, "loss_bbox": 2.0, "loss_part_key_12": 3.0, "total_loss": 6.0, "lr": 1.0}
    assert losses_for_display(scalars) == ["loss 6", "bbox 2"]


def test_memory_is_that_of_a_python_process_with_torch() -> None:
    assert 2**26 < peak_memory() < 2**38

"""Event storage and writers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from querypose.d2 import EventStorage, JSONWriter, TensorboardXWriter, get_event_storage


def test_storage_is_found_inside_of_with_alone() -> None:
    with pytest.raises(AssertionError):
        get_event_storage()
    with EventStorage() as outer:
        assert get_event_storage() is outer
        with EventStorage(5) as inner:
            assert get_event_storage() is inner
            assert inner.iter == 5
        assert get_event_storage() is outer
    with pytest.raises(AssertionError):
        get_event_storage()


def test_storage_is_left_when_the_block_fails() -> None:
    with pytest.raises(RuntimeError, match="in the block"), EventStorage():
        raise RuntimeError("in the block")
    with pytest.raises(AssertionError):
        get_event_storage()


def test_scalars_histories_smoothing() -> None:
    with EventStorage() as storage:
        for iteration, value in enumerate([9.0, 1.0, 2.0, 6.0]):
            storage.iter = iteration
            storage.put_scalar("loss", torch.tensor(value))
            storage.put_scalars(lr=value, smoothing_hint=False)
        assert storage.latest() == {"loss": (6.0, 3), "lr": (6.0, 3)}
        assert storage.latest_with_smoothing_hint(3) == {"loss": (2.0, 3), "lr": (6.0, 3)}
        assert storage.history("loss").global_avg() == 4.5
        assert set(storage.histories()) == {"loss", "lr"}
        assert storage.smoothing_hints() == {"loss": True, "lr": False}
        with pytest.raises(KeyError, match="accuracy"):
            storage.history("accuracy")
        with pytest.raises(AssertionError):
            storage.put_scalar("lr", 1.0, smoothing_hint=True)


def test_smoothing_counts_iterations_not_values() -> None:
    with EventStorage() as storage:
        for iteration, value in ((0, 100.0), (50, 1.0), (60, 3.0)):
            storage.put_scalar("loss", value, cur_iter=iteration)
        assert storage.count_samples("loss", 20) == 2
        assert storage.latest_with_smoothing_hint(20)["loss"] == (2.0, 60)


def test_name_scope() -> None:
    with EventStorage() as storage:
        with storage.name_scope("stage_1"):
            storage.put_scalar("loss", 1.0)
        storage.put_scalar("loss", 2.0)
        assert set(storage.histories()) == {"stage_1/loss", "loss"}


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_json_writer_has_one_line_an_iteration_and_continues(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    for start in (0, 3):
        with EventStorage(start) as storage:
            writer = JSONWriter(str(file))
            for iteration in range(start, start + 3):
                storage.iter = iteration
                storage.put_scalar("loss", iteration, smoothing_hint=False)
                writer.write()
            storage.iter = start + 3
            writer.write()
            writer.close()
    assert _rows(file) == [{"iteration": iteration, "loss": float(iteration)} for iteration in range(6)]


def test_tensorboard_writer(tmp_path: Path) -> None:
    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalar("loss", 1.0)
        storage.put_image("input", torch.rand(3, 4, 4))
        writer.write()
        writer.close()
    files = list(tmp_path.glob("events.out.tfevents.*"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"loss" in content
    assert b"input" in content

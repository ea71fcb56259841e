"""Checkpoints in the background: what is on the disk, and what is told when something goes wrong."""

from __future__ import annotations

import errno
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from querypose.d2 import CheckpointError
from querypose.engine.checkpointer import RunCheckpointer
from querypose.engine.manifest import Condition, Manifest
from querypose.engine.run_state import random_states, restore_random_states, untouched_random_states
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON
from tests.engine.toy_pose import ToyPose


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def saved(folder: Path, name: str) -> Any:
    return torch.load(folder / f"{name}.pth", weights_only=True)


def test_what_is_saved_is_the_state_of_that_moment(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = RunCheckpointer(model, str(tmp_path))
    gate, original = threading.Event(), torch.save

    def save_late(*arguments: Any) -> None:
        assert gate.wait(10)
        original(*arguments)

    monkeypatch.setattr(torch, "save", save_late)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointer.save("model_0000001", iteration=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert not (tmp_path / "model_0000001.pth").exists(), "saving did not wait for the disk"
    gate.set()
    checkpointer.wait()
    state = saved(tmp_path, "model_0000001")
    for name, value in expected.items():
        assert torch.equal(state["model"][name], value)
    assert state["model"]._metadata["1"]["version"] == 2
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_full_disk_is_told_to_the_training_and_leaves_the_old_file(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = RunCheckpointer(model, str(tmp_path))
    checkpointer.save("model_a", iteration=1)
    checkpointer.wait()
    before = (tmp_path / "model_a.pth").read_bytes()

    def no_space(snapshot: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    checkpointer.save("model_a", iteration=2)
    with pytest.raises(OSError, match=r"No space left.*model_a\.pth"):
        checkpointer.wait()
    checkpointer.check()  # told once
    assert (tmp_path / "model_a.pth").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert Manifest(tmp_path).condition_of("model_a.pth") is Condition.INTACT


def test_what_could_not_be_loaded_again_is_refused_at_once(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Checkpoint entry checkpoint\.where\[0\] is a pathlib"):
        RunCheckpointer(model, str(tmp_path)).save("model_a", where=[tmp_path])


def test_conditions_of_files(model: nn.Module, tmp_path: Path) -> None:
    checkpointer = RunCheckpointer(model, str(tmp_path))
    checkpointer.save("model_a", iteration=1)
    checkpointer.wait()
    manifest = Manifest(tmp_path)
    assert manifest.condition_of("model_a.pth") is Condition.INTACT
    assert manifest.condition_of("model_b.pth") is Condition.MISSING
    (tmp_path / "model_b.pth").write_bytes((tmp_path / "model_a.pth").read_bytes())
    assert manifest.condition_of("model_b.pth") is Condition.UNLISTED
    content = bytearray((tmp_path / "model_a.pth").read_bytes())
    for damaged in (content[:-1], content[:9] + b"?" + content[10:], b""):
        (tmp_path / "model_a.pth").write_bytes(damaged)
        assert manifest.condition_of("model_a.pth") is Condition.DAMAGED
    with pytest.raises(CheckpointError, match=r"model_a\.pth is damaged: its checksum"):
        RunCheckpointer(model).load(str(tmp_path / "model_a.pth"))
    (tmp_path / "checkpoints.json").write_text("[1, 2")
    assert manifest.condition_of("model_a.pth") is Condition.UNLISTED


def test_a_file_is_listed_before_it_has_its_name_and_the_one_of_that_name_stays_intact(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    checkpointer = RunCheckpointer(model, str(tmp_path))
    contents = []
    for iteration in range(3):
        nn.init.constant_(model.weight, iteration)
        checkpointer.save("model_final", iteration=iteration)
        checkpointer.wait()
        contents.append((tmp_path / "model_final.pth").read_bytes())
    assert [entry.iteration for entry in Manifest(tmp_path).entries()] == [1, 2]
    (tmp_path / "model_final.pth").write_bytes(contents[1])  # killed between the list and the renaming
    assert Manifest(tmp_path).condition_of("model_final.pth") is Condition.INTACT


def test_going_back_from_damaged_and_missing_files(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = RunCheckpointer(model, str(tmp_path))
    for iteration in range(4):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    checkpointer.save_weights("model_best", iteration=3)
    checkpointer.wait()
    (tmp_path / "model_0000003.pth").write_bytes(b"damaged")
    (tmp_path / "model_0000002.pth").unlink()
    assert Path(checkpointer.get_checkpoint_file()).name == "model_0000001.pth"
    assert "model_0000003.pth is damaged" in caplog.text
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")  # chosen by hand
    assert Path(checkpointer.get_checkpoint_file()).name == "model_0000000.pth"
    for file in tmp_path.glob("model_000000?.pth"):
        file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        checkpointer.get_checkpoint_file()


def test_the_newest_stay(model: nn.Module, tmp_path: Path) -> None:
    checkpointer = RunCheckpointer(model, str(tmp_path))
    for iteration in range(5):
        checkpointer.save(f"model_{iteration:07d}", keep=2, iteration=iteration)
    checkpointer.save_weights("model_best", iteration=0)
    checkpointer.save("model_final", keep=2, iteration=4)
    checkpointer.wait()
    kept = {"model_0000003.pth", "model_0000004.pth", "model_best.pth", "model_final.pth"}
    assert {file.name for file in tmp_path.glob("*.pth")} == kept
    assert {entry["file"] for entry in json.loads((tmp_path / "checkpoints.json").read_text())["checkpoints"]} == kept
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_beginning_removes_what_a_killed_process_left(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / ".model_0000003.pth.tmp").write_bytes(b"half")
    RunCheckpointer(model, str(tmp_path)).begin(anew=False)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_written(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpointer = RunCheckpointer(model)
    checkpointer.begin(anew=True)
    checkpointer.prepare()
    checkpointer.save("model_a")
    checkpointer.wait()
    assert not list(tmp_path.iterdir())


def test_random_states_come_back_as_plain_values() -> None:
    def draw() -> list[float]:
        import random

        return [random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))]  # noqa: NPY002

    draw()  # python's and numpy's normal numbers come in pairs: the second is part of the state
    states = random_states()
    expected = draw()
    with untouched_random_states():
        assert draw() != expected
    assert draw() != expected
    restore_random_states(states)
    assert draw() == expected


def test_weights_of_another_skeleton_start_a_training_as_far_as_they_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of drawn people do for other joints (docs/small_data.md)."""
    drawn, own = ToyPose(skeleton=COCO_SKELETON), ToyPose(skeleton=CROWDPOSE_SKELETON)
    with torch.no_grad():
        drawn.hidden.weight.fill_(0.5)
        own.flow.bias.fill_(7.0)
    torch.save({"model": drawn.state_dict()}, tmp_path / "drawn.pth")
    logging.getLogger("fvcore").addHandler(caplog.handler)
    try:
        RunCheckpointer(own, str(tmp_path / "run")).resume_or_load(str(tmp_path / "drawn.pth"), resume=False)
    finally:
        logging.getLogger("fvcore").removeHandler(caplog.handler)
    assert (own.hidden.weight == 0.5).all()
    assert (own.flow.bias == 7.0).all()  # of another size: as it was
    assert "flow.bias" in caplog.text

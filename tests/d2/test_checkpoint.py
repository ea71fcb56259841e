"""Checkpointer: what fits, what does not, and that nothing in a file can run."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from querypose.d2 import ENGINE, CheckpointError, DetectionCheckpointer
from tests.d2 import toy

builtin_only = pytest.mark.skipif(ENGINE == "detectron2", reason="detectron2 is not that strict")


class _RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


class _Two(nn.Module):
    def __init__(self, width: int = 3, second: str = "second") -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.add_module(second, nn.Linear(2, width))


def _warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_round_trip_with_extra_entries(tmp_path: Path) -> None:
    model, optimizer = toy.ToyModel(), torch.optim.SGD(toy.ToyModel().parameters(), lr=0.5)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_x", iteration=7, note="text")
    assert (tmp_path / "last_checkpoint").read_text() == "model_x.pth"
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_x.pth")

    other, other_optimizer = toy.ToyModel(), torch.optim.SGD(toy.ToyModel().parameters(), lr=0.1)
    rest = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer).resume_or_load("", resume=True)
    assert rest["iteration"] == 7
    assert rest["note"] == "text"
    assert torch.equal(other.line.weight, model.line.weight)
    assert other_optimizer.param_groups[0]["lr"] == 0.5


def test_model_alone_can_be_loaded(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(toy.ToyModel().parameters(), lr=0.5)
    DetectionCheckpointer(toy.ToyModel(), str(tmp_path), optimizer=optimizer).save("model_x")
    optimizer.param_groups[0]["lr"] = 0.1
    DetectionCheckpointer(toy.ToyModel(), optimizer=optimizer).load(str(tmp_path / "model_x.pth"), checkpointables=[])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_nothing_to_load(tmp_path: Path) -> None:
    checkpointer = DetectionCheckpointer(toy.ToyModel(), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == ""
    assert checkpointer.load("") == {}
    with pytest.raises((AssertionError, FileNotFoundError), match=r"missing\.pth"):
        checkpointer.load(str(tmp_path / "missing.pth"))


def test_no_folder_or_not_to_disk_saves_nothing(tmp_path: Path) -> None:
    DetectionCheckpointer(toy.ToyModel(), str(tmp_path), save_to_disk=False).save("model_x")
    DetectionCheckpointer(toy.ToyModel()).save("model_x")
    assert list(tmp_path.iterdir()) == []


def test_bare_weights_and_wrapped_names(tmp_path: Path) -> None:
    source = _Two()
    torch.save(source.state_dict(), tmp_path / "bare.pth")
    torch.save({"model": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "wrapped.pth")
    for name in ("bare.pth", "wrapped.pth"):
        model = _Two()
        DetectionCheckpointer(model).load(str(tmp_path / name))
        assert torch.equal(model.first.weight, source.first.weight)


def test_keys_that_do_not_fit_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _Two(width=5, second="third")
    state = {**source.state_dict(), "first.bias": torch.zeros(9)}
    torch.save({"model": state}, tmp_path / "other.pth")
    model = _Two()
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load(str(tmp_path / "other.pth"))
    assert torch.equal(model.first.weight, source.first.weight), "what fits is loaded"
    text = _warnings(caplog)
    assert "first.bias" in text
    assert "(9,)" in text
    assert "(2,)" in text
    assert "second.{bias, weight}" in text
    assert "third.{bias, weight}" in text


def test_complete_checkpoint_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.register_buffer("pixel_mean", torch.zeros(3))

    state = {key: value for key, value in Tied().state_dict().items() if key not in ("second.weight", "pixel_mean")}
    torch.save({"model": state}, tmp_path / "tied.pth")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(Tied()).load(str(tmp_path / "tied.pth"))
    assert _warnings(caplog) == ""


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    """On both engines: torch refuses it since 2.6, and the built-in engine demands it of any torch."""
    witness = tmp_path / "witness"
    torch.save({"model": toy.ToyModel().state_dict(), "extra": _RunsCode(witness)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth .* without running code"):
        DetectionCheckpointer(toy.ToyModel()).load(str(tmp_path / "evil.pth"))
    assert not witness.exists()


def test_pickle_files_are_refused(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": _RunsCode(witness)}))
    with pytest.raises(CheckpointError, match=r"evil\.pkl: pickle files can run code"):
        DetectionCheckpointer(toy.ToyModel()).load(str(tmp_path / "evil.pkl"))
    assert not witness.exists()


@builtin_only
def test_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"No weight .* fits the model.*encoder\.weight.*line\.weight"):
        DetectionCheckpointer(toy.ToyModel()).load(str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x"]
)
def test_damaged_file_is_named(tmp_path: Path, damage: Any) -> None:
    DetectionCheckpointer(toy.ToyModel(), str(tmp_path)).save("model_x")
    file = tmp_path / "model_x.pth"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model_x\.pth is (damaged|not a whole checkpoint)"):
        DetectionCheckpointer(toy.ToyModel()).load(str(file))


def test_module_versions_stay_in_the_checkpoint(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    DetectionCheckpointer(model, str(tmp_path)).save("model_x")
    loaded = torch.load(tmp_path / "model_x.pth", weights_only=True)
    assert loaded["model"]._metadata["1"]["version"] == 2


def test_checkpointables_are_checked() -> None:
    checkpointer = DetectionCheckpointer(toy.ToyModel())
    with pytest.raises(TypeError, match="state_dict"):
        checkpointer.add_checkpointable("number", 3)
    checkpointer.add_checkpointable("model2", toy.ToyModel())
    with pytest.raises(KeyError, match="model2"):
        checkpointer.add_checkpointable("model2", toy.ToyModel())

"""Foreign checkpoint files: read without running code in them, converted by the tool, loaded by MODEL.WEIGHTS."""

from __future__ import annotations

import argparse
import os
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from querypose.checkpoint import convert_state_dict, load_state_dict_file, save_model
from querypose.config import load_config
from querypose.d2 import CheckpointError, DetectionCheckpointer, build_model
from tests.checkpoint.listings import config_file, read_listing

ROOT = Path(__file__).resolve().parents[2]


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_is_found_bare_or_wrapped(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    weights = {"a.weight": torch.arange(3.0)}
    content: dict[str, Any] = (
        weights if wrapper is None else {wrapper: weights, "iteration": 7, "optimizer": {"lr": 1.0}}
    )
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    found = load_state_dict_file(tmp_path / "in.pth")
    assert found.keys() == weights.keys()
    assert torch.equal(found["a.weight"], weights["a.weight"])


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_file_is_not_run(tmp_path: Path, save: Any) -> None:
    save({"model": {"a": torch.zeros(1)}, "surprise": RunsCode(tmp_path / "ran")}, tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match="without running code"):
        load_state_dict_file(tmp_path / "in.pth")
    assert not (tmp_path / "ran").exists()


def test_unusable_files_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint file .*absent.pth"):
        load_state_dict_file(tmp_path / "absent.pth")
    for name, content in (("empty.pth", {}), ("none.pth", {"model": 3}), ("list.pth", [torch.zeros(1)])):
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name} holds (no state dict|a list, not a dict)"):
            load_state_dict_file(tmp_path / name)
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:1500])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "nothing.pth").write_bytes(b"")
    for name in ("half.pth", "text.pth", "nothing.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_state_dict_file(tmp_path / name)


def test_saving_replaces_in_one_step_and_writes_no_more_than_the_entries(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.pth"
    save_model({"a": torch.zeros(1_000_000)[:2]}, path)
    assert path.stat().st_size < 10_000
    save_model({"b": torch.ones(2)}, path)
    assert torch.load(path, weights_only=True)["model"]["b"].tolist() == [1.0, 1.0]
    assert [file.name for file in path.parent.iterdir()] == ["out.pth"]


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match="querypose-official"):
        convert_state_dict("unknown", {}, argparse.Namespace())  # type: ignore[arg-type]  # never looked at


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the tool in this process."""
    tool = ROOT / "tools" / "convert_checkpoint.py"

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(tool), *arguments])
        runpy.run_path(str(tool), run_name="__main__")

    return run


def test_tool_converts_a_file_that_the_model_loads(
    tmp_path: Path, run_tool: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of one stage with regions of one cell, so that the file is small."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.QUERYPOSE.NUM_STAGES", "1", "MODEL.QUERYPOSE.BOX.POOLER_RESOLUTION", "1"]
    entries = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        for name, value in read_listing("res50-light").items()
        if not any(f"_series.{stage}." in name for stage in range(1, 6)) and "out_layer.weight" not in name
    }
    entries["head.head_series.0.inst_interact.out_layer.weight"] = torch.ones(256, 256)
    torch.save({"model": entries, "iteration": 279999}, tmp_path / "in.pth")
    out = tmp_path / "out.pth"
    arguments = ["--from", "querypose-official", "--config-file", config_file("res50-light")]
    run_tool(*arguments, str(tmp_path / "in.pth"), str(out), *opts)
    assert str(out) in capsys.readouterr().out

    converted = torch.load(out, weights_only=True)["model"]
    cfg = load_config(config_file("res50-light"), [*opts, "MODEL.WEIGHTS", str(out)])
    assert converted.keys() == convert_state_dict("querypose-official", entries, cfg).keys()
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    for name, value in model.state_dict().items():
        assert torch.equal(value, converted[name]), name
    assert converted["decoder.box_stages.0.interaction.out.weight"].all()

    out.unlink()
    with pytest.raises(SystemExit) as stopped:
        run_tool(*arguments, str(tmp_path / "in.pth"), str(out), *opts, "MODEL.QUERYPOSE.NUM_QUERIES", "7")
    assert stopped.value.code == 2
    assert "decoder.proposal_boxes (100, 4), not (7, 4)" in capsys.readouterr().err
    assert not out.exists()


def test_tool_explains_itself(run_tool: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_tool("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "querypose-official" in text
    assert "pose-hrnet" in text

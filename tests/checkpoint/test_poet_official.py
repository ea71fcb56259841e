"""The POET authors' checkpoint: every entry of the listing finds its place, and nothing else does."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from querypose.checkpoint import convert_poet_official, convert_state_dict, load_state_dict_file
from querypose.checkpoint.conversion import build_on_meta
from querypose.config import load_config
from querypose.d2 import CfgNode, CheckpointError
from tests.parity.stored import read_text

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "poet" / "poet_r50.yaml"
LINE = re.compile(r"(?P<name>\S+)\s+(?P<shape>\([\d, ]*\))\s+\d+\s+(?P<kind>param train|param frozen|buffer)\s*")


def config(*overrides: str) -> CfgNode:
    return load_config(CONFIG, ["MODEL.DEVICE", "cpu", *overrides])


@pytest.fixture
def listing() -> dict[str, tuple[Tensor, str]]:
    """Every entry as a meta tensor, and whether it trains."""
    lines = read_text("poet_r50_state_dict.txt").splitlines()
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    return {
        match["name"]: (torch.empty(ast.literal_eval(match["shape"]), device="meta"), match["kind"]) for match in found
    }


def test_listing_converts_without_leftover_and_loads_strictly(listing: dict[str, tuple[Tensor, str]]) -> None:
    assert len(listing) == 458
    entries = {name: value for name, (value, _) in listing.items()}
    cfg = config("MODEL.POET.EMPTY_CLASS", "True")
    converted = convert_state_dict("poet-official", entries, cfg)
    model = build_on_meta(cfg)
    model.load_state_dict(converted, strict=True, assign=True)
    parameters = list(model.named_parameters())
    assert sum(value.numel() for _, value in parameters) == 41_495_288
    assert sum(value.numel() for _, value in parameters if value.requires_grad) == 41_272_888
    trains = {name for name, value in parameters if value.requires_grad}
    ours = convert_poet_official({name: torch.tensor(index) for index, name in enumerate(listing)})
    theirs = list(listing)
    theirs_train = {name for name, (_, kind) in listing.items() if kind == "param train"}
    assert {theirs[int(ours[name])] for name in trains} == theirs_train


def test_dilated_model_takes_the_same_entries(listing: dict[str, tuple[Tensor, str]]) -> None:
    cfg = config("MODEL.POET.EMPTY_CLASS", "True", "MODEL.BACKBONE.OUTPUT_STRIDE", "16")
    converted = convert_state_dict("poet-official", {name: value for name, (value, _) in listing.items()}, cfg)
    assert len(converted) == len(listing)


def test_other_model_is_refused_with_a_hint(listing: dict[str, tuple[Tensor, str]]) -> None:
    entries = {name: value for name, (value, _) in listing.items()}
    with pytest.raises(CheckpointError, match=r"class_head.*\(3, 256\), not \(2, 256\).*EMPTY_CLASS"):
        convert_state_dict("poet-official", entries, config())
    cfg = config("MODEL.POET.EMPTY_CLASS", "True", "MODEL.POET.NUM_QUERIES", "50")
    with pytest.raises(CheckpointError, match=r"queries \(25, 256\), not \(50, 256\).*MODEL.META_ARCHITECTURE"):
        convert_state_dict("poet-official", entries, cfg)
    with pytest.raises(CheckpointError, match="segmentation_head"):
        convert_poet_official({"segmentation_head.weight": torch.zeros(1)})


def test_file_with_the_arguments_of_their_command_line_is_read(tmp_path: Path) -> None:
    """Their files carry an `argparse.Namespace`."""
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, tmp_path / "in.pth")
    assert load_state_dict_file(tmp_path / "in.pth")["a"].tolist() == [1, 1]

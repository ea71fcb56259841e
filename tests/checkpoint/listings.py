"""What the authors' state dicts hold: the listings beside the reference tensors (tests/parity/fixtures)."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from torch import Tensor

from tests.parity.stored import FIXTURES, read_text

CONFIGS = {
    "res50-light": "querypose_r50_fpn_1x.yaml",
    "res50-full": "querypose_r50_fpn_1x_full.yaml",
    "hrnet32-light": "querypose_hrnet_w32_2x.yaml",
    "hrnet48-full": "querypose_hrnet_w48_2x_full.yaml",
    "swinT-full": "querypose_swin_t_fpn_2x_full.yaml",
}
"""The listings, and the config of each."""


def config_file(listing: str) -> str:
    return str(Path(__file__).resolve().parents[2] / "configs" / "querypose" / CONFIGS[listing])


def read_listing(listing: str) -> dict[str, Tensor]:
    """Every entry with its shape and type, as meta tensors."""
    state_dict = {}
    for line in read_text(f"official_state_dict_{listing}.txt").splitlines():
        if not line.startswith("#"):
            name, shape, dtype, _ = line.split("\t")
            state_dict[name] = torch.empty(ast.literal_eval(shape), dtype=getattr(torch, dtype), device="meta")
    return state_dict


def read_dead(listing: str) -> list[str]:
    """The entries that never receive a gradient, from the listing's head."""
    lines = read_text(f"official_state_dict_{listing}.txt").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("# trainable but never"))
    names = []
    for line in lines[start + 1 :]:
        if not line.startswith("#   "):
            break
        names.append(line.removeprefix("#   ").strip())
    return names


def read_parameter_counts(listing: str) -> dict[str, int]:
    """The row of official_parameters.md."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (FIXTURES / "official_parameters.md").read_text().splitlines()
        if line.startswith("|")
    ]
    row = next(row for row in rows if row[0] == listing)
    return {name: int(cell.split()[0].replace(",", "")) for name, cell in zip(rows[0][1:], row[1:], strict=True)}

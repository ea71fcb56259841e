"""Weights of a plain vision transformer for SHaRPose, above all those of a masked autoencoder (MAE)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from querypose.modeling.sharpose.selection import GridSize

_BLOCK = r"blocks\.(\d+)\."
_RENAMED = (
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embedding.\1"),
    (_BLOCK + r"(norm[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (_BLOCK + r"attn\.qkv\.(weight|bias)", r"blocks.\1.qkv.\2"),
    (_BLOCK + r"attn\.proj\.(weight|bias)", r"blocks.\1.projection.\2"),
    (_BLOCK + r"mlp\.fc1\.(weight|bias)", r"blocks.\1.mlp.0.\2"),
    (_BLOCK + r"mlp\.fc2\.(weight|bias)", r"blocks.\1.mlp.2.\2"),
    (r"norm\.(weight|bias)", r"norm.\1"),
)


def is_vision_transformer(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the entries have the names of a vision transformer of MAE or timm."""
    return "pos_embed" in state_dict and "patch_embed.proj.weight" in state_dict


def from_vision_transformer(state_dict: Mapping[str, Tensor], grids: Sequence[GridSize]) -> dict[str, Tensor]:
    """The weights under the names of `CoarseToFineTransformer`, its position table on each of the grids.

    The class token, the decoder and the classifier have no counterpart and are left out.

    Args:
        state_dict: of the vision transformer; its position table has a row for the class token and then a square.
        grids: of the coarse stage, and of the fine stage where there is one.
    """
    converted = {}
    for name, value in state_dict.items():
        for pattern, replacement in _RENAMED:
            if match := re.fullmatch(pattern, name):
                converted[match.expand(replacement)] = value
    tables = (resized_positions(state_dict["pos_embed"][0, 1:], grid) for grid in grids)
    return {**converted, **dict(zip(("coarse_positions", "fine_positions"), tables, strict=False))}


def resized_positions(position_TC: Tensor, grid: GridSize) -> Tensor:
    """A table of positions on a square, resampled (bicubic) to another grid."""
    side = round(len(position_TC) ** 0.5)
    position_1CHW = position_TC.T.reshape(1, -1, side, side).float()
    resized_1CHW = F.interpolate(position_1CHW, size=grid, mode="bicubic", align_corners=False)
    return resized_1CHW.flatten(2)[0].T.contiguous()

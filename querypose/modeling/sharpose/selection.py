"""Which patches are seen finely: how relevant each is to the keypoints, and the finer patches within it (Sec. 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GridSize = tuple[int, int]  # rows, columns

ROUNDINGS: Mapping[str, Callable[[float], int]] = {"ceil": math.ceil, "floor": math.floor}


@dataclass(frozen=True)
class PatchSelection:
    """How the patches that are seen finely are chosen.

    Attributes:
        alpha: share of the coarse patches that are.
        rounding: of their number. Deviates: the paper rounds down; its operation counts fit the authors' code, which
            rounds up.
        all_keypoints: whether every keypoint token has a say, as in eq. 7. The authors' code leaves out the last one.
    """

    alpha: float
    rounding: str = "ceil"
    all_keypoints: bool = True

    def num_selected(self, num_patches: int) -> int:
        """How many of so many coarse patches are seen finely."""
        # 0.3 * 10 is 3.0000000000000004 in binary, but 3 by intention.
        return ROUNDINGS[self.rounding](round(self.alpha * num_patches, 9))

    def relevance(self, attention_BKT: Tensor) -> Tensor:
        """Relevance (B, T) of each patch: the mean over keypoints of their attention to it (eq. 7).

        Args:
            attention_BKT: average attention of each keypoint token to each patch.
        """
        return attention_BKT.mean(dim=1) if self.all_keypoints else attention_BKT[:, :-1].mean(dim=1)

    def split(self, relevance_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the patches that are seen finely, most relevant first, and of the others."""
        order_BT = relevance_BT.argsort(dim=1, descending=True, stable=True)
        return tuple(order_BT.tensor_split([self.num_selected(order_BT.shape[1])], dim=1))  # type: ignore[return-value]


def finer_patches(patch_BT: Tensor, num_columns: int, ratio: int) -> Tensor:
    """Indices of the finer patches within coarse ones, row by row.

    Args:
        patch_BT: indices on the coarse grid.
        num_columns: of the coarse grid.
        ratio: finer patches along a side of a coarse one.

    Returns:
        (B, ratio * ratio * T): the first finer patch of each coarse one, then the second of each, and so on.
    """
    offset = torch.arange(ratio, device=patch_BT.device)
    row_B1T = (patch_BT // num_columns * ratio)[:, None]
    column_B1T = (patch_BT % num_columns * ratio)[:, None]
    row = row_B1T + offset.repeat_interleave(ratio)[:, None]
    column = column_B1T + offset.repeat(ratio)[:, None]
    return (row * (num_columns * ratio) + column).flatten(1)


def take_tokens(token_BTC: Tensor, index_BN: Tensor) -> Tensor:
    """The tokens (B, N, C) at some indices of each image."""
    return token_BTC.gather(1, index_BN[..., None].expand(-1, -1, token_BTC.shape[-1]))

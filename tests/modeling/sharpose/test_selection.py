"""Choosing patches: how many, which, and the finer ones within them."""

from __future__ import annotations

import pytest
import torch

from querypose.modeling.sharpose.selection import PatchSelection, finer_patches, take_tokens


@pytest.mark.parametrize(
    ("alpha", "num_patches", "up", "down"),
    [(0.4, 48, 20, 19), (0.3, 108, 33, 32), (0.5, 48, 24, 24), (0.4, 64, 26, 25), (0.3, 10, 3, 3), (0, 48, 0, 0)],
)
def test_number_of_patches(alpha: float, num_patches: int, up: int, down: int) -> None:
    """Those of the paper's models, and one that binary fractions would round up to 4."""
    assert PatchSelection(alpha).num_selected(num_patches) == up
    assert PatchSelection(alpha, rounding="floor").num_selected(num_patches) == down


def test_all_keypoints_have_a_say() -> None:
    attention_BKT = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(PatchSelection(0.5).relevance(attention_BKT), torch.full((1, 3), 1 / 3))
    without_last = PatchSelection(0.5, all_keypoints=False).relevance(attention_BKT)
    torch.testing.assert_close(without_last, torch.tensor([[0.5, 0.5, 0.0]]))


def test_split_is_by_relevance() -> None:
    selected_BT, kept_BT = PatchSelection(0.5).split(torch.tensor([[0.1, 0.4, 0.2, 0.3], [4.0, 3.0, 2.0, 1.0]]))
    assert selected_BT.tolist() == [[1, 3], [0, 1]]
    assert kept_BT.tolist() == [[2, 0], [2, 3]]


def test_finer_patches_cover_their_coarse_one() -> None:
    """On a picture whose pixels are the finer patches and know their coarse one."""
    rows, columns, ratio = 3, 2, 2
    coarse = torch.arange(rows * columns).view(rows, columns)
    owner = coarse.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1).flatten()
    patch_BT = torch.tensor([[4, 1], [0, 5]])
    finer_BT = finer_patches(patch_BT, columns, ratio)
    assert torch.equal(owner[finer_BT], patch_BT.repeat(1, ratio**2))
    assert all(len(set(row)) == 8 for row in finer_BT.tolist())
    assert finer_patches(torch.tensor([[3]]), columns, 2).tolist() == [[10, 11, 14, 15]]


def test_take_tokens() -> None:
    token_BTC = torch.arange(12.0).view(2, 3, 2)
    assert take_tokens(token_BTC, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]

"""Heat maps in closed form: where they are zero, what decoding finds again."""

from __future__ import annotations

import pytest
import torch

from querypose.modeling.sharpose.heatmaps import (
    HeatmapHead,
    decode_heatmaps,
    flip_heatmaps,
    gaussian_blur,
    gaussian_heatmaps,
)

SIZE = (32, 24)


def test_head_has_one_layer_where_tokens_are_wide() -> None:
    assert len(HeatmapHead(192, SIZE)) == 3
    assert len(HeatmapHead(191, SIZE)) == 6
    assert HeatmapHead(191, SIZE)(torch.zeros(2, 5, 191)).shape == (2, 5, *SIZE)


def test_gaussian_has_its_height_at_its_keypoint() -> None:
    heatmap_BKHW, valid_BK = gaussian_heatmaps(torch.tensor([[[7.0, 20.0]]]), torch.tensor([[True]]), SIZE, sigma=2.0)
    assert valid_BK.all()
    assert heatmap_BKHW[0, 0, 20, 7] == 1
    torch.testing.assert_close(heatmap_BKHW[0, 0, 20, 9], torch.tensor(-0.5).exp())
    assert heatmap_BKHW[0, 0, 20, 13] > 0
    assert heatmap_BKHW[0, 0, 20, 14] == 0  # further than 3 sigma


def test_keypoints_that_do_not_count_leave_zeros() -> None:
    keypoint_BKD = torch.tensor([[[5.0, 5.0], [torch.nan, torch.nan], [-60.0, 5.0], [5.0, 39.0], [5.0, 38.0]]])
    labelled_BK = torch.tensor([[False, False, True, True, True]])
    heatmap_BKHW, valid_BK = gaussian_heatmaps(keypoint_BKD, labelled_BK, SIZE, sigma=2.0)
    assert valid_BK.tolist() == [[False, False, False, False, False]]
    assert not heatmap_BKHW.any()
    inside_BKD = torch.tensor([[[5.0, 37.0]]])
    assert gaussian_heatmaps(inside_BKD, torch.tensor([[True]]), SIZE, sigma=2.0)[0].any()


@pytest.mark.parametrize("sigma", [2.0, 3.0])
def test_decoding_finds_what_was_encoded(sigma: float) -> None:
    """The logarithm of a Gaussian is a parabola, and one step finds its top; the blur's cut-off costs a little."""
    keypoint_BKD = 7 + torch.rand(2, 5, 2, dtype=torch.float64) * torch.tensor([10.0, 17.0])
    heatmap_BKHW, _ = gaussian_heatmaps(keypoint_BKD, torch.ones(2, 5, dtype=torch.bool), SIZE, sigma)
    found_BKD, score_BK = decode_heatmaps(heatmap_BKHW)
    torch.testing.assert_close(found_BKD, keypoint_BKD, rtol=0, atol=0.02)
    assert ((score_BK > 0.8) & (score_BK <= 1)).all()


def test_decoding_of_any_map_is_finite_and_near_its_peak() -> None:
    heatmap_BKHW = torch.stack(
        [torch.zeros(SIZE), torch.full(SIZE, -1.0), torch.randn(SIZE) * 100, torch.arange(768.0).view(SIZE)]
    )[None]
    found_BKD, score_BK = decode_heatmaps(heatmap_BKHW)
    index_BK = heatmap_BKHW.flatten(2).argmax(-1)
    peak_BKD = torch.stack([index_BK % SIZE[1], index_BK // SIZE[1]], -1)
    assert found_BKD.isfinite().all()
    assert ((found_BKD - peak_BKD).abs() <= 5).all()
    assert torch.equal(score_BK, heatmap_BKHW.flatten(2).amax(-1))


def test_blur_keeps_a_constant_and_the_sum_of_a_spot() -> None:
    constant = torch.full((1, 2, *SIZE), 3.0)
    torch.testing.assert_close(gaussian_blur(constant, 11), constant)
    spot = torch.zeros(1, 1, *SIZE)
    spot[0, 0, 16, 12] = 1
    torch.testing.assert_close(gaussian_blur(spot, 11).sum(), torch.tensor(1.0))


def test_flipping_twice_changes_nothing() -> None:
    heatmap_BKHW, indices = torch.rand(2, 3, *SIZE), (0, 2, 1)
    flipped_BKHW = flip_heatmaps(heatmap_BKHW, indices)
    assert torch.equal(flipped_BKHW[:, 1, :, 0], heatmap_BKHW[:, 2, :, -1])
    assert torch.equal(flip_heatmaps(flipped_BKHW, indices), heatmap_BKHW)

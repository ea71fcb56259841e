"""The picture of the patches that a coarse-to-fine model selects."""

from __future__ import annotations

import numpy as np

from querypose.visualization.patches import FINE_COLOR, draw_patches


def test_refined_patches_are_outlined_in_the_third_picture_alone() -> None:
    crop = np.full((128, 96, 3), 90, np.uint8)
    relevance = np.arange(12.0).reshape(4, 3)
    is_refined = np.zeros((4, 3), bool)
    without = draw_patches(crop, relevance, is_refined)
    is_refined[3, 2] = True
    picture = draw_patches(crop, relevance, is_refined)
    assert not (without == FINE_COLOR).all(-1).any()
    y, x = np.nonzero((picture == FINE_COLOR).all(-1))
    assert x.min() > picture.shape[1] * (2 / 3 + 2 / 9 - 0.02)
    assert y.min() > picture.shape[0] * 0.7


def test_equal_relevance_and_odd_sizes_are_drawn() -> None:
    picture = draw_patches(np.zeros((61, 37, 3), np.uint8), np.ones((5, 3)), np.ones((5, 3), bool), ratio=3)
    assert picture.dtype == np.uint8
    assert (picture == FINE_COLOR).all(-1).any()

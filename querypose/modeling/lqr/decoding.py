"""From maps to poses: the mirrored view, peaks, several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from querypose.modeling.lqr.regions import STRIDE
from querypose.modeling.lqr.sampling import read_cells

MIRROR_SHIFT = 3
OTHER_SCALES_FACTOR = 0.9


def mirrored_images(image_BCHW: Tensor) -> Tensor:
    """Flips images so that cell x of their map shows what cell W - 1 - x of the upright one does.

    The convolutions are centered on every fourth pixel from the first one. To flip alone would move that lattice by
    3 pixels; they are taken back. The last 3 columns stay.
    """
    flipped_BCHW = image_BCHW.flip(-1)
    return torch.cat([flipped_BCHW[..., MIRROR_SHIFT:], flipped_BCHW[..., -MIRROR_SHIFT:]], dim=-1)


def mirrored_maps(score_BHW: Tensor, pose_BKDHW: Tensor, flip_indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Brings the maps of `mirrored_images` back: scores, and poses as absolute positions in cells."""
    pose_BKDHW = pose_BKDHW[:, list(flip_indices)].flip(-1)
    x_BKHW, y_BKHW = pose_BKDHW.unbind(2)
    return score_BHW.flip(-1), torch.stack([score_BHW.shape[-1] - 1 - x_BKHW, y_BKHW], dim=2)


def peaks(
    score_BHW: Tensor, pose_BKDHW: Tensor, is_image_BHW: Tensor, window: int, num_poses: int
) -> tuple[Tensor, Tensor]:
    """The cells with the best scores among those that no other cell of a window about them surpasses.

    Args:
        score_BHW: of the cells.
        pose_BKDHW: absolute positions, in cells.
        is_image_BHW: cells that show the image; padding has no pose.
        window: its side, in cells, odd.
        num_poses: how many Q of an image, if it has as many cells.

    Returns:
        scores (B, Q), best first, -inf where there are no more; keypoints (B, Q, K, D) in input pixels, continuous.
    """
    score_BHW = score_BHW.masked_fill(~is_image_BHW, -torch.inf)
    highest_BHW = F.max_pool2d(score_BHW[:, None], window, stride=1, padding=window // 2)[:, 0]
    peak_BM = score_BHW.masked_fill(score_BHW < highest_BHW, -torch.inf).flatten(1)
    score_BQ, cell_BQ = peak_BM.topk(min(num_poses, peak_BM.shape[1]), dim=1)
    # The pixel of index 4x has its center at 4x + 0.5.
    return score_BQ, read_cells(pose_BKDHW, cell_BQ) * STRIDE + 0.5


def joined_scales(
    scores: Sequence[Tensor], keypoints: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The poses of several scales as one list, the scores of the others brought to those of scale 1, as in DEKR.

    Args:
        scores: (B, Q) of each scale, best first.
        keypoints: (B, Q, K, D) of each, in one frame.
        scales: one of them 1.
    """
    best_B1 = scores[list(scales).index(1.0)].amax(1, keepdim=True).clamp(min=0)
    rescaled = []
    for scale, score_BQ in zip(scales, scores, strict=True):
        if scale != 1.0:
            own_B1 = score_BQ.amax(1, keepdim=True).clamp(min=torch.finfo(score_BQ.dtype).eps)
            factor_B1 = OTHER_SCALES_FACTOR * best_B1 / own_B1
            score_BQ = torch.where(score_BQ.isfinite(), score_BQ * factor_B1, score_BQ)
        rescaled.append(score_BQ)
    return torch.cat(rescaled, dim=1), torch.cat(list(keypoints), dim=1)

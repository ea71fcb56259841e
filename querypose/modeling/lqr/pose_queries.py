"""Pose query encoding (PQE): the score of a cell's pose, read where that pose is (eq. 7)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from querypose.layers import at_least_float32, full_precision
from querypose.modeling.lqr.keypoint_queries import KeypointQueries, initialize_convolutions
from querypose.modeling.lqr.sampling import read, reading_grid

Places = Literal["cell", "keypoint_queries", "keypoints", "semantic_points", "learned"]
PLACES: tuple[Places, ...] = ("cell", "keypoint_queries", "keypoints", "semantic_points", "learned")


class PoseScores(NamedTuple):
    """Linear scores of the pose of every cell.

    Attributes:
        score_BHW: S of the paper.
        quality_BHW: of the quality estimation branch; None without one.
    """

    score_BHW: Tensor
    quality_BHW: Tensor | None = None

    @property
    def ranking_BHW(self) -> Tensor:
        """What poses are chosen by: the score, with a quality branch times the quality, both in [0, 1]."""
        if self.quality_BHW is None:
            return self.score_BHW
        return self.score_BHW.clamp(0, 1) * self.quality_BHW.clamp(0, 1)


class PoseQueryEncoding(nn.Module):
    """Gathers the instance feature R_I from the places of a pose, and scores what it finds.

    Args:
        in_channels: of the general feature R_g.
        num_keypoints: K.
        dim: channels C of R_I, and of what the score is read from.
        places: where R_I is read: at the cell alone (no PQE), or as Table 6 has it.
        has_quality: a second head for the quality of the pose (Table 3).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_keypoints: int,
        dim: int = 64,
        places: Places = "keypoint_queries",
        has_quality: bool = False,
    ) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.places = places
        self.instance_feature = _conv_norm(in_channels, dim)
        gathered = dim if places == "cell" else num_keypoints * dim
        self.squeeze, self.score = _conv_norm(gathered, dim), nn.Conv2d(dim, 1, 1)
        self.quality = nn.Sequential(_conv_norm(gathered, dim), nn.Conv2d(dim, 1, 1)) if has_quality else None
        self.to_places = nn.Conv2d(dim, 2 * num_keypoints, 3, padding=1) if places == "learned" else None
        initialize_convolutions(self)
        if self.to_places is not None:
            nn.init.zeros_(self.to_places.weight)

    def forward(
        self,
        general_BCHW: Tensor,
        keypoint_BKDHW: Tensor,
        query_BKDHW: Tensor | None = None,
        point_BKNDHW: Tensor | None = None,
    ) -> PoseScores:
        """Scores in float32 at least; they are fitted by squares, and no sigmoid bounds them.

        Args:
            general_BCHW: R_g.
            keypoint_BKDHW: as the fields of `KeypointQueries`; like them the next two.
            query_BKDHW: see there.
            point_BKNDHW: see there.
        """
        feature_BCHW = self.instance_feature(general_BCHW)
        with full_precision(feature_BCHW):
            feature_BCHW = at_least_float32(feature_BCHW)
            place_BKNDHW = self._places(feature_BCHW, KeypointQueries(keypoint_BKDHW, query_BKDHW, point_BKNDHW))
            if place_BKNDHW is not None:
                height = feature_BCHW.shape[2]
                gathered_BCKHW = torch.zeros((), device=feature_BCHW.device, dtype=feature_BCHW.dtype)
                for place_BKDHW in place_BKNDHW.unbind(2):
                    # The maps of the keypoints one below the other: R_I is read without K copies of it.
                    grid_BMWD = reading_grid(place_BKDHW.flatten(0, 1)).unflatten(0, (-1, self.num_keypoints))
                    read_BCMW = read(feature_BCHW, grid_BMWD.flatten(1, 2))
                    gathered_BCKHW = gathered_BCKHW + read_BCMW.unflatten(2, (self.num_keypoints, height))
                feature_BCHW = gathered_BCKHW.flatten(1, 2)
        squeezed_BCHW = self.squeeze(feature_BCHW)
        with full_precision(feature_BCHW):
            score_BHW = self.score(at_least_float32(squeezed_BCHW))[:, 0]
            quality_BHW = None if self.quality is None else self.quality(feature_BCHW)[:, 0]
            return PoseScores(score_BHW, quality_BHW)

    def _places(self, feature_BCHW: Tensor, keypoints: KeypointQueries) -> Tensor | None:
        """Displacements from the cell to where R_I is read, (B, K, N, D, H, W); what N places give is added up."""
        match self.places:
            case "cell":
                return None
            case "learned":
                assert self.to_places is not None
                return self.to_places(feature_BCHW).unflatten(1, (self.num_keypoints, 1, 2))
            case "keypoints":
                return keypoints.keypoint_BKDHW[:, :, None]
            case "keypoint_queries":
                assert keypoints.query_BKDHW is not None
                return keypoints.query_BKDHW[:, :, None]
            case "semantic_points":
                return keypoints.point_BKNDHW


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())

"""A pose as POET's vector: center, offsets of the keypoints from it, and their visibilities (Figure 2b)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from querypose.modeling.targets import PersonTargets


@dataclass(frozen=True)
class PoseVector:
    """Poses with any leading dimensions, in units of the unpadded image's width and height.

    Attributes:
        center_D: C of the paper.
        offset_KD: Z, from the center to each keypoint.
        visibility_K: V, in [0, 1].
    """

    center_D: Tensor
    offset_KD: Tensor
    visibility_K: Tensor

    @classmethod
    def decode(cls, output: Tensor) -> PoseVector:
        """Reads the network's output (…, 2 + 3K) in (0, 1): center, then Δx, Δy, visibility of every keypoint.

        Offsets fill (-1, 1): 0.5 is none, 0 and 1 are the whole image.
        """
        keypoints_K3 = output[..., 2:].unflatten(-1, (-1, 3))
        return cls(output[..., :2], 2 * keypoints_K3[..., :2] - 1, keypoints_K3[..., 2])

    @staticmethod
    def length(num_keypoints: int) -> int:
        """Numbers of the vector."""
        return 2 + 3 * num_keypoints

    @property
    def keypoints_KD(self) -> Tensor:
        """A of the paper: absolute positions, center plus offset; may lie outside the image."""
        return self.center_D[..., None, :] + self.offset_KD

    def __getitem__(self, index: object) -> PoseVector:
        """Indexes the leading dimensions."""
        return PoseVector(self.center_D[index], self.offset_KD[index], self.visibility_K[index])  # type: ignore[index]  # whatever tensors take


@dataclass(frozen=True)
class PoseTargets:
    """The annotated persons of B images as pose vectors, padded to the G of the fullest one.

    Attributes:
        poses_BG: vectors; center and offsets are arbitrary for a person without a visible keypoint, and offsets for a
            keypoint that is not visible.
        counts: persons of each image, known to the host.
    """

    poses_BG: PoseVector
    counts: tuple[int, ...]

    @property
    def has_pose_BG(self) -> Tensor:
        """True for a person with a visible keypoint; the others have no center."""
        return (self.poses_BG.visibility_K > 0).any(-1)

    @classmethod
    def from_persons(cls, targets: PersonTargets) -> PoseTargets:
        """The center is the mean of the visible keypoints; hidden and unlabeled ones are alike (Training Loss)."""
        size_B11D = targets.image_size_B4[:, None, None, :2]
        visible_BGK1 = targets.visible_BGK[..., None]
        # The positions of unlabeled keypoints may be NaN.
        keypoints_BGKD = torch.where(visible_BGK1, targets.keypoints_BGKD / size_B11D, 0.0)
        visible_BGK1 = visible_BGK1.to(keypoints_BGKD)
        center_BGD = keypoints_BGKD.sum(-2) / visible_BGK1.sum(-2).clamp(min=1)
        offset_BGKD = keypoints_BGKD - center_BGD[..., None, :]
        return cls(PoseVector(center_BGD, offset_BGKD, visible_BGK1[..., 0]), targets.counts)

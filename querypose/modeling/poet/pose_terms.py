"""The four terms of POET's pose loss (eq. 3) between pose vectors: of pairs in the loss, of all in matching."""

from __future__ import annotations

from torch import Tensor

from querypose.modeling.poet.pose_vector import PoseVector

TERM_NAMES = ("keypoint", "visibility", "center", "offset")


class PaperTerms:
    """The terms as eq. 3 states them, in matching as in the loss (eq. 1).

    Args:
        center_in_offsets: also the L1 distance of the centers in the offset term (Table 3, L_deltas&ctrs).
    """

    def __init__(self, center_in_offsets: bool = False) -> None:
        self.center_in_offsets = center_in_offsets

    def losses(self, predicted: PoseVector, target: PoseVector, has_pose: Tensor) -> dict[str, Tensor]:
        """The terms, unweighted, by name; leading dimensions of the arguments broadcast.

        Args:
            predicted: poses.
            target: poses; those keypoints count whose visibility is 1.
            has_pose: (…) whether the target has a center.

        Returns:
            (…) for each of `TERM_NAMES`; keypoint, center and offset terms are 0 for a target without a pose.
        """
        visible_K1, has_center_1 = target.visibility_K[..., None], has_pose[..., None]
        center_D = (predicted.center_D - target.center_D) * has_center_1
        offset = ((predicted.offset_KD - target.offset_KD) * visible_K1).abs().sum((-1, -2))
        if self.center_in_offsets:
            offset = offset + center_D.abs().sum(-1)
        return {
            "keypoint": ((predicted.keypoints_KD - target.keypoints_KD) * visible_K1).abs().sum((-1, -2)),
            # The paper's V holds every visibility twice, for x and for y.
            "visibility": 2 * (predicted.visibility_K - target.visibility_K).square().sum(-1),
            "center": center_D.square().sum(-1),
            "offset": offset,
        }

    def costs(self, predicted: PoseVector, target: PoseVector, has_pose: Tensor) -> dict[str, Tensor]:
        """The terms of the matching; as `losses`."""
        return self.losses(predicted, target, has_pose)


class ReleasedTerms(PaperTerms):
    """The terms as the authors' code computes them, with which their weights were trained.

    Offsets are compared as the network's output encodes them, which halves them. A visibility counts once, and in the
    loss not for a person without a visible keypoint. In matching, center and visibility terms are not squared.
    """

    def losses(self, predicted: PoseVector, target: PoseVector, has_pose: Tensor) -> dict[str, Tensor]:
        """As `PaperTerms.losses`."""
        terms = super().losses(predicted, target, has_pose)
        return {**terms, "offset": terms["offset"] / 2, "visibility": terms["visibility"] / 2 * has_pose}

    def costs(self, predicted: PoseVector, target: PoseVector, has_pose: Tensor) -> dict[str, Tensor]:
        """As `PaperTerms.costs`."""
        terms = super().losses(predicted, target, has_pose)
        return {
            "keypoint": terms["keypoint"],
            "visibility": (terms["visibility"] / 2).sqrt(),
            "center": terms["center"].sqrt(),
            "offset": terms["offset"] / 2,
        }


POSE_TERMS: dict[str, type[PaperTerms]] = {"paper": PaperTerms, "released": ReleasedTerms}
"""By the names of MODEL.POET.LOSS.TERMS."""

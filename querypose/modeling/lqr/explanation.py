"""What led to the poses of LQR: the score map, and the points by which the best cells reach their keypoints (eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from querypose.modeling.explanation import Layer, MapLayer, PointLayer, PoseLayer, to_array
from querypose.modeling.lqr.decoding import peaks
from querypose.modeling.lqr.keypoint_queries import KeypointQueries
from querypose.modeling.lqr.regions import STRIDE
from querypose.modeling.lqr.sampling import cell_positions


def explain_points(
    keypoints: KeypointQueries, score_BHW: Tensor, is_image_BHW: Tensor, window: int, num_poses: int
) -> list[Layer]:
    """The layers of one image: stage 1 is from the cell to its queries, 2 to their semantic points, 3 to the keypoints.

    Args:
        keypoints: of a batch of one image.
        score_BHW: of the cells.
        is_image_BHW: cells that show the image.
        window: side of the window in which a pose must have the best score, in cells.
        num_poses: at most.
    """
    height, width = score_BHW.shape[1:]
    # A cell's own position, its queries, points and keypoints as if they were the keypoints of one pose.
    kinds = {
        "c": torch.zeros_like(keypoints.keypoint_BKDHW[:, :1]),
        "q": keypoints.query_BKDHW,
        "q'": None if keypoints.point_BKNDHW is None else keypoints.point_BKNDHW.flatten(1, 2),
        "k": keypoints.keypoint_BKDHW,
    }
    displacements = {name: tensor for name, tensor in kinds.items() if tensor is not None}
    all_BNDHW = torch.cat(list(displacements.values()), dim=1) + cell_positions(height, width, score_BHW)
    score_BQ, xy_BQND = peaks(score_BHW, all_BNDHW, is_image_BHW, window, num_poses)
    sizes = [tensor.shape[1] for tensor in displacements.values()]
    box = (0.0, 0.0, float(width * STRIDE), float(height * STRIDE))
    shown_HW = score_BHW[0].clamp(min=0) * is_image_BHW[0]
    layers: list[Layer] = [MapLayer(name="score of every cell's pose", values_HW=to_array(shown_HW), box=box)]
    for rank, (score, xy_ND) in enumerate(zip(score_BQ[0].tolist(), to_array(xy_BQND[0]), strict=True)):
        if score == -torch.inf:
            break
        of_kind = dict(zip(displacements, torch.from_numpy(xy_ND).split(sizes), strict=True))
        cell_1D, keypoint_KD = of_kind["c"], of_kind["k"].numpy()
        reached = cell_1D.expand(len(keypoint_KD), 2)
        if "q" in of_kind:
            queries = PointLayer(
                name="from the cell c to its queries q", stage=1, pose=rank, points_ND=of_kind["q"].numpy(),
                from_ND=reached.numpy(),
            )  # fmt: skip
            layers.append(queries)
            reached = of_kind["q"]
        if "q'" in of_kind:
            per_query = len(of_kind["q'"]) // len(reached)
            points = PointLayer(
                name="from the queries q to their semantic points q'", stage=2, pose=rank,
                points_ND=of_kind["q'"].numpy(), from_ND=reached.repeat_interleave(per_query, dim=0).numpy(),
            )  # fmt: skip
            layers.append(points)
        layers += [
            PointLayer(name="to the keypoints k", stage=3, pose=rank, points_ND=keypoint_KD, from_ND=reached.numpy()),
            PoseLayer(name="pose", stage=3, pose=rank, keypoints_KD=keypoint_KD, score=min(max(score, 0.0), 1.0)),
        ]
    return layers

"""What led to the poses of QueryPose: boxes, poses, attention maps of SPEGM and gates of SIM, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from torch import Tensor, nn

from querypose.layers import scale_boxes
from querypose.modeling.explanation import (
    BoxLayer,
    Layer,
    MapLayer,
    PoseLayer,
    ValueLayer,
    recorded_inputs,
    to_array,
    to_box,
)
from querypose.modeling.query_pose.keypoint_decoder import KeypointStage
from querypose.modeling.query_pose.part_embedding import RegionInteraction
from querypose.modeling.query_pose.part_update import PartUpdate
from querypose.modeling.query_pose.pose_decoder import PoseDecoder
from querypose.modeling.query_pose.query_selection import class_scores

Kind = TypeVar("Kind", bound=nn.Module)


def explain_stages(
    decoder: PoseDecoder,
    features: Mapping[str, Tensor],
    image_size_B4: Tensor,
    keypoint_names: Sequence[str],
    num_poses: int,
) -> list[list[Layer]]:
    """The layers of every image; the poses are the best after the last stage.

    Of every stage: the boxes of all queries with their class scores; and of each pose the box and the keypoints, the
    attention map of every part within the box (Figures 5 and 6), and the means over channels of the two gates of every
    part (Sec. 3.3), where the stage has such.

    Args:
        decoder: in evaluation mode.
        features: (B, C, H, W) a level of the pyramid.
        image_size_B4: width, height, width, height of each unpadded image, in pixels.
        keypoint_names: of the skeleton.
        num_poses: of an image.
    """
    stages = [cast(KeypointStage, stage) for stage in decoder.keypoint_stages]
    interactions = [_only(stage, RegionInteraction) for stage in stages]
    updates = [_only(stage, PartUpdate) for stage in stages]
    with (
        recorded_inputs(module for module in interactions if module is not None) as regions,
        recorded_inputs(module for module in updates if module is not None) as embeddings,
    ):
        predictions = decoder.decode_stages(features, image_size_B4)
    poses_S = [prediction.to_poses() for prediction in predictions]
    num_images, num_queries = poses_S[-1].scores_BQ.shape
    best_BN = poses_S[-1].scores_BQ.topk(min(num_poses, num_queries), dim=1).indices
    layers: list[list[Layer]] = [[] for _ in range(num_images)]
    for index, (stage, prediction, poses) in enumerate(zip(stages, predictions, poses_S, strict=True)):
        number, parts = index + 1, _names_of_parts(stage, keypoint_names)
        scores_BQ = class_scores(prediction.logits_BQ)
        for image, of_image in enumerate(layers):
            boxes = to_array(prediction.boxes_BQ4[image])
            of_image.append(
                BoxLayer(name="boxes of all queries", stage=number, boxes_N4=boxes, scores_N=to_array(scores_BQ[image]))
            )
            for rank, query in enumerate(best_BN[image].tolist()):
                box = to_box(prediction.boxes_BQ4[image, query])
                region = to_box(scale_boxes(prediction.boxes_BQ4[image, query], decoder.region_scale))
                of_image.append(
                    PoseLayer(
                        name="pose",
                        stage=number,
                        pose=rank,
                        keypoints_KD=to_array(poses.keypoints_BQK3[image, query, :, :2]),
                        score=float(poses.scores_BQ[image, query]),
                        box=box,
                    )
                )
                row = slice(image * num_queries + query, image * num_queries + query + 1)
                interaction, update = interactions[index], updates[index]
                if interaction is not None:
                    maps_1PHW = interaction.attention_maps(*(tensor[row] for tensor in regions[index]))
                    if maps_1PHW is not None:
                        of_image += [
                            MapLayer(
                                name=f"attention: {part}",
                                stage=number,
                                pose=rank,
                                values_HW=to_array(map_HW),
                                box=region,
                            )
                            for part, map_HW in zip(parts, maps_1PHW[0], strict=True)
                        ]
                if update is not None:
                    gates = update.weights(*(tensor[row] for tensor in embeddings[index]))
                    for name, gate_1PC in zip(("embedding", "part query"), gates or (), strict=False):
                        means = dict(zip(parts, gate_1PC[0].float().mean(-1).tolist(), strict=True))
                        of_image.append(ValueLayer(name=f"gate of the {name}", stage=number, pose=rank, values=means))
    return layers


def _only(stage: KeypointStage, kind: type[Kind]) -> Kind | None:
    """The module of a stage that is of some kind."""
    return next((module for module in stage.modules() if isinstance(module, kind)), None)


def _names_of_parts(stage: KeypointStage, keypoint_names: Sequence[str]) -> list[str]:
    """The keypoints of each of its queries, the first three by name."""
    names = []
    for part in range(stage.num_queries):
        members = [
            name.replace("_", " ")
            for name, of_part in zip(keypoint_names, stage.regressor.part_of_keypoint.tolist(), strict=True)
            if of_part == part
        ]
        names.append(", ".join(members[:3]) + (", …" if len(members) > 3 else ""))
    return names

"""POET, the meta-architecture (POse Estimation Transformer, 2021): images in, losses or poses out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from querypose.d2 import META_ARCH_REGISTRY, Backbone, CfgNode, Instances, build_backbone, configurable
from querypose.layers import Transformer
from querypose.modeling.backbone import BackboneError
from querypose.modeling.components import Component
from querypose.modeling.images import has_padding, image_cells, normalize_and_pad, output_sizes
from querypose.modeling.poet.criterion import PoseCriterion, QueryOutputs
from querypose.modeling.poet.pose_terms import POSE_TERMS
from querypose.modeling.poet.pose_transformer import PoseTransformer
from querypose.modeling.poses import QueryPoses
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import Skeleton, skeleton_of_datasets


@META_ARCH_REGISTRY.register()
class POET(nn.Module):
    """Backbone, pose transformer and set criterion.

    Args:
        backbone: gives one feature map.
        pose_transformer: turns it into classes and pose vectors.
        criterion: matches and weighs them in training.
        skeleton: what the keypoints are.
        pixel_mean: per channel, range 0..255.
        pixel_std: per channel, range 0..255.
        detections_per_image: poses kept per image in inference.
        score_threshold: poses with a score not above it are left out in inference.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        pose_transformer: PoseTransformer,
        criterion: PoseCriterion,
        skeleton: Skeleton,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detections_per_image: int,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pose_transformer = pose_transformer
        self.criterion = criterion
        self.skeleton = skeleton
        self.detections_per_image = detections_per_image
        self.score_threshold = score_threshold
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from MODEL.POET; the skeleton is that of the config's datasets."""
        poet, loss = cfg.MODEL.POET, cfg.MODEL.POET.LOSS
        backbone = build_backbone(cfg)
        skeleton = skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        transformer = Transformer(
            dim=poet.DIM,
            num_queries=poet.NUM_QUERIES,
            num_encoder_layers=poet.NUM_ENCODER_LAYERS,
            num_decoder_layers=poet.NUM_DECODER_LAYERS,
            num_heads=poet.NUM_HEADS,
            dim_feedforward=poet.DIM_FEEDFORWARD,
            dropout=poet.DROPOUT,
        )
        return {
            "backbone": backbone,
            "pose_transformer": PoseTransformer(
                in_channels=_channels_of_one_map(backbone),
                transformer=transformer,
                dim=poet.DIM,
                num_keypoints=skeleton.num_keypoints,
                num_classes=3 if poet.EMPTY_CLASS else 2,
            ),
            "criterion": PoseCriterion(
                terms=POSE_TERMS[loss.TERMS](center_in_offsets=loss.CENTER_IN_OFFSETS),
                weights={
                    "loss_cls": loss.CLS_WEIGHT,
                    "loss_keypoint": loss.KEYPOINT_WEIGHT,
                    "loss_visibility": loss.VISIBILITY_WEIGHT,
                    "loss_center": loss.CENTER_WEIGHT,
                    "loss_offset": loss.OFFSET_WEIGHT,
                },
                no_object_weight=loss.NO_OBJECT_WEIGHT,
                deep_supervision=loss.DEEP_SUPERVISION,
            ),
            "skeleton": skeleton,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.TEST.SCORE_THRESHOLD,
        }

    @property
    def components(self) -> dict[str, Component]:
        """Backbone and transformer, layer by layer: image sizes vary, and with them the number of cells."""
        transformer = self.pose_transformer.transformer
        return {
            "backbone": Component([self.backbone], varying_dims=(2, 3)),
            "encoder": Component(list(transformer.encoder_layers), varying_dims=(1,)),
            "decoder": Component(list(transformer.decoder_layers), varying_dims=(1,)),
        }

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, poses in inference.

        Args:
            batched_inputs: one dict an image with `image`, (C, H, W) in 0..255; in training `instances` with
                `gt_keypoints`; in inference optionally `height`, `width`, the size of the output frame in pixels (that
                of `image` by default).

        Returns:
            in training the weighted losses; in inference a dict an image with `instances`: `scores`, `pred_classes`,
            `pred_keypoints` (N, K, 3) as x, y in the output frame and 1, since POET does not score single keypoints,
            and `pred_visibilities` (N, K) in [0, 1]; best pose first.
        """
        images = normalize_and_pad(batched_inputs, self.pixel_mean, self.pixel_std, self.backbone.size_divisibility)
        (feature_BCHW,) = self.backbone(images.tensor).values()
        is_image_BHW = image_cells(images, feature_BCHW.shape[-2:])
        outputs = self.pose_transformer(feature_BCHW, is_image_BHW, has_padding(images))
        if self.training:
            targets = PersonTargets.from_instances(
                [image["instances"] for image in batched_inputs],
                self.skeleton.num_keypoints,
                self.device,
                self.pixel_mean.dtype,
            )
            return self.criterion(outputs, targets)

        poses = poses_in_images(outputs, images.image_sizes).to_instances(
            images.image_sizes, output_sizes(batched_inputs, images), self.detections_per_image, self.score_threshold
        )
        return [{"instances": instances} for instances in poses]


def poses_in_images(outputs: QueryOutputs, image_sizes: Sequence[tuple[int, int]]) -> QueryPoses:
    """The poses of the last layer in pixels of the input images; the score is the probability of a person.

    Args:
        outputs: of the heads.
        image_sizes: height and width of each unpadded image, in pixels.
    """
    poses_BQ = outputs.poses_SBQ[-1]
    sizes = torch.tensor([(width, height) for height, width in image_sizes])
    size_B11D = sizes.to(poses_BQ.center_D, non_blocking=True)[:, None, None]
    keypoints_BQKD = poses_BQ.keypoints_KD * size_B11D
    return QueryPoses(
        scores_BQ=outputs.person_scores_SBQ()[-1],
        keypoints_BQK3=torch.cat([keypoints_BQKD, torch.ones_like(keypoints_BQKD[..., :1])], dim=-1),
        visibilities_BQK=poses_BQ.visibility_K,
    )


def _channels_of_one_map(backbone: Backbone) -> int:
    shapes = backbone.output_shape()
    if len(shapes) != 1:
        raise BackboneError(
            f"POET reads one feature map, but the backbone gives {sorted(shapes)}; name one of them in "
            "MODEL.BACKBONE.OUT_FEATURES."
        )
    (shape,) = shapes.values()
    assert shape.channels is not None
    return shape.channels

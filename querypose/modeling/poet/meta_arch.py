"""POET, the meta-architecture (POse Estimation Transformer, 2021): images in, losses or poses out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from querypose.d2 import META_ARCH_REGISTRY, Backbone, CfgNode, ImageList, Instances, build_backbone, configurable
from querypose.layers import Transformer
from querypose.layers.transformer import TransformerDecoderLayer
from querypose.modeling.backbone import BackboneError
from querypose.modeling.explanation import Layer, MapLayer, PoseLayer, recorded_inputs, to_array
from querypose.modeling.images import has_padding, image_cells
from querypose.modeling.keypoint_heatmaps import AuxiliaryHeatmap
from querypose.modeling.loss_terms import LossTerm, LossTerms
from querypose.modeling.poet.criterion import PoseCriterion, QueryOutputs
from querypose.modeling.poet.loss_terms import POET_LOSS_REGISTRY
from querypose.modeling.poet.pose_terms import POSE_TERMS
from querypose.modeling.poet.pose_transformer import PoseTransformer
from querypose.modeling.poet.pose_vector import PoseTargets
from querypose.modeling.pose_model import Batch, Component, PoseModel, num_instances
from querypose.modeling.poses import QueryPoses
from querypose.skeleton import Skeleton


@META_ARCH_REGISTRY.register()
class POET(PoseModel):
    """Backbone, pose transformer and set criterion.

    Args:
        backbone: gives one feature map.
        pose_transformer: turns it into classes and pose vectors.
        criterion: matches them with persons in training, and computes the losses.
        extra_terms: further losses, by name.
        heatmap: an auxiliary loss of keypoint heat maps, or None.
        skeleton: what the keypoints are.
        pixel_mean: per channel, range 0..255.
        pixel_std: per channel, range 0..255.
        detections_per_image: poses kept per image in inference.
        score_threshold: poses with a score not above it are left out in inference.
    """

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
        extra_terms: Mapping[str, LossTerm] | None = None,
        heatmap: AuxiliaryHeatmap | None = None,
    ) -> None:
        super().__init__(skeleton=skeleton, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone
        self.pose_transformer = pose_transformer
        self.criterion = criterion
        self.detections_per_image = detections_per_image
        self.score_threshold = score_threshold
        self.extra_terms = LossTerms(extra_terms)
        self.heatmap = heatmap

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from MODEL.POET."""
        poet, loss = cfg.MODEL.POET, cfg.MODEL.POET.LOSS
        backbone = build_backbone(cfg)
        base = super().from_config(cfg)
        skeleton = base["skeleton"]
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
            **base,
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
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.TEST.SCORE_THRESHOLD,
            "extra_terms": {name: POET_LOSS_REGISTRY.build(name, cfg, skeleton=skeleton) for name in loss.EXTRA_TERMS},
            "heatmap": build_heatmap(cfg, backbone, skeleton),
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

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """`persons` and `class_weights` (see `PoseCriterion`), and those of the extra terms."""
        counts = [len(image["instances"]) for image in batch]
        class_weights = self.criterion.class_weight_sum(counts, len(self.pose_transformer.transformer.queries))
        return {
            "persons": num_instances(batch),
            "class_weights": torch.tensor(class_weights, dtype=torch.float64),
            **self.extra_terms.normalizers(batch),
        }

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `PoseModel.losses`; reads `gt_keypoints` of `instances`."""
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        features = self.backbone(images.tensor)
        outputs = self._query_outputs(images, features)
        persons = self.person_targets(batch)
        targets = PoseTargets.from_persons(persons)
        matches_S = self.criterion.match(outputs, targets)
        losses = self.criterion(outputs, targets, matches_S, normalizers)
        if self.heatmap is not None:
            losses["loss_heatmap"] = self.heatmap(features=features, targets=persons, normalizers=normalizers)
        extra_losses = self.extra_terms.losses(
            outputs=outputs, matches_S=matches_S, targets=targets, persons=persons, normalizers=normalizers
        )
        return {**losses, **extra_losses}

    def predict(self, batch: Batch) -> list[Instances]:
        """As `PoseModel.predict`, with `pred_visibilities` (N, K) in [0, 1] beside it.

        POET predicts no scores of keypoints: they are 1. It predicts no boxes: `pred_boxes` are those around all
        keypoints of a pose, clipped to the image.
        """
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        return self.poses(images).to_instances(
            batch, images.image_sizes, self.detections_per_image, self.score_threshold
        )

    def poses(self, images: ImageList) -> QueryPoses:
        """As `PoseModel.poses`."""
        return poses_in_images(self._query_outputs(images, self.backbone(images.tensor)), images.image_sizes)

    def explain(self, batch: Batch, num_poses: int = 3) -> list[list[Layer]]:
        """As `PoseModel.explain`: of each of the best poses, after every layer of the decoder, keypoints and attention.

        The attention is that of the pose's query to the cells of the feature map, the mean of the heads.
        """
        layers_S = cast("list[TransformerDecoderLayer]", list(self.pose_transformer.transformer.decoder_layers))
        cross_attentions = [layer.cross_attention for layer in layers_S]
        with recorded_inputs(cross_attentions) as inputs:
            images = self.normalized_images(batch, self.backbone.size_divisibility)
            outputs = self._query_outputs(images, self.backbone(images.tensor), every_layer=True)
        scores_SBQ = outputs.person_scores_SBQ()
        best_BN = scores_SBQ[-1].topk(min(num_poses, scores_SBQ.shape[-1]), dim=1).indices
        height, width = images.tensor.shape[-2:]
        stride = self.backbone.output_shape()[next(iter(self.backbone.output_shape()))].stride or 1
        layers: list[list[Layer]] = [[] for _ in batch]
        for stage, (attention, arguments) in enumerate(zip(cross_attentions, inputs, strict=True)):
            poses = poses_in_images(outputs, images.image_sizes, stage)
            weights_BQHW = attention.weights(*arguments).unflatten(-1, (-1, -(-width // stride)))
            for image, (of_image, best_N) in enumerate(zip(layers, best_BN.tolist(), strict=True)):
                for rank, query in enumerate(best_N):
                    of_image += [
                        PoseLayer(
                            name="pose",
                            stage=stage + 1,
                            pose=rank,
                            keypoints_KD=to_array(poses.keypoints_BQK3[image, query, :, :2]),
                            score=float(poses.scores_BQ[image, query]),
                        ),
                        MapLayer(
                            name="attention",
                            stage=stage + 1,
                            pose=rank,
                            values_HW=to_array(weights_BQHW[image, query]),
                            box=(0.0, 0.0, float(width), float(height)),
                        ),
                    ]
        return layers

    def _query_outputs(
        self, images: ImageList, features: Mapping[str, Tensor], every_layer: bool = False
    ) -> QueryOutputs:
        (feature_BCHW,) = features.values()
        is_image_BHW = image_cells(images, feature_BCHW.shape[-2:])
        return self.pose_transformer(feature_BCHW, is_image_BHW, has_padding(images), every_layer)


def poses_in_images(
    outputs: QueryOutputs, image_sizes: Sequence[tuple[int, int]] | Tensor, layer: int = -1
) -> QueryPoses:
    """The poses of a layer in pixels of the input images; the score is the probability of a person.

    Args:
        outputs: of the heads.
        image_sizes: height and width of each unpadded image, in pixels.
        layer: of the decoder, the last by default.
    """
    poses_BQ = outputs.poses_SBQ[layer]
    size_B11D = torch.as_tensor(image_sizes).flip(-1).to(poses_BQ.center_D, non_blocking=True)[:, None, None]
    keypoints_BQKD = poses_BQ.keypoints_KD * size_B11D
    return QueryPoses(
        scores_BQ=outputs.person_scores_SBQ()[layer],
        keypoints_BQK3=torch.cat([keypoints_BQKD, torch.ones_like(keypoints_BQKD[..., :1])], dim=-1),
        visibilities_BQK=poses_BQ.visibility_K,
    )


def _channels_of_one_map(backbone: Backbone) -> int:
    shapes = backbone.output_shape()
    if len(shapes) != 1:
        raise BackboneError(
            f"POET reads one feature map, but the backbone gives {sorted(shapes)}; set MODEL.BACKBONE.OUT_FEATURES to "
            "one of them."
        )
    (shape,) = shapes.values()
    assert shape.channels is not None
    return shape.channels


def build_heatmap(cfg: CfgNode, backbone: Backbone, skeleton: Skeleton) -> AuxiliaryHeatmap | None:
    """The auxiliary heat maps on the model's feature map; None where LOSS.HEATMAP_WEIGHT is 0."""
    if cfg.MODEL.POET.LOSS.HEATMAP_WEIGHT == 0:
        return None
    ((name, shape),) = backbone.output_shape().items()
    assert shape.stride is not None
    return AuxiliaryHeatmap(
        in_feature=name,
        dim=_channels_of_one_map(backbone),
        hidden_dim=cfg.MODEL.POET.DIM,
        num_keypoints=skeleton.num_keypoints,
        stride=shape.stride,
        weight=cfg.MODEL.POET.LOSS.HEATMAP_WEIGHT,
    )

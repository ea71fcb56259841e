"""QueryPose, the meta-architecture (NeurIPS 2022): images in, losses or poses out.

Shape suffixes of the whole project: B images, Q queries, G persons of an image, R regions or matched pairs of the
batch, K keypoints, P parts, S stages, T tokens, C channels, H and W, D coordinates (2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from querypose.config import ConfigError
from querypose.d2 import (
    META_ARCH_REGISTRY,
    Backbone,
    CfgNode,
    ImageList,
    Instances,
    build_backbone,
    configurable,
)
from querypose.layers import RealNVP, RegionPooler, pooling_layout
from querypose.modeling.explanation import Layer
from querypose.modeling.images import zero_padding
from querypose.modeling.keypoint_heatmaps import AuxiliaryHeatmap
from querypose.modeling.loss_terms import LossTerm, LossTerms
from querypose.modeling.pose_model import Batch, Component, PoseModel, num_instances
from querypose.modeling.poses import QueryPoses
from querypose.modeling.query_pose.box_decoder import BoxEmbedding, BoxStage
from querypose.modeling.query_pose.criterion import SetCriterion
from querypose.modeling.query_pose.denoising import BoxNoise
from querypose.modeling.query_pose.dense_start import DenseStart
from querypose.modeling.query_pose.explanation import explain_stages
from querypose.modeling.query_pose.heatmap_input import HeatmapInput
from querypose.modeling.query_pose.initialization import PROPOSAL_LAYOUTS
from querypose.modeling.query_pose.keypoint_decoder import (
    DirectStage,
    InstanceQueryStage,
    InstanceRefinement,
    KeypointStage,
    PartQueryStage,
)
from querypose.modeling.query_pose.loss_terms import QUERY_POSE_LOSS_REGISTRY
from querypose.modeling.query_pose.matcher import HungarianMatcher
from querypose.modeling.query_pose.part_embedding import INTERACTION_REGISTRY, InteractionSizes, RegionInteraction
from querypose.modeling.query_pose.part_update import PART_UPDATE_REGISTRY
from querypose.modeling.query_pose.pose_decoder import PoseDecoder
from querypose.modeling.query_pose.query_selection import QuerySelection
from querypose.skeleton import Skeleton


@META_ARCH_REGISTRY.register()
class QueryPose(PoseModel):
    """Backbone, pose decoder and set criterion.

    Args:
        backbone: gives a feature pyramid.
        decoder: turns the pyramid into poses.
        matcher: assigns queries to persons in training.
        criterion: losses of the decoder's stages.
        heatmap: the auxiliary loss of the paper's discussion, or None.
        extra_terms: further losses, by name.
        skeleton: what the keypoints are.
        pixel_mean: per channel, range 0..255.
        pixel_std: per channel, range 0..255.
        selection: which poses inference keeps, and which queries it decodes for them.
        mask_padding: whether the decoder reads zeros where the batch was padded, instead of features of the padding.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        decoder: PoseDecoder,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        skeleton: Skeleton,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        selection: QuerySelection,
        mask_padding: bool,
        heatmap: AuxiliaryHeatmap | None = None,
        extra_terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        super().__init__(skeleton=skeleton, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone
        self.decoder = decoder
        self.matcher = matcher
        self.criterion = criterion
        self.heatmap = heatmap
        self.extra_terms = LossTerms(extra_terms)
        self.selection = selection
        self.mask_padding = mask_padding

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from MODEL.QUERYPOSE."""
        query_pose = cfg.MODEL.QUERYPOSE
        backbone = build_backbone(cfg)
        base = super().from_config(cfg)
        skeleton = base["skeleton"]
        focal = {"focal_alpha": query_pose.LOSS.FOCAL_ALPHA, "focal_gamma": query_pose.LOSS.FOCAL_GAMMA}
        return {
            **base,
            "backbone": backbone,
            "decoder": build_pose_decoder(cfg, backbone, skeleton),
            "matcher": HungarianMatcher(
                class_weight=query_pose.MATCHER.COST_CLASS,
                bbox_weight=query_pose.MATCHER.COST_BBOX,
                giou_weight=query_pose.MATCHER.COST_GIOU,
                **focal,
            ),
            "criterion": SetCriterion(
                flow=build_flow(cfg),
                cls_weight=query_pose.LOSS.CLS_WEIGHT,
                bbox_weight=query_pose.LOSS.BBOX_WEIGHT,
                giou_weight=query_pose.LOSS.GIOU_WEIGHT,
                keypoint_weight=query_pose.LOSS.KEYPOINT_WEIGHT,
                deep_supervision=query_pose.LOSS.DEEP_SUPERVISION,
                **focal,
            ),
            "selection": QuerySelection(
                num_poses=cfg.TEST.DETECTIONS_PER_IMAGE,
                score_threshold=cfg.TEST.SCORE_THRESHOLD,
                num_queries=query_pose.TEST_QUERIES,
            ),
            "mask_padding": query_pose.MASK_PADDING,
            "heatmap": build_heatmap(cfg, backbone, skeleton),
            "extra_terms": {
                name: QUERY_POSE_LOSS_REGISTRY.build(name, cfg, skeleton=skeleton)
                for name in query_pose.LOSS.EXTRA_TERMS
            },
        }

    @property
    def components(self) -> dict[str, Component]:
        """Backbone and decoders, stage by stage: image sizes vary, and so does the number of decoded queries."""
        return {
            "backbone": Component([self.backbone], varying_dims=(2, 3)),
            "box_decoder": Component(list(self.decoder.box_stages)),
            "keypoint_decoder": Component(list(self.decoder.keypoint_stages), varying_dims=(0,)),
        }

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """`persons`, and those of the extra terms."""
        return {"persons": num_instances(batch), **self.extra_terms.normalizers(batch)}

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `PoseModel.losses`; reads `gt_boxes` and `gt_keypoints` of `instances`."""
        features = self._features(self.normalized_images(batch, self.backbone.size_divisibility))
        targets = self.person_targets(batch)
        start = self.decoder.start(features, targets.image_size_B4)
        stages = self.decoder.decode_training(features, targets, self.matcher, start)
        losses = self.criterion(stages, targets, normalizers)
        if self.decoder.dense_start is not None:
            losses |= self.decoder.dense_start.losses(start, targets, normalizers)
        outputs = {"features": features, "stages": stages, "targets": targets, "normalizers": normalizers}
        if self.heatmap is not None:
            losses["loss_heatmap"] = self.heatmap(**outputs)
        return {**losses, **self.extra_terms.losses(**outputs)}

    def predict(self, batch: Batch) -> list[Instances]:
        """As `PoseModel.predict`; `scores` are the pose scores of Sec. 3.4."""
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        return self.poses(images).to_instances(
            batch, images.image_sizes, self.selection.num_poses, self.selection.score_threshold
        )

    def poses(self, images: ImageList) -> QueryPoses:
        """As `PoseModel.poses`."""
        return self.decoder.decode(self._features(images), self._sizes(images), self.selection).to_poses()

    def explain(self, batch: Batch, num_poses: int = 3) -> list[list[Layer]]:
        """As `PoseModel.explain`: boxes, poses, part attention and gates of every stage; see `explain_stages`."""
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        return explain_stages(
            self.decoder, self._features(images), self._sizes(images), self.skeleton.keypoints, num_poses
        )

    def _sizes(self, images: ImageList) -> Tensor:
        """Width, height, width, height (B, 4) of the unpadded images."""
        sizes_B4 = torch.as_tensor(images.image_sizes).flip(-1).repeat(1, 2)
        return sizes_B4.to(self.pixel_mean, non_blocking=True)

    def _features(self, images: ImageList) -> dict[str, Tensor]:
        features = {name: pooling_layout(feature) for name, feature in self.backbone(images.tensor).items()}
        features = zero_padding(features, images) if self.mask_padding else features
        return self.heatmap.add_level(features) if isinstance(self.heatmap, HeatmapInput) else features


def build_pose_decoder(cfg: CfgNode, backbone: Backbone, skeleton: Skeleton) -> PoseDecoder:
    """The decoder that MODEL.QUERYPOSE describes, for the pyramid of `backbone` and the parts of `skeleton`.

    Raises:
        ConfigError: a level in BOX.IN_FEATURES or KEYPOINT.IN_FEATURE is not among the backbone's.
    """
    query_pose, dim = cfg.MODEL.QUERYPOSE, cfg.MODEL.FPN.OUT_CHANNELS
    box, keypoint = query_pose.BOX, query_pose.KEYPOINT
    strides = {name: shape.stride for name, shape in backbone.output_shape().items() if shape.stride is not None}
    for key, names in (("BOX.IN_FEATURES", box.IN_FEATURES), ("KEYPOINT.IN_FEATURE", [keypoint.IN_FEATURE])):
        if unknown := [name for name in names if name not in strides]:
            raise ConfigError(f"MODEL.QUERYPOSE.{key} has {unknown}; allowed with this backbone: {sorted(strides)}.")

    def box_stage() -> BoxStage:
        return BoxStage(
            dim=dim,
            num_heads=query_pose.NUM_HEADS,
            dim_feedforward=query_pose.DIM_FEEDFORWARD,
            dim_dynamic=query_pose.DIM_DYNAMIC,
            num_tokens=box.POOLER_RESOLUTION**2,
            num_cls_layers=box.NUM_CLS_LAYERS,
            num_reg_layers=box.NUM_REG_LAYERS,
            prior_prob=query_pose.PRIOR_PROB,
            identity_start=box.IDENTITY_START,
        )

    dense_start, is_dense = None, query_pose.PROPOSAL_INIT == "dense"
    if is_dense:
        dense_start = DenseStart(
            in_feature=query_pose.DENSE_START.IN_FEATURE,
            stride=strides[query_pose.DENSE_START.IN_FEATURE],
            dim=dim,
            num_queries=query_pose.NUM_QUERIES,
            weights={
                "loss_start_cls": query_pose.LOSS.START_WEIGHT,
                "loss_start_bbox": query_pose.LOSS.BBOX_WEIGHT,
                "loss_start_giou": query_pose.LOSS.GIOU_WEIGHT,
            },
        )
    serial = query_pose.INSTANCE_QUERY_ITERATION == "serial"
    return PoseDecoder(
        proposal_boxes_Q4=PROPOSAL_LAYOUTS["image" if is_dense else query_pose.PROPOSAL_INIT](query_pose.NUM_QUERIES),
        dim=dim,
        box_stages=[box_stage() for _ in range(query_pose.NUM_STAGES)],
        keypoint_stages=[
            build_keypoint_stage(cfg, skeleton) for _ in range(keypoint.NUM_STAGES or query_pose.NUM_STAGES)
        ],
        box_pooler=RegionPooler([strides[name] for name in box.IN_FEATURES], box.POOLER_RESOLUTION),
        keypoint_pooler=RegionPooler([strides[keypoint.IN_FEATURE]], keypoint.POOLER_RESOLUTION),
        box_in_features=box.IN_FEATURES,
        keypoint_in_feature=HeatmapInput.LEVEL if keypoint.HEATMAP_INPUT else keypoint.IN_FEATURE,
        serial=serial,
        # If serial, the next box stage reads the refined queries: then all of them must be refined, as in inference.
        train_on_all=query_pose.TRAIN_QUERIES == "all" or (query_pose.TRAIN_QUERIES == "auto" and serial),
        dense_start=dense_start,
        box_embedding=BoxEmbedding(dim) if box.EMBEDDING else None,
        region_scale=keypoint.REGION_SCALE,
        box_noise=BoxNoise(keypoint.NOISY_BOXES) if keypoint.NOISY_BOXES else None,
    )


def build_keypoint_stage(cfg: CfgNode, skeleton: Skeleton) -> KeypointStage:
    """One stage of the keypoint decoder that MODEL.QUERYPOSE.KEYPOINT describes."""
    query_pose, keypoint = cfg.MODEL.QUERYPOSE, cfg.MODEL.QUERYPOSE.KEYPOINT
    dim, dim_feedforward, num_tokens = (
        cfg.MODEL.FPN.OUT_CHANNELS,
        query_pose.DIM_FEEDFORWARD,
        keypoint.POOLER_RESOLUTION**2,
    )

    def interaction(num_queries: int, query_dim: int) -> RegionInteraction:
        sizes = InteractionSizes(
            dim=dim,
            num_tokens=num_tokens,
            num_queries=num_queries,
            query_dim=query_dim,
            num_heads=query_pose.NUM_HEADS,
            dim_dynamic=query_pose.DIM_DYNAMIC,
            num_keypoints=skeleton.num_keypoints,
            num_maps=skeleton.num_keypoints if keypoint.HEATMAP_INPUT else 0,
        )
        return INTERACTION_REGISTRY.build(keypoint.INTERACTION, cfg, sizes=sizes)

    refinement = None
    if keypoint.DYNAMIC_INTERACTION:
        refinement = InstanceRefinement(dim, query_pose.DIM_DYNAMIC, dim_feedforward, num_tokens)
    region = {"dim": dim, "num_convs": keypoint.NUM_CONVS, "conv_dim": keypoint.CONV_DIM, "interaction": interaction}
    if keypoint.QUERY_TYPE == "none":
        return DirectStage(**region, num_keypoints=skeleton.num_keypoints)
    if keypoint.QUERY_TYPE == "instance":
        return InstanceQueryStage(
            **region, refinement=refinement, num_keypoints=skeleton.num_keypoints, dim_feedforward=dim_feedforward
        )
    return PartQueryStage(
        **region,
        refinement=refinement,
        parts=skeleton.parts(keypoint.PART_SCHEME),
        part_dim=keypoint.PART_DIM,
        part_update=lambda dim: PART_UPDATE_REGISTRY.build(keypoint.ITERATION, cfg, dim=dim),
        num_heads=query_pose.NUM_HEADS,
        dim_feedforward=dim_feedforward,
    )


def build_flow(cfg: CfgNode) -> RealNVP | None:
    """The flow of the residual log-likelihood; None where LOSS.KEYPOINT_WEIGHT is 0."""
    query_pose = cfg.MODEL.QUERYPOSE
    if query_pose.LOSS.KEYPOINT_WEIGHT == 0:
        return None
    return RealNVP(query_pose.FLOW.NUM_COUPLINGS, query_pose.FLOW.DIM_HIDDEN)


def build_heatmap(cfg: CfgNode, backbone: Backbone, skeleton: Skeleton) -> AuxiliaryHeatmap | None:
    """The auxiliary heat maps on the keypoint decoder's level; None where LOSS.HEATMAP_WEIGHT is 0."""
    query_pose, dim = cfg.MODEL.QUERYPOSE, cfg.MODEL.FPN.OUT_CHANNELS
    if query_pose.LOSS.HEATMAP_WEIGHT == 0:
        return None
    stride = backbone.output_shape()[query_pose.KEYPOINT.IN_FEATURE].stride
    assert stride is not None
    return (HeatmapInput if query_pose.KEYPOINT.HEATMAP_INPUT else AuxiliaryHeatmap)(
        in_feature=query_pose.KEYPOINT.IN_FEATURE,
        dim=dim,
        num_keypoints=skeleton.num_keypoints,
        stride=stride,
        weight=query_pose.LOSS.HEATMAP_WEIGHT,
    )

"""The authors' decoder as reference_behaviour.md describes it, as plain functions of their state dict.

An oracle for the full version, of which there are no reference tensors: it is compared with those of the light version
first, and shares nothing with the model but RoIAlign and the matcher. It runs in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

HEADS = 8
DIM_DYNAMIC = 64
PART_KEYPOINTS = ([0, 1, 2, 3, 4], [5, 6], [7, 9], [8, 10], [11, 12], [13, 15], [14, 16])

Matching = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Logits (B, Q) and boxes (B, Q, 4) to image, query and person of every match, sorted by person."""


@dataclass
class StageOutput:
    """What one stage says, poses for the rows that were decoded."""

    logits_BQ: Tensor
    boxes_BQ4: Tensor
    image_R: Tensor
    query_R: Tensor
    mean_RKD: Tensor
    sigma_RKD: Tensor


@dataclass
class PublishedDecoder:
    """Section 3 to 5 of reference_behaviour.md.

    Attributes:
        weights: float64, by the authors' names.
        features: p2..p5 (B, C, H, W).
        image_size_B4: width, height, width, height.
        refined_goes_on: whether the next box stage gets the refined instance query: v0 always, v1 only in training.
        match: None decodes poses of all queries by running statistics (inference); else BatchNorm takes the batch's.
        only_matched: decode poses of the matched queries alone (v1 in training).
    """

    weights: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    image_size_B4: Tensor
    refined_goes_on: bool
    match: Matching | None = None
    only_matched: bool = False

    def run(self, num_stages: int) -> list[StageOutput]:
        """All stages in order."""
        center, size = self.weights["init_proposal_boxes.weight"].split(2, dim=1)
        boxes = torch.cat([center - size / 2, center + size / 2], dim=1) * self.image_size_B4[:, None]
        num_images, num_queries = boxes.shape[:2]
        query = self.weights["init_proposal_features.weight"].expand(num_images, -1, -1)
        part_query: Tensor | None = None
        outputs = []
        for stage in range(num_stages):
            name = f"head.head_series.{stage}"
            logits, boxes, query = self._box_stage(name, query, boxes)
            image, row = (
                torch.arange(num_images).repeat_interleave(num_queries),
                torch.arange(num_queries).repeat(num_images),
            )
            if self.match is not None and self.only_matched:
                image, row, _ = self.match(logits, boxes)
            if part_query is None:
                part_query = self.weights["part_query.weight"].expand(len(image), -1, -1)
            name = f"head.pose_head_series.{stage}"
            refined, part_query = self._pose_stage(
                name, query[image, row], part_query, boxes[image, row].detach(), image
            )
            outputs.append(StageOutput(logits, boxes, image, row, *self._regress(name, part_query)))
            if self.refined_goes_on:
                query = query.index_put((image, row), refined)
            boxes = boxes.detach()
        return outputs

    # ---- box decoder (section 4) ---------------------------------------------------------------------------------

    def _box_stage(self, name: str, query: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = query.shape
        region = self._pool_levels(boxes.detach().flatten(0, 1), torch.arange(shape[0]).repeat_interleave(shape[1]))
        query = self._norm(f"{name}.norm1", query + self._attention(f"{name}.self_attn", query)).flatten(0, 1)
        query = self._norm(f"{name}.norm2", query + self._dynamic(f"{name}.inst_interact", query, region))
        query = self._norm(f"{name}.norm3", query + self._mlp(f"{name}.linear1", f"{name}.linear2", query))
        cls = self._norm(f"{name}.cls_module.1", self._linear(f"{name}.cls_module.0", query)).relu()
        reg = query
        for layer in (0, 3, 6):
            reg = self._norm(f"{name}.reg_module.{layer + 1}", self._linear(f"{name}.reg_module.{layer}", reg)).relu()
        logits = self._linear(f"{name}.class_logits", cls).view(shape[:2])
        dx, dy, dw, dh = self._linear(f"{name}.bboxes_delta", reg).view(*shape[:2], 4).unbind(-1)
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        x = boxes[..., 0] + width / 2 + dx / 2 * width
        y = boxes[..., 1] + height / 2 + dy / 2 * height
        limit = math.log(100000 / 16)
        width, height = dw.clamp(max=limit).exp() * width, dh.clamp(max=limit).exp() * height
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        return logits, boxes, query.view(shape)

    def _pool_levels(self, boxes: Tensor, image: Tensor) -> Tensor:
        regions = []
        for box, index in zip(boxes.float().double(), image, strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-8)), 2), 5)
            regions.append(self._pool(f"p{level}", box[None], index[None], 7))
        return torch.cat(regions)

    def _pool(self, level: str, boxes: Tensor, image: Tensor, resolution: int) -> Tensor:
        rois = torch.cat([image[:, None].double(), boxes.float().double()], dim=1)
        scale = 1 / 2 ** int(level[1:])
        return roi_align(self.features[level], rois, resolution, scale, sampling_ratio=2, aligned=True)

    # ---- keypoint decoder (section 5) ----------------------------------------------------------------------------

    def _pose_stage(
        self, name: str, query: Tensor, part_query: Tensor, boxes: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        region = self._pool("p2", boxes, image, 14)
        for layer in range(0, 12, 2):
            weight, bias = (
                self.weights[f"{name}.inst_convs.{layer}.weight"],
                self.weights[f"{name}.inst_convs.{layer}.bias"],
            )
            region = F.conv2d(region, weight, bias, padding=1).relu()
        if f"{name}.inst_norm.weight" in self.weights:
            interaction = self._dynamic(f"{name}.pose_decoder_inst_interact", query, region)
            query = self._norm(f"{name}.inst_norm", query + interaction)
            query = self._norm(f"{name}.norm2", query + self._mlp(f"{name}.linear1", f"{name}.linear2", query))
        embedding = self._spegm(f"{name}.part_embed_generator", region)
        residual = [self._linear(f"{name}.residual_filter.{part}", query) for part in range(len(PART_KEYPOINTS))]
        embedding = embedding + torch.stack(residual, dim=1)
        gate = self._norm(
            f"{name}.updater.norm_fc1", self._linear(f"{name}.updater.fc1", embedding + part_query)
        ).relu()
        gate = self._linear(f"{name}.updater.fc2", gate).sigmoid().unflatten(-1, (2, -1))
        part_query = embedding * gate[..., 0, :] + part_query * gate[..., 1, :]
        attended = self._attention(f"{name}.kps_self_attn", part_query)
        part_query = self._norm(f"{name}.self_attn_norm", part_query + attended)
        mlp = self._mlp(f"{name}.linear1_l", f"{name}.linear2_l", part_query)
        return query, self._norm(f"{name}.norm2_l", part_query + mlp)

    def _spegm(self, name: str, region: Tensor) -> Tensor:
        region = F.conv_transpose2d(region, self.weights[f"{name}.upsample.0.weight"], stride=2, padding=1)
        norm = f"{name}.upsample.1"
        if self.match is None:
            mean, variance = self.weights[f"{norm}.running_mean"], self.weights[f"{norm}.running_var"]
        else:
            mean, variance = region.mean((0, 2, 3)), region.var((0, 2, 3), correction=0)
        scale = self.weights[f"{norm}.weight"] / (variance + 1e-5).sqrt()
        region = (region - mean[:, None, None]) * scale[:, None, None] + self.weights[f"{norm}.bias"][:, None, None]
        region = region.relu()
        logits = F.conv2d(
            region, self.weights[f"{name}.LSA_conv.weight"], self.weights[f"{name}.LSA_conv.bias"], padding=1
        )
        attention = logits.flatten(2).softmax(-1)
        return self._linear(f"{name}.fc", torch.einsum("rpt,rct->rpc", attention, region.flatten(2)))

    def _regress(self, name: str, part_query: Tensor) -> tuple[Tensor, Tensor]:
        num_keypoints = sum(map(len, PART_KEYPOINTS))
        mean, sigma = (part_query.new_empty(len(part_query), num_keypoints, 2) for _ in range(2))
        for part, keypoints in enumerate(PART_KEYPOINTS):
            x = part_query[:, part]
            coordinate = f"{name}.fc_coord.{part}.linear"
            direction = x @ self.weights[f"{coordinate}.weight"].T / x.norm(dim=-1, keepdim=True)
            mean[:, keypoints] = (direction + self.weights[f"{coordinate}.bias"]).unflatten(-1, (-1, 2))
            sigma[:, keypoints] = self._linear(f"{name}.fc_sigma.{part}.linear", x).sigmoid().unflatten(-1, (-1, 2))
        return mean, sigma

    # ---- layers --------------------------------------------------------------------------------------------------

    def _dynamic(self, name: str, query: Tensor, region: Tensor) -> Tensor:
        parameters = self._linear(f"{name}.dynamic_layer", query)
        dim = query.shape[-1]
        first = parameters[:, : dim * DIM_DYNAMIC].view(-1, dim, DIM_DYNAMIC)
        second = parameters[:, dim * DIM_DYNAMIC :].view(-1, DIM_DYNAMIC, dim)
        x = self._norm(f"{name}.norm1", torch.bmm(region.flatten(2).transpose(1, 2), first)).relu()
        x = self._norm(f"{name}.norm2", torch.bmm(x, second)).relu()
        return self._norm(f"{name}.norm3", self._linear(f"{name}.out_layer", x.flatten(1))).relu()

    def _attention(self, name: str, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"])
        query, key, value = qkv.unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-2, -3)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return self._linear(f"{name}.out_proj", (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2))

    def _mlp(self, first: str, second: str, x: Tensor) -> Tensor:
        return self._linear(second, self._linear(first, x).relu())

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

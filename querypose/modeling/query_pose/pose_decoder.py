"""The decoder of QueryPose: S stages of box and keypoint decoder, and the queries they refine (Figure 2, 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from querypose.layers import RegionPooler, box_cxcywh_to_xyxy
from querypose.modeling.query_pose.box_decoder import BoxStage
from querypose.modeling.query_pose.keypoint_decoder import KeypointStage
from querypose.modeling.query_pose.query_selection import QuerySelection, best_rows, class_scores
from querypose.modeling.targets import Matches, PersonTargets


class Matcher(Protocol):
    """Matches the predictions of S stages: class logits (S, B, Q) and boxes (S, B, Q, 4)."""

    def match_stages(self, logits_SBQ: Tensor, boxes_SBQ4: Tensor, targets: PersonTargets) -> list[Matches]:
        """The matches of each stage."""


@dataclass(frozen=True)
class StagePrediction:
    """What one stage says of a training batch, and of its matched pairs.

    Attributes:
        logits_BQ: class logit of every query.
        boxes_BQ4: predicted corners, in pixels of the padded images.
        matches: the R pairs of queries and persons at this stage.
        mean_RKD: keypoints of the matched queries, in the frame of their predicted box, nominally in [-0.5, 0.5].
        sigma_RKD: their scale in (0, 1), same frame.
    """

    logits_BQ: Tensor
    boxes_BQ4: Tensor
    matches: Matches
    mean_RKD: Tensor
    sigma_RKD: Tensor


@dataclass(frozen=True)
class PosePrediction:
    """What the decoder says of every query in inference; frames as in `StagePrediction`.

    Attributes:
        logits_BQ: class logit of every query.
        boxes_BQ4: predicted corners.
        mean_BQKD: keypoints; 0 where the query was not decoded.
        sigma_BQKD: their scale; 1 where the query was not decoded, which makes the pose score 0.
    """

    logits_BQ: Tensor
    boxes_BQ4: Tensor
    mean_BQKD: Tensor
    sigma_BQKD: Tensor


class _BoxPrediction(NamedTuple):
    """What a box stage gives."""

    logits_BQ: Tensor
    boxes_BQ4: Tensor
    query_BQC: Tensor


_TrainingStages = tuple[list[_BoxPrediction], list[Matches], list[Tensor]]
"""Of each stage: what its box stage gave, the matches, and the part queries that it left."""


class PoseDecoder(nn.Module):
    """Refines a set of learned boxes, instance queries and part queries stage by stage.

    Boxes are detached from stage to stage, queries are not.

    Args:
        proposal_boxes_Q4: where the boxes start, as centre and size in units of the image; one an instance query.
        dim: width C of an instance query.
        box_stages: the S stages of the box decoder.
        keypoint_stages: the S stages of the keypoint decoder.
        box_pooler: of the region features for the box decoder.
        keypoint_pooler: of those for the keypoint decoder.
        box_in_features: levels that the box decoder pools from.
        keypoint_in_feature: the level that the keypoint decoder pools from.
        serial: whether the next box stage gets the instance query as the keypoint stage left it (Figure 3b).
        train_on_all: whether the keypoint stages run on all queries in training, or on the matched ones alone.
    """

    def __init__(
        self,
        *,
        proposal_boxes_Q4: Tensor,
        dim: int,
        box_stages: Sequence[BoxStage],
        keypoint_stages: Sequence[KeypointStage],
        box_pooler: RegionPooler,
        keypoint_pooler: RegionPooler,
        box_in_features: Sequence[str],
        keypoint_in_feature: str,
        serial: bool,
        train_on_all: bool,
    ) -> None:
        super().__init__()
        self.proposal_boxes = nn.Parameter(proposal_boxes_Q4.clone())
        self.instance_queries = nn.Parameter(torch.randn(len(proposal_boxes_Q4), dim))
        # Embeddings that replace the part queries at every stage leave nothing for a learned query to do.
        part_queries = torch.randn(keypoint_stages[0].num_queries, keypoint_stages[0].query_dim)
        if keypoint_stages[0].carries_queries:
            self.part_queries = nn.Parameter(part_queries)
        else:
            self.register_buffer("part_queries", torch.zeros_like(part_queries), persistent=False)
        self.box_stages = nn.ModuleList(box_stages)
        self.keypoint_stages = nn.ModuleList(keypoint_stages)
        self.box_pooler = box_pooler
        self.keypoint_pooler = keypoint_pooler
        self.box_in_features = tuple(box_in_features)
        self.keypoint_in_feature = keypoint_in_feature
        self.serial = serial
        self.train_on_all = train_on_all

    def decode_training(
        self, features: Mapping[str, Tensor], targets: PersonTargets, matcher: Matcher
    ) -> list[StagePrediction]:
        """Runs all stages on a training batch, matching queries and persons at each.

        Args:
            features: (B, C, H, W) a level of the pyramid.
            targets: the persons.
            matcher: matches the predictions of one or several stages.

        Returns:
            the prediction of every stage.
        """
        train = self._train_serially if self.serial else self._train_boxes_first
        boxes_S, matches_S, part_queries_S = train(features, targets, matcher)
        predictions = []
        for (_, stage), boxes, matches, part_query_TPC in zip(
            self._stages, boxes_S, matches_S, part_queries_S, strict=True
        ):
            row_R = matches.slot_R
            if self.train_on_all:
                row_R = matches.image_R * boxes.logits_BQ.shape[1] + matches.query_R
            mean_RKD, sigma_RKD = stage.regressor(part_query_TPC[row_R])
            predictions.append(StagePrediction(boxes.logits_BQ, boxes.boxes_BQ4, matches, mean_RKD, sigma_RKD))
        return predictions

    def _train_boxes_first(
        self, features: Mapping[str, Tensor], targets: PersonTargets, matcher: Matcher
    ) -> _TrainingStages:
        """All box stages, then the matches of all stages together, then all keypoint stages."""
        boxes_S: list[_BoxPrediction] = []
        boxes_BQ4, query_BQC = self._initial_state(targets.image_size_B4)
        for box_stage in self.box_stages:
            boxes_S.append(_BoxPrediction(*self._box_step(box_stage, features, boxes_BQ4, query_BQC)))
            boxes_BQ4, query_BQC = boxes_S[-1].boxes_BQ4.detach(), boxes_S[-1].query_BQC
        matches_S = _match(matcher, boxes_S, targets)
        part_queries_S: list[Tensor] = []
        part_query_TPC = self._initial_part_queries(boxes_BQ4, targets)
        for stage, boxes, matches in zip(self.keypoint_stages, boxes_S, matches_S, strict=True):
            part_query_TPC, _ = self._train_keypoint_step(stage, features, boxes, matches, part_query_TPC)
            part_queries_S.append(part_query_TPC)
        return boxes_S, matches_S, part_queries_S

    def _train_serially(
        self, features: Mapping[str, Tensor], targets: PersonTargets, matcher: Matcher
    ) -> _TrainingStages:
        """Box and keypoint stages in turn; matches at once where they decide what is decoded, else all at the end."""
        boxes_S: list[_BoxPrediction] = []
        matches_S: list[Matches] = []
        part_queries_S: list[Tensor] = []
        boxes_BQ4, query_BQC = self._initial_state(targets.image_size_B4)
        part_query_TPC = self._initial_part_queries(boxes_BQ4, targets)
        for box_stage, keypoint_stage in self._stages:
            boxes = _BoxPrediction(*self._box_step(box_stage, features, boxes_BQ4, query_BQC))
            boxes_S.append(boxes)
            matches = None
            if not self.train_on_all:
                (matches,) = _match(matcher, [boxes], targets)
                matches_S.append(matches)
            part_query_TPC, query_BQC = self._train_keypoint_step(
                keypoint_stage, features, boxes, matches, part_query_TPC
            )
            part_queries_S.append(part_query_TPC)
            boxes_BQ4 = boxes.boxes_BQ4.detach()
        return boxes_S, matches_S or _match(matcher, boxes_S, targets), part_queries_S

    def _train_keypoint_step(
        self,
        stage: nn.Module,
        features: Mapping[str, Tensor],
        boxes: _BoxPrediction,
        matches: Matches | None,
        part_query_TPC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """A keypoint stage on the queries that training decodes: all, or those of `matches`.

        Returns:
            part queries (T, P, C) of all slots; instance queries (B, Q, C), refined if the next box stage reads that.
        """
        slot_R = None
        if self.train_on_all or matches is None:
            image_R, query_R = _all_rows(boxes.logits_BQ)
        else:
            image_R, query_R = matches.image_R, matches.query_R
            slot_R = None if matches.is_complete else matches.slot_R
        part_query_RPC, refined_RC = self._keypoint_step(
            stage,
            features,
            boxes.boxes_BQ4,
            boxes.query_BQC,
            image_R,
            query_R,
            part_query_TPC if slot_R is None else part_query_TPC[slot_R],
        )
        part_query_TPC = part_query_RPC if slot_R is None else part_query_TPC.index_copy(0, slot_R, part_query_RPC)
        query_BQC = boxes.query_BQC
        if self.serial:
            query_BQC = query_BQC.index_put((image_R, query_R), refined_RC.to(query_BQC.dtype))
        return part_query_TPC, query_BQC

    def decode(
        self,
        features: Mapping[str, Tensor],
        image_size_B4: Tensor,
        selection: QuerySelection | None = None,
        num_stages: int | None = None,
    ) -> PosePrediction:
        """Runs the stages on images alone.

        A keypoint stage whose outcome no box stage reads waits until all box stages have run, and then decodes only
        the queries that `selection` wants: where the instance query is iterated by the box decoder alone these are
        all keypoint stages, else the last one.

        Args:
            features: (B, C, H, W) a level of the pyramid.
            image_size_B4: width, height, width, height of each unpadded image, in pixels.
            selection: which queries to decode; all by default.
            num_stages: how many of the stages to run; all by default.

        Returns:
            the prediction of the last stage that was run.
        """
        boxes_BQ4, query_BQC = self._initial_state(image_size_B4)
        num_images, num_queries = boxes_BQ4.shape[:2]
        part_query_TPC = self.part_queries.expand(num_images * num_queries, -1, -1)
        waiting: list[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = []
        stages = self._stages[:num_stages]
        for number, (box_stage, keypoint_stage) in enumerate(stages, start=1):
            logits_BQ, boxes_BQ4, query_BQC = self._box_step(box_stage, features, boxes_BQ4, query_BQC)
            keypoint_step = partial(self._keypoint_step, keypoint_stage, features, boxes_BQ4, query_BQC)
            if self.serial and number < len(stages):
                row_R = best_rows(
                    logits_BQ, selection.num_queries if selection and selection.num_queries else num_queries
                )
                part_query_RPC, refined_RC = keypoint_step(
                    row_R // num_queries, row_R % num_queries, part_query_TPC[row_R]
                )
                part_query_TPC = part_query_TPC.index_copy(0, row_R, part_query_RPC)
                query_BQC = query_BQC.flatten(0, 1).index_copy(0, row_R, refined_RC).view_as(query_BQC)
            else:
                waiting.append(keypoint_step)

        def decode_rows(row_R: Tensor) -> tuple[Tensor, Tensor]:
            part_query_RPC = part_query_TPC[row_R]
            for keypoint_step in waiting:
                part_query_RPC, _ = keypoint_step(row_R // num_queries, row_R % num_queries, part_query_RPC)
            return keypoint_stage.regressor(part_query_RPC)

        if selection is None:
            decoded = decode_rows(best_rows(logits_BQ, num_queries))
            mean_BQKD, sigma_BQKD = (tensor_RKD.unflatten(0, logits_BQ.shape) for tensor_RKD in decoded)
        else:
            mean_BQKD, sigma_BQKD = selection.decode(class_scores(logits_BQ), decode_rows)
        return PosePrediction(logits_BQ, boxes_BQ4, mean_BQKD, sigma_BQKD)

    @property
    def _stages(self) -> list[tuple[BoxStage, KeypointStage]]:
        stages = zip(self.box_stages, self.keypoint_stages, strict=True)
        return cast("list[tuple[BoxStage, KeypointStage]]", list(stages))

    def _initial_state(self, image_size_B4: Tensor) -> tuple[Tensor, Tensor]:
        """Learned boxes in pixels of each image, and learned instance queries."""
        boxes_BQ4 = box_cxcywh_to_xyxy(self.proposal_boxes) * image_size_B4[:, None]
        return boxes_BQ4, self.instance_queries.expand(len(image_size_B4), -1, -1)

    def _initial_part_queries(self, boxes_BQ4: Tensor, targets: PersonTargets) -> Tensor:
        """Learned part queries (T, P, C): one set a query, or where only matched queries are decoded one a person.

        A person's part queries stay with the person, whichever query answers for it at a stage. Deviates: the
        authors' later code carries them by position in the list of matched queries and so hands one person's to
        another when the order of the queries changes.
        """
        num_slots = boxes_BQ4.shape[0] * boxes_BQ4.shape[1] if self.train_on_all else targets.num_persons
        return self.part_queries.repeat(num_slots, 1, 1)

    def _box_step(
        self, stage: nn.Module, features: Mapping[str, Tensor], boxes_BQ4: Tensor, query_BQC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        image_R, _ = _all_rows(boxes_BQ4)
        levels = [features[name] for name in self.box_in_features]
        region_RCHW = self.box_pooler(levels, boxes_BQ4.detach().flatten(0, 1), image_R)
        return stage(query_BQC, region_RCHW, boxes_BQ4)

    def _keypoint_step(
        self,
        stage: nn.Module,
        features: Mapping[str, Tensor],
        boxes_BQ4: Tensor,
        query_BQC: Tensor,
        image_R: Tensor,
        query_R: Tensor,
        part_query_RPC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        boxes_R4 = boxes_BQ4.detach()[image_R, query_R]
        region_RCHW = self.keypoint_pooler([features[self.keypoint_in_feature]], boxes_R4, image_R)
        return stage(region_RCHW, query_BQC[image_R, query_R], part_query_RPC)


def _match(matcher: Matcher, boxes_S: Sequence[_BoxPrediction], targets: PersonTargets) -> list[Matches]:
    """The matches of some stages, for which the host waits once."""
    logits_SBQ = torch.stack([boxes.logits_BQ.detach() for boxes in boxes_S])
    boxes_SBQ4 = torch.stack([boxes.boxes_BQ4.detach() for boxes in boxes_S])
    return matcher.match_stages(logits_SBQ, boxes_SBQ4, targets)


def _all_rows(tensor_BQ: Tensor) -> tuple[Tensor, Tensor]:
    """Image and query index of every query of a batch, image by image."""
    num_images, num_queries = tensor_BQ.shape[:2]
    image_B = torch.arange(num_images, device=tensor_BQ.device)
    query_Q = torch.arange(num_queries, device=tensor_BQ.device)
    return image_B.repeat_interleave(num_queries), query_Q.repeat(num_images)

"""The decoder of QueryPose: S stages of box and keypoint decoder, and the queries that they refine (Figures 2, 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from querypose.layers import RegionPooler, box_cxcywh_to_xyxy
from querypose.modeling.poses import QueryPoses
from querypose.modeling.query_pose.box_decoder import BoxStage
from querypose.modeling.query_pose.keypoint_decoder import KeypointStage
from querypose.modeling.query_pose.query_selection import (
    QuerySelection,
    best_rows,
    class_scores,
    keypoint_scores,
    pose_scores,
)
from querypose.modeling.targets import Matches, PersonTargets


class Matcher(Protocol):
    """Matches the predictions of S stages: class logits (S, B, Q) and boxes (S, B, Q, 4)."""

    def match_stages(self, logits_SBQ: Tensor, boxes_SBQ4: Tensor, targets: PersonTargets) -> list[Matches]:
        """The matches of each stage."""


@dataclass(frozen=True)
class StagePrediction:
    """The predictions of one stage for a training batch, and for its matched pairs.

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
    """The predictions of the decoder for every query in inference; frames as in `StagePrediction`.

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

    def to_poses(self) -> QueryPoses:
        """The poses in pixels of the padded images, with the scores of Sec. 3.4; 0 where a query was not decoded."""
        corner_BQ1D, end_BQ1D = self.boxes_BQ4[..., None, :].split(2, dim=-1)
        keypoints_BQKD = (self.mean_BQKD + 0.5) * (end_BQ1D - corner_BQ1D) + corner_BQ1D
        return QueryPoses(
            scores_BQ=pose_scores(class_scores(self.logits_BQ), self.sigma_BQKD),
            keypoints_BQK3=torch.cat([keypoints_BQKD, keypoint_scores(self.sigma_BQKD)[..., None]], dim=-1),
            boxes_BQ4=self.boxes_BQ4,
        )


class BoxOutput(NamedTuple):
    """The output of a box stage for every query of a batch: class logit, corners in pixels, refined instance query."""

    logits_BQ: Tensor
    boxes_BQ4: Tensor
    query_BQC: Tensor


class Rows(NamedTuple):
    """R queries of a batch that a keypoint stage decodes.

    Attributes:
        image_R: index of the image.
        query_R: index of the query within its image.
        slot_R: index of the query's set among the T sets of part queries; None if these are in the order of the rows.
    """

    image_R: Tensor
    query_R: Tensor
    slot_R: Tensor | None = None


RowChoice = Callable[[Sequence[BoxOutput]], list[Rows]]
"""Chooses, from the outputs of some box stages, the queries that each keypoint stage decodes."""


@dataclass
class DecoderRun:
    """A batch on its way through the decoder: the outputs of its stages so far.

    Attributes:
        part_query_TPC: T sets of part queries, after the last keypoint stage.
        boxes_S: of every box stage.
        part_queries_S: `part_query_TPC` after every keypoint stage.
        waiting: keypoint stages that have not run yet, because no box stage reads their output; each takes rows and
            their part queries, and returns part queries and instance queries.
    """

    part_query_TPC: Tensor
    boxes_S: list[BoxOutput] = field(default_factory=list)
    part_queries_S: list[Tensor] = field(default_factory=list)
    waiting: list[Callable[[Rows, Tensor], tuple[Tensor, Tensor]]] = field(default_factory=list)

    def decode_waiting(self, rows_N: Sequence[Rows]) -> Tensor:
        """Runs the waiting keypoint stages, each on its rows; returns the last one's instance queries (R, C)."""
        for keypoint_step, rows in zip(self.waiting, rows_N, strict=True):
            if rows.slot_R is None:
                self.part_query_TPC, instance_query_RC = keypoint_step(rows, self.part_query_TPC)
            else:
                part_query_RPC, instance_query_RC = keypoint_step(rows, self.part_query_TPC[rows.slot_R])
                self.part_query_TPC = self.part_query_TPC.index_copy(
                    0, rows.slot_R, part_query_RPC.to(self.part_query_TPC.dtype)
                )
            self.part_queries_S.append(self.part_query_TPC)
        return instance_query_RC


class PoseDecoder(nn.Module):
    """Refines a set of learned boxes, instance queries and part queries stage by stage.

    Boxes are detached from stage to stage, queries are not.

    Args:
        proposal_boxes_Q4: where the boxes start, as center and size in units of the image; one an instance query.
        dim: width C of an instance query.
        box_stages: the S stages of the box decoder.
        keypoint_stages: the S stages of the keypoint decoder.
        box_pooler: of the region features for the box decoder.
        keypoint_pooler: of those for the keypoint decoder.
        box_in_features: levels that the box decoder pools from.
        keypoint_in_feature: the level that the keypoint decoder pools from.
        serial: whether the next box stage gets the instance query as the keypoint stage left it (Figure 3b).
        train_on_all: whether training decodes the keypoints of all queries, or of the matched ones alone.
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
        # If embeddings replace the part queries at every stage, learned ones would never be read.
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

    def run_stages(
        self,
        features: Mapping[str, Tensor],
        image_size_B4: Tensor,
        choose: RowChoice,
        *,
        num_slots: int | None = None,
        num_stages: int | None = None,
    ) -> DecoderRun:
        """Runs the box stages, and those keypoint stages whose output a box stage reads; the others wait.

        With serial iteration (Figure 3b) only the last keypoint stage waits, else all do. So training transfers the
        costs of all stages to the host at once, and inference decodes only the queries that matter.

        Args:
            features: (B, C, H, W) a level of the pyramid.
            image_size_B4: width, height, width, height of each unpadded image, in pixels.
            choose: the queries that keypoint stages decode which cannot wait.
            num_slots: T, sets of part queries; by default one for each query.
            num_stages: how many of the stages to run; all by default.
        """
        boxes_BQ4 = box_cxcywh_to_xyxy(self.proposal_boxes) * image_size_B4[:, None]
        query_BQC = self.instance_queries.expand(image_size_B4.shape[0], -1, -1)
        num_slots = query_BQC.shape[0] * query_BQC.shape[1] if num_slots is None else num_slots
        run = DecoderRun(self.part_queries.expand(num_slots, -1, -1))
        stages = list(zip(self.box_stages, self.keypoint_stages, strict=True))[:num_stages]
        for number, (box_stage, keypoint_stage) in enumerate(stages, start=1):
            boxes = self._box_step(box_stage, features, boxes_BQ4, query_BQC)
            run.boxes_S.append(boxes)
            run.waiting.append(partial(self._keypoint_step, keypoint_stage, features, boxes))
            boxes_BQ4, query_BQC = boxes.boxes_BQ4.detach(), boxes.query_BQC
            if self.serial and number < len(stages):
                (rows,) = choose([boxes])
                refined_RC = run.decode_waiting([rows])
                run.waiting.clear()
                query_BQC = query_BQC.index_put((rows.image_R, rows.query_R), refined_RC.to(query_BQC.dtype))
        return run

    def decode_training(
        self, features: Mapping[str, Tensor], targets: PersonTargets, matcher: Matcher
    ) -> list[StagePrediction]:
        """Runs all stages on a training batch, and matches queries and persons at each stage.

        If only matched queries are decoded, a person's part queries stay with the person, whichever query is matched
        with it at a stage. Deviates: the authors' later code carries them by position in the list of matched queries,
        so that they go to another person when the order of the queries changes.

        Args:
            features: (B, C, H, W) a level of the pyramid.
            targets: the persons.
            matcher: matches the predictions of one or several stages.

        Returns:
            the prediction of every stage.
        """
        matches_S: list[Matches] = []

        def choose(boxes_S: Sequence[BoxOutput]) -> list[Rows]:
            if self.train_on_all:
                return [Rows(*_all_queries(boxes_S[0].logits_BQ))] * len(boxes_S)
            matches_S.extend(_match(matcher, boxes_S, targets))
            return [
                Rows(matches.image_R, matches.query_R, None if matches.is_complete else matches.slot_R)
                for matches in matches_S[-len(boxes_S) :]
            ]

        num_slots = None if self.train_on_all else targets.num_persons
        run = self.run_stages(features, targets.image_size_B4, choose, num_slots=num_slots)
        run.decode_waiting(choose(run.boxes_S[-len(run.waiting) :]))
        if self.train_on_all:
            matches_S = _match(matcher, run.boxes_S, targets)
        predictions = []
        for stage, boxes, matches, part_query_TPC in zip(
            self.keypoint_stages, run.boxes_S, matches_S, run.part_queries_S, strict=True
        ):
            slot_R = matches.slot_R
            if self.train_on_all:
                slot_R = matches.image_R * boxes.logits_BQ.shape[1] + matches.query_R
            mean_RKD, sigma_RKD = cast(KeypointStage, stage).regressor(part_query_TPC[slot_R])
            predictions.append(StagePrediction(boxes.logits_BQ, boxes.boxes_BQ4, matches, mean_RKD, sigma_RKD))
        return predictions

    def decode(
        self,
        features: Mapping[str, Tensor],
        image_size_B4: Tensor,
        selection: QuerySelection | None = None,
        num_stages: int | None = None,
    ) -> PosePrediction:
        """Runs the stages on images alone.

        Args:
            features: (B, C, H, W) a level of the pyramid.
            image_size_B4: width, height, width, height of each unpadded image, in pixels.
            selection: which queries to decode; all by default.
            num_stages: how many of the stages to run; all by default.

        Returns:
            the prediction of the last stage that was run.
        """
        num_queries = len(self.proposal_boxes)
        num_decoded = (selection and selection.num_queries) or num_queries

        def rows_of(slot_R: Tensor) -> Rows:
            return Rows(slot_R // num_queries, slot_R % num_queries, slot_R)

        def choose(boxes_S: Sequence[BoxOutput]) -> list[Rows]:
            return [rows_of(best_rows(boxes.logits_BQ, num_decoded)) for boxes in boxes_S]

        run = self.run_stages(features, image_size_B4, choose, num_stages=num_stages)
        regressor = cast(KeypointStage, self.keypoint_stages[len(run.boxes_S) - 1]).regressor

        def decode_rows(slot_R: Tensor) -> tuple[Tensor, Tensor]:
            run.decode_waiting([rows_of(slot_R)] * len(run.waiting))
            run.part_queries_S.clear()  # only the last is read; all of them would fill the memory round by round
            return regressor(run.part_query_TPC[slot_R])

        logits_BQ, boxes_BQ4, _ = run.boxes_S[-1]
        if selection is None:
            decoded = decode_rows(best_rows(logits_BQ, num_queries))
            mean_BQKD, sigma_BQKD = (tensor_RKD.unflatten(0, logits_BQ.shape) for tensor_RKD in decoded)
        else:
            mean_BQKD, sigma_BQKD = selection.decode(class_scores(logits_BQ), decode_rows)
        return PosePrediction(logits_BQ, boxes_BQ4, mean_BQKD, sigma_BQKD)

    def decode_stages(self, features: Mapping[str, Tensor], image_size_B4: Tensor) -> list[PosePrediction]:
        """The prediction of every stage for every query, to see how poses come about; arguments as of `decode`."""

        def choose(boxes_S: Sequence[BoxOutput]) -> list[Rows]:
            return [Rows(*_all_queries(boxes_S[0].logits_BQ))] * len(boxes_S)

        run = self.run_stages(features, image_size_B4, choose)
        run.decode_waiting(choose(run.boxes_S[-len(run.waiting) :]))
        predictions = []
        for stage, boxes, part_query_TPC in zip(self.keypoint_stages, run.boxes_S, run.part_queries_S, strict=True):
            decoded = cast(KeypointStage, stage).regressor(part_query_TPC)
            mean_BQKD, sigma_BQKD = (tensor_RKD.unflatten(0, boxes.logits_BQ.shape) for tensor_RKD in decoded)
            predictions.append(PosePrediction(boxes.logits_BQ, boxes.boxes_BQ4, mean_BQKD, sigma_BQKD))
        return predictions

    def _box_step(
        self, stage: nn.Module, features: Mapping[str, Tensor], boxes_BQ4: Tensor, query_BQC: Tensor
    ) -> BoxOutput:
        image_R, _ = _all_queries(boxes_BQ4)
        levels = [features[name] for name in self.box_in_features]
        region_RCHW = self.box_pooler(levels, boxes_BQ4.detach().flatten(0, 1), image_R)
        return BoxOutput(*stage(query_BQC, region_RCHW, boxes_BQ4))

    def _keypoint_step(
        self, stage: nn.Module, features: Mapping[str, Tensor], boxes: BoxOutput, rows: Rows, part_query_RPC: Tensor
    ) -> tuple[Tensor, Tensor]:
        at = (rows.image_R, rows.query_R)
        # Gradients of keypoints stop at the box, as those of a box stop at the box of the stage before.
        region_RCHW = self.keypoint_pooler(
            [features[self.keypoint_in_feature]], boxes.boxes_BQ4.detach()[at], rows.image_R
        )
        return stage(region_RCHW, boxes.query_BQC[at], part_query_RPC)


def _match(matcher: Matcher, boxes_S: Sequence[BoxOutput], targets: PersonTargets) -> list[Matches]:
    """The matches of some stages, for which the host waits once."""
    logits_SBQ = torch.stack([boxes.logits_BQ.detach() for boxes in boxes_S])
    boxes_SBQ4 = torch.stack([boxes.boxes_BQ4.detach() for boxes in boxes_S])
    return matcher.match_stages(logits_SBQ, boxes_SBQ4, targets)


def _all_queries(tensor_BQ: Tensor) -> tuple[Tensor, Tensor]:
    """Image and query index of every query of a batch, image by image."""
    num_images, num_queries = tensor_BQ.shape[:2]
    image_B = torch.arange(num_images, device=tensor_BQ.device)
    query_Q = torch.arange(num_queries, device=tensor_BQ.device)
    return image_B.repeat_interleave(num_queries), query_Q.repeat(num_images)

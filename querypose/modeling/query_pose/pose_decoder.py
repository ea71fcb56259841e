"""The decoder of QueryPose: S stages of box and keypoint decoder, and the queries that they refine (Figures 2, 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from querypose.layers import RegionPooler, at_least_float32, box_cxcywh_to_xyxy, scale_boxes
from querypose.modeling.poses import QueryPoses
from querypose.modeling.query_pose.box_decoder import BoxEmbedding, BoxStage
from querypose.modeling.query_pose.denoising import BoxNoise
from querypose.modeling.query_pose.dense_start import DenseStart, StartingQueries
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


class RegionPoses(NamedTuple):
    """The poses that a keypoint stage decoded from R regions, each of which has one person to find.

    Attributes:
        image_R: index of the image.
        person_R: index of the person within its image.
        boxes_R4: corners of the boxes, in pixels of the padded images; without gradient.
        mean_RKD: keypoints in the frame of the box, nominally in [-0.5, 0.5].
        sigma_RKD: their scale in (0, 1), same frame.
    """

    image_R: Tensor
    person_R: Tensor
    boxes_R4: Tensor
    mean_RKD: Tensor
    sigma_RKD: Tensor


@dataclass(frozen=True)
class StagePrediction:
    """The predictions of one stage for a training batch, and for its matched pairs.

    Attributes:
        logits_BQ: class logit of every query.
        boxes_BQ4: predicted corners, in pixels of the padded images.
        matches: the R pairs of queries and persons at this stage.
        mean_RKD: keypoints of the matched queries, in the frame of their predicted box, nominally in [-0.5, 0.5];
            no rows at a stage without a keypoint stage.
        sigma_RKD: their scale in (0, 1), same frame.
        has_poses: whether a keypoint stage stands beside the box stage.
        denoised: what the keypoint stage decoded from noisy boxes of the persons, beside the matched queries.
    """

    logits_BQ: Tensor
    boxes_BQ4: Tensor
    matches: Matches
    mean_RKD: Tensor
    sigma_RKD: Tensor
    has_poses: bool = True
    denoised: RegionPoses | None = None

    @property
    def poses(self) -> list[RegionPoses]:
        """All poses that were decoded at this stage: of the matched queries, and of noisy boxes."""
        if not self.has_poses:
            return []
        image_R, query_R = self.matches.image_R, self.matches.query_R
        boxes_R4 = at_least_float32(self.boxes_BQ4.detach())[image_R, query_R]
        matched = RegionPoses(image_R, self.matches.person_R, boxes_R4, self.mean_RKD, self.sigma_RKD)
        return [matched] if self.denoised is None else [matched, self.denoised]


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
        boxes_R4: where they read, in pixels; None for the queries' own boxes.
    """

    image_R: Tensor
    query_R: Tensor
    slot_R: Tensor | None = None
    boxes_R4: Tensor | None = None


RowChoice = Callable[[Sequence[BoxOutput]], list[Rows]]
"""Chooses, from the outputs of some box stages, the queries that each keypoint stage decodes."""


@dataclass
class DecoderRun:
    """A batch on its way through the decoder: the outputs of its stages so far.

    Attributes:
        part_query_TPC: T sets of part queries, after the last keypoint stage.
        boxes_S: of every box stage.
        poses_S: mean and sigma (R, K, D) of every keypoint stage, for the rows that it decoded.
        waiting: keypoint stages that have not run yet, because no box stage reads their output; each takes rows and
            their part queries, and returns part queries, instance queries, and mean and sigma.
    """

    part_query_TPC: Tensor
    boxes_S: list[BoxOutput] = field(default_factory=list)
    poses_S: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    waiting: list[Callable[[Rows, Tensor], tuple[Tensor, Tensor, tuple[Tensor, Tensor]]]] = field(default_factory=list)

    def decode_waiting(self, rows_N: Sequence[Rows]) -> Tensor:
        """Runs the waiting keypoint stages, each on its rows; returns the last one's instance queries (R, C)."""
        for keypoint_step, rows in zip(self.waiting, rows_N, strict=True):
            if rows.slot_R is None:
                self.part_query_TPC, instance_query_RC, poses = keypoint_step(rows, self.part_query_TPC)
            else:
                part_query_RPC, instance_query_RC, poses = keypoint_step(rows, self.part_query_TPC[rows.slot_R])
                self.part_query_TPC = self.part_query_TPC.index_copy(
                    0, rows.slot_R, part_query_RPC.to(self.part_query_TPC.dtype)
                )
            self.poses_S.append(poses)
        return instance_query_RC


class PoseDecoder(nn.Module):
    """Refines boxes, instance queries and part queries stage by stage.

    Boxes are detached from stage to stage, queries are not.

    Args:
        proposal_boxes_Q4: where learned boxes start, as center and size in units of the image; one an instance query.
        dim: width C of an instance query.
        box_stages: the S stages of the box decoder.
        keypoint_stages: of the keypoint decoder, each beside a box stage; if they are fewer, beside the last ones.
        box_pooler: of the region features for the box decoder.
        keypoint_pooler: of those for the keypoint decoder.
        box_in_features: levels that the box decoder pools from.
        keypoint_in_feature: the level that the keypoint decoder pools from.
        serial: whether the next box stage gets the instance query as the keypoint stage left it (Figure 3b).
        train_on_all: whether training decodes the keypoints of all queries, or of the matched ones alone.
        dense_start: finds boxes and instance queries in the image, instead of learned ones; or None.
        box_embedding: tells queries where they are when they attend to each other; or None.
        region_scale: side of the keypoint region, in sides of the box.
        box_noise: makes noisy boxes of the persons that training decodes beside the matched queries; or None.
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
        dense_start: DenseStart | None = None,
        box_embedding: BoxEmbedding | None = None,
        region_scale: float = 1.0,
        box_noise: BoxNoise | None = None,
    ) -> None:
        super().__init__()
        self.num_queries = len(proposal_boxes_Q4)
        self.dense_start = dense_start
        if dense_start is None:
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
        self.box_embedding = box_embedding
        self.region_scale = region_scale
        self.box_noise = box_noise

    @property
    def sets_of_a_person(self) -> int:
        """Sets of part queries that training on matched queries decodes for a person: its own, and noisy ones."""
        return 1 if self.box_noise is None else 1 + self.box_noise.num_copies

    def start(self, features: Mapping[str, Tensor], image_size_B4: Tensor) -> StartingQueries:
        """Where the queries of these images begin."""
        if self.dense_start is not None:
            return self.dense_start(features, image_size_B4)
        return StartingQueries(
            box_cxcywh_to_xyxy(self.proposal_boxes) * image_size_B4[:, None],
            self.instance_queries.expand(image_size_B4.shape[0], -1, -1),
        )

    def run_stages(
        self,
        features: Mapping[str, Tensor],
        image_size_B4: Tensor,
        start: StartingQueries,
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
            start: where the queries begin.
            choose: the queries that keypoint stages decode which cannot wait.
            num_slots: T, sets of part queries; by default one for each query.
            num_stages: how many of the stages to run; all by default.
        """
        boxes_BQ4, query_BQC, prior_BQ, _ = start
        num_slots = query_BQC.shape[0] * query_BQC.shape[1] if num_slots is None else num_slots
        run = DecoderRun(self.part_queries.expand(num_slots, -1, -1))
        without_keypoints = [None] * (len(self.box_stages) - len(self.keypoint_stages))
        stages = list(zip(self.box_stages, [*without_keypoints, *self.keypoint_stages], strict=True))[:num_stages]
        for number, (box_stage, keypoint_stage) in enumerate(stages, start=1):
            position_BQC = None if self.box_embedding is None else self.box_embedding(boxes_BQ4, image_size_B4)
            boxes = self._box_step(box_stage, features, boxes_BQ4, query_BQC, position_BQC, prior_BQ)
            run.boxes_S.append(boxes)
            boxes_BQ4, query_BQC = boxes.boxes_BQ4.detach(), boxes.query_BQC
            if keypoint_stage is None:
                continue
            run.waiting.append(partial(self._keypoint_step, keypoint_stage, features, boxes))
            if self.serial and number < len(stages):
                (rows,) = choose([boxes])
                refined_RC = run.decode_waiting([rows])
                run.waiting.clear()
                query_BQC = query_BQC.index_put((rows.image_R, rows.query_R), refined_RC.to(query_BQC.dtype))
        return run

    def decode_training(
        self,
        features: Mapping[str, Tensor],
        targets: PersonTargets,
        matcher: Matcher,
        start: StartingQueries | None = None,
    ) -> list[StagePrediction]:
        """Runs all stages on a training batch, and matches queries and persons at each stage.

        If only matched queries are decoded, a person's part queries stay with the person, whichever query is matched
        with it at a stage. Deviates: the authors' later code carries them by position in the list of matched queries,
        so that they go to another person when the order of the queries changes.

        Args:
            features: (B, C, H, W) a level of the pyramid.
            targets: the persons.
            matcher: matches the predictions of one or several stages.
            start: where the queries begin; by default as `start` says.

        Returns:
            the prediction of every stage.
        """
        matches_S: list[Matches] = []
        rows_S: list[Rows] = []

        def choose(boxes_S: Sequence[BoxOutput]) -> list[Rows]:
            if self.train_on_all:
                return [Rows(*_all_queries(boxes_S[0].logits_BQ))] * len(boxes_S)
            matches_S.extend(_match(matcher, boxes_S, targets))
            chosen = zip(boxes_S, matches_S[-len(boxes_S) :], strict=True)
            rows_S.extend(self._training_rows(boxes, matches, targets) for boxes, matches in chosen)
            return rows_S[-len(boxes_S) :]

        num_slots = None if self.train_on_all else targets.num_persons * self.sets_of_a_person
        start = self.start(features, targets.image_size_B4) if start is None else start
        run = self.run_stages(features, targets.image_size_B4, start, choose, num_slots=num_slots)
        run.decode_waiting(choose(run.boxes_S[len(matches_S) :])[-len(run.waiting) :])
        if self.train_on_all:
            matches_S = _match(matcher, run.boxes_S, targets)
        no_poses = (run.boxes_S[0].boxes_BQ4.new_zeros(0, 0, 2),) * 2
        predictions = [
            StagePrediction(boxes.logits_BQ, boxes.boxes_BQ4, matches, *no_poses, has_poses=False)
            for boxes, matches in zip(run.boxes_S, matches_S, strict=True)
        ]
        for stage, poses in enumerate(run.poses_S, start=len(predictions) - len(run.poses_S)):
            rows = None if self.train_on_all else rows_S[stage]
            predictions[stage] = self._with_poses(predictions[stage], rows, *poses)
        return predictions

    def _training_rows(self, boxes: BoxOutput, matches: Matches, targets: PersonTargets) -> Rows:
        """The matched queries, and behind them noisy boxes of their persons, read with the same queries."""
        slot_R = None if matches.is_complete else matches.slot_R
        if self.box_noise is None:
            return Rows(matches.image_R, matches.query_R, slot_R)
        num_sets = self.sets_of_a_person
        if slot_R is not None:
            first_slot = torch.arange(num_sets, device=slot_R.device) * targets.num_persons
            slot_R = (first_slot[:, None] + slot_R).flatten()
        own_R4 = at_least_float32(boxes.boxes_BQ4.detach())[matches.image_R, matches.query_R]
        noisy_R4 = self.box_noise(targets.boxes_BG4[matches.image_R, matches.person_R])
        return Rows(
            matches.image_R.repeat(num_sets), matches.query_R.repeat(num_sets), slot_R, torch.cat([own_R4, noisy_R4])
        )

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
        num_queries = self.num_queries
        num_decoded = (selection and selection.num_queries) or num_queries

        def rows_of(slot_R: Tensor) -> Rows:
            return Rows(slot_R // num_queries, slot_R % num_queries, slot_R)

        def choose(boxes_S: Sequence[BoxOutput]) -> list[Rows]:
            return [rows_of(best_rows(boxes.logits_BQ, num_decoded)) for boxes in boxes_S]

        run = self.run_stages(
            features, image_size_B4, self.start(features, image_size_B4), choose, num_stages=num_stages
        )

        def decode_rows(slot_R: Tensor) -> tuple[Tensor, Tensor]:
            run.decode_waiting([rows_of(slot_R)] * len(run.waiting))
            *_, last = run.poses_S
            run.poses_S.clear()  # only the last are read
            return last

        logits_BQ, boxes_BQ4, _ = run.boxes_S[-1]
        if selection is None:
            decoded = decode_rows(best_rows(logits_BQ, num_queries))
            mean_BQKD, sigma_BQKD = (tensor_RKD.unflatten(0, logits_BQ.shape) for tensor_RKD in decoded)
        else:
            mean_BQKD, sigma_BQKD = selection.decode(class_scores(logits_BQ), decode_rows)
        return PosePrediction(logits_BQ, boxes_BQ4, mean_BQKD, sigma_BQKD)

    def decode_stages(self, features: Mapping[str, Tensor], image_size_B4: Tensor) -> list[PosePrediction]:
        """The prediction of every keypoint stage for every query, to see how poses come about.

        Arguments as of `decode`.
        """

        def choose(boxes_S: Sequence[BoxOutput]) -> list[Rows]:
            return [Rows(*_all_queries(boxes_S[0].logits_BQ))] * len(boxes_S)

        run = self.run_stages(features, image_size_B4, self.start(features, image_size_B4), choose)
        run.decode_waiting(choose(run.boxes_S[-len(run.waiting) :]))
        predictions = []
        for boxes, poses in zip(run.boxes_S[-len(run.poses_S) :], run.poses_S, strict=True):
            mean_BQKD, sigma_BQKD = (tensor_RKD.unflatten(0, boxes.logits_BQ.shape) for tensor_RKD in poses)
            predictions.append(PosePrediction(boxes.logits_BQ, boxes.boxes_BQ4, mean_BQKD, sigma_BQKD))
        return predictions

    def _box_step(
        self,
        stage: nn.Module,
        features: Mapping[str, Tensor],
        boxes_BQ4: Tensor,
        query_BQC: Tensor,
        position_BQC: Tensor | None,
        prior_BQ: Tensor | None,
    ) -> BoxOutput:
        image_R, _ = _all_queries(boxes_BQ4)
        levels = [features[name] for name in self.box_in_features]
        region_RCHW = self.box_pooler(levels, boxes_BQ4.detach().flatten(0, 1), image_R)
        return BoxOutput(*stage(query_BQC, region_RCHW, boxes_BQ4, position_BQC, prior_BQ))

    def _keypoint_step(
        self, stage: nn.Module, features: Mapping[str, Tensor], boxes: BoxOutput, rows: Rows, part_query_RPC: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        at = (rows.image_R, rows.query_R)
        # Gradients of keypoints stop at the box, as those of a box stop at the box of the stage before.
        boxes_R4 = boxes.boxes_BQ4.detach()[at] if rows.boxes_R4 is None else rows.boxes_R4
        region_R4 = boxes_R4 if self.region_scale == 1 else scale_boxes(boxes_R4, self.region_scale)
        region_RCHW = self.keypoint_pooler([features[self.keypoint_in_feature]], region_R4, rows.image_R)
        part_query_RPC, instance_query_RC, *located = stage(region_RCHW, boxes.query_BQC[at], part_query_RPC)
        base = [position_RKD * self.region_scale for position_RKD in located]  # from the frame of the region to the box
        return part_query_RPC, instance_query_RC, cast(KeypointStage, stage).regressor(part_query_RPC, *base)

    def _with_poses(
        self, prediction: StagePrediction, rows: Rows | None, mean_RKD: Tensor, sigma_RKD: Tensor
    ) -> StagePrediction:
        """A stage's prediction with the poses of its decoded `rows`; of all queries where that is None."""
        matches = prediction.matches
        if rows is None:
            row_R = matches.image_R * self.num_queries + matches.query_R
            return replace(prediction, mean_RKD=mean_RKD[row_R], sigma_RKD=sigma_RKD[row_R], has_poses=True)
        count, denoised = len(matches), None
        if rows.boxes_R4 is not None:
            person_R = matches.person_R.repeat(self.sets_of_a_person - 1)
            denoised = RegionPoses(
                rows.image_R[count:], person_R, rows.boxes_R4[count:], mean_RKD[count:], sigma_RKD[count:]
            )
        mean_RKD, sigma_RKD = mean_RKD[:count], sigma_RKD[:count]
        return replace(prediction, mean_RKD=mean_RKD, sigma_RKD=sigma_RKD, has_poses=True, denoised=denoised)


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

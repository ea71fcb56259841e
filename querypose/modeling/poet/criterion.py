"""POET's matching (eq. 1, 2) and its loss (eq. 3, 4), on every layer of the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querypose.layers import full_precision
from querypose.modeling.assignment import assign_queries
from querypose.modeling.deep_supervision import name_stage_losses
from querypose.modeling.poet.pose_terms import PaperTerms
from querypose.modeling.poet.pose_vector import PoseTargets, PoseVector
from querypose.modeling.targets import Matches

# Classes as indices into the logits, counted from the last: there may be an empty one before them.
NO_OBJECT, PERSON, EMPTY = -1, -2, -3


@dataclass(frozen=True)
class QueryOutputs:
    """The outputs of the heads for every query, after each of S layers of the decoder.

    Attributes:
        logits_SBQC: of the classes (empty,) person, no object.
        poses_SBQ: pose vectors.
    """

    logits_SBQC: Tensor
    poses_SBQ: PoseVector

    @property
    def has_empty_class(self) -> bool:
        """Whether there is a class for persons without a visible keypoint."""
        return self.logits_SBQC.shape[-1] == -EMPTY

    def person_scores_SBQ(self) -> Tensor:
        """Probability of a person; 0 where the empty class is more probable."""
        probability_SBQC = self.logits_SBQC.softmax(-1)
        person_SBQ = probability_SBQC[..., PERSON]
        if not self.has_empty_class:
            return person_SBQ
        return person_SBQ * (person_SBQ > probability_SBQC[..., EMPTY])


class PoseCriterion(nn.Module):
    """Matches queries and persons at every layer, and computes the weighted losses of the pairs.

    The pose terms are divided by the number of persons, at least 1; the class term is a mean over all queries, weighted
    by class.

    Args:
        terms: computes the terms of eq. 3.
        weights: of `loss_cls`, `loss_keypoint`, `loss_visibility`, `loss_center` and `loss_offset`, in matching too.
        no_object_weight: of the queries without a person in the class term.
        deep_supervision: whether earlier layers have losses too.
    """

    def __init__(
        self,
        *,
        terms: PaperTerms,
        weights: Mapping[str, float],
        no_object_weight: float = 0.1,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.terms = terms
        self.weights = dict(weights)
        self.no_object_weight = no_object_weight
        self.deep_supervision = deep_supervision

    def class_weight_sum(self, counts: Sequence[int], num_queries: int) -> float:
        """The divisor of `loss_cls` for images with `counts` persons: the sum of the weights of all queries' classes.

        It is known before the matching: only the number of matched queries counts, and each person is matched as long
        as there are queries.
        """
        num_matched = sum(min(count, num_queries) for count in counts)
        return num_matched + (len(counts) * num_queries - num_matched) * self.no_object_weight

    def forward(
        self,
        outputs: QueryOutputs,
        targets: PoseTargets,
        matches_S: Sequence[Matches],
        normalizers: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The weighted losses of the last layer, and with suffix `_{layer}` those of the earlier ones, scalars.

        Args:
            outputs: of every layer.
            targets: the persons.
            matches_S: of every layer, as `match` gives them.
            normalizers: `persons`, and `class_weights` as `class_weight_sum`.
        """
        if not self.deep_supervision:
            outputs, matches_S = QueryOutputs(outputs.logits_SBQC[-1:], outputs.poses_SBQ[-1:]), matches_S[-1:]
        with full_precision(outputs.logits_SBQC):
            return name_stage_losses(self.unweighted_losses(outputs, targets, matches_S, normalizers), self.weights)

    @torch.no_grad()
    def match(self, outputs: QueryOutputs, targets: PoseTargets) -> list[Matches]:
        """The cheapest assignment at every layer (eq. 2)."""
        with full_precision(outputs.logits_SBQC):
            return assign_queries(self.cost(outputs, targets), targets.counts)

    def cost(self, outputs: QueryOutputs, targets: PoseTargets) -> Tensor:
        """L_match (eq. 1) of every query for every person of its image, (S, B, Q, G)."""
        probability_SBQC = outputs.logits_SBQC.softmax(-1)
        class_BG = self._classes(outputs, targets.has_pose_BG)
        class_SBQG = class_BG[None, :, None].expand(*probability_SBQC.shape[:3], -1)
        terms = self.terms.costs(
            outputs.poses_SBQ[:, :, :, None], targets.poses_BG[:, None], targets.has_pose_BG[:, None]
        )
        cost_SBQG = -self.weights["loss_cls"] * probability_SBQC.gather(-1, class_SBQG)
        for name, term_SBQG in terms.items():
            cost_SBQG = cost_SBQG + self.weights[f"loss_{name}"] * term_SBQG
        return cost_SBQG

    def unweighted_losses(
        self,
        outputs: QueryOutputs,
        targets: PoseTargets,
        matches_S: Sequence[Matches],
        normalizers: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The losses (S) of all layers, computed together: all layers have the same number of pairs."""
        image_SR, query_SR, person_SR = (
            torch.stack([getattr(matches, name) for matches in matches_S])
            for name in ("image_R", "query_R", "person_R")
        )
        stage_S1 = torch.arange(len(matches_S), device=image_SR.device)[:, None]
        has_pose_SR = targets.has_pose_BG[image_SR, person_SR]
        terms = self.terms.losses(
            outputs.poses_SBQ[stage_S1, image_SR, query_SR], targets.poses_BG[image_SR, person_SR], has_pose_SR
        )
        num_persons = normalizers["persons"].clamp(min=1)
        losses_S = {f"loss_{name}": term_SR.sum(-1) / num_persons for name, term_SR in terms.items()}

        num_classes = outputs.logits_SBQC.shape[-1]
        class_SBQ = torch.full_like(outputs.logits_SBQC[..., 0], num_classes + NO_OBJECT, dtype=torch.long)
        class_SBQ[stage_S1, image_SR, query_SR] = self._classes(outputs, has_pose_SR)
        entropy_SBQ = F.cross_entropy(outputs.logits_SBQC.flatten(0, 2), class_SBQ.flatten(), reduction="none")
        entropy_SBQ = entropy_SBQ.view_as(class_SBQ)
        entropy_SBQ = torch.where(
            class_SBQ == num_classes + NO_OBJECT, self.no_object_weight * entropy_SBQ, entropy_SBQ
        )
        return {"loss_cls": entropy_SBQ.sum((1, 2)) / normalizers["class_weights"], **losses_S}

    @staticmethod
    def _classes(outputs: QueryOutputs, has_pose: Tensor) -> Tensor:
        """Index of every person's class."""
        num_classes = outputs.logits_SBQC.shape[-1]
        without_pose = EMPTY if outputs.has_empty_class else PERSON
        return torch.where(has_pose, num_classes + PERSON, num_classes + without_pose)

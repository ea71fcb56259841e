"""The loss of distance, OKS and quality, in closed form and at its edges."""

from __future__ import annotations

import math

import pytest
import torch

from querypose.modeling.pose_similarity import AREA_OF_BOX, keypoint_similarities, mean_over_labeled
from querypose.modeling.query_pose.pose_decoder import StagePrediction
from querypose.modeling.query_pose.similarity_loss import SimilarityLoss
from querypose.modeling.targets import Matches, PersonTargets
from querypose.skeleton import COCO_SKELETON

K = COCO_SKELETON.num_keypoints
BOX = torch.tensor([[20.0, 10.0, 60.0, 90.0]])


def _stage(keypoints_image: torch.Tensor, box: torch.Tensor, score: float) -> StagePrediction:
    """One query that is matched with one person."""
    zero = torch.zeros(1, dtype=torch.long)
    mean = ((keypoints_image - box[:, :2]) / (box[:, 2:] - box[:, :2]) - 0.5)[None].requires_grad_()
    sigma = torch.full((1, K, 2), 1 - score, requires_grad=True)
    return StagePrediction(torch.zeros(1, 1), box[None], Matches(zero, zero, zero, zero, True), mean, sigma)


def _targets(keypoints: torch.Tensor, labeled: torch.Tensor) -> PersonTargets:
    size = torch.tensor([[100.0, 100.0, 100.0, 100.0]])
    return PersonTargets(BOX[None], keypoints[None, None], labeled[None, None], (1,), size, labeled[None, None])


def _loss(l1: float = 0.0, oks: float = 0.0, quality: float = 0.0) -> SimilarityLoss:
    return SimilarityLoss(COCO_SKELETON, l1, oks, quality)


PERSONS = {"persons": torch.tensor(1.0, dtype=torch.float64)}


def test_similarity_in_closed_form() -> None:
    sigmas = torch.tensor([0.05, 0.1])
    found = keypoint_similarities(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2), BOX, sigmas)
    area = AREA_OF_BOX * 40 * 80
    assert found[0].tolist() == pytest.approx([math.exp(-25 / (2 * area * 0.01)), 1.0])


def test_terms_in_closed_form_whatever_the_predicted_box() -> None:
    truth, labeled = torch.rand(K, 2) * 50 + 20, torch.ones(K, dtype=torch.bool)
    shift = torch.tensor([3.0, 1.0])
    for box in (BOX, torch.tensor([[0.0, 0.0, 30.0, 30.0]])):  # the second has most of the keypoints outside
        stage, targets = _stage(truth + shift, box, score=0.75), _targets(truth, labeled)
        distance = _loss(l1=1.0)(stages=[stage], targets=targets, normalizers=PERSONS)
        assert distance.item() == pytest.approx(4 / math.sqrt(40 * 80), rel=1e-4)
        similarity = keypoint_similarities(truth[None] + shift, truth[None], BOX, torch.tensor(COCO_SKELETON.sigmas))
        oks = _loss(oks=1.0)(stages=[stage], targets=targets, normalizers=PERSONS)
        assert oks.item() == pytest.approx(1 - similarity.mean().item(), rel=1e-4)
        quality = _loss(quality=1.0)(stages=[stage], targets=targets, normalizers=PERSONS)
        entropy = -(similarity * math.log(0.75) + (1 - similarity) * math.log(0.25))
        assert quality.item() == pytest.approx(entropy.mean().item(), rel=1e-4)


def test_quality_teaches_the_score_alone() -> None:
    truth, labeled = torch.rand(K, 2) * 50 + 20, torch.ones(K, dtype=torch.bool)
    stage = _stage(truth + 2, BOX, score=0.5)
    _loss(quality=1.0)(stages=[stage], targets=_targets(truth, labeled), normalizers=PERSONS).backward()
    assert stage.mean_RKD.grad is None or not stage.mean_RKD.grad.any()
    assert stage.sigma_RKD.grad is not None
    assert stage.sigma_RKD.grad.any()


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_finite_where_scores_are_certain_and_nothing_is_labeled(score: float) -> None:
    truth, labeled = torch.full((K, 2), float("inf")), torch.zeros(K, dtype=torch.bool)
    labeled[:2], truth[:2] = True, 50.0
    stage = _stage(torch.full((K, 2), 40.0), BOX, score)
    loss = _loss(1.0, 1.0, 1.0)(stages=[stage], targets=_targets(truth, labeled), normalizers=PERSONS)
    loss.backward()
    assert loss.isfinite()
    assert stage.mean_RKD.grad is not None
    assert stage.mean_RKD.grad.isfinite().all()
    assert not stage.mean_RKD.grad[:, 2:].any()
    assert stage.sigma_RKD.grad is not None
    assert stage.sigma_RKD.grad.isfinite().all()


def test_the_mean_over_labeled_ignores_the_others() -> None:
    values, labeled = torch.tensor([[1.0, 3.0, 9.0], [5.0, 5.0, 5.0]]), torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    assert mean_over_labeled(values, labeled).tolist() == [2.0, 0.0]

"""The assignment is the cheapest one, image by image."""

from __future__ import annotations

import itertools

import pytest
import torch

from querypose.modeling.query_pose.costs import box_giou_cost, box_l1_cost, focal_cost
from querypose.modeling.query_pose.matcher import HungarianMatcher
from querypose.modeling.targets import PersonTargets
from tests.tiny import random_persons

SIZE = (80, 100)


def _targets(*persons_per_image: int) -> PersonTargets:
    instances = [random_persons(count, 3, SIZE) for count in persons_per_image]
    return PersonTargets.from_instances(instances, 3, torch.device("cpu"), torch.float32)


def _predictions(images: int, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    corner = torch.rand(images, queries, 2) * 50
    return torch.randn(images, queries), torch.cat([corner, corner + torch.rand(images, queries, 2) * 40 + 1], dim=-1)


def test_finds_the_cheapest_of_all_assignments() -> None:
    targets, (logits, boxes) = _targets(3, 2), _predictions(2, 5)
    matcher = HungarianMatcher()
    cost = matcher.cost(logits, boxes, targets)
    matches = matcher(logits, boxes, targets)
    for image, count in enumerate(targets.counts):
        chosen = matches.query_R[matches.image_R == image].tolist()
        cheapest = min(
            itertools.permutations(range(5), count),
            key=lambda queries: sum(cost[image, query, person].item() for person, query in enumerate(queries)),
        )
        assert tuple(chosen) == cheapest


def test_pairs_are_ordered_by_person_and_complete() -> None:
    targets = _targets(2, 0, 3)
    matches = HungarianMatcher()(*_predictions(3, 6), targets)
    assert matches.image_R.tolist() == [0, 0, 2, 2, 2]
    assert matches.person_R.tolist() == [0, 1, 0, 1, 2]
    assert matches.slot_R.tolist() == [0, 1, 2, 3, 4]
    assert matches.is_complete


def test_batch_mates_do_not_change_a_match() -> None:
    targets, (logits, boxes) = _targets(3, 4), _predictions(2, 6)
    alone = PersonTargets(
        targets.boxes_BG4[:1], targets.keypoints_BGKD[:1], targets.labelled_BGK[:1], (3,), targets.image_size_B4[:1],
        targets.visible_BGK[:1],
    )  # fmt: skip
    together, single = HungarianMatcher()(logits, boxes, targets), HungarianMatcher()(logits[:1], boxes[:1], alone)
    assert together.query_R[:3].tolist() == single.query_R.tolist()


def test_stages_are_matched_together_as_each_alone() -> None:
    targets, stages = _targets(3, 0, 7), [_predictions(3, 6) for _ in range(4)]
    matcher = HungarianMatcher()
    logits, boxes = (torch.stack(tensors) for tensors in zip(*stages, strict=True))
    together = matcher.match_stages(logits, boxes, targets)
    for matches, stage in zip(together, stages, strict=True):
        alone = matcher(*stage, targets)
        assert not matches.is_complete
        assert not alone.is_complete
        for name in ("image_R", "query_R", "person_R", "slot_R"):
            torch.testing.assert_close(getattr(matches, name), getattr(alone, name))


def test_more_persons_than_queries_leaves_some_without() -> None:
    targets = _targets(4, 1)
    matches = HungarianMatcher()(*_predictions(2, 2), targets)
    assert len(matches) == 3
    assert not matches.is_complete
    assert matches.slot_R[-1] == 4  # the second image's person comes after all four of the first


def test_no_person_gives_no_match() -> None:
    matches = HungarianMatcher()(*_predictions(2, 3), _targets(0, 0))
    assert len(matches) == 0
    assert matches.is_complete


def test_costs_that_are_not_finite_are_the_last_choice() -> None:
    targets, (logits, boxes) = _targets(1), _predictions(1, 3)
    boxes[0, :2] = float("nan")
    matches = HungarianMatcher()(logits, boxes, targets)
    assert matches.query_R.tolist() == [2]


def test_costs_in_closed_form() -> None:
    boxes, person = torch.tensor([[[0.0, 0.0, 10.0, 20.0]]]), torch.tensor([[[0.0, 0.0, 10.0, 40.0]]])
    size = torch.tensor([[10.0, 40.0, 10.0, 40.0]])
    assert box_l1_cost(boxes, person, size).item() == pytest.approx(0.5)
    assert box_giou_cost(boxes, person).item() == pytest.approx(-0.5)
    # At logit 0 the probability is 1/2: alpha·log 2/4 as person less (1 - alpha)·log 2/4 as background.
    assert focal_cost(torch.zeros(1, 1), 0.25, 2.0).item() == pytest.approx(-0.5 * 0.25 * 0.6931472)

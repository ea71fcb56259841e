"""Leaving queries out changes nothing in what is kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from querypose.d2 import Instances, build_model
from querypose.modeling import QueryPose
from querypose.modeling.query_pose.query_selection import QUERIES_PER_ROUND, QuerySelection, best_rows, pose_scores
from tests.tiny import FULL_VERSION, random_batch, tiny_config

NUM_QUERIES, NUM_POSES = 60, 4
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Decoder:
    """Stands for the keypoint stages: knows every sigma, and remembers which it was asked for."""

    def __init__(self, sigma_TKD: Tensor) -> None:
        self.sigma_TKD = sigma_TKD
        self.rounds: list[list[int]] = []

    def __call__(self, row_R: Tensor) -> tuple[Tensor, Tensor]:
        self.rounds.append(row_R.tolist())
        return self.sigma_TKD[row_R] + 1, self.sigma_TKD[row_R]

    @property
    def decoded(self) -> list[int]:
        return [row for rows in self.rounds for row in rows]


@given(seed=st.integers(0, 2**31), steepness=st.floats(0, 20), images=st.integers(1, 3), num_poses=st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_the_best_poses_are_decoded_and_little_else(seed: int, steepness: float, images: int, num_poses: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    class_score = torch.rand(images, NUM_QUERIES, generator=generator) ** steepness
    sigma = torch.rand(images, NUM_QUERIES, 3, 2, generator=generator)
    decoder = Decoder(sigma.flatten(0, 1))
    mean, found_sigma = QuerySelection(num_poses).decode(class_score, decoder)

    kept = min(num_poses, NUM_QUERIES)
    best, index = pose_scores(class_score, sigma).topk(kept)
    torch.testing.assert_close(pose_scores(class_score, found_sigma).topk(kept).values, best)
    ours = best_rows(best, kept) if kept == NUM_QUERIES else (index + torch.arange(images)[:, None] * NUM_QUERIES)
    rows = ours.flatten()[best.flatten() > 0]
    torch.testing.assert_close(found_sigma.flatten(0, 1)[rows], sigma.flatten(0, 1)[rows])
    torch.testing.assert_close(mean.flatten(0, 1)[rows], sigma.flatten(0, 1)[rows] + 1)
    assert len(set(decoder.decoded)) == len(decoder.decoded)
    for image in range(images):
        # In vain are decoded at most the members of a round that are below its bar once it is done.
        needed = int((class_score[image] > best[image, -1]).sum())
        in_image = [row for row in decoder.decoded if row // NUM_QUERIES == image]
        assert len(in_image) < max(needed, kept) + QUERIES_PER_ROUND
        skipped = sorted(set(range(NUM_QUERIES)) - {row % NUM_QUERIES for row in in_image})
        assert (class_score[image, skipped] <= best[image, -1]).all()


def test_queries_left_out_have_score_zero() -> None:
    class_score = torch.linspace(0.9, 0.01, NUM_QUERIES)[None]
    decoder = Decoder(torch.full((NUM_QUERIES, 3, 2), 0.1))
    _, sigma = QuerySelection(NUM_POSES).decode(class_score, decoder)
    scores = pose_scores(class_score, sigma)[0]
    left_out = sorted(set(range(NUM_QUERIES)) - set(decoder.decoded))
    assert left_out
    assert not scores[left_out].any()
    assert scores[decoder.decoded].all()


def test_a_number_of_queries_is_one_round_of_the_best() -> None:
    class_score = torch.rand(2, NUM_QUERIES)
    decoder = Decoder(torch.rand(2 * NUM_QUERIES, 3, 2))
    QuerySelection(NUM_POSES, num_queries=7).decode(class_score, decoder)
    expected = [set(row.tolist()) for row in class_score.topk(7).indices]
    (rows,) = decoder.rounds
    assert [{row % NUM_QUERIES for row in rows if row // NUM_QUERIES == image} for image in range(2)] == expected


def test_nothing_is_decoded_below_the_threshold() -> None:
    class_score = torch.full((2, NUM_QUERIES), 0.1)
    class_score[1, 5] = 0.9
    decoder = Decoder(torch.full((2 * NUM_QUERIES, 3, 2), 0.5))
    _, sigma = QuerySelection(NUM_POSES, score_threshold=0.3).decode(class_score, decoder)
    assert decoder.decoded == [NUM_QUERIES + 5]
    assert int((pose_scores(class_score, sigma) > 0.3).sum()) == 1
    _, sigma = QuerySelection(NUM_POSES, score_threshold=0.95).decode(class_score, decoder)
    assert sigma.shape == (2, NUM_QUERIES, 3, 2)
    assert (sigma == 1).all()


def _model(*overrides: str, dtype: torch.dtype = torch.float64) -> QueryPose:
    """Untrained, but with class scores and uncertainties that differ from query to query as a trained one's do."""
    torch.manual_seed(0)
    sizes = ["MODEL.QUERYPOSE.NUM_QUERIES", str(NUM_QUERIES), "TEST.DETECTIONS_PER_IMAGE", str(NUM_POSES)]
    model = build_model(tiny_config("MODEL.QUERYPOSE.PROPOSAL_INIT", "grid", *sizes, *overrides))
    assert isinstance(model, QueryPose)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cls_logit.weight"):
                parameter.mul_(4)
            if name.endswith("sigma_weight"):
                parameter.mul_(0.5)
    return model.to(dtype).eval()


def _predict(model: QueryPose, images: list[dict[str, Tensor]]) -> tuple[list[Instances], list[int]]:
    """Poses, and how many regions each call of a keypoint stage had."""
    regions: list[int] = []
    handles = [
        stage.register_forward_hook(lambda module, args, out: regions.append(len(args[0])))
        for stage in model.decoder.keypoint_stages
    ]
    with torch.no_grad():
        instances = [output["instances"] for output in model(images)]
    for handle in handles:
        handle.remove()
    return instances, regions


def _assert_same(found: list[Instances], expected: list[Instances], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor, atol=0, rtol=10 * tolerance)
        torch.testing.assert_close(one.pred_keypoints, other.pred_keypoints, atol=0.1 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("version", [[], FULL_VERSION], ids=["light", "full"])
def test_the_poses_are_those_of_all_queries(version: list[str], dtype: torch.dtype) -> None:
    model, images = _model(*version, dtype=dtype), random_batch([0, 0, 0], 17)
    found, regions = _predict(model, images)
    model.selection = dataclasses.replace(model.selection, num_queries=NUM_QUERIES)
    expected, all_regions = _predict(model, images)
    assert all(len(instances) > 1 for instances in expected)
    _assert_same(found, expected, TOLERANCE[dtype])
    assert all_regions == [3 * NUM_QUERIES] * 2
    # Serially, the first of the two stages feeds a box stage and runs for all.
    assert sum(regions) < sum(all_regions) * (0.75 if version else 0.5)


@pytest.mark.parametrize("version", [[], FULL_VERSION], ids=["light", "full"])
@pytest.mark.parametrize("num_queries", [0, 9])
def test_batches_of_any_size_give_the_same(version: list[str], num_queries: int) -> None:
    model = _model(*version, "MODEL.QUERYPOSE.TEST_QUERIES", str(num_queries))
    images = random_batch([0] * 5, 17)
    alone = [_predict(model, [image])[0][0] for image in images]
    for size in (2, 3, 5):
        batches = [images[start : start + size] for start in range(0, 5, size)]
        together = [instances for batch in batches for instances in _predict(model, batch)[0]]
        _assert_same(together, alone, TOLERANCE[torch.float64])


@pytest.mark.parametrize("version", [[], FULL_VERSION], ids=["light", "full"])
def test_a_threshold_leaves_out_poses_and_changes_no_other(version: list[str]) -> None:
    model, images = _model(*version), random_batch([0, 0], 17)
    expected, regions = _predict(model, images)
    threshold = float(expected[0].scores[1:3].mean())
    model.selection = dataclasses.replace(model.selection, score_threshold=threshold)
    found, fewer_regions = _predict(model, images)
    _assert_same(found, [one[one.scores > threshold] for one in expected], TOLERANCE[torch.float64])
    assert len(found[0]) == 2
    assert sum(fewer_regions) < sum(regions)
    model.selection = dataclasses.replace(model.selection, score_threshold=1.0)
    assert [len(instances) for instances in _predict(model, images)[0]] == [0, 0]


def test_the_full_version_can_be_pruned_stage_by_stage() -> None:
    model, images = _model(*FULL_VERSION, "MODEL.QUERYPOSE.TEST_QUERIES", "9"), random_batch([0, 0], 17)
    seen: list[tuple[Tensor, Tensor]] = []
    model.decoder.keypoint_stages[0].register_forward_hook(lambda module, args, out: seen.append((args[1], out[1])))
    model.decoder.box_stages[0].register_forward_hook(lambda module, args, out: seen.append((out[0], out[2])))
    model.decoder.box_stages[1].register_forward_hook(lambda module, args, out: seen.append((args[0], args[0])))
    found, regions = _predict(model, images)
    assert regions == [2 * 9] * 2
    assert all(len(instances) > 1 for instances in found)
    (logits, left), (taken, refined), (given, _) = seen
    rows = best_rows(logits, 9)
    torch.testing.assert_close(taken, left.flatten(0, 1)[rows])
    expected = left.flatten(0, 1).index_copy(0, rows, refined).view_as(left)
    torch.testing.assert_close(given, expected)
    assert not torch.allclose(given, left)

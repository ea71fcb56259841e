"""Located attention, heat maps as its input, and noisy boxes."""

from __future__ import annotations

import pytest
import torch

from querypose.config import ConfigError
from querypose.d2 import build_model
from querypose.modeling import QueryPose
from querypose.modeling.query_pose.denoising import BoxNoise
from querypose.modeling.query_pose.keypoint_decoder import KeypointRegressor
from querypose.modeling.query_pose.part_embedding import SMALLEST_SCORE, InteractionSizes, LocatedPartEmbedding
from tests.tiny import DENSE, NOISY_BOXES, random_batch, tiny_config

NO_QUERY = torch.empty(0)


def _located(num_maps: int = 0) -> LocatedPartEmbedding:
    sizes = InteractionSizes(
        dim=4, num_tokens=36, num_queries=2, query_dim=5, num_heads=1, dim_dynamic=1, num_keypoints=3, num_maps=num_maps
    )
    return LocatedPartEmbedding(sizes)


def test_position_is_where_the_attention_points_in_the_frame_of_the_region() -> None:
    module = _located()
    with torch.no_grad():
        module.attention.weight.zero_()
        module.prior[0, 6 * 1 + 4] = 50.0  # keypoint 0: row 1, column 4 of 6
        module.prior[1, [0, 35]] = 50.0  # keypoint 1: two opposite corners alike
    embedding, position = module(torch.randn(2, 4, 6, 6), NO_QUERY)
    assert embedding.shape == (2, 2, 5)
    torch.testing.assert_close(position[:, 0], torch.tensor([[4.5 / 6 - 0.5, 1.5 / 6 - 0.5]] * 2))
    torch.testing.assert_close(position[:, 1], torch.zeros(2, 2))
    torch.testing.assert_close(position[:, 2], torch.zeros(2, 2))  # everywhere alike


def test_position_moves_with_the_region() -> None:
    module, region = _located(), torch.zeros(1, 4, 6, 6)
    region[..., 2, 2] = 3.0
    moved = region.roll(1, dims=-1)
    first, second = (module(values, NO_QUERY)[1] for values in (region, moved))
    torch.testing.assert_close(second - first, torch.tensor([1 / 6, 0.0]) * ((second - first)[..., :1] * 6))
    assert (second[..., 0] != first[..., 0]).all()


def test_attention_of_a_keypoint_begins_as_its_heat_map() -> None:
    module, region = _located(num_maps=3), torch.zeros(1, 7, 6, 6)
    with torch.no_grad():
        module.attention.weight.zero_()
    region[0, 4 + 1, 3, 2] = 0.9
    _, position = module(region, NO_QUERY)
    peak, rest = (0.9 + SMALLEST_SCORE) ** 2, 35 * SMALLEST_SCORE**2
    expected = torch.tensor([2.5 / 6 - 0.5, 3.5 / 6 - 0.5]) * (peak - SMALLEST_SCORE**2) / (peak + rest)
    torch.testing.assert_close(position[0, 1], expected)
    torch.testing.assert_close(position[0, 0], torch.zeros(2))


def test_the_regressor_begins_at_the_base_that_it_is_given() -> None:
    regressor = KeypointRegressor(8, [[0, 1], [2]])
    query, base = torch.randn(4, 2, 8), torch.rand(4, 3, 2) - 0.5
    plain, _ = regressor(query)
    moved, _ = regressor(query, base)
    torch.testing.assert_close(moved - plain, base)
    torch.testing.assert_close(regressor(query, torch.zeros_like(base))[0], plain)
    regressor.begin_at_base()
    assert (regressor(query, base)[0] - base).abs().max() < 0.3 * plain.abs().max()


def test_noise_stays_within_its_bounds_and_copies_differ() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 8.0, 8.0]])
    noisy = BoxNoise(50, shift=0.1, scale=0.3)(boxes).view(50, 2, 4)
    size, center = noisy[..., 2:] - noisy[..., :2], (noisy[..., 2:] + noisy[..., :2]) / 2
    true_size, true_center = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    assert ((center - true_center).abs() <= 0.1 * true_size + 1e-4).all()
    assert ((size / true_size - 1).abs() <= 0.3 + 1e-5).all()
    assert len(noisy[:, 0].unique(dim=0)) == 50
    torch.testing.assert_close(BoxNoise(1, shift=0.0, scale=0.0)(boxes), boxes)


def test_noisy_boxes_change_no_prediction_of_the_matched_queries() -> None:
    batch = random_batch([2, 9], 17)  # nine persons are more than queries
    stages = []
    for overrides in ([], NOISY_BOXES):
        torch.manual_seed(0)
        model = build_model(tiny_config(*overrides)).double()
        assert isinstance(model, QueryPose)
        model.decoder.keypoint_stages.eval()  # its batch norms average over the regions
        features = model._features(model.normalized_images(batch, model.backbone.size_divisibility))
        stages.append(model.decoder.decode_training(features, model.person_targets(batch), model.matcher))
    for plain, noisy in zip(*stages, strict=True):
        torch.testing.assert_close(noisy.mean_RKD, plain.mean_RKD)
        torch.testing.assert_close(noisy.boxes_BQ4, plain.boxes_BQ4)
        assert plain.denoised is None
        assert noisy.denoised is not None
        assert len(noisy.denoised.mean_RKD) == 2 * len(noisy.matches)
        assert noisy.denoised.person_R.tolist() == noisy.matches.person_R.tolist() * 2


def test_noise_of_nothing_gives_the_pose_of_the_true_box() -> None:
    torch.manual_seed(0)
    model, batch = build_model(tiny_config(*DENSE, *NOISY_BOXES)).double(), random_batch([2], 17)
    assert isinstance(model, QueryPose)
    model.decoder.box_noise = BoxNoise(1, shift=0.0, scale=0.0)
    features = model._features(model.normalized_images(batch, model.backbone.size_divisibility))
    targets = model.person_targets(batch)
    *_, last = model.decoder.decode_training(features, targets, model.matcher)
    matched, denoised = last.poses
    torch.testing.assert_close(denoised.boxes_R4, targets.boxes_BG4[0])
    assert matched.boxes_R4.shape == denoised.boxes_R4.shape


@pytest.mark.parametrize("persons", [[0, 0], [0, 2], [9, 1]])
@pytest.mark.parametrize("version", [[], DENSE])
def test_losses_with_noisy_boxes_are_finite_and_reach_every_parameter(version: list[str], persons: list[int]) -> None:
    model = build_model(tiny_config(*version, *NOISY_BOXES))
    losses = model(random_batch(persons, 17))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.QUERYPOSE.KEYPOINT.HEATMAP_INPUT", "True"], "nothing teaches the heat maps"),
        (
            ["MODEL.QUERYPOSE.KEYPOINT.HEATMAP_INPUT", "True", "MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", "1.0"],
            "reads no heat maps",
        ),
        (["MODEL.QUERYPOSE.KEYPOINT.NUM_STAGES", "3"], "allowed: at most MODEL.QUERYPOSE.NUM_STAGES"),
        (["MODEL.QUERYPOSE.TRAIN_QUERIES", "all", *NOISY_BOXES], "need training on matched queries"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(*overrides)

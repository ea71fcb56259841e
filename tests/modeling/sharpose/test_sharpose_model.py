"""The whole model: early stop, what makes it stop, losses without keypoints, weights of a masked autoencoder."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from querypose.config import ConfigError
from querypose.d2 import CheckpointError, build_model
from querypose.data.transforms import box_to_canvas
from querypose.modeling import SHaRPose
from querypose.modeling.sharpose.heatmaps import flip_heatmaps
from tests.modeling.sharpose.test_transformer import vision_transformer_weights
from tests.tiny import SHARPOSE, random_batch, tiny_config

K = 17


def model(*overrides: str) -> SHaRPose:
    built = build_model(tiny_config(*SHARPOSE, *overrides))
    assert isinstance(built, SHaRPose)
    return built


def trained_model(threshold: float) -> SHaRPose:
    """Its quality predictor counts as trained."""
    built = model().eval()
    predictor = built.transformer.quality_predictor
    assert predictor is not None
    predictor.is_trained.fill_(True)
    built.quality_threshold = threshold
    return built


@torch.no_grad()
def test_only_crops_below_the_threshold_go_on_and_in_one_batch() -> None:
    built, crop_BCHW = trained_model(0.0), torch.randn(5, 3, 64, 96)
    quality_B = built.stage_outputs(crop_BCHW).quality_B
    assert quality_B is not None
    built.quality_threshold = quality_B.median().item()  # two of five lie below
    sizes: list[int] = []
    built.transformer.blocks[0].register_forward_hook(lambda module, args, outputs: sizes.append(len(args[0])))
    outputs = built.stage_outputs(crop_BCHW)
    assert sizes == [5, 2]
    assert outputs.refined_B.sum() == 2
    for index, is_refined in enumerate(outputs.refined_B.tolist()):
        assert torch.equal(outputs.heatmaps[0][index], outputs.heatmaps[1][index]) != is_refined
    built.quality_threshold = -1.0
    assert not built.stage_outputs(crop_BCHW).refined_B.any()
    assert sizes == [5, 2, 5]


@torch.no_grad()
def test_nobody_goes_by_a_quality_that_was_never_learned() -> None:
    built = model("MODEL.SHARPOSE.QUALITY.THRESHOLD", "0.0").eval()
    assert built.stage_outputs(torch.randn(3, 3, 64, 96)).refined_B.all()
    again = copy.deepcopy(built)
    again.train()(random_batch([1], K))  # nobody says how far the training is
    assert not again.eval().stage_outputs(torch.randn(3, 3, 64, 96)).refined_B.all()


def test_quality_is_learned_from_its_start_on_and_stays_learned() -> None:
    built = model("MODEL.SHARPOSE.QUALITY.START", "0.6")
    predictor = built.transformer.quality_predictor
    assert predictor is not None
    for built.progress, learns in ((0.59, False), (0.6, True)):
        losses = built(random_batch([1], K))
        assert (losses["loss_quality"] > 0) == learns
        assert predictor.is_trained == learns
    other = model()
    other.load_state_dict(built.state_dict())
    assert other.transformer.quality_predictor is not None
    assert other.transformer.quality_predictor.is_trained


def test_without_keypoints_losses_are_zero() -> None:
    losses = model()(random_batch([0, 0], K))
    assert all(loss == 0 for loss in losses.values())


def test_scores_areas_and_patches_of_a_pose() -> None:
    """A box of 80x53 pixels, detected with 0.7, laid edge to edge into a crop of 64x96."""
    built = trained_model(1e9)
    frame = box_to_canvas((200, 300), [10, 20, 90, 20 + 80 * 64 / 96], (64, 96), 1.0)
    crop = random_batch([0], K)[0] | {"frame": frame, "box_score": 0.7}
    with torch.no_grad():
        (pose,), (other,) = built.predict([crop]), built.predict([{**crop, "box_score": 0.9}])
    assert pose.scores.tolist() == pytest.approx([0.7])
    assert other.scores.tolist() == pytest.approx([0.9])
    assert pose.pred_areas.item() == pytest.approx(80 * 80 * 64 / 96 * (95 / 96) * (63 / 64), rel=1e-5)
    rows, columns = built.transformer.coarse_grid
    assert pose.refined_patches.shape == pose.patch_relevance.shape == (1, rows, columns)
    assert pose.refined_patches.sum() == np.ceil(0.4 * rows * columns)
    refined, rest = pose.patch_relevance[pose.refined_patches], pose.patch_relevance[~pose.refined_patches]
    assert refined.min() >= rest.max()
    built.quality_threshold = -1.0
    with torch.no_grad():
        assert not built.predict([crop])[0].refined_patches.any()


def test_flip_test_is_symmetric() -> None:
    """The mirrored crop has the mirrored heat maps."""
    built, crop_BCHW = model().double().eval(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        heatmap_BKHW, mirrored_BKHW = (built.average_heatmaps(crop)[0] for crop in (crop_BCHW, crop_BCHW.flip(-1)))
    torch.testing.assert_close(flip_heatmaps(mirrored_BKHW, built.skeleton.flip_indices), heatmap_BKHW)


def test_model_weights_may_be_a_masked_autoencoder() -> None:
    built, weights = model(), vision_transformer_weights(dim=16, depth=2)
    result = built.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    found = built.get_parameter("transformer.blocks.1.qkv.weight")
    torch.testing.assert_close(found, weights["blocks.1.attn.qkv.weight"])
    assert {name.split(".")[0] for name in result.missing_keys} == {"head", "transformer"}
    assert "transformer.keypoint_tokens" in result.missing_keys
    assert "transformer.norm.weight" not in result.missing_keys


def test_a_masked_autoencoder_of_another_width_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"patches as \(32, 3, 8, 8\), the model of the config as \(16, 3, 8, 8\)"
    ):
        model().load_state_dict(vision_transformer_weights(dim=32, depth=2), strict=False)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes crops of \(64, 96\).*not \(32, 32\); set INPUT\.PIPELINE"):
        model().eval()(random_batch([0], K, (32, 32)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DIM", "15"], r"DIM is 15; allowed: multiples of MODEL\.SHARPOSE\.NUM_HEADS"),
        (["FINE_SCALE", "0.75"], "FINE_SCALE is 0.75; allowed: 0 .* integer multiples"),
        (["DECODING.KERNEL_SIZE", "10"], "KERNEL_SIZE is 10; allowed: odd"),
        (["ROUNDING", "up"], "ROUNDING is 'up'; allowed: 'ceil', 'floor'"),
    ],
)
def test_impossible_configs_are_refused(overrides: list[Any], message: str) -> None:
    key, value = overrides
    with pytest.raises(ConfigError, match=message):
        model(f"MODEL.SHARPOSE.{key}", value)

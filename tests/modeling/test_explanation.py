"""What models show of how they came to their poses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from querypose.d2 import build_model
from querypose.modeling import (
    LQR,
    BoxLayer,
    MapLayer,
    PatchLayer,
    PointLayer,
    PoseLayer,
    PoseModel,
    SHaRPose,
    ValueLayer,
)
from tests.tiny import ARCHITECTURES, VERSIONS, keypoint_queries, random_batch, tiny_config

KINDS = {
    "QueryPose": {BoxLayer, MapLayer, PoseLayer, ValueLayer},
    "QueryPose-Dense": {BoxLayer, MapLayer, PoseLayer, ValueLayer},
    "POET": {MapLayer, PoseLayer},
    "LQR": {MapLayer, PointLayer, PoseLayer},
    "SHaRPose": {PatchLayer, PoseLayer},
}


def _model(*overrides: str) -> PoseModel:
    torch.manual_seed(0)
    model = build_model(tiny_config(*overrides)).eval()
    assert isinstance(model, PoseModel)
    return model


@pytest.mark.parametrize("version", VERSIONS)
@torch.inference_mode()
def test_every_version_shows_finite_layers_of_each_image_and_stays_as_it_was(version: str) -> None:
    model, batch = _model(*VERSIONS[version]), random_batch([1, 1], 17)
    before = model(batch)[0]["instances"].pred_keypoints
    explained = model.explain(batch, num_poses=2)
    assert len(explained) == 2
    for layers in explained:
        kinds = {type(layer) for layer in layers}
        assert PoseLayer in kinds
        assert kinds == KINDS[version] if version in ARCHITECTURES else kinds
        for layer in layers:
            assert layer.name
            for value in vars(layer).values():
                if isinstance(value, np.ndarray):
                    assert np.isfinite(value).all()
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(batch)[0]["instances"].pred_keypoints, before)


@pytest.mark.parametrize("version", ["QueryPose", "POET", "SHaRPose", "LQR"])
@torch.inference_mode()
def test_the_pose_of_the_last_stage_is_the_prediction(version: str) -> None:
    model, batch = _model(*VERSIONS[version]), random_batch([1], 17)
    if isinstance(model, LQR | SHaRPose):
        model.flip_test = False
    shown = [layer for layer in model.explain(batch, num_poses=1)[0] if isinstance(layer, PoseLayer)]
    predicted = model(batch)[0]["instances"]
    torch.testing.assert_close(torch.from_numpy(shown[-1].keypoints_KD), predicted.pred_keypoints[0, :, :2])


@torch.inference_mode()
def test_query_pose_shows_a_map_of_weights_and_two_gates_of_every_part_and_stage() -> None:
    model = _model()
    layers = model.explain(random_batch([1], 17), num_poses=2)[0]
    num_parts = len(model.skeleton.parts())
    for stage in (1, 2):
        for pose in (0, 1):
            of_pose = [layer for layer in layers if (layer.stage, layer.pose) == (stage, pose)]
            maps = [layer for layer in of_pose if isinstance(layer, MapLayer)]
            assert len(maps) == num_parts
            for layer in maps:
                assert layer.values_HW.shape == (8, 8)  # the region of 4 x 4 cells, upsampled
                assert layer.values_HW.sum() == pytest.approx(1, abs=1e-5)
            gates = [layer for layer in of_pose if isinstance(layer, ValueLayer)]
            assert [len(layer.values) for layer in gates] == [num_parts, num_parts]
            assert all(0 <= value <= 1 for layer in gates for value in layer.values.values())


@torch.inference_mode()
def test_an_interaction_without_maps_shows_none() -> None:
    layers = _model(*keypoint_queries("part", "dynamic_channel")).explain(random_batch([1], 17))[0]
    assert {type(layer) for layer in layers} == {BoxLayer, PoseLayer}


@torch.inference_mode()
def test_poet_shows_attention_that_sums_to_one_over_the_image_of_a_padded_batch() -> None:
    model = _model(*ARCHITECTURES["POET"])
    small, large = random_batch([1], 17, (32, 32)) + random_batch([1], 17, (64, 96))
    layers = [layer for layer in model.explain([small, large])[0] if isinstance(layer, MapLayer)]
    for layer in layers:
        assert layer.values_HW.shape == (2, 3)
        assert layer.box == (0, 0, 96, 64)
        assert layer.values_HW.sum() == pytest.approx(1, abs=1e-5)
        assert layer.values_HW[0, 0] == pytest.approx(1, abs=1e-5)  # the other cells are padding


@torch.inference_mode()
def test_lqr_shows_a_path_from_the_cell_to_each_keypoint() -> None:
    model = _model(*ARCHITECTURES["LQR"])
    layers = [layer for layer in model.explain(random_batch([1], 17), num_poses=1)[0] if isinstance(layer, PointLayer)]
    to_queries, to_points, to_keypoints = layers
    assert to_queries.from_ND is not None
    assert to_points.from_ND is not None
    assert np.ptp(to_queries.from_ND, axis=0).max() == 0  # all queries come from one cell
    np.testing.assert_array_equal(to_points.from_ND[::9], to_queries.points_ND)
    np.testing.assert_array_equal(to_keypoints.from_ND, to_queries.points_ND)

"""Reading at displaced positions, and the queries that do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from querypose.modeling.lqr.keypoint_queries import AGGREGATIONS, KeypointQueryEncoding, point_grid
from querypose.modeling.lqr.pose_queries import PLACES, PoseQueryEncoding
from querypose.modeling.lqr.sampling import cell_positions, read, reading_grid

K, N, H, W = 3, 6, 5, 7


def keypoint_queries(**options: Any) -> KeypointQueryEncoding:
    """In float64 and inference mode, with weights large enough to matter."""
    torch.manual_seed(0)
    module = KeypointQueryEncoding(in_channels=4, num_keypoints=K, dim=2, num_points=N, **options).double().eval()
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def feature() -> Tensor:
    return torch.randn(2, 4, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_no_displacement_reads_the_map_itself() -> None:
    map_RCHW, zero_RDHW = feature(), torch.zeros(2, 2, H, W, dtype=torch.float64)
    torch.testing.assert_close(read(map_RCHW, reading_grid(zero_RDHW)), map_RCHW)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -2), (3, 1), (-50, 50)])
def test_positions_read_at_a_displacement_are_displaced_and_clamp_to_the_border(dx: int, dy: int) -> None:
    positions_DHW = cell_positions(H, W, like=torch.zeros(1, dtype=torch.float64))
    displacement_RDHW = torch.tensor([dx, dy], dtype=torch.float64)[:, None, None].expand(1, 2, H, W)
    seen_DHW = read(positions_DHW[None], reading_grid(displacement_RDHW))[0]
    last = torch.tensor([W - 1, H - 1])[:, None, None]
    torch.testing.assert_close(seen_DHW, (positions_DHW + displacement_RDHW[0]).clamp(min=torch.zeros(()), max=last))


def test_a_map_of_one_cell_can_be_read() -> None:
    map_RCHW = torch.full((1, 1, 1, 1), 3.0)
    assert read(map_RCHW, reading_grid(torch.full((1, 2, 1, 1), 9.0))).item() == 3.0


@pytest.mark.parametrize(("num_points", "rows", "columns"), [(3, 1, 3), (6, 2, 3), (9, 3, 3), (12, 3, 4), (15, 3, 5)])
def test_points_begin_on_a_centered_grid_of_unit_spacing(num_points: int, rows: int, columns: int) -> None:
    grid_ND = point_grid(num_points)
    assert len({*map(tuple, grid_ND.tolist())}) == num_points
    torch.testing.assert_close(grid_ND.mean(0), torch.zeros(2))
    assert grid_ND[:, 0].unique().diff().tolist() == [1.0] * (columns - 1)
    assert grid_ND[:, 1].unique().diff().tolist() == [1.0] * (rows - 1)


def test_queries_begin_at_the_cell_and_their_points_on_the_grid() -> None:
    torch.manual_seed(0)
    keypoints = KeypointQueryEncoding(in_channels=4, num_keypoints=K, num_points=9).eval()(feature().float())
    assert keypoints.query_BKDHW is not None
    assert keypoints.point_BKNDHW is not None
    assert not keypoints.query_BKDHW.any()
    expected = point_grid(9)[:, :, None, None].expand_as(keypoints.point_BKNDHW)
    torch.testing.assert_close(keypoints.point_BKNDHW, expected, atol=0.05, rtol=0)


def test_points_that_begin_in_one_place_never_part() -> None:
    """Why the grid is there: without it all points of a query get one gradient."""
    gradients = []
    for has_grid in (False, True):
        module = keypoint_queries()
        assert module.to_points is not None
        assert module.to_points.bias is not None
        torch.nn.init.zeros_(module.to_points.weight)
        if not has_grid:
            torch.nn.init.zeros_(module.to_points.bias)
        module(feature()).keypoint_BKDHW.square().sum().backward()
        assert module.to_points.bias.grad is not None
        gradients.append(module.to_points.bias.grad.view(K, N, 2))
    without, with_grid = gradients
    assert without.any()
    torch.testing.assert_close(without, without[:, :1].expand_as(without))
    assert (with_grid.std(1) > 1e-3).all()


def read_at(map_CHW: Tensor, x: float, y: float) -> Tensor:
    """Bilinear, clamped to the border, written out."""
    x, y = min(max(x, 0.0), W - 1.0), min(max(y, 0.0), H - 1.0)
    x0, y0 = min(int(x), W - 2), min(int(y), H - 2)
    u, v = x - x0, y - y0
    upper = (1 - u) * map_CHW[:, y0, x0] + u * map_CHW[:, y0, x0 + 1]
    lower = (1 - u) * map_CHW[:, y0 + 1, x0] + u * map_CHW[:, y0 + 1, x0 + 1]
    return (1 - v) * upper + v * lower


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("keypoint", range(K))
def test_equals_the_formula_of_one_keypoint_at_every_cell(keypoint: int, aggregation: Any) -> None:
    """D_c->k = d + q2k(Σ_n U_n samp(r, d + e_n)), e read at the query (eq. 4 and the formula above it)."""
    module = keypoint_queries(aggregation=aggregation)
    with torch.no_grad():
        result = module(feature())
        feature_CHW = module.keypoint_feature(feature())[0, 2 * keypoint : 2 * keypoint + 2]
        branch = slice(2 * keypoint, 2 * keypoint + 2)
        d_DHW = torch.nn.functional.conv2d(
            feature_CHW[None], module.to_query.weight[branch], _bias(module.to_query)[branch], padding=1
        )[0]
        assert module.to_points is not None
        points = slice(2 * N * keypoint, 2 * N * (keypoint + 1))
        weight_N2C = module.to_points.weight[points, :, 0, 0].view(N, 2, 2)
        bias_N2 = _bias(module.to_points)[points].view(N, 2)
        aggregated_CHW = torch.zeros_like(feature_CHW)
        for y in range(H):
            for x in range(W):
                dx, dy = d_DHW[:, y, x].tolist()
                e_N2 = weight_N2C @ read_at(feature_CHW, x + dx, y + dy) + bias_N2
                for index, (ex, ey) in enumerate(e_N2.tolist()):
                    value_C = read_at(feature_CHW, x + dx + ex, y + dy + ey)
                    if aggregation == "weighted":
                        value_C = module.point_weights[index].get_parameter("weight")[branch, :, 0, 0] @ value_C
                    aggregated_CHW[:, y, x] += value_C
        assert module.to_keypoint is not None
        offset_DHW = torch.nn.functional.conv2d(
            aggregated_CHW[None], module.to_keypoint.weight[branch], _bias(module.to_keypoint)[branch], padding=1
        )[0]
    torch.testing.assert_close(result.keypoint_BKDHW[0, keypoint], d_DHW + offset_DHW)


@pytest.mark.parametrize("places", PLACES)
def test_the_score_reads_the_instance_feature_at_its_places(places: Any) -> None:
    torch.manual_seed(0)
    module = PoseQueryEncoding(in_channels=4, num_keypoints=K, dim=2, places=places).double().eval()
    for parameter in module.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    with torch.no_grad():
        keypoints = keypoint_queries()(feature())
        score_BHW = module(feature(), *keypoints).score_BHW
        instance_CHW = module.instance_feature(feature())[0]
        x, y = 4, 2
        if places == "cell":
            gathered_CK = instance_CHW[:, y, x][:, None]
        else:
            assert keypoints.query_BKDHW is not None
            assert keypoints.point_BKNDHW is not None
            displacement_BKNDHW = {
                "keypoint_queries": keypoints.query_BKDHW[:, :, None],
                "keypoints": keypoints.keypoint_BKDHW[:, :, None],
                "semantic_points": keypoints.point_BKNDHW,
            }.get(places)
            if displacement_BKNDHW is None:
                assert module.to_places is not None
                displacement_BKNDHW = module.to_places(instance_CHW[None]).unflatten(1, (K, 1, 2))
            displacement_KND = displacement_BKNDHW[0, :, :, :, y, x]
            sums = [
                torch.stack([read_at(instance_CHW, x + dx, y + dy) for dx, dy in points]).sum(0)
                for points in displacement_KND.tolist()
            ]
            gathered_CK = torch.stack(sums, dim=1)
        expected = module.score(module.squeeze(gathered_CK.flatten()[None, :, None, None])).item()
    assert score_BHW[0, y, x].item() == pytest.approx(expected, rel=1e-9)


def test_gradients_reach_displacements_through_the_score() -> None:
    keypoints = keypoint_queries()
    pose = PoseQueryEncoding(in_channels=4, num_keypoints=K, dim=2).double().eval()
    torch.nn.init.ones_(pose.score.weight)
    pose(feature(), *keypoints(feature())).score_BHW.sum().backward()
    assert keypoints.to_query.weight.grad is not None
    assert keypoints.to_query.weight.grad.any()

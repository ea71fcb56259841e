"""The model as a whole: its size, decoding, the mirrored view, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from querypose.analysis.complexity import count_flops
from querypose.config import ConfigError, load_config
from querypose.d2 import META_ARCH_REGISTRY, Boxes, Keypoints, build_model
from querypose.data.transforms import horizontal_flip
from querypose.modeling import LQR
from querypose.modeling.backbone import BackboneError
from querypose.modeling.lqr.criterion import displacement_targets, object_keypoint_similarity
from querypose.modeling.lqr.decoding import joined_scales, mirrored_images, peaks
from querypose.modeling.lqr.keypoint_queries import KeypointQueries
from querypose.modeling.lqr.pose_queries import PoseScores
from querypose.modeling.lqr.sampling import cell_positions
from querypose.skeleton import COCO_SKELETON
from tests.test_configs import CONFIGS
from tests.test_golden_loss import _build_plain_pyramid
from tests.tiny import LQR as TINY_LQR
from tests.tiny import random_batch, tiny_config

K = COCO_SKELETON.num_keypoints


def tiny_model(*overrides: str) -> LQR:
    torch.manual_seed(0)
    model = build_model(tiny_config(*TINY_LQR, *overrides))
    assert isinstance(model, LQR)
    return model


def paper_model(file: str, *overrides: str) -> LQR:
    options = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", "False", "MODEL.LQR.FLIP_TEST", "False"]
    cfg = load_config(CONFIGS / "lqr" / file, [*options, *overrides])
    model = META_ARCH_REGISTRY.get("LQR")(cfg)
    assert isinstance(model, LQR)
    return model


def num_parameters(model: LQR) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("file", "size", "parameters", "head", "gmacs"),
    [
        ("lqr_hrnet_w32_512.yaml", 512, 29_625_271, 319_735, 46.444),
        ("lqr_hrnet_w48_640.yaml", 640, 65_758_135, 433_015, 143.426),
    ],
)
def test_parameters_and_operations_are_those_of_the_paper(
    file: str, size: int, parameters: int, head: int, gmacs: float
) -> None:
    model = paper_model(file)
    assert num_parameters(model) == parameters
    assert parameters - sum(parameter.numel() for parameter in model.backbone.parameters()) == head
    flops = count_flops(model, (size, size), depth=1)
    assert round(sum(flops.values()) / 2e9, 3) == gmacs


def test_a_backbone_without_a_map_at_stride_4_is_refused() -> None:
    with pytest.raises(BackboneError, match="stride 4, but the finest that the backbone gives has stride 8"):
        tiny_model("MODEL.BACKBONE.OUT_FEATURES", "['p3', 'p4']")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.LQR.KEYPOINT_QUERIES", "False"], "POSE_QUERY is 'keypoint_queries'; allowed with"),
        (["MODEL.LQR.POSE_QUERY", "semantic_points", "MODEL.LQR.NUM_POINTS", "0"], "NUM_POINTS must be above 0"),
        (["MODEL.LQR.PEAK_WINDOW", "4"], "an odd integer"),
        (["MODEL.LQR.TEST_SCALES", "[0.5, 2.0]"], "1 among them"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(*TINY_LQR, *overrides)


def test_peaks_are_the_greatest_of_their_window_best_first() -> None:
    score_BHW = torch.zeros(1, 8, 10) - 1
    score_BHW[0, 2, 3], score_BHW[0, 2, 5], score_BHW[0, 6, 8], score_BHW[0, 0, 9] = 0.5, 0.4, 0.9, 0.8
    is_image_BHW = torch.ones(1, 8, 10, dtype=torch.bool)
    is_image_BHW[:, :, 9] = False
    pose_BKDHW = cell_positions(8, 10, like=score_BHW)[None, None]
    score_BQ, keypoints_BQKD = peaks(score_BHW, pose_BKDHW, is_image_BHW, window=5, num_poses=2)
    torch.testing.assert_close(score_BQ, torch.tensor([[0.9, 0.5]]))
    torch.testing.assert_close(keypoints_BQKD[0, :, 0], torch.tensor([[32.5, 24.5], [12.5, 8.5]]))
    (narrow_BQ, _) = peaks(score_BHW, pose_BKDHW, is_image_BHW, window=3, num_poses=3)
    torch.testing.assert_close(narrow_BQ, torch.tensor([[0.9, 0.5, 0.4]]))


def test_scores_of_other_scales_are_brought_to_those_of_the_image() -> None:
    scores = [torch.tensor([[0.4, 0.2]]), torch.tensor([[0.8, -torch.inf]]), torch.tensor([[1.6, -torch.inf]])]
    joined_BQ, keypoints = joined_scales(scores, [torch.zeros(1, 2, K, 2)] * 3, [0.5, 1.0, 2.0])
    expected = torch.tensor([[0.72, 0.36, 0.8, -torch.inf, 0.72, -torch.inf]])
    torch.testing.assert_close(joined_BQ, expected)
    assert keypoints.shape == (1, 6, K, 2)


def test_the_mirrored_view_has_the_lattice_of_the_upright_one() -> None:
    image_BCHW = torch.randn(1, 3, 16, 32)
    torch.testing.assert_close(mirrored_images(image_BCHW)[..., ::4, ::4].flip(-1), image_BCHW[..., ::4, ::4])


class _Centroid(LQR):
    """A known function in the network's place: the pose is the bright spot's center, left and right beside it."""

    def _maps(self, image_BCHW: Tensor) -> tuple[KeypointQueries, PoseScores]:
        light_BHW = image_BCHW[:, 0, ::4, ::4].clamp(min=0)  # padding is 0
        height, width = light_BHW.shape[1:]
        positions_DHW = cell_positions(height, width, light_BHW)
        center_BD = (light_BHW[:, None] * positions_DHW).sum((2, 3)) / light_BHW.sum((1, 2))[:, None]
        x_K = torch.zeros(K, dtype=center_BD.dtype)
        for left, right in self.skeleton.flip_pairs:  # the left of a person is at the right of the picture
            x_K[left], x_K[right] = 1.0 + left / 9, -1.0 - left / 9
        pose_BKD = center_BD[:, None] + torch.stack([x_K, x_K.square()], dim=-1)
        return KeypointQueries(pose_BKD[..., None, None] - positions_DHW), PoseScores(light_BHW / light_BHW.max())


@pytest.fixture
def spot() -> dict[str, Any]:
    """A soft spot about the pixel of index (41, 30)."""
    y_H1, x_W = torch.arange(64.0)[:, None], torch.arange(96.0)
    image_HW = 255 * torch.exp(-((x_W - 41) ** 2 + (y_H1 - 30) ** 2) / (2 * 6.0**2))
    return {"image": image_HW.expand(3, 64, 96), "height": 64, "width": 96}


def test_a_mirrored_image_has_the_mirrored_poses(spot: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().double().eval()
    monkeypatch.setattr(LQR, "_maps", _Centroid._maps)
    mirrored = spot | {"image": spot["image"].flip(-1)}
    with torch.no_grad():
        (upright,), (turned,) = model.predict([spot]), model.predict([mirrored])
        model.flip_test = False
        (single,) = model.predict([spot])
    np.testing.assert_allclose(upright.pred_keypoints[0, 0, :2], [41.5, 30.5], atol=0.5)
    torch.testing.assert_close(upright.pred_keypoints[0], single.pred_keypoints[0])
    keypoints_K3 = turned.pred_keypoints[:1].numpy()
    expected_K3 = horizontal_flip((64, 96)).apply_keypoints(
        upright.pred_keypoints[:1].numpy(), COCO_SKELETON.flip_indices
    )
    np.testing.assert_allclose(keypoints_K3, expected_K3, atol=0.6)  # pixels: a seventh of a cell


@pytest.mark.parametrize("scales", ["[1.0]", "[0.5, 1.0, 2.0]"])
def test_a_known_pose_comes_back_at_every_scale(
    spot: dict[str, Any], scales: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("MODEL.LQR.TEST_SCALES", scales).double().eval()
    monkeypatch.setattr(LQR, "_maps", _Centroid._maps)
    with torch.no_grad():
        (found,) = model.predict([spot])
    nose_ND = found.pred_keypoints[found.scores > 0.5][:, 0, :2]
    np.testing.assert_allclose(nose_ND, np.broadcast_to([41.5, 30.5], nose_ND.shape), atol=0.6)


def test_nothing_but_crowds_teaches_no_score() -> None:
    """An image of nobody or of crowds alone still trains the score on its background, or nothing."""
    model = tiny_model()
    background, crowd = random_batch([0, 0], K)
    crowd["valid_mask"] = torch.zeros(crowd["image"].shape[1:], dtype=torch.bool)
    for sample, has_loss in ((background, True), (crowd, False)):
        losses = model([sample])
        assert (losses["loss_score"] > 0) == has_loss
        assert losses["loss_offset"] == 0
        torch.stack(list(losses.values())).sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_odd_size_trains_and_predicts_within_the_image() -> None:
    model = tiny_model()
    batch = random_batch([2, 1], K, (61, 93))
    assert all(loss.isfinite() for loss in model(batch).values())
    normalizers = model.loss_normalizers(batch)
    assert normalizers["cells"] > 0
    assert normalizers["coordinates"] > normalizers["cells"]
    with torch.no_grad():
        (found, _) = model.eval().predict(batch)
    assert len(found)
    assert found.pred_keypoints.isfinite().all()


def test_small_persons_are_measured_in_pixels_of_the_file() -> None:
    model = tiny_model("MODEL.LQR.MIN_AREA", "1024.0")
    (sample,) = random_batch([1], K)
    sample["instances"].gt_areas = torch.tensor([600.0])
    assert model.loss_normalizers([sample])["cells"] == 0
    larger = sample | {"height": 2 * sample["height"], "width": 2 * sample["width"]}
    assert model.loss_normalizers([larger])["cells"] > 0


def test_areas_default_to_a_share_of_the_box() -> None:
    model = tiny_model()
    batch = random_batch([2], K)
    without = model.regions(batch, (16, 24), torch.device("cpu"))
    batch[0]["instances"].gt_areas = 0.53 * batch[0]["instances"].gt_boxes.area()
    torch.testing.assert_close(without.area_BG, model.regions(batch, (16, 24), torch.device("cpu")).area_BG)


def test_it_learns_twenty_images_by_heart_and_knows_how_well() -> None:
    """Mean CIR label above 0.9, scores that follow it from cell to cell, and points that have parted."""
    model = tiny_model(
        *("MODEL.BACKBONE.NAME", _build_plain_pyramid.__name__, "MODEL.FPN.OUT_CHANNELS", "64"),
        *("MODEL.LQR.KEYPOINT_DIM", "8", "MODEL.LQR.INSTANCE_DIM", "16", "MODEL.LQR.NUM_POINTS", "3"),
    )
    batch = random_batch([1] * 20, K, (32, 32))
    for sample in batch:  # persons as large as the image
        persons = sample["instances"]
        place_GKD = torch.rand(1, K, 2) * 22.4 + torch.rand(1, 1, 2) * 9.6
        persons.gt_keypoints = Keypoints(torch.cat([place_GKD, torch.full((1, K, 1), 2.0)], dim=-1))
        persons.gt_boxes = Boxes(torch.cat([place_GKD.amin(1), place_GKD.amax(1)], dim=1))
    seen: dict[str, Any] = {}
    model.criterion.register_forward_pre_hook(
        lambda _, args: seen.update(keypoints=args[0], scores=args[1].score_BHW, regions=args[2])
    )
    num_steps, rate = 120, 4e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2.5 * (num_steps - step) / num_steps)
        optimizer.zero_grad()
        torch.stack(list(model(batch).values())).sum().backward()
        optimizer.step()
    regions = seen["regions"]
    error = regions.at_cells(seen["keypoints"]) - displacement_targets(regions)
    oks_N = object_keypoint_similarity(error, regions, model.criterion.sigma_K)[regions.is_owned_BGN]
    score_N = regions.at_cells(seen["scores"])[regions.is_owned_BGN]
    assert oks_N.mean() > 0.9
    assert torch.corrcoef(torch.stack([oks_N, score_N]))[0, 1] > 0.5
    assert model.keypoint_queries.to_points is not None
    assert model.keypoint_queries.to_points.bias is not None
    point_KND = model.keypoint_queries.to_points.bias.detach().unflatten(0, (K, 3, 2))
    assert point_KND.std(1).norm(dim=-1).min() > 0.5

"""SHaRPose beside the authors' code: both stages, selection, early stop, losses, gradients, targets, decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from querypose.checkpoint import convert_sharpose_official
from querypose.modeling.sharpose.heatmaps import decode_heatmaps, flip_heatmaps, gaussian_heatmaps
from querypose.modeling.sharpose.meta_arch import SHaRPose
from querypose.modeling.sharpose.pretrained import resized_positions
from querypose.modeling.sharpose.quality import pose_similarity
from querypose.skeleton import COCO_SKELETON
from tests.parity.sharpose_golden import NUM_CROPS, SharposeFixture

# Relative to the largest entry; the limits of the fixtures' README.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-5}
SIGMAS = torch.tensor(COCO_SKELETON.sigmas)


@pytest.fixture(params=TOLERANCES, ids=str)
def fixture(request: pytest.FixtureRequest) -> SharposeFixture:
    return SharposeFixture("tiny", request.param)


@pytest.fixture(params=TOLERANCES, ids=str)
def udp(request: pytest.FixtureRequest) -> SharposeFixture:
    return SharposeFixture("udp", request.param)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[actual.dtype] * expected.abs().max().item()
    torch.testing.assert_close(actual, expected.to(actual), rtol=0, atol=tolerance)


@torch.no_grad()
def test_coarse_stage(fixture: SharposeFixture) -> None:
    model = fixture.model()
    transformer = model.transformer
    last_block: list[tuple[Tensor, Tensor]] = []
    transformer.blocks[-1].register_forward_hook(lambda module, args, outputs: last_block.append(outputs))
    coarse = transformer.coarse_stage(fixture.crops)
    (tokens, attention_BTT), num_learned = last_block[0], 1 + COCO_SKELETON.num_keypoints
    assert_near(coarse.visual_input_BTC - transformer.coarse_positions, fixture["all.coarse_patch"])
    assert_near(coarse.visual_input_BTC, fixture["all.coarse_in"][:, num_learned:])
    assert_near(tokens, fixture["all.coarse_block3"])
    assert_near(attention_BTT, fixture["all.attn_ema"].mean(1))
    assert_near(coarse.keypoint_BKC, fixture["all.kpt_tokens_coarse"])
    assert_near(coarse.visual_BTC, fixture["all.coarse_norm"][:, num_learned:])
    assert coarse.quality_B is not None
    assert_near(coarse.quality_B, fixture["all.quality"])
    # Theirs is the sum over the keypoints that count.
    assert_near(coarse.relevance_BT * (COCO_SKELETON.num_keypoints - 1), fixture["all.score"])


@torch.no_grad()
def test_fine_stage_sees_the_patches_that_they_select(fixture: SharposeFixture) -> None:
    model = fixture.model()
    transformer = model.transformer
    coarse = transformer.coarse_stage(fixture.crops)
    selected_BT, kept_BT = transformer.selection.split(coarse.relevance_BT)
    assert selected_BT.shape[1] == fixture["all.n_high"]
    assert torch.equal(torch.cat([selected_BT, kept_BT], dim=1), fixture["all.rank"])
    assert transformer.reuse is not None
    assert_near(transformer.reuse(coarse.visual_BTC), fixture["all.reuse_out"])
    assert_near(transformer.fine_tokens(fixture.crops, coarse), fixture["all.fine_in"])
    keypoint_BKC = transformer.fine_stage(fixture.crops, coarse)
    assert_near(keypoint_BKC, fixture["all.kpt_tokens_fine"])
    assert_near(model.head(coarse.keypoint_BKC), fixture["all.heatmap_coarse"])
    assert_near(model.head(keypoint_BKC), fixture["all.heatmap_fine"])


def threshold_between(fixture: SharposeFixture) -> dict[str, float]:
    return {"quality_threshold": fixture["thr.threshold"].item()}


@torch.no_grad()
def test_early_stop(fixture: SharposeFixture) -> None:
    model = fixture.model(**threshold_between(fixture))
    outputs = model.stage_outputs(fixture.crops)
    assert outputs.refined_B.tolist() == fixture["thr.refined"].tolist()
    assert outputs.refined_B.sum() == fixture["thr.n_refine"]
    assert_near(outputs.heatmaps[1], fixture["thr.heatmap_fine"])
    assert torch.equal(outputs.heatmaps[1][~outputs.refined_B], outputs.heatmaps[0][~outputs.refined_B])


@torch.no_grad()
def test_flip_test(fixture: SharposeFixture) -> None:
    """The mirrored crop decides by itself whether it is refined."""
    model = fixture.model(**threshold_between(fixture))
    mirrored = model.stage_outputs(fixture.crops.flip(-1))
    assert mirrored.quality_B is not None
    assert_near(mirrored.quality_B, fixture["flip.quality"])
    assert mirrored.refined_B.sum() == fixture["flip.n_refine"]
    average_BKHW = model.average_heatmaps(fixture.crops)[0]
    assert_near(average_BKHW, fixture["flip.heatmap_avg"])
    poses = model.predict(fixture.batch)
    assert_near(torch.cat([pose.pred_keypoints[..., 2] for pose in poses]), fixture["flip.maxval"])


def losses_at(epoch: int, model: SHaRPose, fixture: SharposeFixture) -> dict[str, Tensor]:
    """Of an epoch, counted from 1, of one iteration each, of a training that learns quality after 180."""
    model.quality_start, model.progress = 180 / 210, (epoch - 1) / 210
    losses = model.train()(fixture.batch)
    assert isinstance(losses, dict)
    return losses


@pytest.mark.parametrize("epoch", [10, 180, 181])
def test_losses(fixture: SharposeFixture, epoch: int) -> None:
    model = fixture.model()
    losses = losses_at(epoch, model, fixture)
    names = {"loss_heatmap_0": "heatmap_loss_0", "loss_heatmap": "heatmap_loss_1", "loss_quality": "qp_loss_0"}
    for ours, theirs in names.items():
        torch.testing.assert_close(
            losses[ours], fixture[f"train{epoch}.{theirs}"], rtol=TOLERANCES[fixture.dtype], atol=1e-9
        )
    assert_near(torch.stack(list(losses.values())).sum(), fixture[f"train{epoch}.loss"])


def test_gradients(fixture: SharposeFixture) -> None:
    model = fixture.model()
    torch.stack(list(losses_at(181, model, fixture).values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4}[fixture.dtype]
    expected = convert_sharpose_official(fixture.group("train181.grad/"))
    norms = convert_sharpose_official({n: v[None] for n, v in fixture.group("train181.gradnorm/").items()})
    del expected["transformer.quality_predictor.is_trained"], norms["transformer.quality_predictor.is_trained"]
    assert norms.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(gradient.norm(), norms[name].squeeze(), rtol=tolerance, atol=0)
    for name, gradient in expected.items():
        found = gradients[name]
        torch.testing.assert_close(found, gradient, rtol=0, atol=tolerance * gradient.abs().max().item())


def test_quality_gradient_is_zero_before_its_time(fixture: SharposeFixture) -> None:
    model = fixture.model()
    torch.stack(list(losses_at(10, model, fixture).values())).sum().backward()
    predictor = model.transformer.quality_predictor
    assert predictor is not None
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in predictor.parameters())
    quality_token = model.transformer.quality_token
    assert quality_token is not None
    assert quality_token.grad is not None
    assert_near(quality_token.grad, fixture["train10.grad/backbone.quality_token"][0])


def test_targets_of_the_network_fixture(fixture: SharposeFixture) -> None:
    model = fixture.model()
    keypoints = model.keypoints_on_heatmap(fixture.batch, torch.device("cpu"))
    heatmap_BKHW, valid_BK = gaussian_heatmaps(*keypoints, model.head.size, sigma=2.0)
    assert_near(heatmap_BKHW, fixture["train.target"])
    assert torch.equal(valid_BK, fixture["train.target_weight"][..., 0] > 0)
    assert model.loss_normalizers(fixture.batch)["crops"] == NUM_CROPS


@pytest.mark.parametrize("case", ["s2", "s3"])
def test_udp_targets(case: str) -> None:
    """In float64: one keypoint lies half-way between two cells, and rounding decides where its Gaussian ends."""
    udp, case = SharposeFixture("udp", torch.float64), f"target_{case}."
    width, height = udp[case + "heatmap_wh"].tolist()
    stride_D = (udp[case + "image_wh"] - 1).double() / (udp[case + "heatmap_wh"] - 1)
    keypoint_BKD = udp[case + "joints"][None, :, :2] / stride_D
    labelled_BK = udp[case + "visible"][None, :, 0] > 0
    sigma = float(udp[case + "sigma"])
    heatmap_BKHW, valid_BK = gaussian_heatmaps(keypoint_BKD, labelled_BK, (height, width), sigma)
    assert_near(heatmap_BKHW[0], udp[case + "target"])
    assert torch.equal(valid_BK[0], udp[case + "weight"][:, 0] > 0)


@pytest.mark.parametrize("case", ["s2", "s3"])
def test_decoding(udp: SharposeFixture, case: str) -> None:
    case = f"decode_{case}."
    heatmap_BKHW = udp[case + "heatmap_int16"].to(udp.dtype) * udp[case + "heatmap_scale"]
    cell_BKD, value_BK = decode_heatmaps(heatmap_BKHW)
    assert torch.equal(value_BK, udp[case + "maxval"][..., 0])
    box_B1D, center_B1D = udp[case + "scale"][:, None] * 200, udp[case + "center"][:, None]
    cells_D = cell_BKD.new_tensor(heatmap_BKHW.shape[:1:-1])
    image_BKD = cell_BKD * box_B1D / (cells_D - 1) + center_B1D - box_B1D / 2
    is_positive_BK = value_BK > 0  # theirs reads neighboring memory elsewhere
    torch.testing.assert_close(image_BKD[is_positive_BK], udp[case + "preds"][is_positive_BK], rtol=0, atol=2e-3)
    flipped_BKHW = flip_heatmaps(heatmap_BKHW[:1], COCO_SKELETON.flip_indices)[:, :4]
    assert torch.equal(flipped_BKHW, udp[case + "flip_back"])


@pytest.mark.parametrize("swapped_axes", [True, False])
def test_similarity_that_quality_learns(udp: SharposeFixture, swapped_axes: bool) -> None:
    """Heat maps with one cell above zero, or none, stand for the peaks of the fixture."""
    height, width = udp["oks.heatmap_hw"].tolist()

    def heatmaps(peak_BKD: Tensor) -> Tensor:
        heatmap_BKHW = torch.zeros(*peak_BKD.shape[:2], height, width, dtype=udp.dtype)
        for image, keypoint in (peak_BKD >= 0).all(-1).nonzero().tolist():
            x, y = peak_BKD[image, keypoint].int().tolist()
            heatmap_BKHW[image, keypoint, y, x] = 1
        return heatmap_BKHW

    similarity_B = pose_similarity(
        heatmaps(udp["oks.pred_argmax"]),
        heatmaps(udp["oks.gt_argmax"]),
        udp["oks.mask"],
        SIGMAS,
        aspect=0.75,
        swapped_axes=swapped_axes,
    )
    expected = udp["oks.value" if swapped_axes else "oks.value_with_correct_axes"]
    has_keypoint = udp["oks.instance_mask"]
    torch.testing.assert_close(similarity_B[has_keypoint], expected, rtol=1e-5, atol=0)
    assert not similarity_B[~has_keypoint].any()


@pytest.mark.parametrize("grid", [(8, 6), (16, 12), (12, 9), (24, 18)])
def test_position_table_on_other_grids(udp: SharposeFixture, grid: tuple[int, int]) -> None:
    source_TC = (udp["posembed.src_int8"] * udp["posembed.src_scale"])[0, 1:]
    resized_TC = resized_positions(source_TC, grid)
    torch.testing.assert_close(
        resized_TC.to(udp.dtype), udp[f"posembed.{grid[0]}x{grid[1]}"][0], rtol=0, atol=TOLERANCES[torch.float32]
    )

"""Blocks, the two stages, and the weights of a plain vision transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from querypose.modeling.sharpose.blocks import TransformerBlock
from querypose.modeling.sharpose.pretrained import from_vision_transformer, is_vision_transformer, resized_positions
from querypose.modeling.sharpose.quality import QualityPredictor, pose_similarity
from querypose.modeling.sharpose.selection import PatchSelection
from querypose.modeling.sharpose.transformer import CoarseToFineTransformer, grid_size


def transformer(alpha: float = 0.5, **options: Any) -> CoarseToFineTransformer:
    arguments: dict[str, Any] = {
        "image_size": (64, 48), "num_keypoints": 3, "dim": 16, "depth": 4, "num_heads": 2, "patch_size": 8,
        "selection": PatchSelection(alpha), "quality_predictor": QualityPredictor(16), "token_std": 1.0,
    }  # fmt: skip
    return CoarseToFineTransformer(**{**arguments, **options}).double().eval()


def test_explicit_attention_equals_the_fused_one() -> None:
    block = TransformerBlock(16, 2).double()
    token_BTC = torch.randn(2, 5, 16, dtype=torch.float64)
    fused_BTC, nothing = block(token_BTC)
    explicit_BTC, attention_BTT = block(token_BTC, torch.zeros(2, 5, 5, dtype=torch.float64))
    assert nothing is None
    torch.testing.assert_close(explicit_BTC, fused_BTC)
    # One share of 0.01 of a mean of distributions.
    torch.testing.assert_close(attention_BTT.sum(-1), torch.full((2, 5), 0.01, dtype=torch.float64))
    assert not attention_BTT.requires_grad


def test_stochastic_depth_skips_whole_samples_in_training_alone() -> None:
    block = TransformerBlock(16, 2, drop_path=0.999)
    token_BTC = torch.randn(4, 5, 16)
    assert torch.equal(block(token_BTC)[0], token_BTC)
    assert not torch.equal(block.eval()(token_BTC)[0], token_BTC)


def test_rates_of_stochastic_depth_grow_evenly() -> None:
    rates = [block.get_submodule("drop_path").p for block in transformer(drop_path=0.3).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(("alpha", "num_tokens"), [(0.0, 12), (0.5, 6 * 4 + 6), (1.0, 48)])
def test_fine_stage_has_four_patches_for_each_that_it_selects(alpha: float, num_tokens: int) -> None:
    model, image_BCHW = transformer(alpha), torch.randn(2, 3, 64, 48, dtype=torch.float64)
    coarse = model.coarse_stage(image_BCHW)
    assert model.fine_tokens(image_BCHW, coarse).shape == (2, 3 + num_tokens, 16)
    assert model.fine_stage(image_BCHW, coarse).shape == (2, 3, 16)


def test_coarser_and_finer_scales() -> None:
    model = transformer(coarse_scale=0.25, fine_scale=1.0, patch_size=4)
    image_BCHW = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    tokens = model.fine_tokens(image_BCHW, model.coarse_stage(image_BCHW))
    assert tokens.shape == (1, 3 + 6 * 16 + 6, 16)


def test_kept_tokens_are_input_or_output_of_the_coarse_stage() -> None:
    image_BCHW = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    for kept_tokens in ("input", "output"):
        model = transformer(0.0, kept_tokens=kept_tokens)
        coarse = model.coarse_stage(image_BCHW)
        expected = coarse.visual_input_BTC if kept_tokens == "input" else coarse.visual_BTC
        found = model.fine_tokens(image_BCHW, coarse)[:, 3:]
        torch.testing.assert_close(found.sort(dim=1)[0], expected.sort(dim=1)[0])


def test_without_quality_reuse_or_fine_stage_there_are_no_such_parameters() -> None:
    names = {name for name, _ in transformer().named_parameters()}
    without_quality = {name for name, _ in transformer(quality_predictor=None).named_parameters()}
    assert {name.partition(".")[0] for name in names - without_quality} == {"quality_token", "quality_predictor"}
    coarse_alone = {name for name, _ in transformer(fine_scale=None).named_parameters()}
    assert {name.partition(".")[0] for name in names - coarse_alone} == {"fine_positions", "reuse"}
    without_reuse = {name for name, _ in transformer(reuse=False).named_parameters()}
    assert {name.partition(".")[0] for name in names - without_reuse} == {"reuse"}
    assert transformer(quality_predictor=None).coarse_stage(torch.zeros(1, 3, 64, 48).double()).quality_B is None


def test_crops_of_a_batch_do_not_know_each_other() -> None:
    model, image_BCHW = transformer(), torch.randn(3, 3, 64, 48, dtype=torch.float64)
    together = model.fine_stage(image_BCHW, model.coarse_stage(image_BCHW))
    alone = [model.fine_stage(image, model.coarse_stage(image)) for image in image_BCHW.split(1)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_size_that_patches_do_not_divide_is_refused() -> None:
    assert grid_size((256, 192), 0.5, 16) == (8, 6)
    with pytest.raises(ValueError, match=r"250x192 pixels at scale 0\.5 is not divided by patches of 16"):
        grid_size((250, 192), 0.5, 16)


def vision_transformer_weights(dim: int = 16, depth: int = 4, side: int = 5) -> dict[str, torch.Tensor]:
    """As MAE names them, with a class token and a decoder."""
    shapes = {
        "cls_token": (1, 1, dim), "pos_embed": (1, side**2 + 1, dim), "patch_embed.proj.weight": (dim, 3, 8, 8),
        "patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,), "mask_token": (1, 1, 8),
        "decoder_pos_embed": (1, side**2 + 1, 8), "decoder_blocks.0.norm1.weight": (8,),
    }  # fmt: skip
    for index in range(depth):
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{index}.{name}.weight"] = (out * dim, into * dim)
            shapes[f"blocks.{index}.{name}.bias"] = (out * dim,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{index}.{name}"] = (dim,)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_weights_of_a_masked_autoencoder_fit() -> None:
    weights, model = vision_transformer_weights(), transformer()
    assert is_vision_transformer(weights)
    assert not is_vision_transformer(model.state_dict())
    converted = from_vision_transformer(weights, [(4, 3), (8, 6)])
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert {name.partition(".")[0] for name in missing} == {
        "keypoint_tokens", "quality_token", "quality_predictor", "reuse"
    }  # fmt: skip
    found = model.get_parameter("blocks.3.mlp.2.weight")
    torch.testing.assert_close(found.float(), weights["blocks.3.mlp.fc2.weight"])


def test_positions_on_their_own_grid_stay_and_constants_stay_constant() -> None:
    position_TC = torch.randn(25, 4)
    torch.testing.assert_close(resized_positions(position_TC, (5, 5)), position_TC)
    torch.testing.assert_close(resized_positions(torch.full((25, 4), 2.0), (16, 12)), torch.full((192, 4), 2.0))


def test_similarity_is_one_at_the_target_and_zero_without_keypoints() -> None:
    heatmap_BKHW = torch.rand(2, 3, 8, 6)
    valid_BK = torch.tensor([[True, True, False], [False, False, False]])
    similarity_B = pose_similarity(heatmap_BKHW, heatmap_BKHW, valid_BK, torch.full((3,), 0.1), aspect=0.75)
    assert similarity_B.tolist() == [1, 0]


def test_similarity_in_closed_form() -> None:
    """One keypoint three cells to the right on an 8x6 map of a crop as wide as 3/4 of its height."""
    target_BKHW, heatmap_BKHW = torch.zeros(1, 1, 8, 6), torch.zeros(1, 1, 8, 6)
    target_BKHW[0, 0, 4, 1] = heatmap_BKHW[0, 0, 4, 4] = 1
    similarity_B = pose_similarity(heatmap_BKHW, target_BKHW, torch.tensor([[True]]), torch.tensor([0.25]), aspect=0.75)
    # 300x400 px: 150 px off; squared over (2 sigma)^2, the area and 2.
    expected = torch.exp(torch.tensor(-(150.0**2) / 0.5**2 / (300 * 400) / 2))
    torch.testing.assert_close(similarity_B, expected[None])

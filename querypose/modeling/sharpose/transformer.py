"""The network of SHaRPose: one transformer that sees a person coarsely, then the relevant patches finely (Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.layers import at_least_float32
from querypose.modeling.sharpose.blocks import MLP, TransformerBlock
from querypose.modeling.sharpose.quality import QualityPredictor
from querypose.modeling.sharpose.selection import GridSize, PatchSelection, finer_patches, take_tokens


@dataclass(frozen=True)
class CoarseStage:
    """What the coarse stage gives of B images.

    Attributes:
        keypoint_BKC: keypoint tokens.
        visual_BTC: tokens of the patches.
        visual_input_BTC: the same before the first block.
        relevance_BT: of each patch to the keypoints.
        quality_B: how good the pose is; None without a quality predictor.
    """

    keypoint_BKC: Tensor
    visual_BTC: Tensor
    visual_input_BTC: Tensor
    relevance_BT: Tensor
    quality_B: Tensor | None

    def of_images(self, index_R: Tensor) -> CoarseStage:
        """That of some of the images."""
        quality_R = None if self.quality_B is None else self.quality_B[index_R]
        return CoarseStage(
            self.keypoint_BKC[index_R],
            self.visual_BTC[index_R],
            self.visual_input_BTC[index_R],
            self.relevance_BT[index_R],
            quality_R,
        )


class CoarseToFineTransformer(nn.Module):
    """A vision transformer whose blocks run twice: on large patches, then on small ones where they matter.

    Args:
        image_size: height and width of the images, in pixels; the grids of both stages follow from it.
        num_keypoints: keypoint tokens K.
        dim: width C of all tokens.
        depth: blocks.
        num_heads: heads of every attention.
        patch_size: side of a patch, in pixels of the rescaled image.
        coarse_scale: of the images in the coarse stage (s_c).
        fine_scale: of the images in the fine stage (s_f), an integer multiple of `coarse_scale`; None: no fine stage.
        selection: chooses the patches that the fine stage sees finely.
        quality_predictor: scores the coarse pose by a token of its own; None: no such token.
        reuse: whether fine tokens start with what the coarse stage found at their place.
        kept_tokens: what the other patches enter the fine stage as. Deviates: the paper takes what the coarse stage
            made of them, `output`; the default `input` is what the authors' code trains, the tokens before its blocks.
        attention_from: share of the blocks, from the first, whose attention does not count. Deviates: 0 in eq. 6.
        attention_decay: beta of eq. 6.
        drop_path: stochastic depth of the last block; it grows evenly from 0 at the first.
        token_std: standard deviation at which learned tokens and positions start. Deviates: 0 in the authors' code, so
            that all keypoints begin with the same heat map.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        num_keypoints: int,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        coarse_scale: float = 0.5,
        fine_scale: float | None = 1.0,
        selection: PatchSelection,
        quality_predictor: QualityPredictor | None,
        reuse: bool = True,
        kept_tokens: str = "input",
        attention_from: float = 0.25,
        attention_decay: float = 0.99,
        drop_path: float = 0.1,
        token_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.num_keypoints = num_keypoints
        self.selection = selection
        self.kept_tokens = kept_tokens
        self.first_scored_block = int(attention_from * depth)
        self.coarse_grid = grid_size(image_size, coarse_scale, patch_size)
        self.coarse_size = tuple(side * patch_size for side in self.coarse_grid)
        self.ratio = 0 if fine_scale is None else round(fine_scale / coarse_scale)
        self.fine_size = tuple(side * self.ratio for side in self.coarse_size)

        num_patches = self.coarse_grid[0] * self.coarse_grid[1]
        self.patch_embedding = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.coarse_positions = nn.Parameter(torch.zeros(num_patches, dim))
        self.keypoint_tokens = nn.Parameter(torch.zeros(num_keypoints, dim))
        self.register_parameter("fine_positions", None)
        self.register_parameter("quality_token", None)
        self.quality_predictor = quality_predictor
        if quality_predictor is not None:
            self.quality_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, num_heads, drop_path=drop_path * index / max(depth - 1, 1), attention_decay=attention_decay
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.reuse: nn.Sequential | None = None
        if self.has_fine_stage:
            self.fine_positions = nn.Parameter(torch.zeros(num_patches * self.ratio**2, dim))
            if reuse:
                self.reuse = nn.Sequential(nn.LayerNorm(dim), MLP(dim, 4 * dim))
        self._initialize(token_std)

    @property
    def has_fine_stage(self) -> bool:
        """Whether there is a second stage."""
        return self.ratio > 0

    def _initialize(self, token_std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if token_std > 0:
            for tokens in (self.coarse_positions, self.fine_positions, self.keypoint_tokens, self.quality_token):
                if tokens is not None:
                    nn.init.trunc_normal_(tokens, std=token_std)

    def coarse_stage(self, image_BCHW: Tensor) -> CoarseStage:
        """Sees the images in large patches (Sec. 3.2).

        Args:
            image_BCHW: normalized images of `image_size`.
        """
        visual_BTC = self._patches(image_BCHW, self.coarse_size) + self.coarse_positions
        learned: list[Tensor] = [self.keypoint_tokens]
        if self.quality_token is not None:
            learned.insert(0, self.quality_token)
        learned_BTC = torch.cat(learned).expand(image_BCHW.shape[0], -1, -1)
        token_BTC = torch.cat([learned_BTC.to(visual_BTC), visual_BTC], dim=1)
        num_tokens = token_BTC.shape[1]
        attention_BTT = at_least_float32(token_BTC).new_zeros(token_BTC.shape[0], num_tokens, num_tokens)
        for block in self.blocks[: self.first_scored_block]:
            token_BTC, _ = block(token_BTC)
        for block in self.blocks[self.first_scored_block :]:
            token_BTC, attention_BTT = block(token_BTC, attention_BTT)
        token_BTC = self.norm(token_BTC)
        first_visual = num_tokens - visual_BTC.shape[1]
        keypoints = slice(first_visual - self.num_keypoints, first_visual)
        return CoarseStage(
            keypoint_BKC=token_BTC[:, keypoints],
            visual_BTC=token_BTC[:, first_visual:],
            visual_input_BTC=visual_BTC,
            relevance_BT=self.selection.relevance(attention_BTT[:, keypoints, first_visual:]),
            quality_B=None if self.quality_predictor is None else self.quality_predictor(token_BTC[:, 0]),
        )

    def fine_stage(self, image_BCHW: Tensor, coarse: CoarseStage) -> Tensor:
        """Keypoint tokens (B, K, C) after the second look, at small patches where they matter (Sec. 3.3).

        Args:
            image_BCHW: normalized images of `image_size`.
            coarse: what the coarse stage gave of the same images.
        """
        token_BTC = self.fine_tokens(image_BCHW, coarse)
        for block in self.blocks:
            token_BTC, _ = block(token_BTC)
        return self.norm(token_BTC)[:, : self.num_keypoints]

    def fine_tokens(self, image_BCHW: Tensor, coarse: CoarseStage) -> Tensor:
        """The tokens (B, T, C) that the fine stage starts with (eq. 8): keypoints, small patches, large patches."""
        assert self.fine_positions is not None
        selected_BT, kept_BT = self.selection.split(coarse.relevance_BT)
        finer_BT = finer_patches(selected_BT, self.coarse_grid[1], self.ratio)
        fine_BTC = take_tokens(self._patches(image_BCHW, self.fine_size) + self.fine_positions, finer_BT)
        if self.reuse is not None:
            fine_BTC = fine_BTC + take_tokens(self.reuse(coarse.visual_BTC), selected_BT.repeat(1, self.ratio**2))
        kept_from_BTC = coarse.visual_input_BTC if self.kept_tokens == "input" else coarse.visual_BTC
        keypoint_BKC = self.keypoint_tokens.expand(image_BCHW.shape[0], -1, -1).to(fine_BTC)
        return torch.cat([keypoint_BKC, fine_BTC, take_tokens(kept_from_BTC, kept_BT).to(fine_BTC)], dim=1)

    def _patches(self, image_BCHW: Tensor, size: tuple[int, ...]) -> Tensor:
        """The patches (B, T, C) of the images rescaled to a size (eq. 1), row by row."""
        if image_BCHW.shape[-2:] != size:
            image_BCHW = F.interpolate(image_BCHW, size=size, mode="bilinear", align_corners=False)
        return self.patch_embedding(image_BCHW).flatten(2).transpose(1, 2)


def grid_size(image_size: tuple[int, int], scale: float, patch_size: int) -> GridSize:
    """Rows and columns of the patches of an image of `image_size` that is rescaled by `scale`.

    Raises:
        ConfigError: a side of the rescaled image is no multiple of the patch.
    """
    rows, columns = (side * scale / patch_size for side in image_size)
    if not (rows.is_integer() and columns.is_integer() and rows > 0 and columns > 0):
        raise ConfigError(
            f"An image of {image_size[0]}x{image_size[1]} pixels at scale {scale} is not divided by patches of "
            f"{patch_size} pixels; change INPUT.PERSON_CROP.SIZE or MODEL.SHARPOSE.PATCH_SIZE."
        )
    return int(rows), int(columns)

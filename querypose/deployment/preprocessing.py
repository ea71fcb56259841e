"""What a pipeline does to images, as operations that a graph can hold: from pixels of files to the model's input.

Every pipeline of an evaluation scales and moves along the axes. So an input image is R · X · Cᵀ, where the rows of R
and C weigh the rows and columns of the file's image X: all images of a batch at once, each with its own size.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.d2 import CfgNode


class GraphPipeline(nn.Module):
    """Prepares images inside of a graph.

    Args:
        short_side: of the result, in pixels; 0 keeps the image's.
        divisor: of the sides of the padded result.
        is_bgr: whether the model takes BGR.
    """

    def __init__(self, short_side: int, divisor: int, is_bgr: bool) -> None:
        super().__init__()
        self.short_side = short_side
        self.divisor = max(divisor, 1)
        self.is_bgr = is_bgr

    def pixels(self, image_BHWC: Tensor, rows_BMH: Tensor, columns_BMW: Tensor, is_rounded: bool) -> Tensor:
        """uint8 (B, 3, M, M') from the weights of rows and columns; rounded in between where a resize does that."""
        image_BCHW = image_BHWC.permute(0, 3, 1, 2).float()
        if self.is_bgr:
            image_BCHW = image_BCHW.flip(1)
        image_BCHW = image_BCHW @ columns_BMW[:, None].transpose(2, 3)
        if is_rounded:
            image_BCHW = image_BCHW.round()
        return (rows_BMH[:, None] @ image_BCHW).round().clamp(0, 255).to(torch.uint8)

    def padded(self, length_B: Tensor) -> Tensor:
        """Positions of the pixels of the padded side, up to the greatest of a batch."""
        count = ((length_B.amax(0) + self.divisor - 1) // self.divisor * self.divisor).item()
        torch._check(count >= 2)
        torch._check(count <= 65536)
        return torch.arange(cast(int, count), dtype=torch.float64) + 0.5


class WholeImageInGraph(GraphPipeline):
    """`WholeImage`: a short side, aspect kept, at most a long side; or a factor of the image's size."""

    def __init__(self, *, short_side: int, max_size: int, scale: float, divisor: int, is_bgr: bool) -> None:
        super().__init__(short_side, divisor, is_bgr)
        self.max_size = max_size
        self.scale = scale

    def forward(self, image_BHWC: Tensor, size_B2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, their sizes without padding, and the maps (B, 2, 3) back to pixels of the files."""
        size = size_B2.double()
        if self.short_side:
            factor_B1 = self.short_side / size.amin(1, keepdim=True)
            factor_B1 = torch.minimum(factor_B1, self.max_size / size.amax(1, keepdim=True))
        else:
            factor_B1 = torch.full_like(size[:, :1], self.scale)
        result_B2 = (size * factor_B1 + 0.5).floor().clamp(min=1).long()
        step_B2 = size / result_B2
        weights = []
        for axis in (0, 1):
            position_M = self.padded(result_B2[:, axis])
            inside_BM = position_M < result_B2[:, axis, None]
            center_BM = position_M * step_B2[:, axis, None]
            support_B = step_B2[:, axis].clamp(min=1)
            weights.append(_bilinear(center_BM, support_B, size[:, axis], image_BHWC.shape[1 + axis], inside_BM))
        images = self.pixels(image_BHWC, weights[0], weights[1], is_rounded=True)
        return images, result_B2, _maps(step_B2.flip(1), torch.zeros_like(step_B2))


class DenseImageInGraph(GraphPipeline):
    """`DenseImage`: in the middle of a canvas whose long side is a multiple."""

    def __init__(self, *, short_side: int, multiple: int, divisor: int, is_bgr: bool) -> None:
        super().__init__(short_side, divisor, is_bgr)
        self.multiple = multiple

    def forward(self, image_BHWC: Tensor, size_B2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of `WholeImageInGraph`; the canvas is no padding."""
        size = size_B2.double()
        shortest_B1 = size.amin(1, keepdim=True)
        short_B1 = torch.full_like(shortest_B1, self.short_side) if self.short_side else shortest_B1
        factor_B1 = short_B1 / shortest_B1
        long_B2 = (factor_B1 * size / self.multiple - 1e-9).ceil() * self.multiple
        canvas_B2 = torch.where(size == shortest_B1, short_B1, long_B2)
        offset_B2 = (canvas_B2 - factor_B1 * size) / 2
        shrunk_B2 = (size * factor_B1.clamp(max=1)).round().clamp(min=1)
        is_whole_B = (offset_B2 == 0).all(1)
        weights = []
        for axis in (0, 1):
            position_M = self.padded(canvas_B2[:, axis].long())
            inside_BM = position_M < canvas_B2[:, axis, None]
            place_BM = (position_M - offset_B2[:, axis, None]) / factor_B1
            weights.append(
                _shrunk_then_read(
                    place_BM, size[:, axis], shrunk_B2[:, axis], image_BHWC.shape[1 + axis], inside_BM, is_whole_B
                )
            )
        images = self.pixels(image_BHWC, weights[0], weights[1], is_rounded=False)
        step_B2 = (1 / factor_B1).expand(-1, 2)
        return images, canvas_B2.long(), _maps(step_B2, (-offset_B2 * step_B2).flip(1))


class PersonCropsInGraph(GraphPipeline):
    """`PersonCrops` of one image: a crop for each box."""

    def __init__(
        self, *, size: tuple[int, int], padding: float, is_unbiased: bool, is_antialiased: bool, is_bgr: bool
    ) -> None:
        super().__init__(0, 1, is_bgr)
        self.size = size
        self.padding = padding
        self.is_unbiased = is_unbiased
        self.is_antialiased = is_antialiased

    def forward(self, image_1HWC: Tensor, box_B4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of `WholeImageInGraph`; B crops."""
        box = box_B4.double()
        size_B2, center_B2 = (box[:, 2:] - box[:, :2]).flip(1), ((box[:, :2] + box[:, 2:]) / 2).flip(1)
        canvas_2 = box.new_zeros(2) + torch.tensor(self.size, dtype=torch.float64)
        factor_B1 = (canvas_2 / size_B2).amin(1, keepdim=True) / self.padding
        scale_B2, offset_B2 = factor_B1.expand(-1, 2), canvas_2 / 2 - factor_B1 * center_B2
        if self.is_unbiased:
            inner_2 = (canvas_2 - 1) / canvas_2
            scale_B2, offset_B2 = scale_B2 * inner_2, offset_B2 * inner_2 + 0.5
        weights = []
        for axis, side in enumerate(self.size):
            length = image_1HWC.shape[1 + axis]
            length_B = torch.full_like(box[:, 0], 1.0) * length
            position_M = torch.arange(side, dtype=torch.float64) + 0.5
            place_BM = (position_M - offset_B2[:, axis, None]) / scale_B2[:, axis, None]
            shrink_B = scale_B2.prod(1).sqrt().clamp(max=1) if self.is_antialiased else torch.ones_like(length_B)
            shrunk_B = (length_B * shrink_B).round().clamp(min=1)
            inside_BM = torch.ones_like(place_BM, dtype=torch.bool)
            weights.append(
                _shrunk_then_read(
                    place_BM, length_B, shrunk_B, length, inside_BM, torch.zeros_like(length_B, dtype=torch.bool)
                )
            )
        images = self.pixels(image_1HWC, weights[0], weights[1], is_rounded=False)
        sizes_B2 = (torch.ones_like(size_B2) * canvas_2).long()
        return images, sizes_B2, _maps((1 / scale_B2).flip(1), (-offset_B2 / scale_B2).flip(1))


def graph_pipeline(cfg: CfgNode, divisor: int) -> GraphPipeline:
    """The pipeline that INPUT.PIPELINE names, for a graph.

    Raises:
        ConfigError: it is one of a user's own.
    """
    is_bgr, short_side = cfg.INPUT.FORMAT == "BGR", cfg.INPUT.MIN_SIZE_TEST
    if cfg.INPUT.PIPELINE == "whole_image":
        return WholeImageInGraph(
            short_side=short_side,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            scale=cfg.INPUT.SCALE_TEST,
            divisor=divisor,
            is_bgr=is_bgr,
        )
    if cfg.INPUT.PIPELINE == "dense_image":
        return DenseImageInGraph(
            short_side=short_side, multiple=cfg.INPUT.CANVAS_MULTIPLE, divisor=divisor, is_bgr=is_bgr
        )
    if cfg.INPUT.PIPELINE == "person_crops":
        crop = cfg.INPUT.PERSON_CROP
        height, width = crop.SIZE
        return PersonCropsInGraph(
            size=(height, width),
            padding=crop.PADDING,
            is_unbiased=crop.UNBIASED,
            is_antialiased=crop.ANTIALIAS,
            is_bgr=is_bgr,
        )
    raise ConfigError(
        f"INPUT.PIPELINE {cfg.INPUT.PIPELINE!r} cannot be part of an ONNX file. Export with --no-preprocessing, and "
        "prepare images yourself."
    )


def _bilinear(center_BM: Tensor, support_B: Tensor, length_B: Tensor, num_pixels: int, inside_BM: Tensor) -> Tensor:
    """Weights (B, M, num_pixels) of a triangle about each center, which sum to 1; 0 where `inside_BM` is False."""
    weight_BMN = _triangles(center_BM, support_B, length_B, num_pixels)
    weight_BMN = weight_BMN / weight_BMN.sum(-1, keepdim=True).clamp(min=1e-12)
    return (weight_BMN * inside_BM[..., None]).float()


def _triangles(center_BM: Tensor, support_B: Tensor, length_B: Tensor, num_pixels: int) -> Tensor:
    pixel_N = torch.arange(num_pixels, dtype=torch.float64) + 0.5
    weight_BMN = (1 - (pixel_N - center_BM[..., None]).abs() / support_B[:, None, None]).clamp(min=0)
    return weight_BMN * (pixel_N < length_B[:, None, None])


def _shrunk_then_read(
    place_BM: Tensor, length_B: Tensor, shrunk_B: Tensor, num_pixels: int, inside_BM: Tensor, clamps_B: Tensor
) -> Tensor:
    """Weights of what `GeometricTransform` does in two steps: shrink with antialiasing, then read between pixels.

    Args:
        place_BM: positions in the file's image.
        length_B: sides of the images.
        shrunk_B: sides after the first step.
        num_pixels: of the padded images.
        inside_BM: False where nothing is to be read.
        clamps_B: whether positions at the border read it alone; else what is outside is black.
    """
    step_B = length_B / shrunk_B
    pixel_N = torch.arange(num_pixels, dtype=torch.float64) + 0.5  # no more than these after the first step
    first_BNN = _bilinear(
        pixel_N * step_B[:, None], step_B.clamp(min=1), length_B, num_pixels, pixel_N < shrunk_B[:, None]
    )
    second_BMN = _triangles(place_BM / step_B[:, None], torch.ones_like(step_B), shrunk_B, num_pixels)
    total_BM1 = second_BMN.sum(-1, keepdim=True).clamp(min=1e-12)
    second_BMN = torch.where(clamps_B[:, None, None], second_BMN / total_BM1, second_BMN)
    return (second_BMN * inside_BM[..., None]).float() @ first_BNN


def _maps(step_BD: Tensor, offset_BD: Tensor) -> Tensor:
    """float32 (B, 2, 3) from x, y of the input to x, y of the file."""
    return torch.cat([torch.diag_embed(step_BD), offset_BD[..., None]], dim=-1).float()

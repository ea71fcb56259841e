"""What a pipeline does to images, as operations that a graph can hold: from pixels of files to the model's input.

Every pipeline of an evaluation scales and moves along the axes, so rows and columns are made one after the other. Of a
batch each image has its own size. The pixels are those of the pipeline to the last bit where it only resizes: models
answer to a level of 255.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.d2 import CfgNode

# Windows of the source this close to whole pixels are cut out and resized, as `GeometricTransform` does it.
_WHOLE_PIXEL_TOLERANCE = 1e-6


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

    def padded(self, length_B: Tensor) -> Tensor:
        """Indices of the pixels of the padded side, up to the greatest of a batch."""
        return torch.arange(_size((length_B.amax(0) + self.divisor - 1) // self.divisor * self.divisor))

    def resized(
        self, image_BHWC: Tensor, start_B2: Tensor, length_B2: Tensor, result_B2: Tensor, wanted: tuple[Tensor, Tensor],
        is_antialiased: bool = True,
    ) -> Tensor:  # fmt: skip
        """Pixels of a window of each image after its resize.

        Args:
            image_BHWC: uint8, RGB.
            start_B2: first row and column of the windows.
            length_B2: their height and width.
            result_B2: height and width after the resize.
            wanted: the rows (B, M) and columns (B, M') of the result that are made; others than its own are black.
            is_antialiased: False leaves out the pixels between the sampled ones.

        Returns:
            uint8 (B, 3, M, M').
        """
        pixels = image_BHWC
        for axis in (1, 0):  # columns first, as torch does it, since the pixels between are rounded
            lines_BNX = pixels.transpose(1, 2).flatten(2) if axis else pixels.flatten(2)
            made_BMX = _resized_lines(
                lines_BNX, start_B2[:, axis], length_B2[:, axis], result_B2[:, axis], wanted[axis], is_antialiased
            )
            pixels = made_BMX.unflatten(2, (-1, 3))
            pixels = pixels.transpose(1, 2) if axis else pixels
        return (pixels.flip(3) if self.is_bgr else pixels).permute(0, 3, 1, 2)

    def warped(
        self, image_BHWC: Tensor, size_B2: Tensor, scale_B2: Tensor, offset_B2: Tensor, canvas_B2: Tensor,
        indices: tuple[Tensor, Tensor], is_antialiased: bool = True,
    ) -> Tensor:  # fmt: skip
        """What `GeometricTransform` makes of images: shrunk with antialiasing, then read between pixels.

        Args:
            image_BHWC: uint8, RGB.
            size_B2: height and width of the images.
            scale_B2: from rows and columns of the images to those of the canvas, and `offset_B2` of the latter.
            offset_B2: see there.
            canvas_B2: height and width of the canvas.
            indices: rows (M) and columns (M') of the padded canvas.
            is_antialiased: False does not shrink.

        Returns:
            uint8 (B, 3, M, M').
        """
        first_B2, last_B2 = -offset_B2 / scale_B2, (canvas_B2 - offset_B2) / scale_B2
        start_B2, end_B2 = first_B2.round(), last_B2.round()
        gap_B2 = torch.maximum((first_B2 - start_B2).abs(), (last_B2 - end_B2).abs())
        is_whole_B2 = (gap_B2 <= _WHOLE_PIXEL_TOLERANCE) & (start_B2 >= 0) & (end_B2 <= size_B2)
        is_whole_B1 = is_whole_B2.all(1, keepdim=True)
        shrunk_B2 = size_B2
        if is_antialiased:
            shrunk_B2 = (size_B2 * scale_B2.prod(1, keepdim=True).sqrt().clamp(max=1)).round().clamp(min=1)
        result_B2 = torch.where(is_whole_B1, canvas_B2, shrunk_B2)
        wanted, shares = [], []
        for axis in (0, 1):
            length_B1, position_M = result_B2[:, axis, None], indices[axis] + 0.5
            place_BM = (position_M - offset_B2[:, axis, None]) / scale_B2[:, axis, None]
            place_BM = torch.where(is_whole_B1, position_M, place_BM * length_B1 / size_B2[:, axis, None])
            # In float32 from here on, as torch's grid_sample.
            unit_BM = (place_BM / (length_B1 / 2) - 1).float()
            index_BM = ((unit_BM + 1) * length_B1.float() - 1) / 2
            lower_BM = index_BM.floor()
            wanted.append(torch.stack([lower_BM, lower_BM + 1], dim=-1).long().flatten(1))
            shares.append(torch.stack([lower_BM + 1 - index_BM, index_BM - lower_BM], dim=-1))
        pixels = self.resized(
            image_BHWC,
            torch.where(is_whole_B1, start_B2, 0.0),
            torch.where(is_whole_B1, end_B2 - start_B2, size_B2),
            result_B2,
            (wanted[0], wanted[1]),
            is_antialiased,
        )
        rows_BM2, columns_BM2 = shares
        read = (pixels.float().unflatten(3, (-1, 2)) * columns_BM2[:, None, None]).sum(-1)
        read = (read.unflatten(2, (-1, 2)) * rows_BM2[:, None, :, :, None]).sum(3)
        return read.round().clamp(0, 255).to(torch.uint8)


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
        rows_BM, columns_BM = (self.padded(result_B2[:, axis]).expand(size.shape[0], -1) for axis in (0, 1))
        images = self.resized(image_BHWC, torch.zeros_like(size), size, result_B2.double(), (rows_BM, columns_BM))
        step_B2 = size / result_B2
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
        scale_B2, offset_B2 = factor_B1.expand(-1, 2), (canvas_B2 - factor_B1 * size) / 2
        indices = self.padded(canvas_B2[:, 0].long()), self.padded(canvas_B2[:, 1].long())
        images = self.warped(image_BHWC, size, scale_B2, offset_B2, canvas_B2, indices)
        return images, canvas_B2.long(), _maps((1 / scale_B2).flip(1), (-offset_B2 / scale_B2).flip(1))


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
        box_size_B2, center_B2 = (box[:, 2:] - box[:, :2]).flip(1), ((box[:, :2] + box[:, 2:]) / 2).flip(1)
        canvas_B2 = torch.zeros_like(center_B2) + torch.tensor(self.size, dtype=torch.float64)
        factor_B1 = (canvas_B2 / box_size_B2).amin(1, keepdim=True) / self.padding
        scale_B2, offset_B2 = factor_B1.expand(-1, 2), canvas_B2 / 2 - factor_B1 * center_B2
        if self.is_unbiased:
            inner_B2 = (canvas_B2 - 1) / canvas_B2
            scale_B2, offset_B2 = scale_B2 * inner_B2, offset_B2 * inner_B2 + 0.5
        size_B2 = torch.stack([torch.ones_like(box[:, 0]) * length for length in image_1HWC.shape[1:3]], dim=1)
        indices = torch.arange(self.size[0]), torch.arange(self.size[1])
        images = self.warped(image_1HWC, size_B2, scale_B2, offset_B2, canvas_B2, indices, self.is_antialiased)
        return images, canvas_B2.long(), _maps((1 / scale_B2).flip(1), (-offset_B2 / scale_B2).flip(1))


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


def _resized_lines(
    line_BNX: Tensor, start_B: Tensor, length_B: Tensor, result_B: Tensor, wanted_BM: Tensor, is_antialiased: bool
) -> Tensor:
    """Lines `wanted_BM` of what torch's `interpolate` makes of the lines [start, start + length): `result_B` lines.

    To the last bit: torch rounds weights to integers, of an image all by the power of two that leaves 15 bits to the
    greatest; so sums are exact in any order.

    Args:
        line_BNX: uint8; of a single image also where the rest is of several windows.
        start_B: float64, as all that follow.
        length_B: see there.
        result_B: see there.
        wanted_BM: int64; those that are none of the result become 0.
        is_antialiased: as of `GraphPipeline.resized`.
    """
    step_B1 = (length_B / result_B)[:, None]
    support_B1 = step_B1.clamp(min=1) if is_antialiased else torch.ones_like(step_B1)
    index_R = torch.arange(_size(result_B.amax(0)))
    tap_T = torch.arange(_size(2 * support_B1.amax((0, 1)).ceil() + 1))
    center_BR = (index_R + 0.5) * step_B1
    tap_BRT = (center_BR - support_B1 + 0.5).floor().clamp(min=0)[..., None] + tap_T
    weight_BRT = (1 - (tap_BRT + 0.5 - center_BR[..., None]).abs() / support_B1[..., None]).clamp(min=0)
    weight_BRT = weight_BRT * ((tap_BRT < length_B[:, None, None]) & (index_R < result_B[:, None])[..., None])
    weight_BRT = weight_BRT / weight_BRT.sum(-1, keepdim=True).clamp(min=1e-12)
    power_P = 2.0 ** torch.arange(1, 23, dtype=torch.float64)
    bits_B = ((0.5 + weight_BRT.amax((1, 2))[:, None] * power_P).floor() < 2**15).sum(1)
    power_B11 = power_P[bits_B - 1, None, None]
    weight_BRT = (0.5 + weight_BRT * power_B11).floor()
    tap_BRT = (tap_BRT + start_B[:, None, None]).long().clamp(max=line_BNX.shape[1] - 1)

    result_B1 = result_B[:, None]
    is_made_BM = (wanted_BM >= 0) & (wanted_BM < result_B1)
    of_BM = (torch.arange(result_B.shape[0])[:, None], torch.where(is_made_BM, wanted_BM, 0))
    weight_BMT = (weight_BRT[of_BM] * is_made_BM[..., None]).int()
    # Of one image after the other: whole lines are copied, which is fast.
    first_B11 = torch.arange(result_B.shape[0])[:, None, None] * line_BNX.shape[1] if line_BNX.shape[0] > 1 else 0
    read_BMTX = line_BNX.flatten(0, 1)[tap_BRT[of_BM] + first_B11].int()
    sum_BMX = (read_BMTX * weight_BMT[..., None]).sum(2, dtype=torch.int32).double()
    return ((sum_BMX + power_B11 / 2) / power_B11).floor().clamp(max=255).to(torch.uint8)


def _size(count: Tensor) -> int:
    """A number of the data as a size of tensors."""
    size = count.long().item()
    torch._check(size >= 2)
    torch._check(size <= 65536)
    return cast(int, size)


def _maps(step_BD: Tensor, offset_BD: Tensor) -> Tensor:
    """float32 (B, 2, 3) from x, y of the input to x, y of the file."""
    return torch.cat([torch.diag_embed(step_BD), offset_BD[..., None]], dim=-1).float()

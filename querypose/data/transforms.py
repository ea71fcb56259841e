"""Geometry of images, boxes and keypoints: one affine map that all three follow.

Coordinates are continuous: pixel column i covers [i, i + 1) and its center is at i + 0.5, so an image of width W spans
[0, W], a flip is x -> W - x, and a resize multiplies by (new width / old width) and nothing else. (The 0.5 by which
COCO's keypoints differ from this is added when a json is read: see `querypose.data.coco`.)

`GeometricTransform` is the map. Functions make simple ones (`crop`, `resize`, `rotate`, …); `then` chains them, so that
the pixels of a whole chain are resampled once. `querypose.data.augmentations` draws random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

ImageSize = tuple[int, int]  # height, width

# A source rectangle this close to whole pixels (they are products of a few float64 numbers) is taken as whole.
_WHOLE_PIXEL_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class GeometricTransform:
    """An affine map from a source frame to an output frame.

    Attributes:
        matrix: float64 (2, 3); (x, y) of the output = matrix @ (x, y, 1) of the source, continuous pixels.
        source_size: height and width of the images that it takes.
        output_size: height and width of the images that it gives.
    """

    matrix: np.ndarray
    source_size: ImageSize
    output_size: ImageSize

    @property
    def mirrors(self) -> bool:
        """Whether left and right are exchanged, so that keypoints must exchange their names."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0)

    def then(self, following: GeometricTransform) -> GeometricTransform:
        """The map that does this one first and `following` after it.

        Raises:
            ValueError: `following` takes images of another size than this one gives.
        """
        if following.source_size != self.output_size:
            raise ValueError(f"A transform of images {following.source_size} cannot follow one to {self.output_size}.")
        matrix = following.matrix[:, :2] @ self.matrix
        matrix[:, 2] += following.matrix[:, 2]
        return GeometricTransform(matrix, self.source_size, following.output_size)

    def inverse(self) -> GeometricTransform:
        """The map from the output frame back to the source frame."""
        linear = np.linalg.inv(self.matrix[:, :2])
        offset = -linear @ self.matrix[:, 2:]
        return GeometricTransform(np.hstack([linear, offset]), self.output_size, self.source_size)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Maps points.

        Args:
            coords: (..., 2), x and y in the source frame.

        Returns:
            float64 (..., 2), in the output frame.
        """
        return np.asarray(coords, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def apply_boxes(self, boxes_xyxy: np.ndarray, keypoints: np.ndarray | None = None) -> np.ndarray:
        """Maps boxes to upright boxes; they are not clipped.

        The box around a turned box is too large by up to a half: what it was around seldom fills its corners. So a
        turned box becomes the one around the ellipse inside it, and around the person's keypoints.

        Args:
            boxes_xyxy: (N, 4), corners in the source frame.
            keypoints: (N, K, 3), of the boxes' persons, in the source frame; those that are labeled and inside the box
                stay inside.

        Returns:
            float64 (N, 4), corners in the output frame.
        """
        boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
        center, reach = (
            self.apply_coords((low + high) / 2),
            np.sqrt(((high - low) / 2) ** 2 @ self.matrix[:, :2].T ** 2),
        )
        corners = np.stack([center - reach, center + reach], axis=1)
        if keypoints is not None:
            xy = keypoints[..., :2]
            is_inside = (keypoints[..., 2] > 0) & ((xy >= low[:, None]) & (xy <= high[:, None])).all(axis=-1)
            mapped = np.where(is_inside[..., None], self.apply_coords(xy), center[:, None])
            corners = np.concatenate([corners, mapped], axis=1)
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    def apply_keypoints(
        self, keypoints: np.ndarray, flip_indices: Sequence[int], *, keep_outside: bool = False
    ) -> np.ndarray:
        """Maps keypoints; those that end outside the output image, and those not labeled, become (0, 0, 0).

        Args:
            keypoints: (G, K, 3), x and y in the source frame, visibility.
            flip_indices: the K indices of `Skeleton.flip_indices`, used where the map mirrors.
            keep_outside: those outside stay as they are.

        Returns:
            float64 (G, K, 3), in the output frame.
        """
        mapped = np.array(keypoints, dtype=np.float64)
        mapped[..., :2] = self.apply_coords(mapped[..., :2])
        if self.mirrors:
            mapped = mapped[:, list(flip_indices)]
        height, width = self.output_size
        inside = (mapped[..., :2] >= 0).all(axis=-1) & (mapped[..., 0] <= width) & (mapped[..., 1] <= height)
        mapped[~(inside | keep_outside) | (mapped[..., 2] <= 0)] = 0
        return mapped

    def apply_image(self, image: np.ndarray, antialias: bool = True) -> np.ndarray:
        """Resamples an image once, bilinearly, with antialiasing if it shrinks; pixels outside are black.

        Args:
            image: uint8 (H, W, C) of `source_size`.
            antialias: False leaves out the pixels between the sampled ones, as OpenCV's warps do.

        Returns:
            uint8 (H', W', C) of `output_size`, a view of memory with one channel after the other. torch resizes and
            models read this layout; to change it and back took longer than to decode the image.

        Raises:
            ValueError: the image is not of `source_size`.
        """
        if image.shape[:2] != self.source_size:
            raise ValueError(f"The transform takes images of {self.source_size}, not {image.shape[:2]}.")
        window = self._window_of_whole_pixels()
        return self._warp(image, antialias) if window is None else self._crop_and_resize(image, window, antialias)

    def _window_of_whole_pixels(self) -> tuple[int, int, int, int] | None:
        """x0, y0, x1, y1 of the source pixels that the output shows; None if it needs a general warp."""
        if np.abs(self.matrix[[0, 1], [1, 0]]).max() > 1e-12:
            return None
        height, width = self.output_size
        corners = self.inverse().apply_coords(np.array([[0, 0], [width, height]]))
        window = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        whole = np.rint(window)
        source_height, source_width = self.source_size
        if np.abs(window - whole).max() > _WHOLE_PIXEL_TOLERANCE or whole[:2].min() < 0:
            return None
        if whole[2] > source_width or whole[3] > source_height:
            return None
        x0, y0, x1, y1 = (int(bound) for bound in whole)
        return x0, y0, x1, y1

    def _crop_and_resize(self, image: np.ndarray, window: tuple[int, int, int, int], antialias: bool) -> np.ndarray:
        x0, y0, x1, y1 = window
        pixels = _as_tensor(image[y0:y1, x0:x1])
        if pixels.shape[1:] != self.output_size:
            pixels = F.interpolate(
                pixels[None], size=self.output_size, mode="bilinear", antialias=antialias, align_corners=False
            )[0]
        mirrored = [axis + 1 for axis in (0, 1) if self.matrix[1 - axis, 1 - axis] < 0]
        pixels = pixels.contiguous().flip(mirrored)
        return pixels.permute(1, 2, 0).numpy()

    def _warp(self, image: np.ndarray, antialias: bool) -> np.ndarray:
        # Bilinear sampling does not antialias: shrink to the scale of the output first, then sample.
        scale = min(1.0, float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))) if antialias else 1.0
        shrink = resize(self.source_size, tuple(max(1, round(side * scale)) for side in self.source_size))
        to_source = shrink.inverse().then(self).inverse()
        pixels = shrink.apply_image(image)
        height, width = self.output_size
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        points = to_source.apply_coords(np.stack([x, y], axis=-1))
        # grid_sample with align_corners=False takes -1 and 1 as the outer edges of the image.
        grid = torch.from_numpy(points / (np.array(pixels.shape[1::-1]) / 2) - 1).float()
        source = _as_tensor(pixels).float()
        sampled = F.grid_sample(source[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
        return sampled[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def identity(size: ImageSize) -> GeometricTransform:
    """The map that changes nothing."""
    return GeometricTransform(np.eye(2, 3), size, size)


def horizontal_flip(size: ImageSize) -> GeometricTransform:
    """Mirrors: x -> W - x."""
    return GeometricTransform(np.array([[-1.0, 0.0, size[1]], [0.0, 1.0, 0.0]]), size, size)


def resize(size: ImageSize, output_size: Sequence[int]) -> GeometricTransform:
    """Stretches images of `size` to `output_size` (height, width)."""
    height, width = output_size
    matrix = np.array([[width / size[1], 0.0, 0.0], [0.0, height / size[0], 0.0]])
    return GeometricTransform(matrix, size, (height, width))


def crop(size: ImageSize, x: int, y: int, width: int, height: int) -> GeometricTransform:
    """Cuts out the pixels [x, x + width) by [y, y + height)."""
    return GeometricTransform(np.array([[1.0, 0.0, -x], [0.0, 1.0, -y]]), size, (height, width))


def rotate(size: ImageSize, degrees: float) -> GeometricTransform:
    """Turns clockwise about the image's center; the size stays, corners are lost."""
    angle = np.deg2rad(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([size[1] / 2, size[0] / 2])
    return GeometricTransform(np.column_stack([linear, center - linear @ center]), size, size)


def shift(size: ImageSize, right: float, down: float) -> GeometricTransform:
    """Moves by pixels; the size stays, pixels that leave it are lost."""
    return GeometricTransform(np.array([[1.0, 0.0, right], [0.0, 1.0, down]]), size, size)


def scale(size: ImageSize, factor: float) -> GeometricTransform:
    """Enlarges about the image's center; the size stays."""
    center = np.array([size[1] / 2, size[0] / 2])
    return GeometricTransform(np.column_stack([np.eye(2) * factor, (1 - factor) * center]), size, size)


def box_to_canvas(
    size: ImageSize, box_xyxy: Sequence[float], canvas_size: ImageSize, padding: float
) -> GeometricTransform:
    """Puts a box, made `padding` times larger, into the middle of a canvas: as large as fits, its aspect kept.

    Args:
        size: of the image.
        box_xyxy: corners in it; with an area.
        canvas_size: height and width.
        padding: factor on both sides of the box; 1.25 leaves a tenth of the canvas free at each end.
    """
    x0, y0, x1, y1 = box_xyxy
    factor = min(canvas_size[0] / (y1 - y0), canvas_size[1] / (x1 - x0)) / padding
    center, middle = np.array([x0 + x1, y0 + y1]) / 2, np.array(canvas_size[::-1]) / 2
    return GeometricTransform(np.column_stack([np.eye(2) * factor, middle - factor * center]), size, canvas_size)


def shortest_edge_size(size: ImageSize, short_side: int, max_size: int | None = None) -> ImageSize:
    """The size with the same aspect whose short side is `short_side`, or whose long side is `max_size` if that is less.

    480x640 to a short side of 800 is 800x1067: sides are rounded half up, as detectron2 does.
    """
    scale = short_side / min(size)
    if max_size is not None:
        scale = min(scale, max_size / max(size))
    return scaled_size(size, scale)


def scaled_size(size: ImageSize, factor: float) -> ImageSize:
    """The size with sides `factor` times as long, rounded half up, at least one pixel."""
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, C) as a view (C, H, W), whose layout in memory is the one that torch resizes fastest."""
    if min(pixels.strides) < 0 or not pixels.flags.writeable:
        pixels = pixels.copy()  # torch takes neither negative strides nor read-only memory
    return torch.from_numpy(pixels).permute(2, 0, 1)

#!/usr/bin/env python
"""Runs an exported ONNX file with numpy, Pillow and onnxruntime alone: no torch, no other file of this project.

    pip install numpy pillow onnxruntime
    python runtime.py model.onnx photo.jpg --output photo_poses.png

    from runtime import PoseRuntime
    poses = PoseRuntime("model.onnx")("photo.jpg")
    print(poses.scores, poses.keypoints)

`tools/export.py --format onnx` puts a copy of this file beside the model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

_METADATA, _FORMAT = "querypose", 1
_COLORS = ((64, 160, 255), (255, 150, 40), (90, 210, 90), (240, 80, 160), (250, 220, 60), (150, 110, 255))


class RuntimeFileError(ValueError):
    """A model or image that cannot be used: names it and the remedy."""


@dataclass(frozen=True, eq=False)
class FoundPoses:
    """The poses of an image, best first.

    Attributes:
        scores: (N).
        keypoints: x, y and score (N, K, 3), in pixels of the image; the center of the first is 0.5.
        boxes: corners (N, 4).
    """

    scores: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


class PoseRuntime:
    """A model of an ONNX file; it may be called from several threads at once.

    Attributes:
        keypoints: names of the K keypoints.
        edges: pairs of indices that a drawing connects.
        is_top_down: whether it needs the boxes of persons.
    """

    def __init__(
        self, path: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",), *, threads: int = 0
    ) -> None:
        """Opens the file.

        Args:
            path: of the file.
            providers: of onnxruntime, the preferred first, such as CUDAExecutionProvider.
            threads: of an operator on the CPU; 0: as many as it has cores.

        Raises:
            RuntimeFileError: it is no such file, or damaged.
        """
        if not Path(path).is_file():
            raise RuntimeFileError(f"There is no file {str(path)!r}. Correct the path.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's errors have no base but this
            reason = str(error).splitlines()[0]
            raise RuntimeFileError(f"{path} is not a whole ONNX file: copy or export it again. ({reason})") from error
        text = self.session.get_modelmeta().custom_metadata_map.get(_METADATA)
        metadata: dict[str, Any] = json.loads(text) if text else {}
        if metadata.get("format") != _FORMAT or not metadata.get("with_preprocessing"):
            raise RuntimeFileError(
                f"{path} takes no images: export the model by tools/export.py --format onnx, with its preprocessing."
            )
        self.keypoints = tuple(metadata["keypoints"])
        self.edges = tuple((first, second) for first, second in metadata["edges"])
        self.is_top_down: bool = metadata["top_down"]

    def __call__(self, image: Any, boxes: Any = None) -> FoundPoses:
        """The poses in an image.

        Args:
            image: a file name, a Pillow image, or a uint8 array (H, W, 3) RGB.
            boxes: (N, 4) corners of the persons, for a top-down model; None: the whole image is one person's.
        """
        if self.is_top_down:
            scores, keypoints, corners = self.session.run(None, self.feeds(read_pixels(image)[None], boxes))
            return _found(scores[:, 0], keypoints[:, 0], corners[:, 0])
        return self.batch([image])[0]

    def batch(self, images: Sequence[Any]) -> list[FoundPoses]:
        """The poses in several images; those of equal size run together, since padding for a neighbor moves poses.

        Not for a top-down model.

        Raises:
            RuntimeFileError: the model is top-down, or an image cannot be used.
        """
        if self.is_top_down:
            raise RuntimeFileError("A top-down model takes one image at a time, with the boxes of its persons.")
        pixels = [read_pixels(image) for image in images]
        of_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(pixels):
            of_size.setdefault(image.shape, []).append(index)
        results: dict[int, FoundPoses] = {}
        for indices in of_size.values():
            outputs = self.session.run(None, self.feeds(np.stack([pixels[index] for index in indices])))
            results |= {index: _found(*found) for index, *found in zip(indices, *outputs, strict=True)}
        return [results[index] for index in range(len(pixels))]

    def feeds(self, image_BHWC: NDArray[np.uint8], boxes: Any = None) -> dict[str, NDArray[Any]]:
        """What the session takes of images of equal size; of a top-down model one image and `boxes`, see a call."""
        num_images, height, width, _ = image_BHWC.shape
        if self.is_top_down:
            boxes = np.asarray([[0, 0, width, height]] if boxes is None else boxes, dtype=np.float32).reshape(-1, 4)
            return {"images": image_BHWC, "persons": boxes}
        return {"images": image_BHWC, "sizes": np.array([[height, width]] * num_images, dtype=np.int64)}

    def draw(self, image: Any, poses: FoundPoses, threshold: float = 0.3) -> Image.Image:
        """The image with the poses of at least this score, as plain lines."""
        canvas = Image.fromarray(read_pixels(image))
        draw = ImageDraw.Draw(canvas)
        width = max(2, round(sum(canvas.size) / 400))
        for index, (score, keypoints_K3) in enumerate(zip(poses.scores, poses.keypoints, strict=True)):
            if score < threshold:
                continue
            color, points = _COLORS[index % len(_COLORS)], [(float(x), float(y)) for x, y, _ in keypoints_K3]
            for first, second in self.edges:
                draw.line([points[first], points[second]], fill=color, width=width)
            for x, y in points:
                draw.ellipse([x - width, y - width, x + width, y + width], fill=color)
        return canvas


def read_pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB of a file, a Pillow image or such an array.

    Raises:
        RuntimeFileError: it cannot be read, or is no image.
    """
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RuntimeFileError(f"{str(image)!r} cannot be read as an image: {error}. Take another file.") from error
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise RuntimeFileError("Give an image as a file name, a Pillow image or a uint8 array (height, width, 3).")
    return image


def _found(
    scores_N: NDArray[np.float32], keypoints_NK3: NDArray[np.float32], boxes_N4: NDArray[np.float32]
) -> FoundPoses:
    is_pose_N = scores_N > -np.inf
    return FoundPoses(scores_N[is_pose_N], keypoints_NK3[is_pose_N], boxes_N4[is_pose_N])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--output", metavar="FILE", help="the image with its poses drawn in")
    parser.add_argument("--threshold", type=float, default=0.3, metavar="T", help="(default: %(default)s)")
    parsed = parser.parse_args(arguments)
    try:
        runtime = PoseRuntime(parsed.model)
        poses = runtime(parsed.image)
    except RuntimeFileError as error:
        print(f"runtime.py: error: {error}", file=sys.stderr)
        return 2
    kept = poses.scores >= parsed.threshold
    found = zip(poses.scores[kept].tolist(), poses.keypoints[kept].tolist(), strict=True)
    print(json.dumps([{"score": score, "keypoints": keypoints} for score, keypoints in found]))
    if parsed.output:
        runtime.draw(parsed.image, poses, parsed.threshold).save(parsed.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where pictures come from and go to: files, folders, patterns, videos, a camera.

Photos are read by `querypose.data.image_io`. Videos need OpenCV, which is an extra and imported when one is opened.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from querypose.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
CAMERA = "webcam"
_PATTERN_CHARACTERS = frozenset("*?[")
_OPENCV_HINT = "Videos and cameras need OpenCV. Install it: pip install opencv-python-headless"
_JPEG_QUALITY = 95
_DEFAULT_FPS = 25.0


class MediaError(UserError, ValueError):
    """An input or output that cannot be used: names it and the remedy."""


def is_video(source: str) -> bool:
    return Path(source).suffix.lower() in VIDEO_SUFFIXES or source.partition(":")[0] == CAMERA


def list_images(sources: Sequence[str]) -> list[Path]:
    """The image files that files, folders and patterns stand for, each once, in the order given.

    The images of a folder (not those of folders in it) and the matches of a pattern are sorted by name; `**` in a
    pattern stands for folders in folders. A file counts whatever its name.

    Raises:
        MediaError: a source does not exist or holds no image.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not images:
                raise MediaError(
                    f"The folder {source!r} has no image. Images end in {', '.join(sorted(IMAGE_SUFFIXES))}."
                )
        elif path.is_file():
            images = [path]
        elif _PATTERN_CHARACTERS & set(source):
            matches = sorted(glob.glob(str(path), recursive=True))
            images = [Path(match) for match in matches if Path(match).suffix.lower() in IMAGE_SUFFIXES]
            if not images:
                raise MediaError(f"No image matches the pattern {source!r}.")
        else:
            raise MediaError(f"There is no file or folder {source!r}. Correct the path.")
        found += images
    return list(dict.fromkeys(found))


def output_paths(images: Sequence[Path], output: Path) -> list[Path]:
    """Where the drawn images go: into the folder `output`, under their names, or to `output` itself.

    `output` is a file if it has an image's suffix; then there must be one image. Images of the same name (from
    different folders, or of different formats) are told apart by a number. What is neither jpg nor png becomes png.

    Raises:
        MediaError: several images for one file, or an output that would overwrite an input.
    """
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(images) != 1:
            raise MediaError(
                f"--output {str(output)!r} is one file, but there are {len(images)} images. Name a folder."
            )
        paths = [output]
    else:
        paths = []
        for image in images:
            suffix = image.suffix if image.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
            path, number = output / f"{image.stem}{suffix}", 2
            while path in paths:
                path, number = output / f"{image.stem}-{number}{suffix}", number + 1
            paths.append(path)
    inputs = {os.path.realpath(image) for image in images}
    for path in paths:
        if os.path.realpath(path) in inputs:
            raise MediaError(f"The output {str(path)!r} would overwrite an input. Choose another --output.")
    return paths


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes (H, W, 3) RGB in the format that the suffix names; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        Image.fromarray(image).save(path, quality=_JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(image).save(path)


def save_animation(path: Path, frames: Sequence[NDArray[np.uint8]], *, seconds: float = 0.8) -> None:
    """Writes frames (H, W, 3) RGB of one size as a GIF that repeats; the last one stays three times as long.

    Args:
        path: its folder is made.
        frames: one at least.
        seconds: that a frame is shown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    durations = [round(1000 * seconds)] * len(others) + [round(3000 * seconds)]
    first.save(path, save_all=True, append_images=others, duration=durations if others else durations[0], loop=0)


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise MediaError(_OPENCV_HINT) from error
    return cv2


class VideoReader:
    """The frames of a video file or camera, as (H, W, 3) RGB.

    Attributes:
        fps: frames per second as the file says; 25 where it does not.
        num_frames: as the file says; None for a camera and where it does not.
    """

    def __init__(self, source: str) -> None:
        """Opens a file, `webcam` or `webcam:N`.

        Raises:
            MediaError: OpenCV is missing, or cannot open the source.
        """
        self._cv2 = _opencv()
        name, _, number = source.partition(":")
        self._source = source
        if name == CAMERA:
            if number and not number.isdigit():
                raise MediaError(f"{source!r} is not a camera; allowed: {CAMERA}, {CAMERA}:0, {CAMERA}:1, …")
            self._capture = self._cv2.VideoCapture(int(number or 0))
        else:
            if not Path(source).is_file():
                raise MediaError(f"There is no video file {source!r}. Correct the path.")
            self._capture = self._cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise MediaError(f"OpenCV cannot open {source!r}. Is the file a video? Is the camera there, and free?")
        fps = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < 1000 else _DEFAULT_FPS
        count = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        self.num_frames = count if count > 0 and name != CAMERA else None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        count = 0
        while True:
            ok, frame = self._capture.read()
            if not ok:
                break
            count += 1
            yield np.ascontiguousarray(frame[:, :, ::-1])
        if not count:
            raise MediaError(f"OpenCV read no frame from {self._source!r}. Is it damaged, or the camera in use?")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._capture.release()


class VideoWriter:
    """Writes (H, W, 3) RGB frames of one size to an mp4 file."""

    def __init__(self, path: Path, fps: float) -> None:
        self._cv2 = _opencv()
        self._path, self._fps = path, fps
        self._writer: Any = None

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Adds a frame; the first one decides the size.

        Raises:
            MediaError: OpenCV cannot write the file.
        """
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            codec = self._cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = self._cv2.VideoWriter(str(self._path), codec, self._fps, (frame.shape[1], frame.shape[0]))
            if not self._writer.isOpened():
                raise MediaError(f"OpenCV cannot write {str(self._path)!r}; its name must end in .mp4.")
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()

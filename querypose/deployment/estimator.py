"""`querypose.load(…)`: a trained model that takes images as they come and gives their poses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from PIL import Image

from querypose.config import ConfigError
from querypose.d2 import CheckpointError
from querypose.data import read_image
from querypose.data.image_io import MAX_PIXELS, ImageReadError, explained_read_errors, pixels_of
from querypose.data.pipelines import build_pipeline
from querypose.deployment.package import WEIGHTS_FILE, ModelPackage, read_package
from querypose.deployment.results import ImagePoses
from querypose.engine.inference import InferenceModel
from querypose.engine.predictor import PosePredictor
from querypose.evaluation.detections import Poses, instances_to_poses
from querypose.evaluation.finishing import build_finishing
from querypose.layers.precision import PRECISIONS
from querypose.skeleton import Skeleton
from querypose.visualization.media import VideoReader, is_video, list_images

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


class PoseEstimator(ModelHubMixin, library_name="querypose", tags=["keypoint-detection"]):
    """A trained model for use: images in, poses out, as an evaluation of it gives them.

    It may be called from several threads at once.

    Attributes:
        package: the model as it was saved, in float32.
        skeleton: what its keypoints are.
    """

    def __new__(cls, *_: Any, **__: Any) -> PoseEstimator:
        """As of any object: the mixin's would save the arguments, the device of whoever saves among them."""
        return object.__new__(cls)

    def __init__(
        self, package: ModelPackage, *, device: str | torch.device | None = None, precision: str = "float32"
    ) -> None:
        """Makes the model ready.

        Args:
            package: of `read_package`.
            device: where it computes; None: a GPU if there is one.
            precision: of the forward pass: "float32", or "bfloat16", which is faster on most GPUs.

        Raises:
            ConfigError: there is no such precision or device.
        """
        if precision not in PRECISIONS or precision == "float16":
            raise ConfigError(f"precision is {precision!r}; allowed: 'float32', 'bfloat16'.")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.package = package
        self.skeleton: Skeleton = package.skeleton
        cfg = package.cfg
        try:
            model = InferenceModel(package.model, precision=PRECISIONS[precision]).to(torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch built without it, or an unknown name
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device is {device!r}, which cannot be used here: {reason}") from error
        self._predictor = PosePredictor(model=model, pipeline=build_pipeline(cfg, is_train=False))
        self._finishing = build_finishing(cfg, package.skeleton)
        self._device = device

    def __call__(self, source: Any, *, boxes: NDArray[np.floating] | None = None, batch_size: int = 8) -> Any:
        """The poses in one image, in several, or in a video.

        Args:
            source: an image, as a file name, a Pillow image or a uint8 array (H, W, 3) RGB; a list of such; a folder
                or pattern; a video file or "webcam".
            boxes: (N, 4) corners of the persons in one image, for a model that is fed crops; without them the whole
                image is the box of one person.
            batch_size: samples of equal size that run together.

        Returns:
            `ImagePoses` of one image; a list of them of a list, folder or pattern; an iterator over frames of a video.

        Raises:
            ImageReadError: an image cannot be read, or is too large.
            MediaError: there is no such file or folder, or the video cannot be read.
        """
        if isinstance(source, str) and is_video(source):
            return self._frames(source, batch_size)
        if isinstance(source, str | Path) and not Path(source).expanduser().is_file():
            source = list_images([str(source)])
        if isinstance(source, list | tuple):
            if boxes is not None:
                raise ValueError("boxes are those of one image; call the model once an image.")
            return list(self.iterate(source, batch_size))
        return self._batch([source], [boxes], batch_size)[0]

    def iterate(self, sources: Iterable[ImageLike], batch_size: int = 8) -> Iterator[ImagePoses]:
        """The poses of images one after the other, `batch_size` in memory at once."""
        sources = iter(sources)
        while batch := list(itertools.islice(sources, batch_size)):
            yield from self._batch(batch, [None] * len(batch), batch_size)

    def _frames(self, source: str, batch_size: int) -> Iterator[ImagePoses]:
        with VideoReader(source) as reader:
            yield from self.iterate(reader, batch_size)

    def _batch(
        self, sources: Sequence[ImageLike], boxes: Sequence[NDArray[np.floating] | None], batch_size: int
    ) -> list[ImagePoses]:
        images = [image_of(source) for source in sources]
        samples_of_image = [self._predictor.samples(*given) for given in zip(images, boxes, strict=True)]
        samples = list(itertools.chain.from_iterable(samples_of_image))
        instances: list[Any] = [None] * len(samples)
        for indices in batches_of_size([tuple(sample["image"].shape[-2:]) for sample in samples], batch_size):
            with torch.inference_mode():
                outputs = self._predictor.model([samples[index] for index in indices])
            for index, output in zip(indices, outputs, strict=True):
                instances[index] = output["instances"]
        results, rest = [], iter(instances)
        for source, image, own in zip(sources, images, samples_of_image, strict=True):
            name = str(source) if isinstance(source, str | Path) else ""
            parts = [instances_to_poses(next(rest), name or "given", self.skeleton) for _ in own]
            poses = Poses.joined(parts, self.skeleton.num_keypoints)
            for step in self._finishing:
                poses = step(poses)
            results.append(ImagePoses(poses.rounded(), self.skeleton, image, name))
        return results

    def __repr__(self) -> str:
        cfg = self.package.cfg
        return f"<{cfg.MODEL.META_ARCHITECTURE}, skeleton {self.skeleton.name!r}, on {self._device}>"

    def _save_pretrained(self, save_directory: Path) -> None:
        self.package.save(save_directory)

    @classmethod
    def _from_pretrained(  # keywords alone, as the mixin calls it
        cls,
        *,
        model_id: str,
        device: str | None = None,
        precision: str = "float32",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> PoseEstimator:
        if Path(model_id).exists():
            path = model_id
        else:
            try:
                path = hf_hub_download(
                    model_id, WEIGHTS_FILE, revision=revision, cache_dir=cache_dir, force_download=force_download,
                    local_files_only=local_files_only, token=token,
                )  # fmt: skip
            except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                raise CheckpointError(
                    f"There is no model {model_id!r}, neither a file or folder here nor one that the Hub gives. "
                    f"Correct the name, or check the network. ({str(error).strip().splitlines()[0]})"
                ) from error
        return cls(read_package(path), device=device, precision=precision)


def load(path: str | Path, *, device: str | None = None, precision: str = "float32") -> PoseEstimator:
    """A trained model, from a run's folder or a checkpoint in it, an exported file or folder, or the Hub.

    No code of the file runs. A model of another project's architecture needs that project imported before.

    Args:
        path: "output/run", "output/run/model_best.pth", "folder/model.safetensors", or "user/name" on the Hub.
        device: where it computes; None: a GPU if there is one.
        precision: of the forward pass, "float32" or "bfloat16".

    Raises:
        CheckpointError: there is no model, or it is damaged.
        ConfigError: it cannot be used here.
    """
    model: PoseEstimator = PoseEstimator._from_pretrained(model_id=str(path), device=device, precision=precision)
    return model


def image_of(source: ImageLike) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB, upright.

    Raises:
        ImageReadError: it cannot be read, is too large or no image.
    """
    if isinstance(source, str | Path):
        return read_image(Path(source).expanduser())
    if isinstance(source, Image.Image):
        with explained_read_errors(getattr(source, "filename", "") or "given"):
            return pixels_of(source)
    if not isinstance(source, np.ndarray) or source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        what = f"{source.dtype} {source.shape}" if isinstance(source, np.ndarray) else type(source).__name__
        raise ImageReadError(
            f"An image is a {what}", "give a file name, a Pillow image, or a uint8 array (height, width, 3) in RGB"
        )
    if not 0 < source.shape[0] * source.shape[1] <= MAX_PIXELS:
        raise ImageReadError(
            f"An image has {source.shape[1]} x {source.shape[0]} pixels; allowed: 1 to {MAX_PIXELS:,}",
            "resize it first",
        )
    return source


def batches_of_size(sizes: Sequence[tuple[int, ...]], batch_size: int) -> Iterator[list[int]]:
    """Indices of equal sizes, at most `batch_size` together: so nothing is padded for a neighbor."""
    of_size: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        of_size.setdefault(size, []).append(index)
    for indices in of_size.values():
        for first in range(0, len(indices), batch_size):
            yield indices[first : first + batch_size]

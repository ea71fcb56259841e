"""The poses of an image as a user of a trained model wants them: arrays, a picture, tables of other projects."""

from __future__ import annotations

import base64
import html
import importlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from querypose.data.coco import PIXEL_INDEX_TO_CONTINUOUS
from querypose.errors import UserError
from querypose.evaluation.detections import Poses, poses_to_results
from querypose.skeleton import Skeleton
from querypose.visualization import draw_poses, drawn_visibilities

_NOTEBOOK_WIDTH = 640


class MissingPackageError(UserError, ImportError):
    """A package that an extra of this project installs is not there: names it and the remedy."""


@dataclass(frozen=True, eq=False)
class ImagePoses:
    """The poses of an image, best first.

    Attributes:
        poses: in COCO's coordinates, with the digits of a results file.
        skeleton: what the K keypoints are.
        image: uint8 (H, W, 3) RGB, that they were found in.
        source: file of the image; "" where it came as pixels.
    """

    poses: Poses
    skeleton: Skeleton
    image: NDArray[np.uint8]
    source: str = ""

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, index: Any) -> ImagePoses:
        """Some of the poses: those of a slice, an array of indices or a mask such as `poses.scores > 0.5`."""
        chosen = self.poses[[index] if isinstance(index, int) else index]
        return ImagePoses(chosen, self.skeleton, self.image, self.source)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Of the poses (N)."""
        return self.poses.scores

    @property
    def keypoints(self) -> NDArray[np.float64]:
        """x, y and score (N, K, 3); continuous pixels, the center of the first is 0.5."""
        return self.poses.keypoints + np.array([PIXEL_INDEX_TO_CONTINUOUS, PIXEL_INDEX_TO_CONTINUOUS, 0.0])

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Corners (N, 4); around the keypoints of a model that predicts no boxes."""
        if self.poses.boxes_xywh is None:
            xy_NKD = self.keypoints[..., :2]
            return np.concatenate([xy_NKD.min(axis=1), xy_NKD.max(axis=1)], axis=1)
        corner_N2, size_N2 = np.split(self.poses.boxes_xywh, 2, axis=1)
        return np.concatenate([corner_N2, corner_N2 + size_N2], axis=1)

    def draw(self, threshold: float = 0.3, *, with_boxes: bool = False) -> Image.Image:
        """The image with the poses of at least this score."""
        shown = self[self.scores >= threshold]
        visibilities = shown.poses.visibilities
        drawn = draw_poses(
            self.image,
            shown.keypoints[..., :2],
            self.skeleton,
            keypoint_scores=shown.keypoints[..., 2],
            scores=shown.scores,
            visibilities=None if visibilities is None else drawn_visibilities(visibilities),
            boxes=shown.boxes if with_boxes else None,
        )
        return Image.fromarray(drawn)

    def to_coco(self, image_id: int = 1, category_id: int = 1) -> list[dict[str, Any]]:
        """As COCO results, plain lists and numbers; the center of the first pixel is 0 there."""
        results = poses_to_results(self.poses, image_id, category_id)
        return [
            {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in result.items()}
            for result in results
        ]

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each keypoint: pose, score, keypoint, x, y, keypoint_score."""
        pandas = import_or_explain("pandas", "pandas")
        num_poses, num_keypoints = self.keypoints.shape[:2]
        return pandas.DataFrame(
            {
                "pose": np.repeat(np.arange(num_poses), num_keypoints),
                "score": np.repeat(self.scores, num_keypoints),
                "keypoint": np.tile(np.array(self.skeleton.keypoints, dtype=object), num_poses),
                "x": self.keypoints[..., 0].ravel(),
                "y": self.keypoints[..., 1].ravel(),
                "keypoint_score": self.keypoints[..., 2].ravel(),
            }
        )

    def to_supervision(self) -> Any:
        """`supervision.KeyPoints`; draw them with its EdgeAnnotator and the edges of the skeleton, counted from 1."""
        supervision = import_or_explain("supervision", "supervision")
        return supervision.KeyPoints(
            xy=self.keypoints[..., :2].astype(np.float32),
            class_id=np.zeros(len(self), dtype=int),
            keypoint_confidence=self.keypoints[..., 2].astype(np.float32),
            detection_confidence=self.scores.astype(np.float32),
        )

    def to_mmpose(self) -> list[dict[str, Any]]:
        """A dict for each pose, as the inferencer of MMPose gives under "predictions"."""
        return [
            {
                "keypoints": keypoints_K3[:, :2].tolist(),
                "keypoint_scores": keypoints_K3[:, 2].tolist(),
                "bbox": [box_4.tolist()],
                "bbox_score": score,
            }
            for keypoints_K3, box_4, score in zip(self.keypoints, self.boxes, self.scores.tolist(), strict=True)
        ]

    def __repr__(self) -> str:
        best = f", best score {self.scores.max():.2f}" if len(self) else ""
        of = f" of {self.source}" if self.source else ""
        return f"<{len(self)} poses{of}, skeleton {self.skeleton.name!r}{best}>"

    def _repr_html_(self) -> str:
        """In a notebook: the drawn image above what `repr` says."""
        drawn = self.draw()
        drawn.thumbnail((_NOTEBOOK_WIDTH, _NOTEBOOK_WIDTH))
        stream = io.BytesIO()
        drawn.save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        caption = html.escape(repr(self))
        return f'<figure><img src="data:image/png;base64,{picture}"><figcaption>{caption}</figcaption></figure>'


def import_or_explain(name: str, install: str) -> Any:
    """The module, or an error that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"This needs the package {name!r}. Install it: pip install {install}") from error

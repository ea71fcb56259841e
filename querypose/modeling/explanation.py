"""What a model computed on its way to the poses of an image, as named layers that anybody can draw.

`PoseModel.explain` gives them, `querypose.visualization.explanation` draws them, and neither knows the other's kinds of
model. Positions are pixels of the model's input, `image` of a sample, continuous.

Letters of shapes: N points or boxes, K keypoints, H and W of a map or of a grid of patches, D coordinates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Base of all layers.

    Attributes:
        name: what it shows, in a few words.
        stage: of the model's stages, from 1; 0 where the layer belongs to none.
        pose: the pose it belongs to, 0 the best of the image; None where it belongs to the image.
    """

    name: str
    stage: int = 0
    pose: int | None = None


@dataclass(frozen=True, kw_only=True)
class MapLayer(Layer):
    """A map of weights over a part of the input.

    Attributes:
        values_HW: the weights; only their ratios matter.
        box: the part it covers, x1, y1, x2, y2.
    """

    values_HW: NDArray[np.float32]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PointLayer(Layer):
    """Points of interest.

    Attributes:
        points_ND: x and y.
        from_ND: the point from which each was reached; None where there is no such.
    """

    points_ND: NDArray[np.float32]
    from_ND: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class BoxLayer(Layer):
    """Boxes with scores.

    Attributes:
        boxes_N4: corners.
        scores_N: in [0, 1].
    """

    boxes_N4: NDArray[np.float32]
    scores_N: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PatchLayer(Layer):
    """A grid of patches over the whole input, some of which the model saw more finely.

    Attributes:
        relevance_HW: of the patches.
        is_refined_HW: which were seen finely.
        ratio: fine patches along a side of a coarse one.
    """

    relevance_HW: NDArray[np.float32]
    is_refined_HW: NDArray[np.bool_]
    ratio: int = 2


@dataclass(frozen=True, kw_only=True)
class PoseLayer(Layer):
    """A pose as it was at a stage.

    Attributes:
        keypoints_KD: x and y.
        score: as far as the stage knew it, in [0, 1].
        box: the predicted box; None of a model that predicts none.
    """

    keypoints_KD: NDArray[np.float32]
    score: float = 1.0
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ValueLayer(Layer):
    """Values in [0, 1] with names of their own, such as gates."""

    values: Mapping[str, float]


@contextlib.contextmanager
def recorded_inputs(modules: Iterable[nn.Module]) -> Iterator[list[tuple[Any, ...]]]:
    """Notes what each of `modules` is called with inside the block; the list is in the order of the calls."""
    calls: list[tuple[Any, ...]] = []
    hooks = [module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs)) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def to_array(tensor: Tensor) -> NDArray[np.float32]:
    """As a layer holds it: float32, on the CPU."""
    return np.asarray(tensor.detach().float().cpu().numpy())


def to_box(tensor_4: Tensor) -> tuple[float, float, float, float]:
    """Corners as a layer holds them."""
    x1, y1, x2, y2 = tensor_4.tolist()
    return x1, y1, x2, y2

"""A tiny model of each meta-architecture as a package, whose poses are worth looking at."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from querypose.d2 import build_model
from querypose.deployment import ModelPackage, onnx_export
from querypose.deployment.preprocessing import GraphPipeline
from querypose.modeling import PoseModel
from querypose.skeleton import COCO_SKELETON
from tests.tiny import ARCHITECTURES, tiny_config

SMALL = [
    *(
        "TEST.DETECTIONS_PER_IMAGE",
        "6",
        "INPUT.MIN_SIZE_TEST",
        "64",
        "INPUT.MAX_SIZE_TEST",
        "96",
        "INPUT.CANVAS_MULTIPLE",
        "32",
    ),
    *("MODEL.QUERYPOSE.NUM_STAGES", "1", "MODEL.POET.NUM_ENCODER_LAYERS", "1", "MODEL.POET.NUM_DECODER_LAYERS", "1"),
    *("MODEL.LQR.NUM_POINTS", "1", "MODEL.SHARPOSE.DEPTH", "1", "MODEL.SHARPOSE.QUALITY.THRESHOLD", "0.5"),
]
PIPELINES = {"LQR": ["INPUT.PIPELINE", "dense_image", "TEST.FINISHING", "[{'name': 'pose_nms', 'max_poses': 4}]"]}


@cache
def tiny_package(architecture: str) -> ModelPackage:
    """A model with random weights, but scores that differ from pose to pose."""
    torch.manual_seed(0)
    cfg = tiny_config(*ARCHITECTURES[architecture], *SMALL, *PIPELINES.get(architecture, []))
    model = build_model(cfg)
    assert isinstance(model, PoseModel)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith("cls_logit"):
            # Initialized for 1 % persons, the same for all queries.
            nn.init.constant_(layer.bias, math.log(0.6 / 0.4))
            nn.init.normal_(layer.weight, std=1.0)
        if isinstance(layer, nn.Conv2d) and architecture == "LQR":
            nn.init.kaiming_normal_(layer.weight)
    return ModelPackage(model.eval(), cfg, COCO_SKELETON, {"keypoints/AP": 12.5})


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise, since a resized image of white noise is gray."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


_export_pipeline = onnx_export._exported_pipeline
_pipelines: dict[object, Any] = {}


def exported(architecture: str, folder: Path) -> Path:
    """The ONNX file of `tiny_package`, exported once into a folder; models of one pipeline share its graph."""

    def pipeline_once(pipeline: GraphPipeline) -> Any:
        key = (type(pipeline), pipeline.short_side, pipeline.divisor, pipeline.is_bgr)
        if key not in _pipelines:
            _pipelines[key] = _export_pipeline(pipeline)
        return _pipelines[key]

    path = folder / f"{architecture}.onnx"
    if not path.exists():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(onnx_export, "_exported_pipeline", pipeline_once)
            onnx_export.export_onnx(tiny_package(architecture), path)
    return path

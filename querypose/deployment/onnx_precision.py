"""Smaller ONNX files: weights of 16 bits, or the backbone in integers of 8 bits."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from querypose.deployment.results import import_or_explain
from querypose.runtime import PoseRuntime, read_pixels

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def halve_weights(model: Any) -> None:
    """Stores the weights of convolutions and linear layers as float16, in place.

    They become float32 again where the file is opened. So it computes as before, as fast, and nothing overflows; of a
    weight 11 of 24 bits are left.

    Args:
        model: an `onnx.ModelProto`.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    used = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    casts = []
    for weight in graph.initializer:
        if weight.name not in used or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), f"{name}/half"))
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def quantize_backbone(path: Path, photos: Sequence[str | Path]) -> None:
    """Makes the convolutions of the backbone int8, in place, calibrated on photos; all else stays float32.

    Weights have 7 bits, a scale for each channel: processors without VNNI add pairs of products in 16 bits.

    Args:
        path: of a file with its preprocessing.
        photos: like those that the model will see.
    """
    quantization = import_or_explain("onnxruntime.quantization", "querypose[export]")
    root_level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises by the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            quantized = Path(folder) / "model.onnx"
            quantization.quantize_static(
                str(path), str(quantized), _Photos(path, photos), per_channel=True, reduce_range=True,
                op_types_to_quantize=["Conv"], nodes_to_exclude=_convolutions_of_heads(path),
            )  # fmt: skip
            path.write_bytes(quantized.read_bytes())
    finally:
        logging.getLogger().setLevel(root_level)


def _convolutions_of_heads(path: Path) -> list[str]:
    """Names of those outside the backbone: what they give is positions and scores, which 8 bits would blur."""
    graph = import_or_explain("onnx", "querypose[export]").load(path).graph
    return [node.name for node in graph.node if node.op_type == "Conv" and ".backbone." not in node.input[1]]


class _Photos:
    """Gives the quantizer a photo after the other, as the session takes it."""

    def __init__(self, path: Path, photos: Sequence[str | Path]) -> None:
        runtime = PoseRuntime(path)
        self._feeds = (runtime.feeds(read_pixels(photo)[None]) for photo in photos)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._feeds, None)

"""A trained model as an ONNX file: images in, poses in their pixels out, by standard operators alone."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from querypose.config import ConfigError
from querypose.d2 import ImageList
from querypose.deployment.onnx_precision import halve_weights, quantize_backbone
from querypose.deployment.package import ModelPackage
from querypose.deployment.preprocessing import GraphPipeline, PersonCropsInGraph, graph_pipeline
from querypose.deployment.results import import_or_explain
from querypose.engine.inference import InferenceModel
from querypose.errors import UserError
from querypose.modeling import PoseModel
from querypose.modeling.poses import NO_POSE, QueryPoses
from querypose.runtime import RuntimeFileError, read_pixels

METADATA = "querypose"
FORMAT = 1
ONNX_PRECISIONS = ("float32", "float16", "int8")
_OPSET = 20
_OUTPUTS = ("scores", "keypoints", "boxes")
# Finishing steps that a graph can hold.
_FINISHING = ("rescore", "pose_nms")

_logger = logging.getLogger(__name__)


class ExportError(UserError, RuntimeError):
    """A model that cannot become a file of this format: names it, why, and the remedy."""


class PoseGraph(nn.Module):
    """What the file computes after the preprocessing: from padded images to the best poses in pixels of the files.

    Args:
        model: made ready for inference.
        num_poses: of an image.
        score_threshold: poses with a score not above it are none.
        finishing: entries of TEST.FINISHING.
    """

    def __init__(
        self, model: PoseModel, num_poses: int, score_threshold: float, finishing: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.num_poses = num_poses
        self.score_threshold = score_threshold
        self.finishing = tuple(finishing)

    def forward(self, images: Tensor, sizes: Tensor, to_file: Tensor, file_sizes: Tensor) -> tuple[Tensor, ...]:
        """The best poses of each image.

        Args:
            images: uint8 (B, 3, H, W), padded at the right and the bottom.
            sizes: height and width (B, 2) without padding.
            to_file: (B, 2, 3) from x, y of the images to x, y of the files.
            file_sizes: height and width (B, 2) of these.

        Returns:
            scores (B, N), best first, -inf where there is no pose; keypoints (B, N, K, 3); boxes (B, N, 4).
        """
        model = self.model
        normalized = (images.to(model.pixel_mean.dtype) - model.pixel_mean) / model.pixel_std
        is_row_BH = torch.arange(images.shape[2])[None] < sizes[:, :1]
        is_column_BW = torch.arange(images.shape[3])[None] < sizes[:, 1:]
        normalized = normalized * (is_row_BH[:, None, :, None] & is_column_BW[:, None, None, :])
        poses = model.poses(ImageList(normalized, sizes))  # type: ignore[arg-type]  # the graph takes any sizes
        poses = poses.best(self.num_poses).in_frames(to_file, file_sizes)
        scores_BQ = poses.scores_BQ
        if self.score_threshold > 0:
            scores_BQ = torch.where(scores_BQ > self.score_threshold, scores_BQ, NO_POSE)
        poses = QueryPoses(scores_BQ, poses.keypoints_BQK3, poses.boxes_BQ4).best(self.num_poses)
        for entry in self.finishing:
            poses = self._finished(poses, **entry)
        assert poses.boxes_BQ4 is not None
        return poses.scores_BQ, poses.keypoints_BQK3, poses.boxes_BQ4

    def _finished(self, poses: QueryPoses, name: str, **arguments: Any) -> QueryPoses:
        """The poses after a step of TEST.FINISHING, by the arguments and the rules of `evaluation.finishing`."""
        if name == "rescore":
            scores_BQK = poses.keypoints_BQK3[..., 2]
            is_counted_BQK = scores_BQK > arguments.get("threshold", 0.2)
            mean_BQ = (scores_BQK * is_counted_BQK).sum(-1) / is_counted_BQK.sum(-1).clamp(min=1)
            # 0 times -inf is no number.
            scores_BQ = torch.where(poses.scores_BQ > NO_POSE, poses.scores_BQ * mean_BQ, NO_POSE)
            return QueryPoses(scores_BQ, poses.keypoints_BQK3, poses.boxes_BQ4).best(self.num_poses)
        distance, share = arguments.get("distance", 0.05), arguments.get("share", 0.5)
        max_poses = arguments.get("max_poses", 30)
        xy_BQKD = poses.keypoints_BQK3[..., :2]
        reach_BQ = distance * (xy_BQKD.amax(2) - xy_BQKD.amin(2)).square().sum(-1).sqrt()
        gap_BQQK = (xy_BQKD[:, :, None] - xy_BQKD[:, None]).square().sum(-1).sqrt()
        is_like_BQQ = (gap_BQQK < reach_BQ[:, :, None, None]).float().mean(-1) > share
        is_left_BQ = poses.scores_BQ > NO_POSE
        place_Q = torch.arange(self.num_poses)
        for place in range(self.num_poses):
            removed_BQ = is_like_BQQ[:, place] & is_left_BQ[:, place, None] & (place_Q > place)
            is_left_BQ = is_left_BQ & ~removed_BQ
        if max_poses:
            is_left_BQ = is_left_BQ & (is_left_BQ.long().cumsum(1) <= max_poses)
        scores_BQ = torch.where(is_left_BQ, poses.scores_BQ, NO_POSE)
        return QueryPoses(scores_BQ, poses.keypoints_BQK3, poses.boxes_BQ4).best(self.num_poses)


def export_onnx(
    package: ModelPackage,
    path: str | Path,
    *,
    with_preprocessing: bool = True,
    precision: str = "float32",
    calibration: Sequence[str | Path] = (),
) -> Path:
    """Writes an ONNX file of a model.

    Args:
        package: the model.
        path: of the file.
        with_preprocessing: the file takes images as they are (`images`, uint8 (B, H, W, 3) RGB, and `sizes`; of a
            top-down model one image and the boxes of `persons`); else what the pipeline makes of them, see `PoseGraph`.
        precision: of `ONNX_PRECISIONS`; float16 is that of stored weights, int8 that of the backbone's convolutions.
        calibration: photos that an int8 model is calibrated on.

    Raises:
        ExportError: the model cannot be exported, or an int8 one has nothing to be calibrated on, or what is
            no photo.
        ConfigError: its pipeline cannot be part of a graph.
    """
    import_or_explain("onnxscript", "querypose[export]")
    onnx = import_or_explain("onnx", "querypose[export]")
    _require_exportable(package)
    if precision == "int8" and not (with_preprocessing and calibration):
        raise ExportError(
            "An int8 file is calibrated on photos as its preprocessing makes them. Name some: --calibration *.jpg, "
            "without --no-preprocessing."
        )
    for photo in calibration:
        try:
            read_pixels(photo)
        except RuntimeFileError as error:
            raise ExportError(str(error)) from error
    cfg, model = package.cfg, InferenceModel(package.model).model
    finishing = [entry for entry in cfg.TEST.FINISHING if entry["name"] in _FINISHING]
    if left_out := [entry["name"] for entry in cfg.TEST.FINISHING if entry["name"] not in _FINISHING]:
        _logger.warning("TEST.FINISHING: %s cannot be part of a graph and is left out of it.", ", ".join(left_out))
    is_top_down = cfg.INPUT.PIPELINE == "person_crops"
    num_poses = 1 if is_top_down else _num_poses(model, cfg.TEST.DETECTIONS_PER_IMAGE)
    graph = PoseGraph(model, num_poses, cfg.TEST.SCORE_THRESHOLD, finishing).eval()
    divisor = 1 if is_top_down else max(model.get_submodule("backbone").size_divisibility, 1)
    core = _exported_graph(graph, _example(model, divisor, is_top_down), divisor, is_top_down)
    if with_preprocessing:
        pipeline = graph_pipeline(cfg, divisor).eval()
        core = _merged(onnx, _exported_pipeline(pipeline), core, is_top_down)
    metadata = {
        "format": FORMAT,
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "keypoints": list(package.skeleton.keypoints),
        "edges": [list(edge) for edge in package.skeleton.edges],
        "skeleton": package.skeleton.name,
        "with_preprocessing": with_preprocessing,
        "top_down": is_top_down,
        "color": cfg.INPUT.FORMAT,
    }
    entry = core.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata)
    for node in core.graph.node:  # where in the source it came from, with the paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.checker.check_model(core, full_check=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if precision == "float16":
        halve_weights(core)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # a failure leaves no half-made model
        written = Path(folder) / path.name
        onnx.save(core, written)
        if precision == "int8":
            quantize_backbone(written, calibration)
        written.replace(path)
    return path


def _require_exportable(package: ModelPackage) -> None:
    name = package.cfg.MODEL.META_ARCHITECTURE
    if type(package.model).poses is PoseModel.poses:
        raise ExportError(f"{name} defines no `poses`, so that it cannot be exported. Define it; see docs/deploy.md.")
    if len(getattr(package.model, "test_scales", (1.0,))) > 1:
        raise ConfigError(f"{name} runs at several scales, and a graph at one. Set MODEL.{name}.TEST_SCALES [1.0].")


def _num_poses(model: PoseModel, wanted: int) -> int:
    """How many poses an image gets at most: queries are fewer than TEST.DETECTIONS_PER_IMAGE in small models."""
    with torch.no_grad():
        (sample,) = model.example_batch()
        images = model.normalized_images([sample], model.get_submodule("backbone").size_divisibility)  # type: ignore[arg-type]
        return min(wanted, model.poses(images).scores_BQ.shape[1])


def _example(model: PoseModel, divisor: int, is_top_down: bool) -> tuple[Tensor, ...]:
    (sample,) = model.example_batch()
    height, width = sample["image"].shape[-2:] if is_top_down else (4 * divisor, 6 * divisor)
    size = torch.tensor([[height, width], [height, width]])
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    return images, size, torch.eye(2, 3).expand(2, 2, 3).clone(), size.clone()


def _exported_graph(graph: nn.Module, example: tuple[Tensor, ...], divisor: int, is_top_down: bool) -> Any:
    batch = Dim("batch", max=4096)
    images: dict[int, Any] = {0: batch}
    if not is_top_down:
        images[2], images[3] = divisor * Dim("rows", min=2, max=2048), divisor * Dim("columns", min=2, max=2048)
    dims = (images, {0: batch}, {0: batch}, {0: batch})
    return _to_onnx(graph, example, dims, ["images", "sizes", "to_file", "file_sizes"], _OUTPUTS)


def _exported_pipeline(pipeline: GraphPipeline) -> Any:
    rows, columns = Dim("height", min=2, max=65536), Dim("width", min=2, max=65536)
    names = ["prepared", "prepared_sizes", "prepared_to_file"]
    if isinstance(pipeline, PersonCropsInGraph):
        image = torch.zeros(1, 50, 70, 3, dtype=torch.uint8)
        boxes = torch.tensor([[5.0, 6.0, 40.0, 45.0], [1.0, 2.0, 30.0, 40.0]])
        return _to_onnx(
            pipeline, (image, boxes), ({1: rows, 2: columns}, {0: Dim("persons")}), ["images", "persons"], names
        )
    images = torch.zeros(2, 50, 70, 3, dtype=torch.uint8)
    batch = Dim("batch", max=4096)
    dims = ({0: batch, 1: rows, 2: columns}, {0: batch})
    return _to_onnx(pipeline, (images, torch.tensor([[50, 70], [40, 60]])), dims, ["images", "sizes"], names)


def _to_onnx(
    module: nn.Module, example: tuple[Tensor, ...], dims: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    """The `onnx.ModelProto` of a module.

    Raises:
        ExportError: an operator has no counterpart.
    """
    with _quiet(), torch.no_grad():
        try:
            exported = torch.export.export(module, example, dynamic_shapes=dims, strict=False)
            program = torch.onnx.export(
                exported, dynamo=True, input_names=list(inputs), output_names=list(outputs), opset_version=_OPSET,
                verbose=False, custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )  # fmt: skip
        except Exception as error:  # torch's exporter raises errors of many kinds
            reason = _innermost(error)
            raise ExportError(
                f"The model uses an operation that cannot be exported: {reason} Replace that part of the model."
            ) from error
    assert program is not None
    return program.model_proto


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """`aten.sort`: TopK of all values, which takes the first of equal ones first."""
    from onnxscript import opset20 as op

    count: Any = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))  # type: ignore[type-var]  # an int64
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _merged(onnx: Any, pipeline: Any, core: Any, is_top_down: bool) -> Any:
    """One graph of both; the sizes of the files go to both."""
    pipeline = onnx.compose.add_prefix(pipeline, "prepare/", rename_inputs=False)
    core = onnx.compose.add_prefix(core, "pose/", rename_outputs=False)
    names = {"images": "prepared", "sizes": "prepared_sizes", "to_file": "prepared_to_file"}
    core.ir_version = pipeline.ir_version = max(core.ir_version, pipeline.ir_version)
    # The sizes of the files are an output of the first graph too, so that the second can read them.
    helper = onnx.helper
    if is_top_down:
        nodes = [
            helper.make_node("Shape", ["images"], ["files/size"], start=1, end=3),
            helper.make_node("Shape", ["persons"], ["files/persons"], start=0, end=1),
            helper.make_node("Constant", [], ["files/two"], value_ints=[2]),
            helper.make_node("Concat", ["files/persons", "files/two"], ["files/shape"], axis=0),
            helper.make_node("Expand", ["files/size", "files/shape"], ["files/sizes"]),
        ]
    else:
        nodes = [helper.make_node("Identity", ["sizes"], ["files/sizes"])]
    pipeline.graph.node.extend(nodes)
    pipeline.graph.output.append(helper.make_tensor_value_info("files/sizes", onnx.TensorProto.INT64, ["batch", 2]))
    io_map = [(f"prepare/{theirs}", f"pose/{ours}") for ours, theirs in names.items()]
    merged = onnx.compose.merge_models(pipeline, core, [*io_map, ("files/sizes", "pose/file_sizes")])
    del merged.opset_import[1:]  # named by both graphs, and to be named once
    return merged


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints what it does, and warns of its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}."

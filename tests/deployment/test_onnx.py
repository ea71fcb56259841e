"""ONNX files give what torch gives, and run where there is no torch."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from querypose.analysis.benchmark_subjects import PosesSubject, Workload
from querypose.config import ConfigError
from querypose.deployment import ModelPackage, PoseEstimator
from querypose.deployment.onnx_export import ExportError, export_onnx
from querypose.deployment.onnx_precision import _convolutions_of_heads, halve_weights, quantize_backbone
from querypose.modeling import PoseModel
from querypose.runtime import PoseRuntime, RuntimeFileError
from tests.deployment import models
from tests.deployment.models import noise, tiny_package
from tests.scripts import load_script
from tests.tiny import ARCHITECTURES

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
# Keypoints in pixels and scores, as far as float32 and the order of sums decide them.
PIXELS, SCORES = 0.05, 1e-4
# Of SHaRPose with random weights: its heat maps are nearly flat, where the step between the cells amplifies rounding.
FLAT_HEATMAP_PIXELS = 0.5

Exported = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The file of an architecture, which is exported once."""
    return functools.partial(models.exported, folder=tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_file_gives_what_torch_gives(architecture: str, exported: Exported) -> None:
    model = PoseEstimator(tiny_package(architecture), device="cpu")
    runtime = PoseRuntime(exported(architecture))
    # Sizes that need no resize and no padding: then both see the same pixels to the last bit.
    pixels = FLAT_HEATMAP_PIXELS if runtime.is_top_down else PIXELS
    for image in (noise(64, 96, 1), noise(96, 64, 2)):
        found, expected = runtime(image), model(image)
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.keypoints[..., :2], expected.keypoints[..., :2], atol=pixels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=SCORES)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)
    assert runtime.keypoints == model.skeleton.keypoints


def test_a_padded_batch_gives_what_torch_gives(exported: Exported) -> None:
    """Both see the padding beside the smaller images alike."""
    sizes = [(64, 96), (96, 64), (64, 64)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    padded = np.zeros((3, 96, 96, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        padded[index, : image.shape[0], : image.shape[1]] = image
    feeds = {"images": padded, "sizes": np.array(sizes)}
    scores, keypoints, _ = PoseRuntime(exported("POET")).session.run(None, feeds)
    samples = [{"image": torch.from_numpy(image).permute(2, 0, 1)} for image in images]
    for index, output in enumerate(tiny_package("POET").model(samples)):
        expected = output["instances"]
        count = len(expected)
        np.testing.assert_allclose(keypoints[index, :count], expected.pred_keypoints.detach(), atol=PIXELS)
        np.testing.assert_allclose(scores[index, :count], expected.scores.detach(), atol=SCORES)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_photos_of_different_sizes(architecture: str, exported: Exported, shared_data: Path) -> None:
    """Alone and in one call: each is resized as torch resizes it, and none is padded for a neighbor."""
    model, runtime = PoseEstimator(tiny_package(architecture), device="cpu"), PoseRuntime(exported(architecture))
    photos = sorted((shared_data / "lsp" / "val").glob("*.jpg"))[:10]
    together = [runtime(photo) for photo in photos] if runtime.is_top_down else runtime.batch(photos)
    pixels = FLAT_HEATMAP_PIXELS if runtime.is_top_down else PIXELS
    assert len(together) == 10
    for index, photo in enumerate(photos):
        expected = model(photo)
        for found in (together[index], runtime(photo)):
            assert len(found) == len(expected) > 0
            np.testing.assert_allclose(found.keypoints[..., :2], expected.keypoints[..., :2], atol=pixels)
            np.testing.assert_allclose(found.scores, expected.scores, atol=SCORES)


def test_smaller_files_find_nearly_the_same(exported: Exported, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    whole = exported("POET")
    half = onnx.load(whole)
    halve_weights(half)
    onnx.checker.check_model(half)
    onnx.save(half, tmp_path / "half.onnx")
    photos = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, photo in enumerate(photos):
        Image.fromarray(noise(64, 96, seed)).save(photo)
    (tmp_path / "int8.onnx").write_bytes(whole.read_bytes())
    quantize_backbone(tmp_path / "int8.onnx", photos)
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    expected, image = PoseRuntime(whole), noise(64, 96, 9)
    for name, size, scores in (("half", 0.65, 2e-3), ("int8", 0.65, 0.1)):
        path = tmp_path / f"{name}.onnx"
        assert path.stat().st_size < size * whole.stat().st_size
        found = PoseRuntime(path)(image)
        assert len(found) == len(expected(image)) > 0
        np.testing.assert_allclose(found.scores, expected(image).scores, atol=scores)


def test_convolutions_outside_the_backbone_stay_float32(exported: Exported) -> None:
    convolutions = _convolutions_of_heads(exported("QueryPose"))
    onnx = pytest.importorskip("onnx")
    weights = {
        node.name: node.input[1] for node in onnx.load(exported("QueryPose")).graph.node if node.op_type == "Conv"
    }
    assert convolutions == [name for name, weight in weights.items() if "backbone" not in weight]
    assert 0 < len(convolutions) < len(weights)


def test_int8_asks_for_photos(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--calibration"):
        export_onnx(tiny_package("POET"), tmp_path / "model.onnx", precision="int8")
    with pytest.raises(ExportError, match="cannot be read as an image"):
        export_onnx(tiny_package("POET"), tmp_path / "model.onnx", precision="int8", calibration=[tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_measures_files_beside_torch(exported: Exported, tmp_path: Path) -> None:
    """On pictures that are labeled with the poses that torch finds, both have the same AP."""
    package, images, annotations = tiny_package("POET"), [], []
    model = PoseEstimator(package, device="cpu")
    for image_id in (1, 2):
        Image.fromarray(noise(64, 96, image_id)).save(tmp_path / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 64, "width": 96})
        keypoints = model(tmp_path / f"{image_id}.png")[0].to_coco()[0]["keypoints"]
        keypoints[2::3] = [2] * (len(keypoints) // 3)
        box = {"bbox": [8, 8, 48, 48], "area": 2304, "iscrowd": 0, "category_id": 1, "num_keypoints": 17}
        annotations.append({"id": image_id, "image_id": image_id, "keypoints": keypoints, **box})
    categories = [{"id": 1, "name": "person", "keypoints": list(package.skeleton.keypoints)}]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    cfg = package.cfg.clone()
    entry = {"name": "found", "json": str(tmp_path / "labels.json"), "images": str(tmp_path), "skeleton": "coco"}
    cfg.DATASETS.CUSTOM = [entry]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ["found"], ["found"]
    torch.save({"model": package.model.state_dict()}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    workload = Workload(str(tmp_path / "config.yaml"), real_data=True)
    by_torch, by_file = PosesSubject(workload), PosesSubject(replace(workload, onnx_file=str(exported("POET"))))
    assert by_torch.step() > 0
    assert by_file.step() > 0
    results = [subject.result() for subject in (by_torch, by_file)]
    assert results[0]["AP"] == pytest.approx(results[1]["AP"])
    assert results[0]["AP"] > 50
    assert results[1]["bytes"] == exported("POET").stat().st_size
    benchmark = load_script("tools/benchmark.py")
    with pytest.raises(ConfigError, match="only poses"):
        benchmark.main(benchmark.parse_arguments(["--onnx", "model.onnx", "--what", "train"]))


def test_a_top_down_model_takes_boxes(exported: Exported) -> None:
    image, boxes = noise(80, 100), np.array([[10.0, 8.0, 60.0, 70.0], [-5.0, 20.0, 40.0, 60.0]])
    found = PoseRuntime(exported("SHaRPose"))(image, boxes)
    expected = PoseEstimator(tiny_package("SHaRPose"), device="cpu")(image, boxes=boxes)
    np.testing.assert_allclose(found.keypoints[..., :2], expected.keypoints[..., :2], atol=FLAT_HEATMAP_PIXELS)
    with pytest.raises(RuntimeFileError, match="one image at a time"):
        PoseRuntime(exported("SHaRPose")).batch([image])


def test_the_runtime_needs_no_torch(exported: Exported, tmp_path: Path) -> None:
    Image.fromarray(noise(64, 96)).save(tmp_path / "photo.png")
    runtime = Path(__file__).parents[2] / "querypose" / "runtime.py"
    blocked = "import sys\nfor name in ('torch', 'torchvision', 'querypose'): sys.modules[name] = None\n"
    (tmp_path / "alone.py").write_text(blocked + runtime.read_text().replace("from __future__ import annotations", ""))
    arguments = [str(exported("POET")), str(tmp_path / "photo.png"), "--threshold", "0", "--output", "drawn.png"]
    done = subprocess.run(
        [sys.executable, "alone.py", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = PoseEstimator(tiny_package("POET"), device="cpu")(tmp_path / "photo.png")
    found = json.loads(done.stdout)
    np.testing.assert_allclose([pose["score"] for pose in found], expected.scores, atol=SCORES)
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (96, 64)


def test_what_cannot_be_run_is_one_line(exported: Exported, tmp_path: Path) -> None:
    whole = exported("POET").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("no model")
    for name, words in (("cut", "whole ONNX file"), ("text", "whole ONNX file"), ("none", "no file")):
        with pytest.raises(RuntimeFileError, match=words) as raised:
            PoseRuntime(tmp_path / f"{name}.onnx")
        assert "\n" not in str(raised.value)
    runtime = PoseRuntime(exported("POET"))
    assert len(runtime(np.zeros((1, 1, 3), np.uint8)).keypoints) >= 0
    with pytest.raises(RuntimeFileError, match="uint8 array"):
        runtime(np.zeros((4, 4)))
    with pytest.raises(RuntimeFileError, match="Take another file"):
        runtime(tmp_path / "text.onnx")


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tiny_package("POET")
    with monkeypatch.context() as patched:
        patched.setattr(type(package.model), "poses", PoseModel.poses)
        with pytest.raises(ExportError, match="defines no `poses`"):
            export_onnx(package, tmp_path / "model.onnx")
    lqr = tiny_package("LQR")
    monkeypatch.setattr(lqr.model, "test_scales", (0.5, 1.0))
    with pytest.raises(ConfigError, match="TEST_SCALES"):
        export_onnx(ModelPackage(lqr.model, lqr.cfg, lqr.skeleton), tmp_path / "model.onnx")

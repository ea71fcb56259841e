"""ONNX files give what torch gives, and run where there is no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from querypose.config import ConfigError
from querypose.deployment import ModelPackage, PoseEstimator
from querypose.deployment.onnx_export import ExportError, export_onnx
from querypose.modeling import PoseModel
from querypose.runtime import PoseRuntime, RuntimeFileError
from tests.deployment.models import noise, tiny_package
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
    folder = tmp_path_factory.mktemp("onnx")

    def of(architecture: str) -> Path:
        path = folder / f"{architecture}.onnx"
        return path if path.exists() else export_onnx(tiny_package(architecture), path)

    return of


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


@pytest.mark.parametrize("architecture", ["QueryPose", "POET"])
def test_images_of_several_sizes_share_a_batch(architecture: str, exported: Exported) -> None:
    runtime = PoseRuntime(exported(architecture))
    images = [noise(64, 96, 1), noise(96, 64, 2), noise(64, 64, 3)]
    model = tiny_package(architecture).model
    samples = [{"image": _tensor(image), "height": image.shape[0], "width": image.shape[1]} for image in images]
    for found, output in zip(runtime.batch(images), model(samples), strict=True):
        expected = output["instances"]
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.keypoints[..., :2], expected.pred_keypoints[..., :2].detach(), atol=PIXELS)
        np.testing.assert_allclose(found.scores, expected.scores.detach(), atol=SCORES)


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize(("architecture", "pixels", "scores"), [("POET", PIXELS, SCORES), ("QueryPose", 1.0, 1e-3)])
def test_photos_of_different_sizes(
    architecture: str, pixels: float, scores: float, exported: Exported, shared_data: Path
) -> None:
    """A resized pixel may differ by one level, which QueryPose's tiny model with random weights amplifies."""
    model, runtime = PoseEstimator(tiny_package(architecture), device="cpu"), PoseRuntime(exported(architecture))
    photos = sorted((shared_data / "lsp" / "val").glob("*.jpg"))[:10]
    assert len(photos) == 10
    for photo in photos:
        found, expected = runtime(photo), model(photo)
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.keypoints[..., :2], expected.keypoints[..., :2], atol=pixels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=scores)


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

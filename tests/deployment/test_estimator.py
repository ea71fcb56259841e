"""`querypose.load` and the model that it gives."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

import querypose
from querypose.config import ConfigError
from querypose.d2 import CheckpointError
from querypose.data import build_pipeline
from querypose.data.image_io import ImageReadError
from querypose.deployment import PoseEstimator, estimator, results
from querypose.deployment.package import WEIGHTS_FILE
from querypose.evaluation.detections import instances_to_poses
from querypose.evaluation.finishing import build_finishing
from querypose.visualization.media import MediaError
from tests.deployment.models import noise, tiny_package
from tests.scripts import run_script
from tests.tiny import ARCHITECTURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    tiny_package("QueryPose").save(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> PoseEstimator:
    return querypose.load(folder, device="cpu")


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_loaded_model_predicts_what_an_evaluation_does(architecture: str, tmp_path: Path) -> None:
    package = tiny_package(architecture)
    loaded = querypose.load(package.save(tmp_path), device="cpu")  # the file alone, without the folder around it
    image = noise(60, 80)
    expected = instances_to_poses(_evaluated(package, image), "image", package.skeleton)
    for step in build_finishing(package.cfg, package.skeleton):
        expected = step(expected)
    found = loaded(image)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.poses.keypoints, expected.keypoints, atol=2e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert np.ptp(found.keypoints[..., 0]) > 0


def _evaluated(package: Any, image: np.ndarray) -> Any:
    pipeline = build_pipeline(package.cfg, is_train=False)
    (record,) = pipeline.records_of_image((image.shape[0], image.shape[1]))
    sample = pipeline.sample(record, np.random.default_rng(0), image)
    with torch.inference_mode():
        return package.model([sample])[0]["instances"]


def test_every_kind_of_source_gives_the_same_poses(model: PoseEstimator, tmp_path: Path) -> None:
    image = noise(60, 80)
    Image.fromarray(image).save(tmp_path / "photo.png")
    expected = model(image).keypoints
    (of_folder,), (of_list,) = model(str(tmp_path)), model([image])
    for found in (model(tmp_path / "photo.png"), model(Image.open(tmp_path / "photo.png")), of_folder, of_list):
        np.testing.assert_allclose(found.keypoints, expected, atol=2e-3)
    assert of_folder.source.endswith("photo.png")


def test_neighbors_in_a_list_change_nothing(model: PoseEstimator) -> None:
    images = [noise(60, 80, 1), noise(80, 50, 2), noise(60, 80, 3)]
    for found, image in zip(model(images, batch_size=3), images, strict=True):
        np.testing.assert_allclose(found.keypoints, model(image).keypoints, atol=2e-3)
        np.testing.assert_allclose(found.scores, model(image).scores, atol=1e-5)


def test_threads_may_share_a_model(model: PoseEstimator) -> None:
    images = [noise(48 + 8 * seed, 64, seed) for seed in range(4)]
    alone = [model(image).keypoints for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(model, images), alone, strict=True):
            np.testing.assert_array_equal(found.keypoints, expected)


def test_results_go_to_other_projects(model: PoseEstimator) -> None:
    found = model(noise(60, 80))
    (first, *_) = found.to_coco(image_id=7)
    assert first["image_id"] == 7
    np.testing.assert_allclose(first["keypoints"][:2], found.keypoints[0, 0, :2] - 0.5)
    json.dumps(first)
    assert len(found.to_mmpose()[0]["keypoint_scores"]) == found.skeleton.num_keypoints
    assert found.draw(threshold=0.0).size == (80, 60)
    assert "data:image/png" in found._repr_html_()
    assert len(found[found.scores > 2]) == 0
    assert "QueryPose" in repr(model)


def test_a_table_has_a_row_for_each_keypoint(model: PoseEstimator) -> None:
    pytest.importorskip("pandas")
    found = model(noise(60, 80))
    table = found.to_pandas()
    assert len(table) == len(found) * found.skeleton.num_keypoints
    np.testing.assert_allclose(table["x"].to_numpy(), found.keypoints[..., 0].ravel())


def test_supervision_takes_the_poses(model: PoseEstimator) -> None:
    pytest.importorskip("supervision")
    found = model(noise(60, 80))
    np.testing.assert_allclose(found.to_supervision().xy, found.keypoints[..., :2], rtol=1e-5)


def test_a_missing_package_is_named(model: PoseEstimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(results.MissingPackageError, match="pip install pandas"):
        model(noise(60, 80)).to_pandas()


def test_the_hubs_mixin_saves_and_loads(model: PoseEstimator, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.yaml", "skeleton.json", "README.md"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "| keypoints/AP | 12.5 |" in (tmp_path / "README.md").read_text()
    assert "license: other" in (tmp_path / "README.md").read_text()
    again = PoseEstimator.from_pretrained(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(again(noise(60, 80)).keypoints, model(noise(60, 80)).keypoints)


def test_a_model_is_pushed_to_the_hub(model: PoseEstimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client is stood in for by a folder."""
    hub = tmp_path / "hub"

    def upload_folder(_: HfApi, *, folder_path: str, repo_id: str, **__: Any) -> str:
        return str(shutil.copytree(folder_path, hub / repo_id))

    def create_repo(_: HfApi, repo_id: str, **__: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def download(repo_id: str, filename: str, **_: Any) -> str:
        return str(hub / repo_id / filename)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(estimator, "hf_hub_download", download)
    model.push_to_hub("user/name")
    again = querypose.load("user/name", device="cpu")
    np.testing.assert_array_equal(again(noise(60, 80)).keypoints, model(noise(60, 80)).keypoints)


def test_a_video_gives_its_frames_one_by_one(model: PoseEstimator, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for seed in range(3):
        writer.write(noise(64, 96, seed))
    writer.release()
    found = list(model(str(path), batch_size=2))
    assert len(found) == 3
    for poses in found:
        np.testing.assert_allclose(poses.keypoints, model(poses.image).keypoints, atol=2e-3)


def test_a_package_runs_no_code(folder: Path, tmp_path: Path) -> None:
    header, data = _parts(folder / WEIGHTS_FILE)
    config = header["__metadata__"]["config"]
    assert "IMPORTS: []" in config
    header["__metadata__"]["config"] = config.replace("IMPORTS: []", f"IMPORTS: ['{tmp_path / 'evil.py'}']")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    querypose.load(_written(tmp_path / WEIGHTS_FILE, header, data), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    header, data = _parts(folder / WEIGHTS_FILE)
    (tmp_path / "text.safetensors").write_text("no model")
    _written(tmp_path / "cut.safetensors", header, data[:-100])
    _written(tmp_path / "foreign.safetensors", {**header, "__metadata__": {"format": "pt"}}, data)
    other = {**header["__metadata__"], "skeleton": header["__metadata__"]["skeleton"].replace('"nose",', "")}
    _written(tmp_path / "skeleton.safetensors", {**header, "__metadata__": other}, data)
    unknown = {**header["__metadata__"], "config": header["__metadata__"]["config"].replace(": QueryPose", ": Unknown")}
    _written(tmp_path / "unknown.safetensors", {**header, "__metadata__": unknown}, data)
    for name, error, words in (
        ("text", CheckpointError, "whole model file"),
        ("cut", CheckpointError, "whole model file"),
        ("foreign", CheckpointError, "Export the run again"),
        ("skeleton", CheckpointError, "whole model file"),
        ("unknown", ConfigError, "Unknown"),
    ):
        with pytest.raises(error, match=words) as raised:
            querypose.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="no model"):
        querypose.load(tmp_path)
    with pytest.raises(ConfigError, match="precision"):
        querypose.load(folder, precision="int3")


def test_images_that_cannot_be_used_are_one_line(model: PoseEstimator, tmp_path: Path) -> None:
    assert len(model(np.zeros((1, 1, 3), np.uint8)).keypoints) >= 0
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 20_000, 3))
    with pytest.raises(ImageReadError, match="resize it first"):
        model(huge)
    with pytest.raises(ImageReadError, match="uint8 array"):
        model(np.zeros((4, 4)))
    with pytest.raises(MediaError, match="no file or folder"):
        model(str(tmp_path / "none.jpg"))
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    png += _chunk(b"IDAT", b"")
    (tmp_path / "huge.png").write_bytes(png)
    with pytest.raises(ImageReadError, match="make it smaller"):
        model(tmp_path / "huge.png")


def test_a_run_is_loaded_from_its_folder(tmp_path: Path) -> None:
    package = tiny_package("POET")
    (tmp_path / "config.yaml").write_text(package.cfg.dump())
    torch.save({"model": package.model.state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "metrics.json").write_text('{"iteration": 4, "keypoints/AP": 31.5}\n{"iteration": 5, "loss": 1')
    model = querypose.load(tmp_path, device="cpu")
    assert model.package.metrics == {"keypoints/AP": 31.5, "iteration": 4}
    np.testing.assert_allclose(model(noise(60, 80)).scores, model([noise(60, 80)])[0].scores)


def test_the_tool_exports_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tiny_package("POET")
    run = tmp_path / "run"
    package.save(run)
    options = ("--format", "safetensors", "--output", str(tmp_path / "out"))
    assert run_script("tools/export.py", str(run), *options, "--license", "cc-by-4.0") == 0
    loaded = querypose.load(tmp_path / "out", device="cpu")
    assert loaded.skeleton == package.skeleton
    assert loaded.package.license_name == "cc-by-4.0"
    assert "| license | cc-by-4.0 |" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    assert run_script("tools/export.py", str(tmp_path / "none"), *options) == 2
    assert capsys.readouterr().err.count("\n") == 1


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _written(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

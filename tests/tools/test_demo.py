from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

from querypose.config import ConfigError, get_cfg
from querypose.d2 import META_ARCH_REGISTRY, Boxes, CfgNode, CheckpointError, Instances, configurable
from querypose.data import DatasetError
from querypose.engine.predictor import PosePredictor
from querypose.visualization.media import MediaError
from querypose.visualization.patches import FINE_COLOR
from tests.scripts import load_script
from tests.tiny import tiny_config

TOOLS = Path(__file__).resolve().parents[2] / "tools"
RED = (250, 20, 20)


@META_ARCH_REGISTRY.register()
class RedSquareFinder(nn.Module):
    """Sees one thing: all 17 keypoints lie at the center of the red pixels. A second, unsure pose is at the corner."""

    @configurable
    def __init__(self, *, channel_order: str) -> None:
        super().__init__()
        self.channel_order = channel_order
        self.offset = nn.Parameter(torch.zeros(2))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"channel_order": cfg.INPUT.FORMAT}

    def example_batch(self) -> list[dict[str, Any]]:
        return [{"image": torch.zeros(3, 8, 8), "height": 8, "width": 8}]

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": self.find(item["image"], item["height"], item["width"])} for item in batch]

    def find(self, image: Tensor, height: int, width: int) -> Instances:
        red, green, blue = image.float() if self.channel_order == "RGB" else image.float().flip(0)
        rows, columns = torch.nonzero((red > 200) & (green < 100) & (blue < 100), as_tuple=True)
        scale = torch.tensor([width / image.shape[2], height / image.shape[1]])
        center = (torch.stack([columns.float().mean(), rows.float().mean()]) + 0.5) * scale + self.offset
        instances = Instances((height, width))
        points = torch.stack([center, torch.zeros(2)])
        instances.pred_keypoints = torch.cat([points[:, None].expand(2, 17, 2), torch.full((2, 17, 1), 0.8)], dim=2)
        instances.pred_boxes = Boxes(torch.cat([points, points + 10], dim=1))
        instances.scores = torch.tensor([0.9, 0.1])
        instances.pred_classes = torch.zeros(2, dtype=torch.int64)
        return instances


@pytest.fixture
def demo() -> ModuleType:
    return load_script("tools/demo.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """config.yaml, and photos/: two with a red square, and a file that is no image."""
    (tmp_path / "config.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: RedSquareFinder, DEVICE: cpu}\n"
        "DATASETS: {TEST: [keypoints_coco_2017_val]}\n"
        "INPUT: {MIN_SIZE_TEST: 96}\n"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    save_square(photos / "img_0012.png", (60, 80), (30, 20))
    save_square(photos / "img_0007.jpg", (90, 70), (50, 40))
    (photos / "img_0009.png").write_bytes(b"not an image")
    return tmp_path


def save_square(path: Path, size: tuple[int, int], corner: tuple[int, int]) -> None:
    """A gray image (height, width) with a red square of 10 pixels at corner (x, y); its center is at corner + 5."""
    image = np.full((*size, 3), 90, dtype=np.uint8)
    image[corner[1] : corner[1] + 10, corner[0] : corner[0] + 10] = RED
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(image).save(path, **options)


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def run(demo: ModuleType, folder: Path, *arguments: str) -> int:
    return int(demo.main(demo.parse_arguments(["--config-file", str(folder / "config.yaml"), *arguments])))


def test_a_folder(demo: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_json = folder / "out" / "poses.json"
    places = ["--input", str(folder / "photos"), "--output", str(folder / "out")]
    code = run(demo, folder, *places, "--results-json", str(results_json))
    output = capsys.readouterr()
    assert code == 1
    assert "img_0009.png" in output.err
    assert "2 of 3 images" in output.out
    assert "UNTRAINED" in output.err
    drawn = load(folder / "out/img_0012.png")
    before = load(folder / "photos/img_0012.png")
    assert drawn.shape == before.shape
    assert np.abs(drawn - before)[22:29, 32:39].max() > 50  # a joint on the square
    assert np.array_equal(drawn[45:], before[45:])
    results = json.loads(results_json.read_text())
    assert [result["image_id"] for result in results] == [7, 7, 12, 12]
    assert [result["score"] for result in results] == pytest.approx([0.9, 0.1] * 2)
    assert [Path(result["file_name"]).name for result in results[::2]] == ["img_0007.jpg", "img_0012.png"]
    assert all(result["category_id"] == 1 and len(result["keypoints"]) == 51 for result in results)
    # The center of the square, less COCO's 0.5, in the frame of the file.
    assert results[0]["keypoints"][:2] == pytest.approx([54.5, 44.5], abs=0.6)
    assert results[2]["keypoints"][:2] == pytest.approx([34.5, 24.5], abs=0.6)


def test_single_file_to_file_pattern_and_repeats(demo: ModuleType, folder: Path) -> None:
    photo = str(folder / "photos/img_0012.png")
    assert run(demo, folder, "--input", photo, "--output", str(folder / "one.jpg"), "--draw-boxes") == 0
    assert load(folder / "one.jpg").shape == (60, 80, 3)
    pattern = str(folder / "**/img_00[01]2.*")
    assert run(demo, folder, "--input", pattern, photo, "--output", str(folder / "out")) == 0
    assert [path.name for path in (folder / "out").iterdir()] == ["img_0012.png"]


def test_threshold_decides_what_is_drawn(demo: ModuleType, folder: Path) -> None:
    pictures = []
    for threshold in ("0.05", "0.5", "0.95"):
        target = folder / f"{threshold}.png"
        places = ["--input", str(folder / "photos/img_0012.png"), "--output", str(target)]
        run(demo, folder, *places, "--confidence-threshold", threshold)
        pictures.append(load(target))
    original = load(folder / "photos/img_0012.png")
    differing = [int((np.abs(picture - original).max(axis=2) > 0).sum()) for picture in pictures]
    assert differing[0] > differing[1] > differing[2] == 0


def test_both_channel_orders_find_the_same(folder: Path) -> None:
    image = load(folder / "photos/img_0012.png").astype(np.uint8)
    found = []
    for channel_order in ("RGB", "BGR"):
        cfg = get_cfg()
        cfg.merge_from_file(str(folder / "config.yaml"))
        cfg.INPUT.FORMAT = channel_order
        found.append(PosePredictor(cfg)(image).pred_keypoints)
    torch.testing.assert_close(*found)
    assert found[0][0, 0, :2].tolist() == pytest.approx([35, 25], abs=0.6)


def test_weights_are_loaded(demo: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"offset": torch.tensor([20.0, 10.0])}}, folder / "weights.pth")
    run(
        demo, folder, "--input", str(folder / "photos/img_0012.png"), "--output", str(folder / "out"),
        "--results-json", str(folder / "r.json"), "--opts", "MODEL.WEIGHTS", str(folder / "weights.pth"),
    )  # fmt: skip
    assert "UNTRAINED" not in capsys.readouterr().err
    assert json.loads((folder / "r.json").read_text())[0]["keypoints"][:2] == pytest.approx([54.5, 34.5], abs=0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{}/nowhere.jpg", "--output", "{}/out"], "There is no file or folder"),
        (["--input", "{}/no*.jpg", "--output", "{}/out"], "No image matches"),
        (["--input", "{}", "--output", "{}/out"], "has no image"),
        (["--input", "{}/photos", "--output", "{}/one.jpg"], "there are 3 images. Name a folder"),
        (["--input", "{}/photos", "--output", "{}/photos"], "would overwrite an input"),
        (["--input", "{}/a.mp4", "{}/photos", "--output", "{}/out"], "Give one video or camera alone"),
    ],
)
def test_unusable_inputs(demo: ModuleType, folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        run(demo, folder, *(argument.format(folder) for argument in arguments))


def test_missing_weights_are_named(demo: ModuleType, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS is 'no.pth'; there is no such file"):
        run(
            demo, folder, "--input", str(folder / "photos"), "--output", str(folder / "out"),
            "--opts", "MODEL.WEIGHTS", "no.pth",
        )  # fmt: skip


def test_video_without_opencv(demo: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for source in (str(folder / "a.mp4"), "webcam"):
        with pytest.raises(MediaError, match="pip install opencv-python-headless"):
            run(demo, folder, "--input", source, "--output", str(folder / "out"))


def test_video(demo: ModuleType, folder: Path) -> None:
    pytest.importorskip("cv2", reason="opencv-python-headless, an extra, is not installed")
    from querypose.visualization.media import VideoReader, VideoWriter

    frame = load(folder / "photos/img_0012.png").astype(np.uint8)
    with VideoWriter(folder / "a.mp4", fps=10) as writer:
        for _ in range(3):
            writer.write(frame)
    places = ["--input", str(folder / "a.mp4"), "--output", str(folder / "out")]
    assert run(demo, folder, *places, "--results-json", str(folder / "r.json")) == 0
    with VideoReader(str(folder / "out/a_poses.mp4")) as reader:
        frames = list(reader)
    assert [drawn.shape for drawn in frames] == [frame.shape] * 3
    results = json.loads((folder / "r.json").read_text())
    assert [result["image_id"] for result in results if result["score"] > 0.5] == [1, 2, 3]
    with pytest.raises(MediaError, match="would overwrite the input"):
        run(demo, folder, "--input", str(folder / "a.mp4"), "--output", str(folder / "a.mp4"))


def test_results_are_written_while_they_are_found(demo: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "out" / "poses.json"
    with demo.results_file(path) as write:
        for frame in range(2000):
            write([{"image_id": frame, "keypoints": np.arange(51.0)}])
        (part,) = path.parent.iterdir()
        assert part.stat().st_size > 400_000
    results = json.loads(path.read_text())
    assert [result["image_id"] for result in results] == list(range(2000))
    with demo.results_file(path):
        pass
    assert json.loads(path.read_text()) == []
    with demo.results_file(None) as write:
        assert write is None


def test_image_ids(demo: ModuleType) -> None:
    assert demo.image_ids([Path("a/000000000785.jpg"), Path("b/12.png")]) == [785, 12]
    assert demo.image_ids([Path("a/photo_1.jpg"), Path("b/photo_01.png")]) == [1, 2]  # 1 twice, so the positions
    assert demo.image_ids([Path("dog.jpg"), Path("5.jpg")]) == [1, 2]


@pytest.fixture
def top_down(folder: Path) -> list[str]:
    """The command line of a small SHaRPose."""
    (folder / "sharpose.yaml").write_text(
        "MODEL:\n"
        "  META_ARCHITECTURE: SHaRPose\n"
        "  DEVICE: cpu\n"
        "  SHARPOSE: {DIM: 24, DEPTH: 2, PATCH_SIZE: 8}\n"
        "DATASETS: {TEST: [keypoints_coco_2017_val]}\n"
        "INPUT: {PIPELINE: person_crops, PERSON_CROP: {SIZE: [64, 48]}}\n"
    )
    return ["--config-file", str(folder / "sharpose.yaml"), "--input", str(folder / "photos"), "--output"]


def results_of(folder: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads((folder / "poses.json").read_text())
    return results


def test_crops_by_the_boxes_of_a_file(demo: ModuleType, folder: Path, top_down: list[str]) -> None:
    box = {"image_id": 12, "category_id": 1, "bbox": [20, 10, 40, 40], "score": 0.8}
    boxes = [box, {**box, "bbox": [0, 0, 10, 20], "score": 0.6}, {**box, "score": 0.1}, {**box, "bbox": [5, 5, 0, 9]}]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    arguments = [*top_down, str(folder / "out"), "--boxes", str(folder / "boxes.json"), "--attention"]
    code = demo.main(demo.parse_arguments([*arguments, "--results-json", str(folder / "poses.json")]))
    assert code == 1  # one file is no image
    assert [(result["image_id"], result["score"]) for result in results_of(folder)] == [
        (12, pytest.approx(0.8)), (12, pytest.approx(0.6))
    ]  # fmt: skip
    names = {path.name for path in (folder / "out").iterdir()}
    of_crops = {
        f"img_0012_attention_crop_{crop}_{name}"
        for crop in (1, 2)
        for name in ("image.png", "pose_1.png", "stages.gif")
    }
    assert names == {"img_0007.jpg", "img_0012.png", *of_crops}
    patches = load(folder / "out" / "img_0012_attention_crop_1_image.png")
    assert (patches == FINE_COLOR).all(-1).any()  # an untrained quality predictor refines every crop


def test_crops_by_a_detector(demo: ModuleType, folder: Path, top_down: list[str]) -> None:
    """The other model's boxes of the least score or more."""
    arguments = [*top_down, str(folder / "out"), "--detector", str(folder / "config.yaml")]
    demo.main(demo.parse_arguments([*arguments, "--results-json", str(folder / "poses.json")]))
    assert [result["score"] for result in results_of(folder)] == pytest.approx([0.9, 0.9])


def one_person_weights() -> dict[str, Tensor]:
    """Of torchvision's smallest detector, random but for the heads, which see one person as large as the picture."""
    model = get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    classes, boxes = model.head.classification_head.module_list, model.head.regression_head.module_list
    for layer in [level[-1] for level in (*classes, *boxes)]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for level in classes:
        level[-1].bias.data.view(-1, 91)[:, 0] = 10.0  # background
    classes[-1][-1].bias.data.view(-1, 91)[0, 1] = 20.0
    return dict(model.state_dict())


def test_crops_by_a_detector_of_torchvision(
    demo: ModuleType, folder: Path, top_down: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(one_person_weights(), folder / "detector.pth")
    named = [*top_down, str(folder / "out"), "--detector", "ssdlite320_mobilenet_v3_large"]
    weights = ["--detector-weights", str(folder / "detector.pth")]
    demo.main(demo.parse_arguments([*named, *weights, "--results-json", str(folder / "poses.json")]))
    assert [(result["image_id"], result["score"]) for result in results_of(folder)] == [
        (7, pytest.approx(1.0, abs=1e-3)), (12, pytest.approx(1.0, abs=1e-3))
    ]  # fmt: skip

    torch.save({"conv.weight": torch.zeros(1)}, folder / "detector.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights of torchvision's ssdlite320"):
        demo.main(demo.parse_arguments([*named, *weights]))

    def without_network(*given: Any, **options: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", without_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", without_network)
    with pytest.raises(ConfigError, match=r"cannot be downloaded .*no route to host.*https://.*--detector-weights"):
        demo.main(demo.parse_arguments(named))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--detector", "yolo"], ConfigError, "no detector 'yolo'.*fasterrcnn_resnet50_fpn_v2"),
        (["--boxes", "{}/gone.json"], DatasetError, "no such file"),
    ],
)
def test_no_persons_to_crop(
    demo: ModuleType, folder: Path, top_down: list[str], arguments: list[str], error: type[Exception], message: str
) -> None:
    arguments = [*top_down, str(folder / "out"), *(argument.format(folder) for argument in arguments)]
    with pytest.raises(error, match=message):
        demo.main(demo.parse_arguments(arguments))


def test_attention_needs_a_model_that_shows_it_and_images(demo: ModuleType, folder: Path) -> None:
    arguments = ["--input", str(folder / "photos"), "--output", str(folder / "out"), "--attention"]
    with pytest.raises(MediaError, match="this model does not say what it looked at"):
        run(demo, folder, *arguments)
    with pytest.raises(MediaError, match="--attention draws that of images"):
        run(demo, folder, "--input", "walk.mp4", *arguments[2:])


def test_attention_of_queries_is_a_picture_a_pose_and_an_animation(demo: ModuleType, folder: Path) -> None:
    cfg = tiny_config()
    (folder / "tiny.yaml").write_text(cfg.dump())
    photo = str(folder / "photos/img_0012.png")
    arguments = ["--config-file", str(folder / "tiny.yaml"), "--input", photo, "--output", str(folder / "out")]
    assert demo.main(demo.parse_arguments([*arguments, "--attention", "2"])) == 0
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        f"img_0012{name}"
        for name in (".png", "_attention_image.png", "_attention_pose_1.png", "_attention_pose_2.png",
                     "_attention_stages.gif")
    }  # fmt: skip
    with Image.open(folder / "out/img_0012_attention_stages.gif") as animation:
        assert getattr(animation, "n_frames") == 2  # noqa: B009  # a frame a stage

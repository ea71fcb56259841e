from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from querypose.d2 import Boxes, Instances, Keypoints
from querypose.data import register_pose_dataset
from tests.data.toy_dataset import TOY_SKELETON, toy_document, write_dataset
from tests.scripts import load_script, run_script


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, which is in no package."""
    return load_script("tools/visualize_data.py")


@pytest.fixture
def toy_options(datasets_root: Path) -> list[str]:
    register_pose_dataset("toy", *write_dataset(datasets_root, toy_document()), TOY_SKELETON)
    return ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "['toy']", "DATASETS.TEST", "['toy']",
            "INPUT.MIN_SIZE_TRAIN", "[90]", "INPUT.MIN_SIZE_TEST", "60", "INPUT.CROP.PROBABILITY", "0.0"]  # fmt: skip


def test_draws_training_samples_and_an_overview(tool: ModuleType, tmp_path: Path, toy_options: list[str]) -> None:
    tool.main(["--output", str(tmp_path / "out"), "--num", "3", *toy_options])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000_a.png", "001_a.png", "002_a.png", "overview.png"]
    with Image.open(tmp_path / "out" / "000_a.png") as picture:
        assert picture.size == (120, 90)


def test_draws_the_test_split_without_augmentation(tool: ModuleType, tmp_path: Path, toy_options: list[str]) -> None:
    tool.main(["--output", str(tmp_path / "out"), "--num", "2", "--split", "test", *toy_options])
    sizes = set()
    for name in ("a", "b"):
        (path,) = (tmp_path / "out").glob(f"*_{name}.png")
        with Image.open(path) as picture:
            sizes.add(picture.size)
    assert sizes == {(80, 60), (60, 80)}


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_drawing_shows_the_image_and_marks_the_labeled_keypoints(tool: ModuleType, channel_order: str) -> None:
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    image[0 if channel_order == "RGB" else 2] = 120
    instances = Instances((60, 90))
    instances.gt_boxes = Boxes(torch.tensor([[20.0, 10.0, 70.0, 50.0]]))
    instances.gt_keypoints = Keypoints(torch.tensor([[[30.0, 20, 2], [60.0, 40, 1], [0.0, 0, 0]]]))
    drawn = tool.draw_sample({"image": image, "instances": instances}, TOY_SKELETON, channel_order)
    assert drawn[3, 85].tolist() == [120, 0, 0]
    changed = (drawn != [120, 0, 0]).any(axis=2)
    assert changed[20, 30]
    assert changed[38:43, 58:63].any()
    assert not changed[:5, :5].any()
    assert np.asarray(drawn).shape == (60, 90, 3)


def test_user_errors_are_one_line(
    tool: ModuleType, tmp_path: Path, toy_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path), *toy_options, "DATASETS.TRAIN", "['lsp_train']"]
    assert run_script("tools/visualize_data.py", *arguments) == 2
    assert "no annotation file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--output", str(tmp_path), "--num", "0"])

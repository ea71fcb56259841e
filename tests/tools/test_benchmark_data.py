"""The benchmark runs and reports every alternative; nothing is said about how long they take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from tests.scripts import ROOT, load_script


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, which is in no package."""
    return load_script("tools/benchmark_data.py")


def test_images(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "a.jpg")
    tool.main(["images", "--folder", str(tmp_path), "--repeats", "1", "--size", "90", "120"])
    report = capsys.readouterr().out
    for row in ("read_image (Pillow) |", "torchvision.io |", "resize to 90x120", "Pillow, bilinear |", "PoseMapper"):
        assert row in report
    assert "images a second and loader process" in report


def test_ways_to_resize_give_the_same_picture(tool: ModuleType) -> None:
    pixels = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    pictures = [way(pixels) for name, way in tool.ways_to_resize((30, 40)).items() if "cv2" not in name]
    ours, *others = (way if isinstance(way, torch.Tensor) else torch.tensor(way.copy()) for way in pictures)
    for other in others:
        other = other[0].permute(1, 2, 0) if other.ndim == 4 else other
        assert (ours.float() - other.float()).abs().max() <= 1


def test_memory() -> None:
    # A process of its own: what is measured starts from the script as the main module.
    command = [sys.executable, "tools/benchmark_data.py", "memory", "--num", "200", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [*command, "--storage", "packed"], cwd=ROOT, env=environment, text=True, capture_output=True, check=True
    )
    (row,) = [line.split("|") for line in result.stdout.splitlines() if line.startswith("| packed")]
    assert int(row[2]) == 1
    assert float(row[3]) > 50  # at least an interpreter with torch


def test_no_image_is_an_error(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no JPEG file"):
        tool.main(["images", "--folder", str(tmp_path)])

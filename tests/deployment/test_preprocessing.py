"""What a graph makes of images is what the pipelines make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from querypose.config import ConfigError, load_config
from querypose.d2 import CfgNode
from querypose.data import build_pipeline, read_image
from querypose.deployment.preprocessing import graph_pipeline

SIZES = [(64, 96), (37, 121), (150, 40), (300, 410), (64, 32)]
BOXES = [[10.0, 12.5, 60.0, 90.0], [-8.0, 3.0, 30.0, 20.0], [0.0, 0.0, 120.0, 37.0], [24.0, 20.0, 56.0, 36.0]]
# Reading between pixels sums in float32, torch in another order; a value halfway between two levels falls either way.
LEVEL, SHARE = 1, 1e-3


def config(*overrides: str) -> CfgNode:
    small = ("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96", "INPUT.CANVAS_MULTIPLE", "32")
    return load_config(None, [*small, *overrides])


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepared(cfg: CfgNode, image: NDArray[np.uint8], boxes: NDArray[np.float64] | None = None) -> list[dict[str, Any]]:
    pipeline = build_pipeline(cfg, is_train=False)
    records = pipeline.records_of_image((image.shape[0], image.shape[1]), boxes)
    return [pipeline.sample(record, np.random.default_rng(0), image) for record in records]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_whole_images_of_a_batch_are_those_of_the_pipeline(order: str) -> None:
    cfg, images = config("INPUT.FORMAT", order), [noise(*size) for size in SIZES]
    padded = np.zeros((len(SIZES), *np.max(SIZES, axis=0), 3), dtype=np.uint8)
    for index, image in enumerate(images):
        padded[index, : image.shape[0], : image.shape[1]] = image
    made, sizes, to_file = graph_pipeline(cfg, divisor=32)(torch.from_numpy(padded), torch.tensor(SIZES))
    assert made.shape[2] % 32 == made.shape[3] % 32 == 0
    for index, image in enumerate(images):
        (sample,) = prepared(cfg, image)
        height, width = sizes[index].tolist()
        assert torch.equal(made[index, :, :height, :width], sample["image"])
        assert not made[index, :, height:].any()
        assert not made[index, :, :, width:].any()
        np.testing.assert_allclose(to_file[index], sample["frame"].inverse().matrix, rtol=1e-6)


def test_photos_are_those_of_the_pipeline(shared_data: Path) -> None:
    cfg = config("INPUT.MIN_SIZE_TEST", "200", "INPUT.MAX_SIZE_TEST", "260")
    photos = [read_image(path) for path in sorted((shared_data / "lsp" / "val").glob("*.jpg"))[:10]]
    assert len({photo.shape for photo in photos}) > 5
    for photo in photos:
        made, *_ = graph_pipeline(cfg, divisor=1)(torch.from_numpy(photo)[None], torch.tensor([photo.shape[:2]]))
        assert torch.equal(made[0], prepared(cfg, photo)[0]["image"])


@pytest.mark.parametrize("size", SIZES)
def test_a_canvas_is_that_of_the_pipeline(size: tuple[int, int]) -> None:
    cfg, image = config("INPUT.PIPELINE", "dense_image"), noise(*size)
    made, _, to_file = graph_pipeline(cfg, divisor=32)(torch.from_numpy(image)[None], torch.tensor([size]))
    (sample,) = prepared(cfg, image)
    assert_levels_agree(made[0], sample["image"])
    np.testing.assert_allclose(to_file[0], sample["frame"].inverse().matrix, rtol=1e-6)


@pytest.mark.parametrize(("unbiased", "antialias"), [("False", "True"), ("True", "True"), ("False", "False")])
def test_crops_are_those_of_the_pipeline(unbiased: str, antialias: str) -> None:
    """The last box with its padding is of whole pixels, which are resized."""
    cfg = config(
        *("INPUT.PIPELINE", "person_crops", "INPUT.PERSON_CROP.SIZE", "[32, 64]"),
        *("INPUT.PERSON_CROP.UNBIASED", unbiased, "INPUT.PERSON_CROP.ANTIALIAS", antialias),
    )
    image = noise(70, 120)
    made, _, to_file = graph_pipeline(cfg, divisor=1)(torch.from_numpy(image)[None], torch.tensor(BOXES))
    for index, sample in enumerate(prepared(cfg, image, np.array(BOXES))):
        assert_levels_agree(made[index], sample["image"])
        np.testing.assert_allclose(to_file[index], sample["frame"].inverse().matrix, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("factor", [0.45, 1.0, 1.5])
def test_a_factor_of_the_size_is_the_pipeline_s(factor: float) -> None:
    cfg = load_config(None, ["INPUT.MIN_SIZE_TEST", "0", "INPUT.SCALE_TEST", str(factor)])
    pixels = noise(30, 41)
    (sample,) = prepared(cfg, pixels)
    images, size_12, map_123 = graph_pipeline(cfg, 16)(torch.from_numpy(pixels)[None], torch.tensor([[30, 41]]))
    height, width = sample["image"].shape[1:]
    assert size_12.tolist() == [[height, width]]
    assert torch.equal(images[0, :, :height, :width], sample["image"])
    np.testing.assert_allclose(map_123[0], sample["frame"].inverse().matrix, atol=1e-9)


def test_a_factor_and_a_short_side_are_one_too_many() -> None:
    for overrides in (["INPUT.MIN_SIZE_TEST", "64"], ["INPUT.MIN_SIZE_TEST", "0", "INPUT.PIPELINE", "dense_image"]):
        with pytest.raises(ConfigError, match=r"INPUT.SCALE_TEST is 0.5, which needs INPUT.MIN_SIZE_TEST 0 and"):
            load_config(None, ["INPUT.SCALE_TEST", "0.5", *overrides])


def assert_levels_agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    gap = (found.int() - expected.int()).abs()
    assert gap.max() <= LEVEL
    assert (gap > 0).double().mean() < SHARE

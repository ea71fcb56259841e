"""Images prepared by the operations of a graph, beside those of the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from querypose.config import ConfigError, load_config
from querypose.data import build_pipeline
from querypose.deployment.preprocessing import graph_pipeline


@pytest.mark.parametrize("factor", [0.45, 1.0, 1.5])
def test_a_factor_of_the_size_is_the_pipeline_s(factor: float) -> None:
    cfg = load_config(None, ["INPUT.MIN_SIZE_TEST", "0", "INPUT.SCALE_TEST", str(factor)])
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    pipeline = build_pipeline(cfg, is_train=False)
    (record,) = pipeline.records_of_image((30, 41))
    sample = pipeline.sample(record, np.random.default_rng(0), pixels)
    images, size_12, map_123 = graph_pipeline(cfg, 16)(torch.from_numpy(pixels)[None], torch.tensor([[30, 41]]))
    height, width = sample["image"].shape[1:]
    assert size_12.tolist() == [[height, width]]
    difference = images[0, :, :height, :width].int() - sample["image"].int()
    assert difference.abs().max() <= 1  # rounding, of either
    np.testing.assert_allclose(map_123[0], sample["frame"].inverse().matrix, atol=1e-9)


def test_a_factor_and_a_short_side_are_one_too_many() -> None:
    for overrides in (["INPUT.MIN_SIZE_TEST", "64"], ["INPUT.MIN_SIZE_TEST", "0", "INPUT.PIPELINE", "dense_image"]):
        with pytest.raises(ConfigError, match=r"INPUT.SCALE_TEST is 0.5, which needs INPUT.MIN_SIZE_TEST 0 and"):
            load_config(None, ["INPUT.SCALE_TEST", "0.5", *overrides])

"""A whole training over images that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from querypose.config import load_config
from querypose.data import TooManyBadImagesError, register_custom_datasets
from querypose.engine import PoseTrainer
from tests.engine.toy_pose import write_toy_config


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_goes_on_without_a_bad_image_and_ends_where_more_are_bad_than_allowed(
    tmp_path: Path, num_workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    config_file = write_toy_config(tmp_path)
    (tmp_path / "data" / "4.png").unlink()
    options = ["DATALOADER.NUM_WORKERS", str(num_workers), "DATASETS.TEST", "[]"]
    cfg = load_config(config_file, [*options, "DATALOADER.MAX_BAD_IMAGES", "0.2"])
    register_custom_datasets(cfg)
    trainer = PoseTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert capfd.readouterr().out.count("(So far 1 of 6 training images are bad.)") == 1
    cfg = load_config(config_file, [*options, "DATALOADER.MAX_BAD_IMAGES", "0.1"])
    trainer = PoseTrainer(cfg)
    with pytest.raises(TooManyBadImagesError, match=r"1 of 6 training images .*4\.png"):
        trainer.train()

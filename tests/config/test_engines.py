"""A config of one engine on the other: what only detectron2 has is left out, and what nothing reads is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml

from querypose import d2
from querypose.config import KEYS, ConfigError, add_querypose_config, load_config, lookup
from querypose.config.detectron2_keys import is_key_of_detectron2
from querypose.config.keys import leaf_names
from tests.tiny import TINY_MODEL

ON_DETECTRON2 = d2.ENGINE == "detectron2"


def test_no_key_is_taken_for_one_of_detectron2_alone() -> None:
    assert not [name for name in KEYS if is_key_of_detectron2(name)]
    assert is_key_of_detectron2("MODEL.RESNETS.DEPTH")
    assert is_key_of_detectron2("MODEL.RESNETS")
    assert not is_key_of_detectron2("MODEL.RESNETSS.DEPTH")


@pytest.mark.skipif(not ON_DETECTRON2, reason="needs detectron2's own keys")
def test_all_keys_of_detectron2_are_known() -> None:
    unknown = [name for name in leaf_names(d2.get_cfg()) if name not in KEYS and not is_key_of_detectron2(name)]
    assert unknown == ["VERSION"]


def test_a_config_with_keys_of_detectron2_loads_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"MODEL": {"RESNETS": {"DEPTH": 101}, "MASK_ON": True}, "SOLVER": {"MAX_ITER": 7, "BASE_LR_END": 0.1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with caplog.at_level(logging.WARNING, logger="querypose"):
        cfg = load_config(tmp_path / "config.yaml", ["DATALOADER.REPEAT_SQRT", "False"])
    assert cfg.SOLVER.MAX_ITER == 7
    (message,) = caplog.messages
    assert "MODEL.RESNETS" in message
    assert "MODEL.MASK_ON" in message
    if ON_DETECTRON2:
        assert "MODEL.RESNETS.DEPTH (101)" in message
        assert "BASE_LR_END" not in message  # its cosine schedule reads it
    else:
        assert "4 keys and sections" in message


def test_what_no_engine_has_is_still_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no key MODEL.RESNET\."):
        load_config(None, ["MODEL.RESNET.DEPTH", "50"])


def test_a_dumped_config_loads_again_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(None, ["SOLVER.MAX_ITER", "7"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with caplog.at_level(logging.WARNING, logger="querypose"):
        again = load_config(tmp_path / "config.yaml")
    assert [name for name in KEYS if lookup(again, name) != lookup(cfg, name)] == []
    # Of detectron2's own keys one holds tuples within a tuple, which its YAML gives back as lists.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert caplog.messages == []


def test_a_model_is_built_as_in_a_project_of_detectron2(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("SEED: 1")
    cfg = d2.get_cfg()
    add_querypose_config(cfg)
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    cfg.merge_from_list([*TINY_MODEL, "MODEL.DEVICE", cfg.MODEL.DEVICE, "DATASETS.TEST", "['crowdpose_val']"])
    model = d2.build_model(cfg)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(model.parameters()).device.type == expected

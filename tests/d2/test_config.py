"""CfgNode with `_BASE_`, and `configurable`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from querypose.d2 import ENGINE, CfgNode, configurable, get_cfg


def _cfg() -> CfgNode:
    cfg = CfgNode()
    cfg.VERSION = 2
    cfg.A = 1
    cfg.NESTED = CfgNode()
    cfg.NESTED.RATE = 0.5
    cfg.NESTED.NAMES = ["x"]
    return cfg


def test_default_config_is_new_at_every_call() -> None:
    cfg = get_cfg()
    cfg.VERSION = 99
    assert get_cfg().VERSION == 2


def test_base_files_merge_in_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("A: 2\nNESTED: {RATE: 0.25}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.yaml").write_text("_BASE_: ../base.yaml\nA: 3\n")
    cfg = _cfg()
    cfg.merge_from_file(str(tmp_path / "sub" / "own.yaml"))
    assert cfg.A == 3
    assert cfg.NESTED.RATE == 0.25
    assert cfg.NESTED.NAMES == ["x"]


def test_overrides_keep_types() -> None:
    cfg = _cfg()
    cfg.merge_from_list(["NESTED.RATE", "1e-3", "NESTED.NAMES", "['a', 'b']"])
    assert cfg.NESTED.RATE == 1e-3
    assert cfg.NESTED.NAMES == ["a", "b"]
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_list(["A", "text"])


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("NESTED: {RAET: 1.0}\n")
    with pytest.raises(KeyError, match="RAET"):
        _cfg().merge_from_file(str(tmp_path / "own.yaml"))


def test_frozen_config_cannot_change_and_its_clone_can() -> None:
    cfg = _cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.A = 2
    clone = cfg.clone()
    clone.defrost()
    clone.A = 2
    assert cfg.A == 1


def test_dump_loads_again(tmp_path: Path) -> None:
    cfg = _cfg()
    cfg.A = 5
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    other = _cfg()
    other.merge_from_file(str(tmp_path / "dump.yaml"))
    assert other == cfg


@pytest.mark.skipif(ENGINE == "detectron2", reason="detectron2 evaluates unsafe YAML tags by default")
def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "own.yaml").write_text(f"A: !!python/object/apply:os.system ['touch {witness}']\n")
    with pytest.raises(Exception, match="python/object"):
        _cfg().merge_from_file(str(tmp_path / "own.yaml"))
    with pytest.raises(ValueError, match="allow_unsafe"):
        _cfg().merge_from_file(str(tmp_path / "own.yaml"), allow_unsafe=True)
    assert not witness.exists()


class _Layer:
    @configurable
    def __init__(self, *, width: int, depth: int = 1, name: str = "layer") -> None:
        self.width, self.depth, self.name = width, depth, name

    @classmethod
    def from_config(cls, cfg: CfgNode, depth: int = 2) -> dict[str, Any]:
        return {"width": cfg.A * 10, "depth": depth * 100}


def test_configurable_class() -> None:
    assert _Layer(width=3).depth == 1
    layer = _Layer(_cfg())
    assert (layer.width, layer.depth, layer.name) == (10, 200, "layer")
    # What from_config takes goes through it; what it does not take goes to __init__, and wins.
    layer = _Layer(_cfg(), depth=3, name="mine", width=4)
    assert (layer.width, layer.depth, layer.name) == (4, 300, "mine")
    assert _Layer(cfg=_cfg()).width == 10


def test_configurable_subclass_uses_its_own_from_config() -> None:
    class Wide(_Layer):
        @classmethod
        def from_config(cls, cfg: CfgNode, depth: int = 2) -> dict[str, Any]:
            return {**super().from_config(cfg, depth), "width": 1000}

    assert Wide(_cfg()).width == 1000


def test_configurable_function() -> None:
    def from_config(cfg: CfgNode, scale: int = 1) -> dict[str, Any]:
        return {"value": cfg.A * scale}

    @configurable(from_config=from_config)
    def build(value: int, suffix: str = "") -> str:
        return f"{value}{suffix}"

    assert build(5) == "5"
    assert build(_cfg()) == "1"
    assert build(_cfg(), scale=7, suffix="!") == "7!"
    assert build.from_config is from_config


def test_configurable_needs_from_config() -> None:
    class Without:
        @configurable
        def __init__(self, *, width: int) -> None: ...

    with pytest.raises(AttributeError, match="from_config"):
        Without(_cfg())

    class NotAClassmethod:
        @configurable
        def __init__(self, *, width: int) -> None: ...

        def from_config(self, cfg: CfgNode) -> dict[str, Any]:
            return {"width": 1}

    with pytest.raises(TypeError, match="classmethod"):
        NotAClassmethod(_cfg())


def test_configurable_needs_cfg_first() -> None:
    class Wrong:
        @configurable
        def __init__(self, *, width: int) -> None: ...

        @classmethod
        def from_config(cls, config: CfgNode) -> dict[str, Any]:
            return {"width": 1}

    with pytest.raises(TypeError, match="cfg"):
        Wrong(_cfg())

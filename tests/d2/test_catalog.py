"""The dataset and metadata catalogs, and the registries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn

from querypose.config import get_cfg
from querypose.d2 import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    CfgNode,
    DatasetCatalog,
    MetadataCatalog,
    Registry,
    ShapeSpec,
    build_backbone,
    build_model,
)

NAME = "catalog_test"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)


def test_dataset_is_loaded_when_asked_for() -> None:
    loads: list[int] = []

    def load() -> list[dict[str, Any]]:
        loads.append(1)
        return [{"image_id": 3}]

    DatasetCatalog.register(NAME, load)
    assert NAME in DatasetCatalog.list()
    assert NAME in DatasetCatalog
    assert loads == []
    assert DatasetCatalog.get(NAME) == [{"image_id": 3}]
    DatasetCatalog.remove(NAME)
    with pytest.raises(KeyError, match=NAME):
        DatasetCatalog.get(NAME)


def test_dataset_name_is_taken_once() -> None:
    DatasetCatalog.register(NAME, list)
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(NAME, list)
    with pytest.raises(AssertionError):
        DatasetCatalog.register(NAME + "2", None)  # type: ignore[arg-type]  # that is the point


def test_metadata_is_one_object_and_keeps_its_values() -> None:
    metadata = MetadataCatalog.get(NAME)
    assert metadata.name == NAME
    assert metadata.set(thing_classes=["person"]) is metadata
    assert MetadataCatalog.get(NAME).thing_classes == ["person"]
    metadata.thing_classes = ["person"]
    with pytest.raises(AssertionError, match="thing_classes"):
        metadata.thing_classes = ["dog"]
    assert metadata.get("sigmas") is None
    assert metadata.get("sigmas", 5) == 5
    with pytest.raises(AttributeError, match=NAME):
        _ = metadata.sigmas
    assert not hasattr(metadata, "sigmas")
    MetadataCatalog.remove(NAME)
    assert not hasattr(MetadataCatalog.get(NAME), "thing_classes")


def test_registry() -> None:
    registry = Registry("THINGS")

    @registry.register()
    class Thing: ...

    assert registry.get("Thing") is Thing
    assert "Thing" in registry
    assert "Thing" in [name for name, _ in registry]
    with pytest.raises(KeyError, match="Nothing"):
        registry.get("Nothing")
    with pytest.raises(AssertionError):
        registry.register(Thing)


class _SeamTestBackbone(Backbone):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8, 1, stride=2)
        self._out_features = ["p2"]
        self._out_feature_channels = {"p2": 8}
        self._out_feature_strides = {"p2": 2}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"p2": self.convolution(x)}


def _build_seam_test_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    return _SeamTestBackbone(input_shape.channels or 0)


class _SeamTestModel(nn.Module):
    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)


def test_model_and_backbone_are_built_by_name() -> None:
    for registry, entry in ((BACKBONE_REGISTRY, _build_seam_test_backbone), (META_ARCH_REGISTRY, _SeamTestModel)):
        if entry.__name__ not in registry:
            registry.register(entry)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "_SeamTestModel"
    cfg.MODEL.BACKBONE.NAME = "_build_seam_test_backbone"
    model = build_model(cfg)
    assert isinstance(model, _SeamTestModel)
    assert isinstance(model.backbone, _SeamTestBackbone)
    assert model.backbone.convolution.in_channels == 3
    assert model.backbone.output_shape() == {"p2": ShapeSpec(channels=8, stride=2)}
    assert model.backbone.size_divisibility == 0
    cfg.MODEL.META_ARCHITECTURE = "Missing"
    with pytest.raises(KeyError, match="Missing"):
        build_model(cfg)


def test_backbone_builder_must_give_a_backbone() -> None:
    def _seam_test_no_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
        return nn.Identity()

    if "_seam_test_no_backbone" not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(_seam_test_no_backbone)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "_seam_test_no_backbone"
    with pytest.raises(AssertionError):
        build_backbone(cfg)

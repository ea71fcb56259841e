"""Every experiment in configs/ says only what is new in it, builds at full size, and trains a step at a reduced one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from querypose.config import get_cfg, load_config, read_table
from querypose.d2 import META_ARCH_REGISTRY, CfgNode, build_model
from querypose.data import register_custom_datasets
from querypose.engine.trainer import PoseTrainer
from querypose.modeling.backbone import SWIN_ARCHS, SwinArch
from querypose.skeleton import skeleton_of_datasets
from tests.tiny import has_no_effect, random_batch

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TABLES = {
    str(path.relative_to(CONFIGS)): table
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if (table := read_table(path)) is not None
}
FILES = sorted({str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")} - {*TABLES})
ROWS = [f"{file}:{row}" for file, table in TABLES.items() for row in table.rows]
EXPERIMENTS = [name for name in FILES if not Path(name).name.startswith("Base-")] + ROWS

REDUCED = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.PRETRAINED", "False",
    "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.QUERYPOSE.NUM_QUERIES", "8",
    "MODEL.QUERYPOSE.NUM_STAGES", "2",
    "MODEL.QUERYPOSE.DIM_FEEDFORWARD", "32",
    "MODEL.QUERYPOSE.DIM_DYNAMIC", "8",
    "MODEL.QUERYPOSE.BOX.POOLER_RESOLUTION", "3",
    "MODEL.QUERYPOSE.KEYPOINT.POOLER_RESOLUTION", "4",
    "MODEL.QUERYPOSE.KEYPOINT.NUM_CONVS", "2",
    "MODEL.QUERYPOSE.KEYPOINT.CONV_DIM", "16",
    "MODEL.QUERYPOSE.KEYPOINT.PART_DIM", "16",
    "MODEL.POET.NUM_QUERIES", "8",
    "MODEL.POET.DIM", "32",
    "MODEL.POET.DIM_FEEDFORWARD", "32",
    "MODEL.POET.NUM_ENCODER_LAYERS", "2",
    "MODEL.POET.NUM_DECODER_LAYERS", "2",
    "MODEL.LQR.MIN_AREA", "0.0",
    "MODEL.SHARPOSE.DIM", "24",
    "MODEL.SHARPOSE.DEPTH", "2",
    "MODEL.SHARPOSE.DROP_PATH_RATE", "0.0",
]  # fmt: skip
SMALL_ARCHS = {
    "resnet": "resnet18",
    "test_resnet": "test_resnet",
    "regnetx": "regnetx_002",
    "hrnet": "hrnet_w18_small",
    "vit": "test_vit",
    "convnext": "test_convnext",
}
SMALL_SWIN = SwinArch(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))


def leaves(node: CfgNode | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):  # a CfgNode is one
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load(name: str, *overrides: str) -> CfgNode:
    """The config of a name in EXPERIMENTS: of a file, or of `file:row` of a table."""
    file, _, row = name.partition(":")
    cfg = load_config(CONFIGS / file, ["MODEL.BACKBONE.PRETRAINED", "False", *overrides], row=row or None)
    register_custom_datasets(cfg)
    return cfg


def reduce_arch(arch: str) -> str:
    kinds = [small for kind, small in SMALL_ARCHS.items() if arch.startswith(kind)]
    assert kinds, f"name a small network of the kind of {arch!r} in SMALL_ARCHS"
    return kinds[0]


def test_there_are_configs() -> None:
    assert len(EXPERIMENTS) >= 20


# A row of a table says what it is, base or not; so do those that set every key in which a paper and its code differ.
@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(("_paper.yaml", "_official.yaml"))])
def test_a_file_says_only_what_is_new_in_it(name: str) -> None:
    own = yaml.safe_load((CONFIGS / name).read_text())
    base = own.pop("_BASE_", None)
    inherited = dict(leaves(load_config((CONFIGS / name).parent / base) if base else get_cfg()))
    repeated = [key for key, value in leaves(own) if inherited[key] == value]
    assert repeated == []


@pytest.mark.parametrize("name", FILES + ROWS)
def test_schedules_end_after_their_last_step(name: str) -> None:
    solver = load(name).SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.MAX_EPOCHS:
        assert (places := [*solver.STEP_EPOCHS, solver.MAX_EPOCHS]) == sorted(set(places)), "all are in epochs"
        assert solver.STEPS == []
    elif solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        assert [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER] == sorted(
            {solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER}
        )


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "_full" in name])
def test_full_is_light_with_the_keypoint_decoder_in_the_path_of_the_instance_query(name: str) -> None:
    light, full = dict(leaves(load(name.replace("_full", "")))), dict(leaves(load(name)))
    assert {key: full[key] for key in full if full[key] != light[key]} == {
        "MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION": "serial",
        "MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION": True,
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_builds_at_full_size(name: str) -> None:
    cfg = load(name)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    if cfg.INPUT.PIPELINE == "person_crops":
        assert list(model.transformer.image_size) == cfg.INPUT.PERSON_CROP.SIZE
        return
    shapes = model.backbone.output_shape()
    if cfg.MODEL.FPN.TYPE == "none":
        assert list(shapes) == (cfg.MODEL.BACKBONE.OUT_FEATURES or ["c2", "c3", "c4", "c5"])
        assert max(shape.stride for shape in shapes.values()) == cfg.MODEL.BACKBONE.OUTPUT_STRIDE
    else:
        levels = cfg.MODEL.BACKBONE.OUT_FEATURES or ["p2", "p3", "p4", "p5"]
        assert [shape.stride for shape in shapes.values()] == [2 ** int(level[1:]) for level in levels]
        assert {shape.channels for shape in shapes.values()} == {cfg.MODEL.FPN.OUT_CHANNELS}


@pytest.mark.parametrize(
    ("name", "official", "dead"),
    [
        ("querypose/querypose_r50_fpn_1x.yaml", 188_723_016, 99_840),
        ("querypose/querypose_r50_fpn_1x_full.yaml", 322_641_480, 99_840),
        ("querypose/querypose_hrnet_w32_2x.yaml", 194_302_792, 689_920),
        ("querypose/querypose_hrnet_w48_2x_full.yaml", 364_485_320, 701_952),
        ("querypose/querypose_swin_t_fpn_2x_full.yaml", 326_092_866, 99_840),
    ],
)
def test_parameter_counts_are_those_of_the_authors_less_what_never_trains(name: str, official: int, dead: int) -> None:
    cfg = load(name)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == official - dead


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_trains_a_step_at_a_reduced_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load(name, *REDUCED)
    arch = cfg.MODEL.BACKBONE.ARCH
    if cfg.MODEL.BACKBONE.NAME == "build_swin_fpn_backbone":
        monkeypatch.setitem(SWIN_ARCHS, arch, SMALL_SWIN)
    else:
        cfg.MODEL.BACKBONE.ARCH = reduce_arch(arch)
    model = build_model(cfg)
    wake(model)
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    skeleton = skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    size = (96, 128) if cfg.INPUT.PIPELINE == "whole_image" else tuple(cfg.INPUT.PERSON_CROP.SIZE)
    batch = random_batch([2, 1], skeleton.num_keypoints, size)
    for image in batch:  # keypoints near the center, which every predicted box contains
        image["instances"].gt_keypoints.tensor[..., :2] = torch.tensor([size[1], size[0]]) / 2 - 4 + torch.rand(2) * 8
    losses = model.train()(batch)
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    effective = {name: p for name, p in trainable.items() if not has_no_effect(name) and not is_idle(name, cfg)}
    assert [name for name, p in effective.items() if p.grad is None or not p.grad.any()] == []
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    optimizer.step()
    for parameter_name, parameter in trainable.items():
        assert parameter.isfinite().all(), parameter_name
        assert parameter_name not in effective or not torch.equal(parameter, before[parameter_name]), parameter_name


def is_idle(parameter_name: str, cfg: CfgNode) -> bool:
    """Whether the parameter waits for patches that are seen finely, where a row of SHaRPose has none, or for a person
    that is large enough for its level of the pyramid, where boxes begin at one size."""
    if cfg.MODEL.QUERYPOSE.PROPOSAL_INIT == "dense":
        return parameter_name.startswith(("backbone.fpn_", "backbone.lateral_conv"))
    return cfg.MODEL.SHARPOSE.ALPHA == 0 and parameter_name.startswith(
        ("transformer.fine_positions", "transformer.reuse")
    )


def wake(model: nn.Module) -> None:
    """Changes the initialization so that one step on a small image reaches every parameter."""
    for name, parameter in model.named_parameters():
        if not parameter.any():  # the last norm of a residual branch, which would hide the branch
            nn.init.normal_(parameter, std=0.1)
        if ".box_deltas." in name:  # boxes that stay about where they begin
            parameter.data.mul_(0.01)
        if name.endswith("proposal_boxes"):
            # Boxes of 50 to 1000 pixels, beyond the image, so that every level of the pyramid is read.
            parameter.data[:, 2:] = torch.logspace(-0.3, 1.0, len(parameter))[:, None]

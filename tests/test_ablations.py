"""The tables of configs/ablations and their rows: complete, each a delta that fits another base too, and each of them
what the paper says that it is.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from querypose.analysis.complexity import count_flops
from querypose.config import load_config
from querypose.config.tables import Table, TableRow
from querypose.d2 import META_ARCH_REGISTRY, build_model
from querypose.modeling import LQR, POET, QueryPose
from querypose.skeleton import SkeletonError
from tests.test_configs import CONFIGS, ROWS, TABLES, leaves, load

ABLATIONS = CONFIGS / "ablations"
LQR_ROWS = [name for name in ROWS if name.startswith("ablations/lqr/")]
POET_ROWS = [name for name in ROWS if name.startswith("ablations/poet/")]
DENSE_ROWS = [name for name in ROWS if name.startswith("ablations/querypose_dense/")]
SHARPOSE_ROWS = [name for name in ROWS if name.startswith("ablations/sharpose/")]
QUERY_POSE_ROWS = [name for name in ROWS if name not in {*POET_ROWS, *LQR_ROWS, *DENSE_ROWS, *SHARPOSE_ROWS}]
# Of the rows of each model: the keys that they may set, and a small experiment that they can stand on.
OWN_KEYS = {
    "QueryPose": "MODEL.QUERYPOSE.",
    "POET": "MODEL.POET.",
    "LQR": "MODEL.LQR.",
    "SHaRPose": "MODEL.SHARPOSE.",
}
LIGHT_BASES = {
    "QueryPose": "querypose/querypose_tiny.yaml",
    "POET": "lsp/poet_r18.yaml",
    "LQR": "lsp/lqr_r18.yaml",
    "SHaRPose": "lsp/sharpose_overfit_tiny.yaml",
}


def table_and_row(name: str) -> tuple[Table, TableRow]:
    file, _, row = name.partition(":")
    return TABLES[file], TABLES[file].rows[row]


def test_every_file_is_a_table() -> None:
    assert {str(path.relative_to(CONFIGS)) for path in ABLATIONS.rglob("*.yaml")} == {*TABLES}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_its_rows_and_the_metrics_of_the_paper(name: str) -> None:
    table = TABLES[name]
    assert table.title
    assert len(table.rows) >= 2
    assert ABLATIONS not in table.base.resolve().parents  # so that the row itself holds all that it changes
    for row in table.rows.values():
        assert all(0 < metric < 100 for metric in row.paper.values())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_a_delta_that_can_stand_on_another_base(name: str) -> None:
    table, row = table_and_row(name)
    meta_architecture = load_config(table.base).MODEL.META_ARCHITECTURE
    assert all(key.startswith(OWN_KEYS[meta_architecture]) for key in row.keys)
    light = CONFIGS / LIGHT_BASES[meta_architecture]
    there, base = dict(leaves(load_config(light, row.overrides))), dict(leaves(load_config(light)))
    assert {key for key in there if there[key] != base[key]} <= {*row.keys}
    assert parameter_shapes(light, tuple(map(str, row.overrides)))


# What each row has in its keypoint decoder, counted from the paper's description; see `expected_parameters`.
EXPECTED: dict[str, dict[str, Any]] = {
    "table1:instance_self_attention": {"queries": "instance", "interaction": "self_attention"},
    "table1:part_self_attention": {"interaction": "self_attention", "iteration": "none"},
    "table1:instance_dynamic_channel": {"queries": "instance", "interaction": "dynamic_channel"},
    "table1:part_dynamic_channel": {"interaction": "dynamic_channel", "iteration": "none"},
    "table1:instance_dynamic_spatial": {"queries": "instance", "interaction": "dynamic_spatial"},
    "table1:part_dynamic_spatial": {"interaction": "dynamic_spatial", "iteration": "none"},
    "table1:instance_spatial_attention": {"queries": "instance"},
    "table1:part_spatial_attention": {"iteration": "none"},
    "table2a:none": {"iteration": "none"},
    "table2a:summation": {"iteration": "summation"},
    "table2a:concatenation": {"iteration": "concatenation"},
    "table2a:selective": {},
    "table2b:baseline": {"queries": "none", "interaction": "average_pooling", "refines": False},
    "table2b:spegm": {"iteration": "none"},
    "table2b:sim": {},
    "table2c:32": {"part_dim": 32},
    "table2c:64": {"part_dim": 64},
    "table2c:128": {},
    "table2c:256": {"part_dim": 256},
    "table2d:joint": {"parts": 17},
    "table2d:head_joints": {"parts": 13},
    "table2d:rigid": {},
    "table2d:limb": {"parts": 5},
    "table3:box": {"refines": False},
    "table3:serial": {},
    "queries:50": {"num_queries": 50},
    "queries:100": {},
    "queries:300": {"num_queries": 300},
    "heatmap:off": {},
    "heatmap:on": {"heatmap": True},
}
STAGES, CHANNELS, CELLS, KEYPOINTS, DYNAMIC, FEEDFORWARD = 6, 256, 14 * 14, 17, 64, 2048


def linear(dim_in: int, dim_out: int) -> int:
    return dim_in * dim_out + dim_out


def norm(dim: int) -> int:
    return 2 * dim


def feed_forward(dim: int) -> int:
    return linear(dim, FEEDFORWARD) + linear(FEEDFORWARD, dim) + norm(dim)


def attention(dim: int) -> int:
    return linear(dim, 3 * dim) + linear(dim, dim)


def dynamic_mlp(mixed: int, inner: int, kept: int, query_dim: int) -> int:
    generated = linear(query_dim, 2 * mixed * inner) + norm(inner) + norm(mixed)
    return generated + linear(mixed * kept, query_dim) + norm(query_dim)


def interaction_parameters(name: str, num_queries: int, query_dim: int) -> int:
    return {
        "spatial_attention": (
            4 * 4 * CHANNELS**2 + norm(CHANNELS) + linear(9 * CHANNELS, num_queries) + linear(CHANNELS, query_dim)
        ),
        "self_attention": linear(CHANNELS, query_dim) + attention(query_dim),
        "dynamic_channel": dynamic_mlp(CHANNELS, DYNAMIC, CELLS, query_dim),
        "dynamic_spatial": dynamic_mlp(CELLS, math.ceil(CHANNELS * DYNAMIC / CELLS), CHANNELS, query_dim),
        "average_pooling": linear(CHANNELS, num_queries * query_dim),
    }[name]


def expected_parameters(
    queries: str = "part",
    interaction: str = "spatial_attention",
    iteration: str = "selective",
    part_dim: int = 128,
    parts: int = 7,
    refines: bool = True,
    num_queries: int = 100,
    heatmap: bool = False,
) -> int:
    """Parameters of the keypoint decoder, the learned queries and boxes, and what else a row may change."""
    num, dim = (parts, part_dim) if queries == "part" else (1, CHANNELS)
    stage = interaction_parameters(interaction, num, dim) + 2 * 2 * KEYPOINTS * (dim + 1)
    if queries == "part":
        stage += linear(CHANNELS, num * dim) + attention(dim) + norm(dim) + feed_forward(dim)
        stage += {
            "none": 0,
            "summation": 0,
            "concatenation": linear(2 * dim, dim),
            "selective": dim * (dim // 4) + norm(dim // 4) + linear(dim // 4, 2 * dim),
        }[iteration]
    if queries == "instance":
        stage += norm(dim) + feed_forward(dim)
    if refines:
        stage += dynamic_mlp(CHANNELS, DYNAMIC, CELLS, CHANNELS) + norm(CHANNELS) + feed_forward(CHANNELS)
    carried = queries == "part" and (iteration != "none" or interaction not in ("spatial_attention", "average_pooling"))
    others = num_queries * (CHANNELS + 4) + carried * num * dim
    if heatmap:
        others += linear(9 * CHANNELS, CHANNELS) + linear(CHANNELS, KEYPOINTS)
    return STAGES * stage + others


@functools.cache
def parameter_shapes(path: Path, overrides: tuple[Any, ...] = ()) -> dict[str, torch.Size]:
    cfg = load_config(path, ["MODEL.BACKBONE.PRETRAINED", "False", *overrides])
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def shapes_of_row(name: str) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Parameters of a row, and of its base."""
    table, row = table_and_row(name)
    return parameter_shapes(table.base, tuple(row.overrides)), parameter_shapes(table.base)


def short(name: str) -> str:
    return name.removeprefix("ablations/").replace(".yaml", "")


@pytest.mark.parametrize("name", QUERY_POSE_ROWS)
def test_a_row_has_as_many_parameters_more_or_less_as_its_change_makes(name: str) -> None:
    row, base = (sum(math.prod(shape) for shape in shapes.values()) for shapes in shapes_of_row(name))
    assert row - base == expected_parameters(**EXPECTED[short(name)]) - expected_parameters()


PART_QUERIES = r"decoder\.part_queries"
STAGE = r"decoder\.keypoint_stages\.\d\."
# Which parameters a row may have otherwise than its base.
SWAPPED = {
    "table1:part_": [PART_QUERIES, STAGE + "part_(embedding|update)"],
    "table1:instance_": [
        PART_QUERIES,
        STAGE + "(part_(embedding|update|attention)|instance_(residual|embedding)|norm|feed_forward|regressor)",
    ],
    "table2a:": [PART_QUERIES, STAGE + "part_update"],
    "table2b:baseline": [
        PART_QUERIES,
        STAGE + "(part_(embedding|update|attention)|embedding|instance_residual|feed_forward|regressor|refinement)",
    ],
    "table2b:": [PART_QUERIES, STAGE + "part_update"],
    "table2c:": [
        PART_QUERIES,
        STAGE + r"(part_embedding\.project|part_update|part_attention|instance_residual|feed_forward|regressor)",
    ],
    "table2d:": [PART_QUERIES, STAGE + r"(part_embedding\.attention|instance_residual)"],
    "table3:": [STAGE + "refinement"],
    "queries:": [r"decoder\.(proposal_boxes|instance_queries)"],
    "heatmap:": ["heatmap"],
}


@pytest.mark.parametrize("name", QUERY_POSE_ROWS)
def test_swapping_one_piece_leaves_the_parameters_of_all_others_as_they_are(name: str) -> None:
    row, base = shapes_of_row(name)
    differing = {key for key in {*row, *base} if row.get(key) != base.get(key)}
    patterns = next(SWAPPED[prefix] for prefix in SWAPPED if short(name).startswith(prefix))
    assert not [key for key in differing if not re.match(rf"({'|'.join(patterns)})(\.|$)", key)]
    assert bool(differing) == bool(EXPECTED[short(name)])


@pytest.mark.parametrize("name", POET_ROWS)
def test_a_row_of_poet_changes_weights_of_its_loss_alone(name: str) -> None:
    cfg = load(name)
    assert {*table_and_row(name)[1].keys} <= {
        f"MODEL.POET.LOSS.{key}" for key in ("KEYPOINT_WEIGHT", "OFFSET_WEIGHT", "CENTER_WEIGHT", "CENTER_IN_OFFSETS")
    }
    assert max(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST) == 512
    with torch.device("meta"):
        model = POET(cfg)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 41_272_888 - 257


# In millions, as Tables 2 to 4 of LQR print them, or as they follow from the counts of its layers.
LQR_PARAMETERS = {
    "table2:baseline": 29.545, "table2:cir": 29.545, "table2:cir_kqe": 29.560, "table2:kqe_pqe": 29.625,
    "table2:model": 29.625,
    "table3:discrete": 29.625, "table3:discrete_quality": 29.695, "table3:gaussian": 29.625,
    "table3:gaussian_quality": 29.695, "table3:cir": 29.625,
    "table4:0": 29.618, "table4:3": 29.620, "table4:6": 29.623, "table4:9": 29.625, "table4:12": 29.628,
    "table4:15": 29.630,
    "table6:learned": 29.645, "table6:semantic_points": 29.625, "table6:keypoints": 29.625,
    "table6:keypoint_queries": 29.625,
}  # fmt: skip


@pytest.mark.parametrize("name", LQR_ROWS)
def test_a_row_of_lqr_has_the_parameters_of_the_paper(name: str) -> None:
    row, base = shapes_of_row(name)
    number = sum(math.prod(shape) for shape in row.values())
    assert round(number / 1e6, 3) == LQR_PARAMETERS[short(name).removeprefix("lqr/")]
    if short(name) == "lqr/table6:learned":
        assert number - sum(math.prod(shape) for shape in base.values()) == 19_618


# Billions of multiplications and additions at 512 x 512 as LQR's counts have them.
LQR_GMACS = {
    "table2:baseline": 45.13, "table2:cir": 45.13, "table2:cir_kqe": 45.37, "table2:kqe_pqe": 46.44,
    "table2:model": 46.44,
    "table4:0": 46.32, "table4:3": 46.36, "table4:6": 46.40, "table4:9": 46.44, "table4:12": 46.48, "table4:15": 46.52,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in LQR_ROWS if short(name).removeprefix("lqr/") in LQR_GMACS])
def test_a_row_of_lqr_has_the_operations_of_the_paper(name: str) -> None:
    model = LQR(load(name, "MODEL.LQR.FLIP_TEST", "False"))
    gmacs = sum(count_flops(model, (64, 64), depth=1).values()) / 2e9  # a 64th of the cells
    assert round(64 * gmacs, 2) == LQR_GMACS[short(name).removeprefix("lqr/")]


def test_every_table_of_lqr_has_a_row_that_is_the_model() -> None:
    base = dict(leaves(load("lqr/lqr_hrnet_w32_512.yaml")))
    of_tables: dict[str, int] = {}
    for name in LQR_ROWS:
        is_model = all(base[key] == value for key, value in table_and_row(name)[1].keys.items())
        of_tables[name.partition(":")[0]] = of_tables.get(name.partition(":")[0], 0) + is_model
    assert set(of_tables.values()) == {1}


# Which parameters a row of SHaRPose has otherwise than its base.
QUALITY, FINE = r"transformer\.quality_(token|predictor)", r"transformer\.(fine_positions|reuse)"
SHARPOSE_SWAPPED = {
    "coarse_none": [QUALITY, FINE],
    "none_fine": [QUALITY, FINE, r"transformer\.coarse_positions"],
    "no_quality": [QUALITY],
    "no_reuse": [r"transformer\.reuse"],
}


@pytest.mark.parametrize("name", SHARPOSE_ROWS)
def test_a_row_of_sharpose_has_the_parameters_of_its_stages(name: str) -> None:
    row, base = shapes_of_row(name)
    differing = {key for key in {*row, *base} if row.get(key) != base.get(key)}
    patterns = SHARPOSE_SWAPPED.get(name.partition(":")[2], [])
    assert not [key for key in differing if not re.match(rf"({'|'.join(patterns)})(\.|$)", key)]
    assert all(any(re.match(pattern, key) for key in differing) for pattern in patterns)


@pytest.mark.parametrize(("scheme", "num_parts"), [("", 6), ("fingers", 6), ("joint", 21)])
def test_a_skeleton_of_yaml_brings_its_part_schemes(scheme: str, num_parts: int) -> None:
    cfg = load("custom_dataset_example.yaml", "MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME", scheme)
    with torch.device("meta"):
        model = QueryPose(cfg)
    assert len(model.decoder.part_queries) == num_parts


def test_a_scheme_that_the_skeleton_lacks_is_refused() -> None:
    cfg = load("custom_dataset_example.yaml", "MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME", "limb")
    with pytest.raises(SkeletonError, match="'hand': there is no part scheme 'limb'; known: fingers, joint"):
        build_model(cfg)

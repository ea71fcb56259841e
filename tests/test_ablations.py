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
import yaml

from querypose.config import load_config
from querypose.d2 import META_ARCH_REGISTRY, build_model
from querypose.modeling import POET, QueryPose
from querypose.skeleton import SkeletonError
from tests.test_configs import CONFIGS, ROWS, TABLES, leaves, load

ABLATIONS = CONFIGS / "ablations"
QUERY_POSE_ROWS = [name for name in ROWS if (CONFIGS / name).parent == ABLATIONS]
POET_ROWS = [name for name in ROWS if (CONFIGS / name).parent == ABLATIONS / "poet"]
# Of the rows of each model: the keys that they may set, and a small experiment that they can stand on.
OWN_KEYS = {"QueryPose": "MODEL.QUERYPOSE.", "POET": "MODEL.POET."}
LIGHT_BASES = {"QueryPose": "quickstart.yaml", "POET": "lsp/poet_r18.yaml"}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_every_row_is_in_a_table_and_every_table_has_its_rows() -> None:
    assert {table.parent for table in TABLES} == {ABLATIONS, ABLATIONS / "poet"}
    named = [table.parent / row["config"] for table in TABLES for row in read(table)["rows"]]
    assert sorted(str(path.relative_to(CONFIGS)) for path in named) == ROWS
    assert sorted({*QUERY_POSE_ROWS, *POET_ROWS}) == ROWS


@pytest.mark.parametrize("table", [str(table.relative_to(ABLATIONS)) for table in TABLES])
def test_a_table_names_its_rows_and_the_figures_of_the_paper(table: str) -> None:
    content = read(ABLATIONS / table)
    assert set(content) == {"title", "rows"}
    names = [row["name"] for row in content["rows"]]
    assert len({*names}) == len(names) >= 2
    for row in content["rows"]:
        assert set(row) == {"name", "config", "paper"}
        assert all(isinstance(name, str) for name in (row["name"], row["config"]))
        assert all(0 < figure < 100 for figure in row["paper"].values())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_a_delta_that_can_stand_on_another_base(name: str) -> None:
    own = read(CONFIGS / name)
    base = ((CONFIGS / name).parent / own.pop("_BASE_")).resolve()
    assert base.is_file()
    assert ABLATIONS not in base.parents  # so that the row itself holds all that it changes
    keys = [key for key, _ in leaves(own)]
    assert keys
    prefix = OWN_KEYS[load_config(base).MODEL.META_ARCHITECTURE]
    assert all(key.startswith(prefix) for key in keys)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_on_a_light_base_differs_from_it_in_what_it_says_alone(name: str, tmp_path: Path) -> None:
    own = read(CONFIGS / name)
    light = CONFIGS / LIGHT_BASES[load(name).MODEL.META_ARCHITECTURE]
    own["_BASE_"] = str(light)
    (tmp_path / "row.yaml").write_text(yaml.safe_dump(own))
    del own["_BASE_"]
    row, base = dict(leaves(load_config(tmp_path / "row.yaml"))), dict(leaves(load_config(light)))
    assert {key for key in row if row[key] != base[key]} <= {key for key, _ in leaves(own)}
    assert parameter_shapes(tmp_path / "row.yaml")


# What each row has in its keypoint decoder, counted from the paper's description; see `expected_parameters`.
EXPECTED: dict[str, dict[str, Any]] = {
    "table1_instance_self_attention": {"queries": "instance", "interaction": "self_attention"},
    "table1_part_self_attention": {"interaction": "self_attention", "iteration": "none"},
    "table1_instance_dynamic_channel": {"queries": "instance", "interaction": "dynamic_channel"},
    "table1_part_dynamic_channel": {"interaction": "dynamic_channel", "iteration": "none"},
    "table1_instance_dynamic_spatial": {"queries": "instance", "interaction": "dynamic_spatial"},
    "table1_part_dynamic_spatial": {"interaction": "dynamic_spatial", "iteration": "none"},
    "table1_instance_spatial_attention": {"queries": "instance"},
    "table1_part_spatial_attention": {"iteration": "none"},
    "table2a_none": {"iteration": "none"},
    "table2a_summation": {"iteration": "summation"},
    "table2a_concatenation": {"iteration": "concatenation"},
    "table2a_selective": {},
    "table2b_baseline": {"queries": "none", "interaction": "average_pooling", "refines": False},
    "table2b_spegm": {"iteration": "none"},
    "table2b_sim": {},
    "table2c_32": {"part_dim": 32},
    "table2c_64": {"part_dim": 64},
    "table2c_128": {},
    "table2c_256": {"part_dim": 256},
    "table2d_joint": {"parts": 17},
    "table2d_head_joints": {"parts": 13},
    "table2d_rigid": {},
    "table2d_limb": {"parts": 5},
    "table3_box": {"refines": False},
    "table3_serial": {},
    "queries_50": {"num_queries": 50},
    "queries_100": {},
    "queries_300": {"num_queries": 300},
    "heatmap_off": {},
    "heatmap_on": {"heatmap": True},
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
def parameter_shapes(path: Path) -> dict[str, torch.Size]:
    cfg = load_config(path, ["MODEL.BACKBONE.PRETRAINED", "False"])
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def shapes_of_row(name: str) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Parameters of a row, and of its base."""
    base = (ABLATIONS / read(CONFIGS / name)["_BASE_"]).resolve()
    return parameter_shapes(CONFIGS / name), parameter_shapes(base)


@pytest.mark.parametrize("name", QUERY_POSE_ROWS)
def test_a_row_has_as_many_parameters_more_or_less_as_its_change_makes(name: str) -> None:
    row, base = (sum(math.prod(shape) for shape in shapes.values()) for shapes in shapes_of_row(name))
    assert row - base == expected_parameters(**EXPECTED[Path(name).stem]) - expected_parameters()


PART_QUERIES = r"decoder\.part_queries"
STAGE = r"decoder\.keypoint_stages\.\d\."
# Which parameters a row may have otherwise than its base.
SWAPPED = {
    "table1_part_": [PART_QUERIES, STAGE + "part_(embedding|update)"],
    "table1_instance_": [
        PART_QUERIES,
        STAGE + "(part_(embedding|update|attention)|instance_(residual|embedding)|norm|feed_forward|regressor)",
    ],
    "table2a_": [PART_QUERIES, STAGE + "part_update"],
    "table2b_baseline": [
        PART_QUERIES,
        STAGE + "(part_(embedding|update|attention)|embedding|instance_residual|feed_forward|regressor|refinement)",
    ],
    "table2b_": [PART_QUERIES, STAGE + "part_update"],
    "table2c_": [
        PART_QUERIES,
        STAGE + r"(part_embedding\.project|part_update|part_attention|instance_residual|feed_forward|regressor)",
    ],
    "table2d_": [PART_QUERIES, STAGE + r"(part_embedding\.attention|instance_residual)"],
    "table3_": [STAGE + "refinement"],
    "queries_": [r"decoder\.(proposal_boxes|instance_queries)"],
    "heatmap_": ["heatmap"],
}


@pytest.mark.parametrize("name", QUERY_POSE_ROWS)
def test_swapping_one_piece_leaves_the_parameters_of_all_others_as_they_are(name: str) -> None:
    row, base = shapes_of_row(name)
    differing = {key for key in {*row, *base} if row.get(key) != base.get(key)}
    patterns = next(SWAPPED[prefix] for prefix in SWAPPED if Path(name).stem.startswith(prefix))
    assert not [key for key in differing if not re.match(rf"({'|'.join(patterns)})(\.|$)", key)]
    assert bool(differing) == bool(EXPECTED[Path(name).stem])


@pytest.mark.parametrize("name", POET_ROWS)
def test_a_row_of_poet_changes_weights_of_its_loss_alone(name: str) -> None:
    own, cfg = dict(leaves(read(CONFIGS / name))), load(name)
    assert {key for key in own if key != "_BASE_"} <= {
        f"MODEL.POET.LOSS.{key}" for key in ("KEYPOINT_WEIGHT", "OFFSET_WEIGHT", "CENTER_WEIGHT", "CENTER_IN_OFFSETS")
    }
    assert max(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST) == 512
    with torch.device("meta"):
        model = POET(cfg)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 41_272_888 - 257


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

"""Every key has a meaning, and what is misspelt or impossible is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from querypose.config import KEYS, ConfigError, get_cfg, load_config
from querypose.d2 import CfgNode
from tests.tiny import keypoint_queries


def test_keys_are_explained() -> None:
    assert len(KEYS) >= 100
    assert all(key.meaning for key in KEYS.values())


def test_defaults_are_allowed() -> None:
    load_config()


def test_a_default_is_not_shared_between_configs() -> None:
    get_cfg().INPUT.MIN_SIZE_TRAIN.append(1)
    assert 1 not in get_cfg().INPUT.MIN_SIZE_TRAIN


def test_base_file_and_overrides_apply_in_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 5, BASE_LR: 0.1}")
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.2}")
    cfg = load_config(tmp_path / "child.yaml", ["SOLVER.WEIGHT_DECAY", "0.3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (5, 0.2, 0.3)


def test_config_survives_a_round_trip_through_yaml() -> None:
    cfg = load_config(None, ["DATASETS.CUSTOM", "[{'name': 'a', 'json': 'b', 'images': 'c', 'skeleton': 'coco'}]"])
    again = CfgNode.load_cfg(cfg.dump())
    assert again.DATASETS.CUSTOM == cfg.DATASETS.CUSTOM
    assert again.SOLVER == cfg.SOLVER


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.MAX_ITERS", "5"], r"no key SOLVER.MAX_ITERS. Did you mean SOLVER.MAX_ITER"),
        (["MODEL.NUM_QUERIES", "5"], r"no key MODEL.NUM_QUERIES. .*MODEL.QUERYPOSE.NUM_QUERIES"),
        (["SOLVER.BASE_LR", "-1.0"], r"SOLVER.BASE_LR is -1.0; allowed: a number > 0"),
        (["SOLVER.BASE_LR", "nan"], r"SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "many"], r"SOLVER.MAX_ITER is 'many'; allowed: an integer. \(iterations in all\)"),
        (["MODEL.BACKBONE", "resnet50"], r"MODEL.BACKBONE is 'resnet50'; allowed: a section of keys"),
        (["SOLVER.MAX_ITER"], r"'SOLVER.MAX_ITER' has no value"),
        (["SOLVER.MAX_ITER=5"], r"'SOLVER.MAX_ITER=5' is not a key; write KEY VALUE"),
        (["SOLVER.MAX_ITER", "5", "--import", "x"], r"'--import' is not a key; write options before"),
        (["SOLVER.LR_SCHEDULER_NAME", "Step"], r"is 'Step'; allowed: 'WarmupMultiStepLR', 'WarmupCosineLR'"),
        (["SOLVER.STEPS", "[20, 10]"], r"SOLVER.STEPS is \[20, 10\]; allowed: iterations in increasing order"),
        (["SOLVER.ACCUMULATION_STEPS", "3"], r"allowed: a divisor of SOLVER.IMS_PER_BATCH \(16\)"),
        (["SOLVER.LR_FACTORS", "[['flow']]"], r"SOLVER.LR_FACTORS is .*pairs"),
        (["MODEL.META_ARCHITECTURE", "QuerryPose"], r"MODEL.META_ARCHITECTURE is 'QuerryPose'; allowed: .*QueryPose"),
        (["MODEL.BACKBONE.NAME", "resnet"], r"MODEL.BACKBONE.NAME is 'resnet'; allowed: .*build_timm_fpn_backbone"),
        (["MODEL.DEVICE", "gpu"], r"MODEL.DEVICE is 'gpu'; allowed"),
        (["MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"], r"MODEL.PIXEL_STD"),
        (["MODEL.QUERYPOSE.NUM_HEADS", "7"], r"MODEL.FPN.OUT_CHANNELS is 256; allowed: multiples of .*NUM_HEADS"),
        (["MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "serial"], r"DYNAMIC_INTERACTION: True"),
        (["MODEL.QUERYPOSE.KEYPOINT.QUERY_TYPE", "keypoint"], r"allowed: 'part', 'instance', 'none'"),
        (
            ["MODEL.QUERYPOSE.KEYPOINT.QUERY_TYPE", "instance"],
            r"QUERY_TYPE is 'instance', .*ITERATION is 'selective'; set it to none",
        ),
        (
            keypoint_queries("none", "self_attention"),
            r"QUERY_TYPE is 'none', .*INTERACTION is 'self_attention'; set it to average_pooling",
        ),
        (
            [*keypoint_queries("none", "average_pooling"), "MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION", "True"],
            r"DYNAMIC_INTERACTION is True, but with .*QUERY_TYPE 'none' nothing reads",
        ),
        (
            [*keypoint_queries("none", "average_pooling"), "MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "serial"],
            r"DYNAMIC_INTERACTION: True or .*QUERY_TYPE: instance",
        ),
        (["MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", "-0.5"], r"LOSS.HEATMAP_WEIGHT is -0.5; allowed: a number >= 0"),
        (["INPUT.CROP.SIZE", "[600, 384]"], r"INPUT.CROP.SIZE"),
        (["INPUT.MIN_SIZE_TRAIN", "[480, 0]"], r"INPUT.MIN_SIZE_TRAIN is \[480, 0\]; allowed: a list of positive"),
        (["TEST.EXPECTED_RESULTS", "[['keypoints', 'AP', 50.0, 1.0]]"], r"TEST.EXPECTED_RESULTS needs one dataset"),
        (["TEST.IMS_PER_BATCH", "0"], r"TEST.IMS_PER_BATCH is 0; allowed: a number >= 1"),
    ],
)
def test_misspelt_and_impossible_values_are_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config file .*absent.yaml"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: [", r"bad.yaml, line 1: this is not valid YAML"),
        ("", r"bad.yaml: it is empty"),
        ("- SOLVER", r"bad.yaml: it must hold a mapping of keys"),
        ("_BASE_: absent.yaml", r"bad.yaml: its _BASE_ .*absent.yaml' does not exist"),
        ("SOLVER: 3", r"bad.yaml: SOLVER is 3; allowed: a section of keys"),
        ("_BASE_: bad.yaml", r"bad.yaml: its _BASE_ leads back to itself"),
        (
            "SOLVER: {GAMMA: 1}\nTEST: {}\nSOLVER: {BASE_LR: 1}",
            r"SOLVER is in line 1 and again in line 3",
        ),
        ("SOLVER:\n  GAMMA: 1\n  GAMMA: 2", r"bad.yaml: GAMMA is in line 2 and again in line 3"),
        ("SOLVER: {BASE_LRR: 0.1}", r"bad.yaml: there is no key SOLVER.BASE_LRR. Did you mean SOLVER.BASE_LR"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(bad)


def test_a_config_that_would_run_code_does_not(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    hostile = tmp_path / "hostile.yaml"
    hostile.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {witness}']")
    with pytest.raises(ConfigError):
        load_config(hostile)
    assert not witness.exists()


def _bomb(levels: int, merge: bool) -> str:
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [1, 1]"]
    for level in range(1, levels):
        names = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + ("{<<: [" + names + "]}" if merge else f"[{names}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        *(_bomb(levels, merge) for levels in (7, 12, 60, 200) for merge in (False, True)),
        "a: &a [*a]",
        "a: &a {b: {c: *a}}",
        "a: &a\n  b: &b [*a, *b]",
        "a: &a {<<: *a}",
    ],
    ids=lambda text: f"{len(text)} characters",
)
def test_aliases_of_aliases_are_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bomb\.yaml: a value cannot be read \(its aliases unfold"):
        load_config(tmp_path / "bomb.yaml")


def test_aliases_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("INPUT: {MIN_SIZE_TRAIN: &s [64, 96]}\nSOLVER: {STEPS: *s}")
    assert load_config(tmp_path / "config.yaml").SOLVER.STEPS == [64, 96]

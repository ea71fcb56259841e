"""A model of each meta-architecture small enough to run in a blink, in all its versions, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from querypose.config import load_config
from querypose.d2 import Boxes, CfgNode, Instances, Keypoints, build_model
from querypose.modeling import PoseModel

TINY_MODEL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.ARCH", "resnet10t",
    "MODEL.BACKBONE.NORM", "BN",
    "MODEL.BACKBONE.FREEZE_AT", "0",
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.QUERYPOSE.NUM_QUERIES", "6",
    "MODEL.QUERYPOSE.NUM_STAGES", "2",
    "MODEL.QUERYPOSE.NUM_HEADS", "2",
    "MODEL.QUERYPOSE.DIM_FEEDFORWARD", "32",
    "MODEL.QUERYPOSE.DIM_DYNAMIC", "8",
    "MODEL.QUERYPOSE.BOX.POOLER_RESOLUTION", "3",
    "MODEL.QUERYPOSE.KEYPOINT.POOLER_RESOLUTION", "4",
    "MODEL.QUERYPOSE.KEYPOINT.NUM_CONVS", "2",
    "MODEL.QUERYPOSE.KEYPOINT.CONV_DIM", "16",
    "MODEL.QUERYPOSE.KEYPOINT.PART_DIM", "16",
    "MODEL.QUERYPOSE.FLOW.DIM_HIDDEN", "8",
    "MODEL.POET.NUM_QUERIES", "6",
    "MODEL.POET.DIM", "16",
    "MODEL.POET.NUM_HEADS", "2",
    "MODEL.POET.DIM_FEEDFORWARD", "32",
    "MODEL.POET.NUM_ENCODER_LAYERS", "2",
    "MODEL.POET.NUM_DECODER_LAYERS", "2",
    "MODEL.POET.DROPOUT", "0.0",
    "MODEL.LQR.KEYPOINT_DIM", "4",
    "MODEL.LQR.INSTANCE_DIM", "8",
    "MODEL.LQR.MIN_AREA", "0.0",
    "MODEL.SHARPOSE.DIM", "16",
    "MODEL.SHARPOSE.DEPTH", "2",
    "MODEL.SHARPOSE.NUM_HEADS", "2",
    "MODEL.SHARPOSE.PATCH_SIZE", "8",
    "MODEL.SHARPOSE.DROP_PATH_RATE", "0.0",
]  # fmt: skip
FULL_VERSION = [
    "MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "serial",
    "MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION", "True",
]  # fmt: skip


DENSE = [
    *("MODEL.QUERYPOSE.PROPOSAL_INIT", "dense", "MODEL.QUERYPOSE.PRIOR_PROB", "0.5"),
    *("MODEL.QUERYPOSE.BOX.EMBEDDING", "True", "MODEL.QUERYPOSE.BOX.IDENTITY_START", "True"),
    *("MODEL.QUERYPOSE.KEYPOINT.NUM_STAGES", "1", "MODEL.QUERYPOSE.KEYPOINT.REGION_SCALE", "1.2"),
    *("MODEL.QUERYPOSE.KEYPOINT.INTERACTION", "located_attention", "MODEL.QUERYPOSE.KEYPOINT.HEATMAP_INPUT", "True"),
    *("MODEL.BACKBONE.OUT_FEATURES", "['p2', 'p3']", "MODEL.QUERYPOSE.BOX.IN_FEATURES", "['p2', 'p3']"),
    *("MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", "4.0", "MODEL.QUERYPOSE.LOSS.KEYPOINT_WEIGHT", "0.0"),
    *("MODEL.QUERYPOSE.LOSS.EXTRA_TERMS", "['similarity']", "SOLVER.LR_FACTORS", "[]"),
]
NOISY_BOXES = ["MODEL.QUERYPOSE.KEYPOINT.NOISY_BOXES", "2"]
"""For tests of their own: others compare trainings, which differ by the noise."""
POET = ["MODEL.META_ARCHITECTURE", "POET", "MODEL.FPN.TYPE", "none", "MODEL.BACKBONE.OUT_FEATURES", "['c5']"]
LQR = ["MODEL.META_ARCHITECTURE", "LQR", "INPUT.PIPELINE", "dense_image"]
SHARPOSE = [
    *("MODEL.META_ARCHITECTURE", "SHaRPose", "INPUT.PIPELINE", "person_crops"),
    *("INPUT.PERSON_CROP.SIZE", "[64, 96]"),
]
ARCHITECTURES: dict[str, list[str]] = {
    "QueryPose": [],
    "QueryPose-Dense": DENSE,
    "POET": POET,
    "SHaRPose": SHARPOSE,
    "LQR": LQR,
}
"""Overrides of TINY_MODEL that make each, and QueryPose-Dense, which is QueryPose with other parts.

A row is all that the tests of every meta-architecture need of a new one.
"""


WHOLE_IMAGES = [name for name in ARCHITECTURES if name != "SHaRPose"]
"""Those that take images of any size, with any number of persons; the others take crops of 64 x 96."""


def keypoint_queries(query_type: str, interaction: str, iteration: str = "none") -> list[str]:
    """Overrides that choose what keypoints are regressed from, and how it reads the region."""
    prefix = "MODEL.QUERYPOSE.KEYPOINT."
    chosen = {"QUERY_TYPE": query_type, "INTERACTION": interaction, "ITERATION": iteration}
    return [word for key, value in chosen.items() for word in (prefix + key, value)]


QUERY_POSE_VERSIONS: dict[str, list[str]] = {
    "full": FULL_VERSION,
    "full on matched": [*FULL_VERSION, "MODEL.QUERYPOSE.TRAIN_QUERIES", "matched"],
    "one keypoint stage": ["MODEL.QUERYPOSE.KEYPOINT.NUM_STAGES", "1"],
    "located attention": keypoint_queries("part", "located_attention", "selective"),
    "heat maps": ["MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", "0.5"],
    "part queries, dynamic": keypoint_queries("part", "dynamic_channel"),
    "part queries, full, attention, selective": [
        *FULL_VERSION,
        *keypoint_queries("part", "self_attention", "selective"),
    ],
    "part queries, average": keypoint_queries("part", "average_pooling", "selective"),
    "instance query": keypoint_queries("instance", "dynamic_spatial"),
    "instance query, full": [*FULL_VERSION, *keypoint_queries("instance", "spatial_attention")],
    "instance query, serial alone": [
        *("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "serial"),
        *keypoint_queries("instance", "self_attention"),
    ],
    "no query": keypoint_queries("none", "average_pooling"),
}
POET_VERSIONS: dict[str, list[str]] = {
    "POET of the authors' code": [*POET, "MODEL.POET.EMPTY_CLASS", "True", "MODEL.POET.LOSS.TERMS", "released"],
    "POET, stride 16": [*POET, "MODEL.BACKBONE.OUTPUT_STRIDE", "16"],
    "POET, center in offsets": [*POET, "MODEL.POET.LOSS.CENTER_IN_OFFSETS", "True"],
    "POET, heat maps and OKS": [
        *POET,
        *("MODEL.POET.LOSS.HEATMAP_WEIGHT", "1.0", "MODEL.POET.LOSS.EXTRA_TERMS", "['similarity']"),
    ],
    "POET, last layer": [*POET, "MODEL.POET.LOSS.DEEP_SUPERVISION", "False"],
    "POET on a pyramid's level": [
        *("MODEL.META_ARCHITECTURE", "POET", "MODEL.BACKBONE.OUT_FEATURES", "['p4']"),
    ],
}
LQR_VERSIONS: dict[str, list[str]] = {
    "LQR on raw features": [*LQR, "MODEL.FPN.TYPE", "none"],
    "LQR without queries": [*LQR, "MODEL.LQR.KEYPOINT_QUERIES", "False", "MODEL.LQR.POSE_QUERY", "cell"],
    "LQR, Gaussian, quality": [*LQR, "MODEL.LQR.LABEL", "gaussian", "MODEL.LQR.QUALITY_BRANCH", "True"],
    "LQR, discrete, learned places": [*LQR, "MODEL.LQR.LABEL", "discrete", "MODEL.LQR.POSE_QUERY", "learned"],
    "LQR, weighted semantic points": [
        *LQR,
        *("MODEL.LQR.NUM_POINTS", "2", "MODEL.LQR.AGGREGATION", "weighted"),
        *("MODEL.LQR.POSE_QUERY", "semantic_points"),
    ],
    "LQR, no points, keypoints": [*LQR, "MODEL.LQR.NUM_POINTS", "0", "MODEL.LQR.POSE_QUERY", "keypoints"],
    "LQR, several scales": [*LQR, "MODEL.LQR.TEST_SCALES", "[0.5, 1.0, 2.0]", "MODEL.LQR.FLIP_TEST", "False"],
}
SHARPOSE_VERSIONS: dict[str, list[str]] = {
    "SHaRPose of the paper": [
        *SHARPOSE,
        *("MODEL.SHARPOSE.KEPT_TOKENS", "output", "MODEL.SHARPOSE.ATTENTION_FROM", "0.0"),
        *("MODEL.SHARPOSE.QUALITY.DISTANCE", "norm", "MODEL.SHARPOSE.QUALITY.ACTIVATION", "none"),
    ],
    "SHaRPose without quality": [*SHARPOSE, "MODEL.SHARPOSE.QUALITY.ENABLED", "False"],
    "SHaRPose without reuse": [*SHARPOSE, "MODEL.SHARPOSE.REUSE", "False"],
    "SHaRPose, one stage": [*SHARPOSE, "MODEL.SHARPOSE.FINE_SCALE", "0.0"],
}
DENSE_VERSIONS: dict[str, list[str]] = {
    "QueryPose-Dense, all stages": [*DENSE, "MODEL.QUERYPOSE.KEYPOINT.NUM_STAGES", "2"],
}
VERSIONS = {
    **ARCHITECTURES,
    **QUERY_POSE_VERSIONS,
    **DENSE_VERSIONS,
    **POET_VERSIONS,
    **LQR_VERSIONS,
    **SHARPOSE_VERSIONS,
}
"""Overrides of every version of every meta-architecture that is worth a test of its own."""


def has_no_effect(parameter_name: str) -> bool:
    """Whether a parameter's gradient is rounding errors alone.

    A softmax over cells ignores a bias common to them; and in the first layer of a decoder that starts from zeros all
    queries see the same in each other, whatever they look at.
    """
    return parameter_name.endswith(
        ("_embedding.attention.bias", "decoder_layers.0.self_attention.attention.in_proj_weight")
    )


def tiny_config(*overrides: str, dataset: str = "keypoints_coco_2017_val") -> CfgNode:
    """The default config with a tiny model on the CPU; `dataset` decides the skeleton."""
    datasets = ["DATASETS.TRAIN", f"['{dataset}']", "DATASETS.TEST", f"['{dataset}']"]
    return load_config(None, [*TINY_MODEL, *datasets, *overrides])


def exact_model(*overrides: str, seed: int = 0) -> PoseModel:
    """In float64, with constant BatchNorms: its losses are sums over images to about 15 digits."""
    torch.manual_seed(seed)
    model = build_model(tiny_config(*overrides)).double()
    assert isinstance(model, PoseModel)
    hold_batch_norms(model)
    return model


def hold_batch_norms(model: nn.Module) -> None:
    """In training they take the statistics of the images at hand, which are no sums over images."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def random_persons(num_persons: int, num_keypoints: int, image_size: tuple[int, int]) -> Instances:
    """Persons with boxes inside the image and keypoints inside the boxes, a fifth of them not labeled."""
    height, width = image_size
    corner = torch.rand(num_persons, 2) * torch.tensor([width, height]) * 0.5
    size = (torch.rand(num_persons, 2) * 0.3 + 0.2) * torch.tensor([width, height])
    position = corner[:, None] + torch.rand(num_persons, num_keypoints, 2) * size[:, None]
    visibility = torch.where(torch.rand(num_persons, num_keypoints, 1) < 0.2, 0.0, 2.0)
    persons = Instances(image_size)
    persons.gt_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
    persons.gt_classes = torch.zeros(num_persons, dtype=torch.long)
    persons.gt_keypoints = Keypoints(torch.cat([position * (visibility > 0), visibility], dim=-1))
    return persons


def random_batch(
    persons_per_image: list[int], num_keypoints: int, image_size: tuple[int, int] = (64, 96)
) -> list[dict[str, Any]]:
    """A training batch of noise images."""
    return [
        {
            "image": torch.randint(0, 256, (3, *image_size), dtype=torch.uint8),
            "height": image_size[0],
            "width": image_size[1],
            "instances": random_persons(num_persons, num_keypoints, image_size),
        }
        for num_persons in persons_per_image
    ]

"""Keys of datasets, their loading and their augmentation."""

from __future__ import annotations

from querypose.config import (
    Allowed,
    ConfigError,
    Key,
    above,
    add_keys,
    at_least,
    between,
    is_finite,
    is_integer,
    list_of_names,
    lookup,
    one_of,
    part_list,
    registered,
    sequence_of,
)
from querypose.d2 import CfgNode
from querypose.data.augmentations import AUGMENTATION_REGISTRY
from querypose.data.image_checks import CHECKS
from querypose.data.pipelines.pipeline import DEFAULT_AUGMENTATIONS, PIPELINE_REGISTRY

_SIZES = Allowed(
    "a list of positive integers (pixels), not empty",
    lambda value: (
        isinstance(value, list | tuple) and len(value) > 0 and all(is_integer(size) and size > 0 for size in value)
    ),
)
_SHARES = sequence_of(
    "numbers in [0, 1], the smaller first", lambda value: is_finite(value) and 0 <= value <= 1, length=2
)
_CANVASES = ("dense_image", "person_crops")  # pipelines with a canvas of a given size
_MAPPINGS = sequence_of("mappings", lambda value: isinstance(value, dict))


def check_data(cfg: CfgNode) -> None:
    """Refuses bounds in the wrong order, two sizes of evaluation, and box files other than one a dataset."""
    for name in ("INPUT.CROP.SIZE", "INPUT.COARSE_DROPOUT.SHARE", "INPUT.COARSE_DROPOUT.GRID"):
        smallest, largest = bounds = lookup(cfg, name)
        if smallest > largest:
            raise ConfigError(f"{name} is {bounds}; allowed: [smallest, largest].")
    if cfg.INPUT.SCALE_TEST != 1 and (cfg.INPUT.MIN_SIZE_TEST or cfg.INPUT.PIPELINE in _CANVASES):
        raise ConfigError(
            f"INPUT.SCALE_TEST is {cfg.INPUT.SCALE_TEST}, which needs INPUT.MIN_SIZE_TEST 0 and INPUT.PIPELINE "
            "whole_image. Set MIN_SIZE_TEST to 0, or SCALE_TEST to 1."
        )
    files, datasets = cfg.DATASETS.PERSON_BOXES, cfg.DATASETS.TEST
    if files and len(files) != len(datasets):
        raise ConfigError(
            f"DATASETS.PERSON_BOXES has {len(files)} files; allowed: none, or one for each of the {len(datasets)} "
            "datasets of DATASETS.TEST."
        )


# fmt: off
add_keys((
    Key("DATASETS.TRAIN", [], "names of registered datasets; all of one skeleton", list_of_names()),
    Key("DATASETS.TEST", [], "names of registered datasets; all of one skeleton", list_of_names()),
    Key("DATASETS.CUSTOM", [],
        "your datasets: list of {name, json, images, skeleton} and, if not coco, evaluator: crowdpose; images is a "
        "folder, or the address of a shards.json (a path, s3://…)", _MAPPINGS),
    Key("DATASETS.SKELETONS", [],
        "your skeletons: list of {name, keypoints, flip_pairs, sigmas, edges, part_schemes, default_part_scheme, "
        "upper_body, head_segment}",
        _MAPPINGS),
    Key("DATASETS.PERSON_BOXES", [],
        "for person_crops: COCO results files with the boxes to evaluate on, one a dataset of DATASETS.TEST; '' and [] "
        "take the annotated boxes", list_of_names()),
    Key("DATASETS.CHECK", "annotations",
        "before training, refuse datasets with errors: in the json files; with 'files' also in the images' headers",
        registered(CHECKS)),
    Key("DATALOADER.NUM_WORKERS", 4, "loader processes per training process; 0 loads in the main one", between(0, 512)),
    Key("DATALOADER.TIMEOUT", 600.0, "seconds without a batch of the loader processes that end the run", above(0)),
    Key("DATALOADER.MAX_BAD_IMAGES", 0.01,
        "share of the training images that may be unreadable: each is skipped with a warning, more are an error",
        between(0, 1)),
    Key("DATALOADER.ASPECT_RATIO_GROUPING", True, "put landscape with landscape and portrait with portrait images"),
    Key("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, "do not train on images without any annotated person"),
    Key("DATALOADER.MIN_VISIBLE_KEYPOINTS", 0,
        "do not train on persons with fewer visible keypoints, before and after augmentation", at_least(0)),
    Key("INPUT.PIPELINE", "whole_image",
        "what a sample is: an image with all its persons, the same with a mask of crowds for dense models, or one "
        "person's crop", registered(PIPELINE_REGISTRY), fixed=True),
    Key("INPUT.AUGMENTATIONS", [DEFAULT_AUGMENTATIONS],
        "augmentations of training, in this order: list of {name, arguments}; the word default stands for those that "
        "RANDOM_FLIP, ROTATION, CROP, MIN_SIZE_TRAIN, MAX_SIZE_TRAIN and COARSE_DROPOUT describe; [] is none",
        part_list(AUGMENTATION_REGISTRY, words=(DEFAULT_AUGMENTATIONS,))),
    Key("INPUT.PERSON_CROP.SIZE", [256, 192], "height and width of a person's crop, in pixels",
        sequence_of("positive integers", lambda value: is_integer(value) and value > 0, length=2)),
    Key("INPUT.PERSON_CROP.PADDING", 1.25, "factor on both sides of a person's box", above(0)),
    Key("INPUT.PERSON_CROP.UNBIASED", False,
        "the box reaches from center to center of the outer pixels of the crop, and not from edge to edge (UDP)"),
    Key("INPUT.PERSON_CROP.ANTIALIAS", True, "average pixels that shrink; False samples them, as OpenCV does"),
    Key("INPUT.FORMAT", "RGB", "channel order that the model sees", one_of("RGB", "BGR"), fixed=True),
    Key("INPUT.MIN_SIZE_TRAIN", list(range(480, 801, 32)), "short side, drawn from these, in pixels", _SIZES),
    Key("INPUT.MAX_SIZE_TRAIN", 1333, "bound of the long side, in pixels", at_least(1)),
    Key("INPUT.MIN_SIZE_TEST", 800, "short side, in pixels; 0 keeps the image's size, times SCALE_TEST", at_least(0)),
    Key("INPUT.MAX_SIZE_TEST", 1333, "bound of the long side, in pixels", at_least(1)),
    Key("INPUT.SCALE_TEST", 1.0,
        "for whole_image: factor of the size of evaluated images, where their pixels say more of how large people are "
        "than their sides do; needs MIN_SIZE_TEST 0", between(1e-3, 1e3)),
    Key("INPUT.CANVAS_MULTIPLE", 64,
        "for dense_image: the long side of an evaluated canvas is a multiple of this, its short side MIN_SIZE_TEST, in "
        "pixels", at_least(1)),
    Key("INPUT.RANDOM_FLIP", "horizontal", "mirror half of the training images", one_of("horizontal", "none")),
    Key("INPUT.ROTATION.PROBABILITY", 0.0, "probability of turning a training image about its center", between(0, 1)),
    Key("INPUT.ROTATION.MAX_DEGREES", 25.0, "greatest angle, either way", between(0, 180)),
    Key("INPUT.COARSE_DROPOUT.PROBABILITY", 0.0, "probability of painting cells of a training image black",
        between(0, 1)),
    Key("INPUT.COARSE_DROPOUT.SHARE", [0.05, 0.2], "bounds of the share of cells", _SHARES),
    Key("INPUT.COARSE_DROPOUT.GRID", [0.015, 0.03], "bounds of cells along a side, as a share of its pixels", _SHARES),
    Key("INPUT.COARSE_DROPOUT.PER_CHANNEL", 0.5, "probability that channels lose different cells", between(0, 1)),
    Key("INPUT.CROP.PROBABILITY", 0.5, "probability of resizing to CROP.MIN_SIZE and cropping first", between(0, 1)),
    Key("INPUT.CROP.MIN_SIZE", [400, 500, 600], "short side before the crop, drawn from these, in pixels", _SIZES),
    Key("INPUT.CROP.SIZE", [384, 600], "bounds of height and width of the crop, in pixels",
        sequence_of("positive integers, the smaller first",
                     lambda value: is_integer(value) and value > 0, length=2)),
), check_data)
# fmt: on

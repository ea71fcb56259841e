"""The model card: README.md of an exported model, from what the run itself knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from querypose.d2 import CfgNode
from querypose.modeling import PoseModel
from querypose.skeleton import Skeleton

_CARD = """\
---
library_name: querypose
pipeline_tag: keypoint-detection
tags: [pose-estimation, keypoint-detection]
license: {license}
---
# {architecture}, {backbone}, skeleton {skeleton}

Multi-person pose estimation: {num_keypoints} keypoints a person ({keypoints}).

```python
import querypose

model = querypose.load("this-folder")  # or model.safetensors alone, or user/name on the Hub
poses = model("photo.jpg")
poses.draw().save("photo_poses.png")
```

| | |
| --- | --- |
| parameters | {parameters:,} |
| trained on | {train} |
| evaluated on | {test} |
| training | {schedule} |
| images | {preprocessing} |
| license | {license} |

## Metrics

{metrics}
"""


def model_card(
    model: PoseModel, cfg: CfgNode, skeleton: Skeleton, metrics: Mapping[str, Any], license_name: str = "other"
) -> str:
    """The text, in Markdown with the header that the Hub reads.

    Args:
        model: that was exported.
        cfg: of the run.
        skeleton: of the model.
        metrics: as measured; without them the card says that there are none.
        license_name: of the weights; this project's code is MIT, but the weights' depends on the data.
    """
    rows = [f"| {name} | {value:.1f} |" for name, value in metrics.items() if isinstance(value, float)]
    table = "\n".join(["| metric | value |", "| --- | --- |", *rows]) if rows else "Nobody measured this model."
    short, long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    sizes = {
        "person_crops": f"crops of persons, {' x '.join(map(str, cfg.INPUT.PERSON_CROP.SIZE))} (height x width)",
        "dense_image": f"short side {short}, in the middle of a canvas",
    }
    whole = f"short side {short}, long side at most {long}" if short else f"{cfg.INPUT.SCALE_TEST:g} of the file's size"
    prepared = sizes.get(cfg.INPUT.PIPELINE, whole)
    return _CARD.format(
        architecture=cfg.MODEL.META_ARCHITECTURE,
        backbone=cfg.MODEL.BACKBONE.ARCH if cfg.INPUT.PIPELINE != "person_crops" else "ViT",
        skeleton=skeleton.name,
        num_keypoints=skeleton.num_keypoints,
        keypoints=", ".join(skeleton.keypoints),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train=", ".join(cfg.DATASETS.TRAIN) or "unknown",
        test=", ".join(cfg.DATASETS.TEST) or "unknown",
        schedule=f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images",
        preprocessing=f"{cfg.INPUT.FORMAT}, {prepared}",
        license=license_name,
        metrics=table,
    )

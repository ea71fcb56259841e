"""An interaction and a loss of a user's own, each with a hyper-parameter in YAML: one module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY_MODEL

MODULE = '''
import torch
from torch import nn

from querypose.config import Key, above, add_keys
from querypose.modeling.loss_terms import LossTerm
from querypose.modeling.lqr.loss_terms import LQR_LOSS_REGISTRY
from querypose.modeling.poet.loss_terms import POET_LOSS_REGISTRY
from querypose.modeling.query_pose.loss_terms import QUERY_POSE_LOSS_REGISTRY
from querypose.modeling.query_pose.part_embedding import INTERACTION_REGISTRY, RegionInteraction

add_keys([
    Key("MODEL.MINE.TEMPERATURE", 1.0, "of the attention to cells", above(0)),
    Key("MODEL.MINE.WEIGHT", 1.0, "of loss_labels", above(0)),
])


@INTERACTION_REGISTRY.register()
class TemperedAttention(RegionInteraction):
    reads_queries = True

    @classmethod
    def from_config(cls, cfg):
        return {"temperature": cfg.MODEL.MINE.TEMPERATURE}

    def __init__(self, sizes, temperature):
        super().__init__()
        self.temperature = temperature
        self.project = nn.Linear(sizes.dim, sizes.query_dim)

    def forward(self, region_RCHW, query_RPC):
        token_RTC = self.project(region_RCHW.flatten(2).transpose(1, 2))
        attention_RPT = (query_RPC @ token_RTC.transpose(1, 2) / self.temperature).softmax(-1)
        return attention_RPT @ token_RTC


class LabelLoss(LossTerm):
    """A number of its own, for every labeled keypoint of the batch."""

    @classmethod
    def from_config(cls, cfg):
        return {"weight": cfg.MODEL.MINE.WEIGHT}

    def __init__(self, skeleton, weight):
        super().__init__()
        self.weight = weight
        self.offset = nn.Parameter(torch.full((skeleton.num_keypoints,), 3.0))

    def normalizers(self, batch):
        labels = sum((sample["instances"].gt_keypoints.tensor[..., 2] > 0).sum() for sample in batch)
        return {"labels": torch.as_tensor(labels, dtype=torch.float64)}

    def forward(self, normalizers, targets=None, regions=None, **_):
        if regions is not None:
            labeled = regions.labeled_BGK
        else:
            labeled = targets.labelled_BGK if hasattr(targets, "labelled_BGK") else targets.poses_BG.visibility_K
        return self.weight * (self.offset * labeled).sum() / normalizers["labels"].clamp(min=1)


for registry in (QUERY_POSE_LOSS_REGISTRY, POET_LOSS_REGISTRY, LQR_LOSS_REGISTRY):
    registry.register(LabelLoss, name="labels")
'''
RUN = """
import sys, torch
from querypose.config import load_config
from querypose.d2 import build_model
import mine
cfg = load_config(None, sys.argv[1:])
model = build_model(cfg)
batch = model.example_batch(num_images=2, num_instances=2)
losses = model(batch)
torch.stack(list(losses.values())).sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
print(float(losses["loss_labels"]), [m.temperature for m in model.modules() if isinstance(m, mine.TemperedAttention)])
"""
NAMES = {
    "QueryPose": ["MODEL.QUERYPOSE.KEYPOINT.INTERACTION", "TemperedAttention"],
    "POET": ["MODEL.META_ARCHITECTURE", "POET", "MODEL.BACKBONE.OUT_FEATURES", "['p4']"],
    "LQR": ["MODEL.META_ARCHITECTURE", "LQR"],
}


@pytest.mark.parametrize("architecture", NAMES)
def test_one_file_and_its_keys(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "run.py").write_text(RUN)
    settings = [
        *("MODEL.MINE.TEMPERATURE", "2.5", "MODEL.MINE.WEIGHT", "0.5"),
        *(
            "DATASETS.TRAIN",
            "['keypoints_coco_2017_val']",
            f"MODEL.{architecture.upper()}.LOSS.EXTRA_TERMS",
            "['labels']",
        ),
    ]
    run = [sys.executable, str(tmp_path / "run.py"), *TINY_MODEL, *settings, *NAMES[architecture]]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loss, temperatures = result.stdout.split(maxsplit=1)
    assert float(loss) == pytest.approx(1.5)
    assert temperatures.strip() == ("[2.5, 2.5]" if architecture == "QueryPose" else "[]")

"""Reference tensors of the authors' code, the model with their weights, and the two side by side."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from querypose.checkpoint.querypose_official import convert_querypose_official
from querypose.config import get_cfg
from querypose.d2 import Backbone, ShapeSpec
from querypose.layers import RealNVP
from querypose.modeling.query_pose.criterion import SetCriterion
from querypose.modeling.query_pose.matcher import HungarianMatcher
from querypose.modeling.query_pose.meta_arch import build_pose_decoder
from querypose.modeling.query_pose.pose_decoder import PoseDecoder, StagePrediction
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import COCO_SKELETON
from tests.parity.stored import FIXTURES, drawn_signs, read_arrays

LEVELS = (2, 3, 4, 5)
PARTS = COCO_SKELETON.parts()
LOSS_NAMES = {
    "loss_cls": "loss_ce",
    "loss_bbox": "loss_bbox",
    "loss_giou": "loss_giou",
    "loss_keypoint": "loss_kps",
}


class Fixture:
    """One file of reference tensors, and what its inputs say.

    Args:
        name: of the file, without its suffix.
    """

    def __init__(self, name: str) -> None:
        self.arrays = read_arrays(FIXTURES / f"{name}.xz")
        self.names = frozenset(self.arrays)

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor(self.arrays[name])

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The entries below a prefix, named by the rest."""
        return {name.removeprefix(prefix): self[name] for name in sorted(self.names) if name.startswith(prefix)}

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """Weights, float32, by the names that a whole checkpoint of theirs has; matrices are drawn."""
        weights, checksum = self.group("weight/"), 0
        for name, scale in self.group("scale/").items():
            signs = drawn_signs(name, tuple(self[f"shape/{name}"].tolist()))
            checksum = zlib.crc32(signs.tobytes(), checksum)
            weights[name] = torch.from_numpy(signs).float() * scale
        assert checksum == int(self["crc32"]), "this NumPy draws other weights than those of the stored results"
        for name in ("init_proposal_boxes", "init_proposal_features", "part_query"):
            weights[f"{name}.weight"] = self[f"input/{name}"]
        return weights

    def features(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {f"p{level}": self[f"input/features_int8_div16/p{level}"].to(dtype) / 16 for level in LEVELS}

    @cached_property
    def image_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the two unpadded images."""
        return [(int(height), int(width)) for height, width in self["input/image_sizes_hw"]]

    @cached_property
    def output_sizes(self) -> list[tuple[int, int]]:
        return [(int(height), int(width)) for height, width in self["input/output_sizes_hw"]]

    def image_size_B4(self, dtype: torch.dtype) -> Tensor:
        return torch.tensor([(width, height) * 2 for height, width in self.image_sizes], dtype=dtype)

    def targets(self, case: str, dtype: torch.dtype) -> PersonTargets:
        boxes = [self[f"gt_{case}/boxes{image}"].to(dtype) for image in range(2)]
        keypoints = [self[f"gt_{case}/keypoints{image}"].to(dtype) for image in range(2)]
        boxes_BG4 = nn.utils.rnn.pad_sequence(boxes, batch_first=True)
        keypoints_BGK3 = nn.utils.rnn.pad_sequence(keypoints, batch_first=True)
        return PersonTargets(
            boxes_BG4=boxes_BG4,
            keypoints_BGKD=keypoints_BGK3[..., :2],
            labelled_BGK=keypoints_BGK3[..., 2] > 0,
            counts=tuple(map(len, boxes)),
            image_size_B4=self.image_size_B4(dtype),
            visible_BGK=keypoints_BGK3[..., 2] > 1,
        )


class OfficialView:
    """Our parameters under the authors' names: where each entry of theirs is in ours.

    Args:
        state_dict: theirs.
        model: ours, with `decoder` and `criterion`.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], model: nn.Module) -> None:
        self.state_dict = state_dict
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        converted = convert_querypose_official(state_dict, PARTS)
        ours_of = {id(value): name for name, value in converted.items()}
        self.renamed = {name: ours_of[id(value)] for name, value in state_dict.items() if id(value) in ours_of}
        # Entries that were merged are found again by converting their positions in place of their values.
        self.merged: dict[str, tuple[str, Tensor]] = {}
        first, positions, spans = 0, {}, {}
        for name, value in state_dict.items():
            if name not in self.renamed:
                positions[name] = torch.arange(first, first + value.numel()).view(value.shape)
                spans[name] = range(first, first + value.numel())
                first += value.numel()
        for ours, position in convert_querypose_official(positions, PARTS).items():
            order = position.flatten().argsort()
            start = int(position.min())
            for name, span in spans.items():
                if start <= span.start <= int(position.max()) and span.start in position:
                    index = order[torch.searchsorted(position.flatten()[order], torch.tensor(span))]
                    self.merged[name] = (ours, index)

    def __contains__(self, name: str) -> bool:
        return name in self.renamed or name in self.merged

    def read(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """The entry `name` of theirs in `values`, which are named as ours."""
        if name in self.renamed:
            return values[self.renamed[name]]
        ours, index = self.merged[name]
        return values[ours].flatten()[index].view(self.state_dict[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self.read(name, self.tensors)

    def gradient(self, name: str) -> Tensor:
        gradients = {ours: tensor.grad for ours, tensor in self.tensors.items() if tensor.grad is not None}
        return self.read(name, gradients)


class TinyPose(nn.Module):
    """Decoder, matcher and criterion without a backbone, as the fixtures have them, with their weights.

    Args:
        fixture: says number of stages and queries, light or full, and the weights.
        dtype: to compute in.
        overrides: KEY VALUE pairs on top of the default config.
    """

    def __init__(self, fixture: Fixture, dtype: torch.dtype, *overrides: str) -> None:
        super().__init__()
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("MODEL.QUERYPOSE.NUM_STAGES", str(int(fixture["config/num_stages"]))),
                *("MODEL.QUERYPOSE.NUM_QUERIES", str(int(fixture["config/num_proposals"]))),
                *overrides,
            ]
        )
        self.decoder: PoseDecoder = build_pose_decoder(cfg, Pyramid(cfg.MODEL.FPN.OUT_CHANNELS), COCO_SKELETON)
        self.criterion = SetCriterion(flow=RealNVP())
        self.matcher = HungarianMatcher()
        self.to(dtype)
        self.load_state_dict(convert_querypose_official(fixture.state_dict, PARTS), strict=True)


class Pyramid(Backbone):
    """Stands for a backbone: says what features it would give."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        raise AssertionError("only the shapes are asked for; features are in the fixture")

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{level}": ShapeSpec(channels=self.channels, stride=2**level) for level in LEVELS}


@dataclass
class TrainingRun:
    """One forward and backward pass on a training case of a fixture."""

    model: TinyPose
    features: dict[str, Tensor]
    stages: list[StagePrediction]
    losses: dict[str, Tensor]
    view: OfficialView = field(repr=False)

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.losses.values())).sum()

    def official_losses(self) -> dict[str, Tensor]:
        """Unweighted, named as theirs."""
        found = {}
        for name, loss in self.losses.items():
            ours = next(known for known in LOSS_NAMES if name.startswith(known))
            found[name.replace(ours, LOSS_NAMES[ours])] = loss.detach() / self.model.criterion.weights[ours]
        return found


def normalizers(targets: PersonTargets) -> dict[str, Tensor]:
    """Of the losses of one process with one batch."""
    return {"persons": torch.tensor(float(targets.num_persons), dtype=torch.float64)}


def train(fixture: Fixture, case: str, dtype: torch.dtype, *overrides: str, backward: bool = True) -> TrainingRun:
    """Runs the model on `gt_{case}` in training mode."""
    model = TinyPose(fixture, dtype, *overrides).train()
    features = fixture.features(dtype)
    targets = fixture.targets(case, dtype)
    with torch.set_grad_enabled(backward):
        for feature in features.values():
            feature.requires_grad_(backward)
        stages = model.decoder.decode_training(features, targets, model.matcher)
        losses = model.criterion(stages, targets, normalizers(targets))
        run = TrainingRun(model, features, stages, losses, OfficialView(fixture.state_dict, model))
        if backward:
            run.total.backward()
    return run


def relative_error(found: Tensor, golden: Tensor) -> float:
    """Greatest deviation in units of the greatest golden value."""
    assert found.shape == golden.shape, f"shapes differ: {tuple(found.shape)} and {tuple(golden.shape)}"
    scale = float(golden.abs().max()) if golden.numel() else 0.0
    deviation = float((found.detach().double() - golden.double()).abs().max()) if golden.numel() else 0.0
    return deviation / scale if scale else deviation


def float32_errors(case: str) -> dict[str, float]:
    """How far the authors' own float32 run is from their float64 run, in units of the greatest golden value.

    Returns:
        by quantity, without gradients; nothing where the case is not listed.
    """
    listed: dict[str, dict[str, float]] = json.loads((FIXTURES / "float32_errors.json").read_text())
    return listed.get(case, {})

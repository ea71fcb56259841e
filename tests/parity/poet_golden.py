"""Reference tensors of the POET authors' code, and our parts in the shape that compares with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from querypose.checkpoint.poet_official import convert_poet_official
from querypose.layers import Transformer
from querypose.modeling.poet.criterion import PoseCriterion, QueryOutputs
from querypose.modeling.poet.pose_terms import ReleasedTerms
from querypose.modeling.poet.pose_transformer import PoseTransformer
from querypose.modeling.poet.pose_vector import PoseTargets, PoseVector
from querypose.modeling.targets import Matches
from tests.parity.stored import FIXTURES, read_arrays

NUM_KEYPOINTS = 17
LOSSES = {
    "loss_cls": "loss_ce",
    "loss_keypoint": "loss_kpts",
    "loss_visibility": "loss_kpts_class",
    "loss_center": "loss_ctrs",
    "loss_offset": "loss_deltas",
}
"""Our names, and theirs."""

WEIGHTS = {
    "paper": {
        "loss_cls": 1.0, "loss_keypoint": 4.0, "loss_offset": 0.5, "loss_center": 0.5, "loss_visibility": 0.2
    },
    "default": {
        "loss_cls": 1.0, "loss_keypoint": 5.0, "loss_offset": 1.0, "loss_center": 1.0, "loss_visibility": 2.0
    },
}  # fmt: skip


class PoetFixture:
    """The arrays of one file as tensors of one precision."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays = read_arrays(FIXTURES / f"{name}.xz")
        self.dtype = dtype

    def __getitem__(self, key: str) -> Tensor:
        tensor = torch.tensor(self.arrays[key])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def keys(self, prefix: str) -> Iterator[str]:
        return (key.removeprefix(prefix) for key in self.arrays if key.startswith(prefix))

    def state_dict(self) -> dict[str, Tensor]:
        """Their weights by their names."""
        return {
            name: self[f"w_offset/{name}"] + self[f"w_scale/{name}"] * self[f"w_int8/{name}"].to(self.dtype)
            for name in self.keys("w_int8/")
        }

    def pose_transformer(self) -> PoseTransformer:
        """Ours with their weights, in evaluation mode."""
        hidden = int(self["cfg/hidden"])
        transformer = Transformer(
            dim=hidden,
            num_queries=int(self["cfg/queries"]),
            num_encoder_layers=int(self["cfg/enc"]),
            num_decoder_layers=int(self["cfg/dec"]),
            num_heads=int(self["cfg/heads"]),
            dim_feedforward=int(self["cfg/ffn"]),
            dropout=0.0,
        )
        model = PoseTransformer(
            in_channels=int(self["cfg/in_channels"]),
            transformer=transformer,
            dim=hidden,
            num_keypoints=NUM_KEYPOINTS,
            num_classes=3,
        ).to(self.dtype)
        weights = convert_poet_official(self.state_dict())
        model.load_state_dict({name.removeprefix("pose_transformer."): value for name, value in weights.items()})
        return model

    def targets(self, prefix: str) -> PoseTargets:
        """Their encoded targets as ours: a keypoint counts where it and the center are visible."""
        counts = tuple(int(count) for count in self[f"{prefix}tgt_count"])
        vectors = torch.split(self[f"{prefix}tgt_keypoints"], list(counts))
        padded_BG54 = torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True)
        keypoints_BGK3 = padded_BG54[..., 3:].unflatten(-1, (-1, 3))
        visibility_BGK = keypoints_BGK3[..., 2] * padded_BG54[..., 2:3]
        poses = PoseVector(padded_BG54[..., :2], 2 * keypoints_BGK3[..., :2] - 1, visibility_BGK)
        return PoseTargets(poses, counts)

    def matches(self, prefix: str, layer: int, counts: tuple[int, ...]) -> Matches:
        """Their matches of a layer, in our order."""
        rows = []
        for image in range(len(counts)):
            query, person = self[f"{prefix}match/layer{layer}/img{image}"]
            order = person.argsort()
            first_slot = sum(counts[:image])
            rows.append(
                torch.stack([torch.full_like(person, image), query[order], person[order], first_slot + person[order]])
            )
        image_R, query_R, person_R, slot_R = torch.cat(rows, dim=1)
        return Matches(image_R, query_R, person_R, slot_R, is_complete=len(image_R) == sum(counts))


def outputs_of(logits: Tensor, vectors: Tensor) -> QueryOutputs:
    """Of the heads, after the sigmoid."""
    return QueryOutputs(logits, PoseVector.decode(vectors))


def criterion(weights: str) -> PoseCriterion:
    """With the terms of the authors' code."""
    return PoseCriterion(terms=ReleasedTerms(), weights=WEIGHTS[weights])


def normalizers(criterion: PoseCriterion, targets: PoseTargets, outputs: QueryOutputs) -> dict[str, Tensor]:
    """Of the losses of one process with one batch."""
    class_weights = criterion.class_weight_sum(targets.counts, outputs.logits_SBQC.shape[2])
    return {"persons": torch.tensor(float(sum(targets.counts))), "class_weights": torch.tensor(class_weights)}

"""The contract between a meta-architecture and the code that trains, runs, measures or compiles it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from querypose.d2 import Boxes, CfgNode, ImageList, Instances, Keypoints, comm
from querypose.modeling.explanation import Layer
from querypose.modeling.images import ImageSize, normalize_and_pad
from querypose.modeling.poses import QueryPoses
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import Skeleton, skeleton_of_datasets

Batch = Sequence[Mapping[str, Any]]
"""A dict an image (or a person's crop), as detectron2's models take them."""


@dataclass(frozen=True)
class Component:
    """A component of a model.

    Attributes:
        modules: that it consists of, each called with tensors (or None) alone; the stages of a decoder, say.
        varying_dims: dimensions of every such tensor whose size changes from batch to batch.
    """

    modules: Sequence[nn.Module]
    varying_dims: Sequence[int] = ()


class PoseModel(nn.Module, ABC):
    """Base of all meta-architectures.

    A subclass computes `losses` in training and `predict`s otherwise. The caller gives the `normalizers` by which
    losses are divided: the training step adds them up over micro-batches and processes, so that the gradient is that of
    the whole batch, however it is cut.

    Args:
        skeleton: what the keypoints are.
        pixel_mean: per channel, range 0..255.
        pixel_std: per channel, range 0..255.

    Attributes:
        progress: the share of the training that is over, for losses that have a schedule; the trainer sets it before
            every iteration. 1 where nobody does.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    progress: float = 1.0

    def __init__(self, *, skeleton: Skeleton, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        self.skeleton = skeleton
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of this base; a subclass adds its own. The skeleton is that of the config's datasets."""
        return {
            "skeleton": skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @abstractmethod
    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """What losses are divided by: sums over `batch` that its annotations alone decide; float64 scalars on the CPU.

        They must add up: the normalizers of two batches together are the sums of those of each. So `losses`, not this
        method, sets the lower bound that keeps a loss finite (at least one person, say).
        """

    @abstractmethod
    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted losses of a batch, scalars: sums over the batch, divided by `normalizers`.

        Args:
            batch: dicts with `image`, (C, H, W) in 0..255, and `instances` with the `gt_*` fields that the model needs.
            normalizers: as `global_normalizers` gives them, for this batch or a larger one that it is a part of.
        """

    @abstractmethod
    def predict(self, batch: Batch) -> list[Instances]:
        """The poses of every sample, best first.

        Args:
            batch: dicts with `image`, (C, H, W) in 0..255, and the keys that define the frame of the poses, see
                `querypose.modeling.poses.output_frame`.

        Returns:
            with `pred_boxes`, `scores`, `pred_classes` and `pred_keypoints`, (N, K, 3) as x, y and a score.
        """

    def poses(self, images: ImageList) -> QueryPoses:
        """The poses of normalized and padded images, in their pixels: what `predict` keeps the best of.

        An exported file computes these, so that a model without them can be trained and evaluated, but not exported. In
        an export `image_sizes` is a tensor, and nothing may depend on values that the host would have to know.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `poses`.")

    def explain(self, batch: Batch, num_poses: int = 3) -> list[list[Layer]]:
        """What led to the best poses of every sample: a list of named layers each, stage by stage.

        A model that has nothing to show gives empty lists.

        Args:
            batch: as for `predict`.
            num_poses: of a sample, at most.
        """
        return [[] for _ in batch]

    @property
    @abstractmethod
    def components(self) -> Mapping[str, Component]:
        """What can be compiled or recomputed by itself, under the names that MODEL.COMPILE and MODEL.RECOMPUTE use."""

    def lr_factor(self, name: str) -> float:
        """Factor of the learning rate of the parameter of that name, beside those of SOLVER.LR_FACTORS."""
        return 1.0

    @property
    def undecayed(self) -> Collection[str]:
        """Names of parameters without weight decay, whatever the solver's keys say."""
        return ()

    def forward(
        self, batched_inputs: Batch, normalizers: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """`losses` in training, by default with the normalizers of this batch; else `instances` of every sample."""
        if not self.training:
            return [{"instances": instances} for instances in self.predict(batched_inputs)]
        if normalizers is None:
            normalizers = self.global_normalizers(batched_inputs)
        return self.losses(batched_inputs, normalizers)

    def global_normalizers(self, *batches: Batch) -> dict[str, Tensor]:
        """`loss_normalizers` added up over micro-batches and processes, divided by the number of processes.

        DistributedDataParallel averages gradients over the processes; divided by these, each process' losses average to
        those of the whole batch. Nothing waits for the device, and one exchange serves all normalizers; every process
        must call it with as many batches.
        """
        per_batch = [self.loss_normalizers(batch) for batch in batches]
        names = tuple(per_batch[0])
        if not names:
            return {}
        sums = torch.stack([torch.stack([of_batch[name] for name in names]) for of_batch in per_batch]).sum(0)
        return dict(zip(names, mean_over_processes(sums.to(self.device, non_blocking=True)).unbind(), strict=True))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    def normalized_images(self, batch: Batch, size_divisibility: int) -> ImageList:
        """The images of a batch on the model's device, normalized and padded; see `normalize_and_pad`."""
        return normalize_and_pad(batch, self.pixel_mean, self.pixel_std, size_divisibility)

    def person_targets(self, batch: Batch) -> PersonTargets:
        """The annotated persons of a batch on the model's device."""
        instances = [sample["instances"] for sample in batch]
        return PersonTargets.from_instances(instances, self.skeleton.num_keypoints, self.device, self.pixel_mean.dtype)

    def example_batch(
        self, size: ImageSize | None = None, *, num_images: int = 1, num_instances: int = 0, seed: int = 0
    ) -> list[dict[str, Any]]:
        """A batch of noise for training or inference, to probe or measure the model.

        A model that takes only one image size overrides this.

        Args:
            size: height and width of every image, in pixels; by default a small one.
            num_images: B.
            num_instances: annotated in every image, each within a box of 10 to 60 % of its sides.
            seed: of the noise.
        """
        height, width = size or (64, 96)
        generator = torch.Generator().manual_seed(seed)
        extent_D, num_keypoints = torch.tensor([float(width), float(height)]), self.skeleton.num_keypoints
        batch = []
        for _ in range(num_images):
            size_G1D = (0.1 + 0.5 * torch.rand(num_instances, 1, 2, generator=generator)) * extent_D
            corner_G1D = torch.rand(num_instances, 1, 2, generator=generator) * (extent_D - size_G1D)
            xy_GKD = corner_G1D + torch.rand(num_instances, num_keypoints, 2, generator=generator) * size_G1D
            instances = Instances((height, width))
            instances.gt_boxes = Boxes(torch.cat([corner_G1D, corner_G1D + size_G1D], dim=-1).flatten(1))
            instances.gt_classes = torch.zeros(num_instances, dtype=torch.long)
            instances.gt_keypoints = Keypoints(torch.cat([xy_GKD, torch.full_like(xy_GKD[..., :1], 2.0)], dim=-1))
            image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
            batch.append({"image": image, "height": height, "width": width, "instances": instances})
        return batch


def mean_over_processes(values: Tensor) -> Tensor:
    """Averaged over the processes; itself where there is one."""
    if comm.get_world_size() == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / comm.get_world_size()


def num_instances(batch: Batch) -> Tensor:
    """How many instances a batch has, as a loss normalizer."""
    return torch.tensor(sum(len(sample["instances"]) for sample in batch), dtype=torch.float64)

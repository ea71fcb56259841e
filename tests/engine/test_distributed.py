"""Steps on two gloo processes equal steps on one process with the same global batch."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from querypose import d2
from querypose.d2 import EventStorage, build_model, comm
from querypose.engine import TrainStep, build_optimizer
from querypose.engine.model_preparation import prepare_model
from querypose.engine.trainer import distribute, share_buffers
from tests.engine.toy_pose import toy_batch, toy_model
from tests.tiny import ARCHITECTURES, random_batch, tiny_config

ITERATIONS = 3


class Case(NamedTuple):
    name: str
    persons: tuple[int, ...]
    num_micro_batches: int = 1
    architecture: str = ""  # the toy
    images_of_first: int = 2  # of the first process; the second has the rest
    recomputed: tuple[str, ...] = ()

    @property
    def tolerance(self) -> float:
        return 2e-5 if self.architecture else 1e-9  # the real ones compute in float32

    def model(self, seed: int) -> nn.Module:
        if not self.architecture:
            return toy_model(seed)
        torch.manual_seed(seed)
        return prepare_model(
            build_model(tiny_config(*ARCHITECTURES[self.architecture])),
            channels_last=bool(self.recomputed),
            recomputed=self.recomputed,
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.architecture:
            # AdamW's first update is the gradient's sign, which in float32 rounding decides where a gradient is zero.
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return build_optimizer(
            model,
            base_lr=0.01,
            lr_factors=[("flow", 10.0)],
            weight_decay=0.0,
            weight_decay_norm=0.0,
            weight_decay_bias=0.0,
        )

    def batch(self) -> list[dict[str, Any]]:
        if not self.architecture:
            return toy_batch(self.persons)
        torch.manual_seed(0)
        return random_batch(list(self.persons), num_keypoints=17)


CASES = (
    Case("even", (1, 2, 2, 1)),
    Case("uneven", (5, 0, 1, 1)),
    Case("one process without persons", (0, 0, 2, 1)),
    Case("nobody", (0, 0, 0, 0)),
    Case("accumulated", (3, 1, 0, 2), num_micro_batches=2),
    Case("accumulated, one process without persons", (0, 0, 4, 0), num_micro_batches=2),
    Case("QueryPose", (1, 2, 2, 1), architecture="QueryPose"),
    Case("QueryPose, one process without persons", (0, 0, 3, 1), architecture="QueryPose"),
    Case("other numbers of images", (1, 2, 2, 1), images_of_first=3),
    Case(
        "QueryPose, other numbers of images, one process without persons",
        (0, 3, 1, 0),
        1,
        "QueryPose",
        images_of_first=3,
    ),
    Case("QueryPose, accumulated", (3, 0, 0, 1), num_micro_batches=2, architecture="QueryPose"),
    Case("POET", (1, 2, 2, 1), architecture="POET"),
    Case("POET, other numbers of images, one process without persons", (0, 3, 1, 0), 1, "POET", images_of_first=3),
    Case("POET, recomputed", (3, 0, 1, 1), architecture="POET", recomputed=("backbone", "encoder", "decoder")),
    Case(
        "QueryPose, recomputed",
        (3, 0, 1, 1),
        architecture="QueryPose",
        recomputed=("backbone", "box_decoder", "keypoint_decoder"),
    ),
)


def train(
    model: nn.Module, batch: Sequence[dict[str, Any]], optimizer: torch.optim.Optimizer, num_micro_batches: int
) -> dict[str, float]:
    """A few steps; gives the figures of the last one on the main process."""
    step = TrainStep(
        distribute(model), itertools.repeat(batch), optimizer, clip_norm=0.5, num_micro_batches=num_micro_batches
    )
    with EventStorage(0) as storage:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                # In training it takes the statistics of its own process' images, which is no sum over images.
                layer.eval()
        for step.iter in range(ITERATIONS):
            step.run_step()
    return {name: value for name, (value, _) in storage.latest().items() if name != "data_time"}


def train_share(folder: Path) -> None:
    """One process: trains each case on its half of the batch and saves the outcome."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    rank = comm.get_rank()
    outcome: dict[str, Any] = {}
    for case in CASES:
        batch = case.batch()
        share = batch[: case.images_of_first] if rank == 0 else batch[case.images_of_first :]
        model = case.model(seed=rank)  # the first process' weights count
        figures = train(model, share, case.optimizer(model), case.num_micro_batches)
        outcome[case.name] = {"weights": model.state_dict(), "figures": figures}
    norm = nn.BatchNorm2d(2)
    norm.running_mean = torch.full((2,), float(rank + 1))
    norm.num_batches_tracked = torch.tensor(10 * (rank + 1))
    share_buffers(norm)
    outcome["buffers"] = norm.state_dict()
    torch.save(outcome, folder / f"{rank}.pth")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two_processes")
    d2.launch(train_share, 2, dist_url="auto", args=(folder,))
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_equal_one(outcomes: list[dict[str, Any]], case: Case) -> None:
    model = case.model(seed=0)
    start: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}
    figures = train(model, case.batch(), case.optimizer(model), num_micro_batches=1)
    for outcome in outcomes:
        torch.testing.assert_close(outcome[case.name]["weights"], model.state_dict(), rtol=0, atol=case.tolerance)
    assert outcomes[0][case.name]["figures"] == pytest.approx(figures, rel=1e-4 if case.architecture else 1e-6)
    changed = any((model.state_dict()[name] != value).any() for name, value in start.items())
    assert changed == any(case.persons)


def test_all_processes_evaluate_the_buffers_of_the_first(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["buffers"]["running_mean"].tolist() == [1.0, 1.0]
        assert int(outcome["buffers"]["num_batches_tracked"]) == 10

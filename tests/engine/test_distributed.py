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
from torch.distributed.optim import ZeroRedundancyOptimizer

from querypose import d2
from querypose.config import ConfigError
from querypose.d2 import EventStorage, comm
from querypose.engine import TrainStep, build_optimizer
from querypose.engine.model_preparation import prepare_model
from querypose.engine.trainer import distribute, share_buffers
from tests.engine.toy_pose import toy_batch, toy_model
from tests.tiny import ARCHITECTURES, exact_model, hold_batch_norms, random_batch

ITERATIONS = 3


class Case(NamedTuple):
    name: str
    persons: tuple[int, ...]
    num_micro_batches: int = 1
    architecture: str = ""  # the toy
    images_of_first: int = 2  # of the first process; the second has the rest
    recomputed: bool = False
    sharded: bool = False

    def model(self, seed: int) -> nn.Module:
        if not self.architecture:
            return toy_model(seed)
        model = exact_model(*ARCHITECTURES[self.architecture], seed=seed)
        return prepare_model(
            model, channels_last=self.recomputed, recomputed=list(model.components) if self.recomputed else ()
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.architecture:
            # AdamW's first update is the gradient's sign, which rounding decides where a gradient is zero.
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return build_optimizer(
            model,
            base_lr=0.01,
            lr_factors=[("flow", 10.0)],
            weight_decay=0.0,
            weight_decay_norm=0.0,
            weight_decay_bias=0.0,
            shard=self.sharded,
        )

    def batch(self) -> list[dict[str, Any]]:
        if not self.architecture:
            return toy_batch(self.persons)
        torch.manual_seed(0)
        return random_batch(list(self.persons), num_keypoints=17)


def cases_of(architecture: str) -> tuple[Case, ...]:
    """What every meta-architecture must do."""
    return (
        Case(f"{architecture}, one process without persons", (0, 0, 3, 1), 1, architecture),
        Case(f"{architecture}, other numbers of images", (0, 3, 1, 9), 1, architecture, images_of_first=3),
        Case(f"{architecture}, accumulated", (3, 1, 0, 1), 2, architecture),
        Case(f"{architecture}, recomputed", (3, 0, 1, 1), 1, architecture, recomputed=True),
    )


CASES = (
    Case("even", (1, 2, 2, 1)),
    Case("uneven", (5, 0, 1, 1)),
    Case("one process without persons", (0, 0, 2, 1)),
    Case("nobody", (0, 0, 0, 0)),
    Case("accumulated", (3, 1, 0, 2), num_micro_batches=2),
    Case("accumulated, one process without persons", (0, 0, 4, 0), num_micro_batches=2),
    Case("other numbers of images", (1, 2, 2, 1), images_of_first=3),
    Case("sharded", (1, 2, 2, 1), sharded=True),
    *(case for architecture in ARCHITECTURES for case in cases_of(architecture)),
)


def train(
    model: nn.Module, batch: Sequence[dict[str, Any]], optimizer: torch.optim.Optimizer, num_micro_batches: int
) -> dict[str, float]:
    """A few steps; gives the scalars of the last one on the main process."""
    step = TrainStep(
        distribute(model), itertools.repeat(batch), optimizer, clip_norm=0.5, num_micro_batches=num_micro_batches
    )
    with EventStorage(0) as storage:
        hold_batch_norms(model)
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
        scalars = train(model, share, case.optimizer(model), case.num_micro_batches)
        outcome[case.name] = {"weights": model.state_dict(), "scalars": scalars}
    shards = Case("", (1, 2), sharded=True)
    sharded_model = toy_model(seed=0)
    optimizer = shards.optimizer(sharded_model)
    train(sharded_model, shards.batch(), optimizer, num_micro_batches=1)
    assert isinstance(optimizer, ZeroRedundancyOptimizer)
    outcome["moments"] = sum(state["exp_avg"].numel() for state in optimizer.optim.state.values())
    norm = nn.BatchNorm2d(2)
    norm.running_mean = torch.full((2,), float(rank + 1))
    norm.num_batches_tracked = torch.tensor(10 * (rank + 1))
    share_buffers(norm)
    outcome["buffers"] = norm.state_dict()
    model = toy_model(seed=0)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ConfigError) as raised:
        train(model, toy_batch((1, 2)), CASES[0].optimizer(model), num_micro_batches=1)
    outcome["unused"] = str(raised.value)
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
    scalars = train(model, case.batch(), case.optimizer(model), num_micro_batches=1)
    for outcome in outcomes:
        torch.testing.assert_close(outcome[case.name]["weights"], model.state_dict(), rtol=0, atol=1e-9)
    assert outcomes[0][case.name]["scalars"] == pytest.approx(scalars, rel=1e-6)
    changed = any((model.state_dict()[name] != value).any() for name, value in start.items())
    assert changed == any(case.persons)


def test_all_processes_evaluate_the_buffers_of_the_first(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["buffers"]["running_mean"].tolist() == [1.0, 1.0]
        assert int(outcome["buffers"]["num_batches_tracked"]) == 10


def test_a_sharded_optimizer_keeps_every_moment_once(outcomes: list[dict[str, Any]]) -> None:
    num_parameters = sum(parameter.numel() for parameter in toy_model().parameters())
    assert sum(outcome["moments"] for outcome in outcomes) == num_parameters
    assert all(outcome["moments"] < num_parameters for outcome in outcomes)


def test_parameters_without_a_gradient_are_named(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["unused"].startswith("unused.weight, unused.bias of ToyPose take no part in the losses")

"""One training step: the engine's AdamW in few groups against the authors' one group per tensor, and their clipping."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from querypose.checkpoint import convert_querypose_official
from querypose.config import get_cfg
from querypose.d2 import Instances
from querypose.engine.trainer import PoseTrainer
from querypose.modeling import Component, PoseModel
from querypose.modeling.pose_model import Batch
from querypose.skeleton import COCO_SKELETON
from tests.parity.golden import PARTS, Fixture, OfficialView, TinyPose, normalizers

# reference_behaviour.md, section 9.
BASE_LR, FLOW_LR, WEIGHT_DECAY, CLIP_NORM = 2.5e-5, 2.5e-4, 1e-4, 1.0
DEAD = ("updater.fc3", "updater.norm_fc3")


class TrainableTinyPose(PoseModel):
    """The fixture's model as the engine's training step wants it: a batch in, weighted losses out."""

    components: dict[str, Component] = {}  # noqa: RUF012  # the contract's property, of nothing

    def __init__(self, fixture: Fixture, dtype: torch.dtype) -> None:
        super().__init__(skeleton=COCO_SKELETON, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
        tiny = TinyPose(fixture, dtype)
        self.decoder, self.criterion, self.matcher = tiny.decoder, tiny.criterion, tiny.matcher
        self.features = fixture.features(dtype)
        self.targets = fixture.targets("stable", dtype)

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        return normalizers(self.targets)

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stages = self.decoder.decode_training(self.features, self.targets, self.matcher)
        return self.criterion(stages, self.targets, normalizers)

    def predict(self, batch: Batch) -> list[Instances]:
        raise NotImplementedError("The fixture is trained alone.")


def test_one_step_gives_the_same_weights(tiny_light: Fixture) -> None:
    model = TrainableTinyPose(tiny_light, torch.float64).train()
    view = OfficialView(tiny_light.state_dict, model)
    golden = tiny_light.group("v1/train_stable/")
    cfg = get_cfg()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    step = PoseTrainer.build_train_step(cfg, model, [[{}]], optimizer)
    step.iter = 0
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    # The step clips in place; a first pass gives the gradients as they are.
    step.accumulate_gradients([{}])
    gradients = {
        name: view.gradient(name).clone()
        for name in tiny_light.state_dict
        if name in view and not name.endswith("mask") and view.tensor(name).requires_grad
    }
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert float(norm) == pytest.approx(golden_norm(golden), rel=1e-6)
    model.load_state_dict(before)  # BatchNorm's statistics too
    step.run_step()

    expected = reference_step(tiny_light.state_dict, gradients, golden_norm(golden))
    found = model.state_dict()
    # Towards the old weights the new ones differ by a small step only; the step itself has to agree.
    for name, value in convert_querypose_official(expected, PARTS).items():
        moved, should_move = found[name] - before[name], value - before[name]
        assert should_move.abs().max() > 0, name
        assert (moved - should_move).abs().max() < 1e-5 * should_move.abs().max(), name
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


def golden_norm(golden: dict[str, Tensor]) -> float:
    """Norm of the whole model's gradient in the authors' run."""
    norms = [v for name, v in golden.items() if name.startswith("gradnorm/") and "features/" not in name]
    norms += [golden[f"grad/{name}"].norm() for name in ("init_proposal_boxes", "init_proposal_features", "part_query")]
    return float(torch.stack([norm.double() for norm in norms if not norm.isnan()]).norm())


def reference_step(
    state_dict: dict[str, Tensor], gradients: dict[str, Tensor], gradient_norm: float
) -> dict[str, Tensor]:
    """The authors' weights after AdamW with one parameter group per tensor, under their names."""
    assert gradient_norm > CLIP_NORM, "the case should exercise the clipping"
    parameters = {name: nn.Parameter(state_dict[name].double()) for name in gradients}
    groups = []
    for name, parameter in parameters.items():
        parameter.grad = gradients[name] * (CLIP_NORM / (gradient_norm + 1e-6))
        lr = FLOW_LR if "flow" in name else BASE_LR
        groups.append({"params": [parameter], "lr": lr, "weight_decay": WEIGHT_DECAY})
    torch.optim.AdamW(groups, lr=BASE_LR, betas=(0.9, 0.999), eps=1e-8).step()
    left_out = {name for name in state_dict if name not in gradients}
    assert all(
        any(dead in name for dead in DEAD) or "running_" in name or "tracked" in name or "mask" in name
        for name in left_out
    )
    return {name: parameter.detach() for name, parameter in parameters.items()}

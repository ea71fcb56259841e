"""Layout, compilation and recomputation change how a model computes: not its losses, gradients or names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.d2 import build_model
from querypose.engine import PoseTrainer
from querypose.engine.model_preparation import compile_in_place, prepare_model
from querypose.modeling import PoseModel, QueryPose
from tests.engine.toy_pose import toy_model
from tests.tiny import FULL_VERSION, LQR, POET, random_batch, tiny_config

COMPONENTS = ["backbone", "box_decoder", "keypoint_decoder"]
VERSIONS = {"light": [], "full": FULL_VERSION, "POET": POET, "LQR": LQR}


def models(*overrides: str, **switches: Any) -> tuple[Any, Any]:
    """One as it is built, and one prepared, in float64."""
    torch.manual_seed(0)
    plain = build_model(tiny_config(*overrides)).double()
    return plain, prepare_model(copy.deepcopy(plain), **switches)


def losses_and_gradients(model: nn.Module, persons: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    batch = random_batch(list(persons), 17)
    model.zero_grad()
    losses = model(batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("switch", ["channels_last", "recomputed"])
@pytest.mark.parametrize("persons", [(2, 1), (0, 0)])
def test_losses_gradients_and_statistics_stay(version: str, switch: str, persons: tuple[int, int]) -> None:
    model = build_model(tiny_config(*VERSIONS[version]))
    assert isinstance(model, PoseModel)
    components = list(model.components)
    switches: dict[str, Any] = {"channels_last": True} if switch == "channels_last" else {"recomputed": components}
    plain, prepared = models(*VERSIONS[version], **switches)
    for expected, found in zip(
        losses_and_gradients(plain, persons), losses_and_gradients(prepared, persons), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prepared.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-9)


def test_channels_last_reaches_every_convolution_and_its_gradient() -> None:
    _, model = models(channels_last=True)
    losses_and_gradients(model, (2, 1))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            assert layer.weight.grad is not None
            assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_recomputing_keeps_less() -> None:
    kept = {}
    for name, model in zip(("plain", "prepared"), models(recomputed=COMPONENTS), strict=True):
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = model(random_batch([2, 1], 17))
        kept[name] = sum(storages.values())
        del losses
    assert kept["prepared"] < 0.5 * kept["plain"]


@pytest.mark.parametrize("key", ["COMPILE", "RECOMPUTE"])
def test_unknown_components_are_refused(key: str) -> None:
    switch = {"COMPILE": "compiled", "RECOMPUTE": "recomputed"}[key]
    with pytest.raises(ConfigError, match=rf"MODEL.{key} has \['neck'\]; allowed for QueryPose: \['backbone', 'box"):
        models(**{switch: ["backbone", "neck"]})
    with pytest.raises(ConfigError, match=rf"MODEL.{key} has \['backbone'\]; allowed for ToyPose: \[\]"):
        prepare_model(toy_model(), **{switch: ["backbone"]})  # type: ignore[arg-type]  # by name


def test_a_compiled_backbone_cannot_be_recomputed_block_by_block() -> None:
    with pytest.raises(ConfigError, match="both have 'backbone'"):
        models(compiled=["backbone"], recomputed=["backbone"])


def test_the_trainer_builds_the_model_as_the_config_says() -> None:
    plain = PoseTrainer.build_model(tiny_config())
    model = PoseTrainer.build_model(
        tiny_config(
            "MODEL.CHANNELS_LAST", "True", "MODEL.RECOMPUTE", "['box_decoder']", "MODEL.COMPILE", "['backbone']"
        )
    )
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model, QueryPose)
    for layer in model.modules():
        assert not isinstance(layer, nn.Conv2d) or layer.weight.is_contiguous(memory_format=torch.channels_last)
    replaced = {
        name: ["forward" in vars(module) for module in component.modules]
        for name, component in model.components.items()
    }
    assert replaced == {"backbone": [True], "box_decoder": [True, True], "keypoint_decoder": [False, False]}


# torch looks at the gradient of a tensor that is no leaf when it traces, and hides its own warning of that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
class TestCompilation:
    """One translation serves any number of people and any size of image; `aot_eager` translates without a compiler."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        torch._dynamo.reset()

    @pytest.mark.parametrize("recomputed", [[], ["keypoint_decoder"]], ids=["kept", "recomputed"])
    def test_another_number_of_people_needs_no_other_translation(self, recomputed: list[str]) -> None:
        plain, prepared = models("MODEL.QUERYPOSE.NUM_QUERIES", "12")
        for component in prepared.components.values():
            for module in component.modules:
                compile_in_place(module, component.varying_dims, backend="aot_eager")
        prepare_model(prepared, recomputed=recomputed)
        losses_and_gradients(prepared, (2, 1))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for persons in ((3, 2), (1, 0), (0, 0), (1, 1), (9, 7), (14, 2)):
                for expected, found in zip(
                    losses_and_gradients(plain, persons), losses_and_gradients(prepared, persons), strict=True
                ):
                    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
        assert list(prepared.state_dict()) == list(plain.state_dict())

    @pytest.mark.parametrize("version", ["POET", "LQR"])
    def test_parts_of_dense_models_take_any_number_of_cells(self, version: str) -> None:
        plain, prepared = models(*VERSIONS[version])
        for component in prepared.components.values():
            for module in component.modules:
                compile_in_place(module, component.varying_dims, backend="aot_eager")
        outcomes = []
        for model in (plain, prepared):
            torch.manual_seed(1)
            padded = random_batch([2], 17, (96, 128)) + random_batch([1], 17, (64, 96))
            outcomes.append([model(batch) for batch in (random_batch([1, 2], 17, (64, 96)), padded)])
        torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-7, atol=1e-7)

    def test_another_size_of_image_needs_no_other_translation(self) -> None:
        plain, prepared = models()
        compile_in_place(prepared.backbone, prepared.components["backbone"].varying_dims, backend="aot_eager")
        prepared.backbone(torch.rand(2, 3, 64, 96).double())
        with torch._dynamo.config.patch(error_on_recompile=True):
            for size in ((96, 64), (64, 64), (160, 128)):
                image = torch.rand(2, 3, *size).double()
                torch.testing.assert_close(prepared.backbone(image), plain.backbone(image), rtol=1e-7, atol=1e-7)

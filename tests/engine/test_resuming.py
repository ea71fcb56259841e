"""What a run goes on from: the right checkpoint or none, checked before it is used, under a config that is compared."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from querypose.config import KEYS, ConfigError, get_cfg, load_config
from querypose.d2 import CheckpointError
from querypose.data import register_custom_datasets
from querypose.engine import PoseTrainer
from querypose.engine.checkpointer import RunCheckpointer
from querypose.engine.resuming import changed_keys, load_optimizer_state, recorded_config, require_same_fixed_keys
from tests.engine.toy_pose import write_toy_config
from tests.loggers import restored_loggers
from tests.scripts import ROOT, run_script
from tests.test_user_errors import assert_reported
from tests.tiny import ARCHITECTURES, TINY_MODEL

TRAIN = "tools/train_net.py"
TOY = {"CHECKPOINT_PERIOD": 2, "MAX_ITER": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy that was trained for four iterations."""
    folder = tmp_path_factory.mktemp("finished")
    with restored_loggers():
        trainer = PoseTrainer(_cfg(folder))
        trainer.resume_or_load(resume=False)
        trainer.train()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may damage."""
    shutil.copytree(finished / "output", tmp_path / "output")
    (tmp_path / "output" / "metrics.json").unlink()
    return tmp_path


def _cfg(folder: Path, *overrides: Any) -> Any:
    # Like a tool: keys of this folder's own config file.
    cfg = load_config(write_toy_config(folder, **TOY), ["TEST.EVAL_PERIOD", "0", *map(str, overrides)])
    register_custom_datasets(cfg)
    return cfg


def _resumed(folder: Path, *overrides: Any) -> PoseTrainer:
    trainer = PoseTrainer(_cfg(folder, *overrides))
    trainer.resume_or_load(resume=True)
    return trainer


def _last(folder: Path) -> Path:
    return folder / "output" / "last_checkpoint"


# ---- which checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"  \n\n", b"\0", b"\xff\xfe", b"../output/model_final.pth", b"model_\n_final.pth", b"x" * 300, None],
)
def test_last_checkpoint_that_names_nothing_gives_way_to_the_newest_that_is_listed(
    run: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    _last(run).unlink() if content is None else _last(run).write_bytes(content)
    assert _resumed(run, "SOLVER.MAX_ITER", 6).start_iter == 4
    assert "does not name a checkpoint" in capsys.readouterr().out


@given(st.binary(max_size=40))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_of_last_checkpoint_starts_a_run_anew(run: Path, content: bytes) -> None:
    _last(run).write_bytes(content)
    found = Path(RunCheckpointer(torch.nn.Linear(1, 1), str(run / "output")).get_checkpoint_file())
    assert found.parent == run / "output"
    assert found.is_file()
    assert torch.load(found, weights_only=True)["iteration"] in (1, 3)


def test_checkpoints_that_nothing_lists_are_never_begun_over(run: Path) -> None:
    _last(run).unlink()
    (run / "output" / "checkpoints.json").unlink()
    with pytest.raises(CheckpointError, match=r"has checkpoints \(model_.*, model_final\.pth\), but neither"):
        _resumed(run)
    for file in (run / "output").glob("model_*.pth"):
        file.unlink()
    assert _resumed(run).start_iter == 0


@pytest.mark.parametrize("how", ["listed", "unlisted"])
def test_a_file_of_weights_is_told_as_such(run: Path, how: str) -> None:
    output = run / "output"
    content = torch.load(output / "model_final.pth", weights_only=True)
    torch.save({"model": content["model"]}, output / "weights.pth")
    if how == "listed":
        trainer = PoseTrainer(_cfg(run))
        trainer.checkpointer.save_weights("weights", iteration=3)
        trainer.checkpointer.wait()
    _last(run).write_text("weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth holds weights alone, without optimizer and schedule"):
        _resumed(run)


def test_an_evaluation_takes_what_is_there_and_never_random_weights(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate() -> int:
        with restored_loggers():
            config_file = str(write_toy_config(run, **TOY))
            return run_script(TRAIN, "--config-file", config_file, "--eval-only", "--resume")

    _last(run).write_text("")
    assert evaluate() == 0
    assert "model_final.pth" in capsys.readouterr().out
    for file in (run / "output").glob("*"):
        file.unlink() if file.is_file() else shutil.rmtree(file)
    assert_reported(evaluate(), ("has no checkpoint", "MODEL.WEIGHTS"), run, capsys)


def test_the_final_checkpoint_is_written_where_only_it_is_missing(run: Path) -> None:
    output = run / "output"
    expected = torch.load(output / "model_final.pth", weights_only=True)["model"]
    (output / "model_final.pth").unlink()
    _last(run).write_text("model_0000003.pth")
    trainer = _resumed(run)
    trainer.train()
    written = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert _last(run).read_text() == "model_final.pth"


def test_a_run_beyond_its_end_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends after 3 iterations \(SOLVER\.MAX_ITER .* has 4 behind it"):
        _resumed(run, "SOLVER.MAX_ITER", 3)


def test_a_run_that_starts_anew_does_not_go_on_with_the_earlier_one(run: Path) -> None:
    """Whenever it is killed after it began, also where the old file of a name still stands."""
    trainer = PoseTrainer(_cfg(run))
    last = _last(run).read_bytes()
    stamp = _last(run).stat()
    trainer.checkpointer.begin(anew=True)
    assert _resumed(run).start_iter == 0
    _last(run).write_bytes(last)  # killed before it was removed
    os.utime(_last(run), ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert _resumed(run).start_iter == 0
    manifest = run / "output" / "checkpoints.json"
    content = json.loads(manifest.read_text())
    entry = {"file": "model_0000001.pth", "iteration": 1, "num_bytes": 5, "sha256": "0", "has_state": True}
    manifest.write_text(json.dumps({**content, "checkpoints": [entry]}))  # killed before the new file took its name
    assert _resumed(run).start_iter == 0
    _last(run).write_text("model_0000001.pth")  # by hand
    os.utime(_last(run))
    manifest.write_text(json.dumps(content))
    assert _resumed(run).start_iter == 2


# ---- what is resumed ---------------------------------------------------------------------------------------------


def _drop(*path: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]

    return change


def _put(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return change


STEP = ("trainer", "_trainer")
DAMAGES: dict[str, Callable[[Any], Any]] = {
    "no optimizer": _drop(*STEP, "optimizer"),
    "no step": _drop(*STEP),
    "trainer is a list": _put([1], "trainer"),
    "model is a tensor": _put(torch.zeros(2), "model"),
    "run is text": _put("here", "run"),
    "config is a number": _put(3, "run", "config"),
    "weight of another shape": _put(torch.zeros(8, 12), "model", "hidden.weight"),
    "weight of another type": _put(torch.zeros(16, 12, dtype=torch.int64), "model", "hidden.weight"),
    "weight is text": _put("zero", "model", "hidden.weight"),
    "weight missing": _drop("model", "norm.bias"),
    "weight too many": _put(torch.zeros(1), "model", "extra"),
    "moment of another shape": _put(torch.zeros(1), *STEP, "optimizer", "state", 0, "exp_avg"),
    "second moment too small": _put(torch.zeros(0), *STEP, "optimizer", "state", 1, "exp_avg_sq"),
    "moment of integers": _put(torch.zeros(16, 12, dtype=torch.int64), *STEP, "optimizer", "state", 0, "exp_avg"),
    "moment is text": _put("x", *STEP, "optimizer", "state", 0, "exp_avg"),
    "moment missing": _drop(*STEP, "optimizer", "state", 0, "exp_avg"),
    "step is a vector": _put(torch.zeros(3), *STEP, "optimizer", "state", 0, "step"),
    "state is a list": _put([1, 2], *STEP, "optimizer", "state"),
    "state of a parameter that is not there": _put({"step": torch.zeros(())}, *STEP, "optimizer", "state", 99),
    "parameters of other names": _put(["a", "b"], *STEP, "parameters"),
    "parameters is a number": _put(4, *STEP, "parameters"),
    "other groups, of an older version": lambda content: (
        _drop(*STEP, "parameters")(content),
        _put([{"params": [0]}], *STEP, "optimizer", "param_groups")(content),
    ),
    "iteration is text": _put("three", "trainer", "iteration"),
    "hooks are a list": _put([1], "trainer", "hooks"),
    "schedule is a number": _put(1, "trainer", "hooks", "LRScheduler"),
    "processes is a number": _put(1, "run", "processes"),
    "random state of another kind": _put({"python": 1}, "run", "processes", 0, "random"),
    "random state cut short": _put(torch.zeros(3, dtype=torch.uint8), "run", "processes", 0, "random", "torch"),
    "data position is text": _put("x", "run", "data"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_of_wrong_content_is_refused_before_it_is_used(run: Path, damage: str) -> None:
    output = run / "output"
    content = torch.load(output / "model_0000001.pth", weights_only=True)
    DAMAGES[damage](content)
    torch.save(content, output / "model_wrong.pth")
    _last(run).write_text("model_wrong.pth")
    with pytest.raises(
        CheckpointError, match=r"model_wrong\.pth (cannot be resumed|has the state of another|holds wei)"
    ):
        _resumed(run)


def test_every_value_of_a_checkpoint_may_be_of_another_type(run: Path) -> None:
    """Each in turn: the run goes on, or is refused by name; nothing else is raised, and nothing crashes."""
    output = run / "output"
    original = torch.load(output / "model_0000001.pth", weights_only=True)
    places = _places(original)
    assert len(places) > 300
    trainer = PoseTrainer(_cfg(run))
    _last(run).write_text("model_wrong.pth")
    messages = []
    for number, place in enumerate(places[:: max(1, len(places) // 60)]):
        content = torch.load(output / "model_0000001.pth", weights_only=True)
        _put((None, "text", -1, [], {}, torch.ones(2), float("nan"))[number % 7], *place)(content)
        torch.save(content, output / "model_wrong.pth")
        try:
            trainer.resume_or_load(resume=True)
        except (CheckpointError, ConfigError) as error:
            messages.append(str(error))
    assert len(messages) > 15
    assert all("model_wrong.pth" in message for message in messages)


def _places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in children for place in [(*above, key), *_places(value, (*above, key))]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_model_is_refused_by_the_key_that_makes_it_another(architecture: str, tmp_path: Path) -> None:
    changes = {
        "QueryPose": ("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", "32"),
        "QueryPose-Dense": ("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", "32"),
        "POET": ("MODEL.POET.NUM_QUERIES", "8"),
        "LQR": ("MODEL.LQR.NUM_POINTS", "2"),
        "SHaRPose": ("MODEL.SHARPOSE.DEPTH", "3"),
    }
    key, value = changes[architecture]
    options = ["MODEL.META_ARCHITECTURE", "QueryPose", *TINY_MODEL, *ARCHITECTURES[architecture]]
    trainer = PoseTrainer(_cfg(tmp_path, *options))
    trainer.iter = 1
    trainer.checkpointer.save("model_0000001", iteration=1, **trainer._run_state.entries())
    trainer.checkpointer.wait()
    with pytest.raises(ConfigError, match=rf"--resume: .*{key} \(was .*, is {value}\)"):
        _resumed(tmp_path, *options, key, value)
    # The parameters are compared too, where no config was saved.
    file = tmp_path / "output" / "model_0000001.pth"
    content = torch.load(file, weights_only=True)
    del content["run"]["config"]
    torch.save(content, file)
    (tmp_path / "output" / "checkpoints.json").unlink()
    with pytest.raises(CheckpointError, match="the state of another model"):
        _resumed(tmp_path, *options, key, value)
    assert _resumed(tmp_path, *options).start_iter == 2


# ---- a changed config --------------------------------------------------------------------------------------------


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}_" if isinstance(value, str) else [*value, "another"]


def test_every_key_is_obeyed_or_refused_as_the_table_says() -> None:
    """docs/config.md: the last column of each row."""
    rows = [
        [cell.strip() for cell in line.replace("\\|", "¦").split(" | ")]
        for line in (ROOT / "docs" / "config.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    table = {row[0].strip("|` "): row[-1].strip("| ") for row in rows}
    cfg = get_cfg()
    recorded = recorded_config(cfg)
    own = [name for name in KEYS if not KEYS[name].name.startswith("TEST_OF_")]
    assert set(table) <= set(own)
    assert {table[name] for name in table} == {"obeyed", "refused"}
    for name, verdict in table.items():
        assert name in recorded, name
        before = {**recorded, name: _another(recorded[name])}
        changed = changed_keys(before, cfg)
        assert list(changed) == [name]
        if verdict == "obeyed":
            require_same_fixed_keys(changed, "model.pth")
        else:
            with pytest.raises(ConfigError, match=rf"model\.pth began with other values of {name} \(was "):
                require_same_fixed_keys(changed, "model.pth")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("SOLVER.BASE_LR", 0.5), {"lr": {0.5, 1.0}}),
        (("SOLVER.LR_FACTORS", "[]"), {"lr": {0.05}}),
        (("SOLVER.LR_FACTORS", "[['hidden', 0.5], ['flow', 4.0]]"), {"lr": {0.025, 0.05, 0.2}}),
        (("SOLVER.WEIGHT_DECAY", 0.3), {"weight_decay": {0.3, 1e-4}}),
        (("SOLVER.WEIGHT_DECAY_BIAS", 0.2), {"weight_decay": {0.2, 1e-4}}),
        (("SOLVER.BETAS", "[0.5, 0.6]"), {"betas": {(0.5, 0.6)}}),
        (("SOLVER.STEPS", "[1]", "SOLVER.GAMMA", 0.5), {"lr": {0.025, 0.05}}),
    ],
)  # fmt: skip
def test_what_the_optimizer_is_told_is_what_it_does(
    run: Path, overrides: tuple[Any, ...], expected: dict[str, set[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The state of every parameter stays its own, also where the groups are others than before."""
    saved = torch.load(run / "output" / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    moments = {name: saved["optimizer"]["state"][number]["exp_avg"] for number, name in enumerate(saved["parameters"])}
    trainer = _resumed(run, "SOLVER.MAX_ITER", 8, *overrides)
    assert f"{overrides[0]} (was" in capsys.readouterr().out
    groups = trainer.optimizer.param_groups
    for name, values in expected.items():
        assert {value if isinstance(value := group[name], float) else tuple(value) for group in groups} == values
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(trainer.optimizer.state[parameter]["exp_avg"], moments[name])
    trainer.train()
    assert trainer.storage.latest()["lr"][0] in {group["lr"] for group in groups}


def test_averages_and_scaled_losses_may_begin_and_end_in_mid_run(run: Path) -> None:
    first = _resumed(run, "SOLVER.MAX_ITER", 6, "SOLVER.EMA.ENABLED", True, "SOLVER.AMP.ENABLED", True,
                     "SOLVER.AMP.PRECISION", "float16", "SOLVER.ACCUMULATION_STEPS", 2)  # fmt: skip
    first.train()
    assert first.ema is not None
    assert first.ema.num_updates == 2
    second = _resumed(run, "SOLVER.MAX_ITER", 8)
    second.train()
    assert torch.load(run / "output" / "model_final.pth", weights_only=True)["iteration"] == 7


def test_another_seed_is_refused_and_another_folder_is_not(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SEED \(was 1, is 2\)"):
        _resumed(run, "SEED", 2)
    shutil.move(run / "output", run / "moved")
    assert _resumed(run, "OUTPUT_DIR", run / "moved").start_iter == 4


def test_the_optimizer_goes_on_when_the_memory_format_of_the_weights_has_changed() -> None:
    """The fused AdamW reads a parameter and its state in the order of memory: of other strides they would not agree."""
    weights, gradients = torch.randn(4, 3, 3, 3), torch.randn(2, 4, 3, 3, 3)

    def stepped(parameter: torch.nn.Parameter, gradient: torch.Tensor, state: dict[str, Any] | None) -> dict[str, Any]:
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        if state is not None:
            load_optimizer_state(optimizer, ["weight"], {"optimizer": state, "parameters": ["weight"]})
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()
        return optimizer.state_dict()

    begun = torch.nn.Parameter(weights.clone())
    state = stepped(begun, gradients[0], None)
    same, other = (
        torch.nn.Parameter(begun.detach().clone(memory_format=memory_format))
        for memory_format in (torch.contiguous_format, torch.channels_last)
    )
    for parameter in (same, other):
        stepped(parameter, gradients[1], copy.deepcopy(state))
    torch.testing.assert_close(other, same, rtol=0, atol=0)

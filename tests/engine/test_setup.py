from __future__ import annotations

import argparse
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from querypose import d2
from querypose.config import ConfigError
from querypose.d2 import DatasetCatalog, comm, default_argument_parser
from querypose.data import DatasetError, ImageReadError
from querypose.engine import report_user_errors, setup
from querypose.engine.launch import launch, started_by_torchrun
from querypose.engine.setup import available_cores
from querypose.skeleton import SkeletonError
from tests.engine.toy_pose import write_toy_config

SETUP = importlib.import_module("querypose.engine.setup")  # the package has a function of that name


def arguments(config_file: Path | str, *opts: str) -> argparse.Namespace:
    return default_argument_parser().parse_args(["--config-file", str(config_file), *opts])


def log_lines(folder: Path) -> list[str]:
    for name in ("querypose", "detectron2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
    return (folder / "log.txt").read_text().splitlines()


def test_setup_prepares_the_run(tmp_path: Path) -> None:
    cfg = setup(arguments(write_toy_config(tmp_path), "SOLVER.MAX_ITER", "7"))
    assert cfg.SOLVER.MAX_ITER == 7
    assert cfg.is_frozen()
    assert len(DatasetCatalog.get("toy")) == 6
    saved = yaml.safe_load((tmp_path / "output" / "config.yaml").read_text())
    assert saved["SOLVER"]["MAX_ITER"] == 7
    assert f"Engine: {d2.ENGINE} {d2.ENGINE_VERSION}" in log_lines(tmp_path / "output")[0]


def test_the_saved_config_gives_the_same_run(tmp_path: Path) -> None:
    cfg = setup(arguments(write_toy_config(tmp_path)))
    again = setup(arguments(tmp_path / "output" / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_deterministic_algorithms_are_switched_on_by_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    config_file = write_toy_config(tmp_path)
    setup(arguments(config_file))
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        setup(arguments(config_file, "DETERMINISTIC", "True"))
        assert torch.are_deterministic_algorithms_enabled()
        assert SETUP.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="DETERMINISTIC and CUDNN_BENCHMARK are both True"):
        setup(arguments(config_file, "DETERMINISTIC", "True", "CUDNN_BENCHMARK", "True"))


def test_the_seed_makes_runs_equal(tmp_path: Path) -> None:
    config_file = write_toy_config(tmp_path)
    setup(arguments(config_file))
    first = torch.rand(4)
    setup(arguments(config_file))
    assert torch.equal(torch.rand(4), first)
    setup(arguments(config_file, "SEED", "2"))
    assert not torch.equal(torch.rand(4), first)


def test_a_missing_config_file_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match=r"--config-file: .*nowhere\.yaml"):
        setup(arguments("nowhere.yaml"))


@pytest.mark.parametrize(
    ("opts", "error", "message"),
    [
        (["SOLVER.BASE_LRR", "1"], ConfigError, "SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "0"], ConfigError, "SOLVER.MAX_ITER is 0"),
        (["DATASETS.CUSTOM", "[{'name': 'x'}]"], DatasetError, "fields .* are missing"),
        (["DATASETS.SKELETONS", "[{'name': 'x'}]"], SkeletonError, "fields .* are missing"),
    ],
)
def test_errors_of_the_user_are_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opts: Sequence[str], error: type[Exception], message: str
) -> None:
    args = arguments(write_toy_config(tmp_path), *opts)
    with pytest.raises(error, match=message):
        setup(args)
    with pytest.raises(SystemExit) as caught, report_user_errors("a_tool.py"):
        setup(args)
    assert caught.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("a_tool.py: error: ")
    assert output.count("\n") == 1


def test_an_error_from_the_data_loader_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> None:
        with report_user_errors("a_tool.py"):
            raise ImageReadError(
                "Caught ImageReadError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                "  File …\nquerypose.data.image_io.ImageReadError: a.jpg: cannot be read.\n"
            )

    with pytest.raises(SystemExit):
        read()
    assert capsys.readouterr().err == "a_tool.py: error: a.jpg: cannot be read.\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), report_user_errors("a_tool.py"):
        _ = 1 / 0


def test_cores_are_at_least_one() -> None:
    assert 1 <= available_cores() <= 4096


@pytest.mark.parametrize(("variables", "threads"), [({}, 3), ({"OMP_NUM_THREADS": "2"}, None)])
def test_processes_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], threads: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    chosen: list[int] = []
    monkeypatch.setattr(SETUP, "available_cores", lambda: 13)
    monkeypatch.setattr(comm, "get_local_size", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 13)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    SETUP.share_cores()
    assert chosen == ([] if threads is None else [threads])


TORCHRUN = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(
            (name, value)
            for name in TORCHRUN
            if name != "MASTER_ADDR"
            for value in ("", "x", "-1", "1.5", "²", "9" * 99)
        ),
        *(
            ("RANK", "2"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "3"),
            ("LOCAL_WORLD_SIZE", "0"),
            ("WORLD_SIZE", "0"),
        ),
        *(("WORLD_SIZE", "0"), ("MASTER_PORT", "0"), ("MASTER_PORT", "65536"), ("MASTER_ADDR", "")),
    ],
)
def test_what_torchrun_does_not_set_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    for name, text in {**TORCHRUN, variable: value}.items():
        monkeypatch.setenv(name, text)
    args = default_argument_parser().parse_args([])
    with pytest.raises(ConfigError, match=rf"variable {variable} is .*allowed: .*unset RANK"):
        launch(lambda _: None, args)


def test_torchrun_is_told_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    assert not started_by_torchrun()
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        assert not started_by_torchrun()
        monkeypatch.setenv(variable, "1")
    assert started_by_torchrun()

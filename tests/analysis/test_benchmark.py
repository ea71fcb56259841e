from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from querypose.analysis.benchmark import Timing, run_benchmark
from querypose.analysis.benchmark_report import format_benchmark, format_comparison, read_benchmark
from querypose.analysis.benchmark_subjects import InferenceSubject, LoadingSubject, TrainingSubject, Workload
from querypose.analysis.part_meter import REST, PartMeter
from querypose.config import ConfigError
from querypose.data.json_files import JsonError
from querypose.skeleton import SkeletonError
from tests.engine.toy_pose import write_toy_config
from tests.scripts import load_script
from tests.tiny import SHARPOSE, TINY_MODEL
from tests.tools.generated_inputs import damaged_document

DATASETS = ["DATASETS.TRAIN", "['keypoints_coco_2017_val']", "DATASETS.TEST", "['keypoints_coco_2017_val']"]
TINY = Workload(None, (*TINY_MODEL, *DATASETS), image_size=(64, 96), persons=2)
PARTS = {"backbone.bottom_up", "decoder.box_stages", "decoder.keypoint_stages"}


class Chain(nn.Module):
    """Calls a part of a list that is never called itself, another one within it, then does something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())])
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x) + 1


def test_timing() -> None:
    assert Timing.of([4.0, 1.0, 2.0, 3.0, 10.0]) == Timing(3.0, 2.0, 4.0, 4.0, 5)
    assert Timing.of([1.0, 2.0]) == Timing(1.5, 1.25, 1.75, 1.5, 2)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 7.0, 1)


def test_parts_add_up_to_the_whole() -> None:
    model = Chain()
    ticks = iter(range(100))
    with PartMeter(model, 1, lambda: next(ticks), outside="outside") as meter:
        model(torch.zeros(1))
        with meter.running("own"):
            model(torch.zeros(1))
    order = [span.part for span in meter.spans]
    # The two stages are one part and so one stretch, but for the model's own loop between them.
    once = [REST, "stages", REST, "stages", REST, "head", REST]
    assert order == ["outside", *once, "outside", "own", *once, "own", "outside"]
    assert [span.start for span in meter.spans[1:]] == [span.end for span in meter.spans[:-1]]


def test_a_compiled_part_is_timed_whole() -> None:
    model = Chain()
    model.stages[0].compile(backend="eager")
    ticks = iter(range(100))
    for _ in range(2):
        with PartMeter(model, 1, lambda: next(ticks)) as meter:
            model(torch.zeros(1))
        assert [span.part for span in meter.spans].count("stages") == 2
    call = model.stages[0]._compiled_call_impl
    assert call is not None
    assert "timed" not in call.__qualname__


def test_training_and_inference_have_every_part() -> None:
    epochs = ("SOLVER.MAX_EPOCHS", "2", "SOLVER.STEP_EPOCHS", "[1]")
    training = TrainingSubject(replace(TINY, overrides=(*TINY.overrides, *epochs)))
    assert training.step() > 0
    before = {name: value.clone() for name, value in training._model.named_parameters()}
    parts = training.parts()
    assert PARTS | {"backward", "update", "criterion"} <= set(parts)
    assert all(seconds >= 0 for seconds in parts.values())
    assert any(not torch.equal(before[name], value) for name, value in training._model.named_parameters())
    assert training.images_per_step == 2
    assert training.result()["peak_memory"] > 2**20

    inference = InferenceSubject(TINY)
    assert inference.step() > 0
    assert set(inference.parts()) >= PARTS
    assert "backward" not in inference.parts()
    assert inference.images_per_step == 1


def test_crops_have_their_size_and_the_share_that_is_refined_is_told() -> None:
    workload = Workload(
        None, (*TINY.overrides, *SHARPOSE, "SOLVER.MAX_EPOCHS", "9"), image_size=(800, 1066), batch_size=2
    )
    inference = InferenceSubject(workload)
    assert inference.step() > 0
    assert inference.result()["refined"] == 1
    assert TrainingSubject(workload).step() > 0


def test_loading(tmp_path: Path) -> None:
    config = write_toy_config(tmp_path)
    loading = LoadingSubject(Workload(str(config), ("DATALOADER.NUM_WORKERS", "0"), batch_size=3))
    assert loading.step() > 0
    assert loading.images_per_step == 3


def results_of(seconds: float, memory: int) -> dict[str, Any]:
    step = {
        "seconds": {"median": seconds, "lower_quartile": seconds, "upper_quartile": seconds, "mean": seconds},
        "images_per_step": 2,
        "images_per_second": 2 / seconds,
        "parts": {"update": {"median": seconds / 4}, "backbone": {"median": 3 * seconds / 4}},
        "peak_memory": memory,
    }
    counts = {"image_size": [64, 96], "parameters": {"backbone": 2_500_000}, "flops": {"backbone": 4_000_000_000}}
    return {
        "machine": {"cpu": "a cpu", "gpu": None},
        "variants": {"config": {"workload": {}, "train": step, "complexity": counts}},
    }


def test_tables() -> None:
    results = results_of(0.5, 2**30)
    results["variants"]["fast"] = results_of(0.125, 2**29)["variants"]["config"]
    shown = format_benchmark(results)
    rows = [line.split() for line in shown.splitlines()]
    assert ["train", "config", "500.0", "500.0", "…", "500.0", "2", "4.00", "1.00", "1.00x"] in rows
    assert ["train", "fast", "125.0", "125.0", "…", "125.0", "2", "16.00", "0.50", "4.00x"] in rows
    results["variants"]["fast"]["train"]["refined"] = 0.25
    rows = [line.split() for line in format_benchmark(results).splitlines()]
    assert ["train", "fast", "125.0", "125.0", "…", "125.0", "2", "16.00", "0.50", "4.00x", "25%"] in rows
    parts = [row[0] for row in rows if row and row[0] in ("backbone", "update")]
    assert parts[:2] == ["backbone", "update"]
    assert ["update", "125.0", "(25", "%)", "31.2", "(25", "%)"] in rows
    assert ["total", "2.500", "4.00", "2.500", "4.00"] in rows
    assert max(map(len, shown.splitlines())) <= 120


def test_comparison() -> None:
    before, after = results_of(0.5, 2**30), results_of(0.2, 2**29)
    shown = format_comparison(after, before, "before.json")
    assert ["config", "train", "2.50x", "2.50x", "0.50x"] in [line.split() for line in shown.splitlines()]
    assert "differ" not in shown
    before["machine"]["cpu"] = "another"
    assert "The machines differ." in format_comparison(after, before, "before.json")
    before["variants"] = {"other": before["variants"]["config"]}
    assert "nothing" in format_comparison(after, before, "before.json")


def test_a_file_to_compare_with_is_checked(tmp_path: Path) -> None:
    now, file = results_of(0.2, 2**29), tmp_path / "before.json"
    num_refused = 0
    for seed in range(150):
        file.write_text(json.dumps(damaged_document(results_of(0.5, 2**30), random.Random(seed))))
        try:
            assert format_comparison(now, read_benchmark(file), "before.json")
        except (ConfigError, JsonError) as refusal:
            assert "before.json" in str(refusal)  # noqa: PT017
            num_refused += 1
    assert 20 < num_refused < 150


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script("tools/benchmark.py")
    arguments = [
        *TINY.overrides, "--what", "complexity", "inference", "--iterations", "2", "--warmup", "1", "--image-size",
        "64x96", "--variant", "few", "MODEL.QUERYPOSE.NUM_QUERIES", "3", "--output", str(tmp_path / "a.json"),
        "--trace", str(tmp_path / "traces"),
    ]  # fmt: skip
    assert tool.main(tool.parse_arguments(arguments)) == 0
    results = json.loads((tmp_path / "a.json").read_text())
    assert set(results["variants"]) == {"config", "few"}
    assert {path.name for path in (tmp_path / "traces").iterdir()} == {"inference_config.json", "inference_few.json"}
    assert json.loads((tmp_path / "traces" / "inference_few.json").read_text())["traceEvents"]
    assert {"cpu", "cores", "threads", "gpu", "platform", "python", "torch", "engine", "commit"} == set(
        results["machine"]
    )
    for variant in results["variants"].values():
        inference = variant["inference"]
        assert {"median", "lower_quartile", "upper_quartile", "mean", "samples"} == set(inference["seconds"])
        assert inference["seconds"]["samples"] == 2
        assert set(inference["parts"]) >= PARTS
        assert inference["images_per_second"] == pytest.approx(1 / inference["seconds"]["median"])
        assert inference["peak_memory"] > 2**20
        assert set(variant["complexity"]["parameters"]) >= PARTS
    few, config = (results["variants"][name]["complexity"]["flops"] for name in ("few", "config"))
    assert sum(few.values()) < sum(config.values())
    assert "MODEL.QUERYPOSE.NUM_QUERIES" in results["variants"]["few"]["workload"]["overrides"]
    assert "few" in capsys.readouterr().out


def test_wrong_command_lines() -> None:
    tool = load_script("tools/benchmark.py")
    for wrong in (["--what", "speed"], ["--iterations", "0"], ["--image-size", "800"]):
        with pytest.raises(SystemExit):
            tool.parse_arguments(wrong)
    with pytest.raises(tool.ConfigError, match="another one of this name"):
        tool.make_variants(tool.parse_arguments([*TINY.overrides, "--variant", "a", "--variant", "a"]))
    with pytest.raises(tool.ConfigError, match=r"--config-file: .*nowhere.yaml"):
        tool.make_variants(tool.parse_arguments(["--config-file", "nowhere.yaml"]))


def test_a_measurement_that_fails_says_why() -> None:
    missing = Workload(None, (*TINY.overrides, "DATASETS.TRAIN", "['nowhere']"))
    with pytest.raises(SkeletonError, match="'nowhere'"):
        run_benchmark({"config": missing}, ["data"], iterations=1)

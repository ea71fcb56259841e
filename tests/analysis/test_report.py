"""The report of runs: what is in it, and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from querypose.analysis.report import write_report
from querypose.analysis.report_images import choose_images
from querypose.analysis.runs import config_rows, read_run
from querypose.d2 import build_model
from querypose.data import register_custom_datasets
from querypose.evaluation import EvaluationError
from tests.analysis.report_runs import (
    change_annotations,
    missing_nose,
    read_data,
    toy_config,
    toy_json,
    true_results,
    write_results,
    write_run,
)
from tests.scripts import run_script
from tests.tiny import tiny_config

pytest.importorskip("plotly", reason="reports need the package plotly")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return toy_config(tmp_path)


def report_of(tmp_path: Path, *runs: Path, **options: Any) -> dict[str, Any]:
    write_report([read_run(run) for run in runs], tmp_path / "report", **options)
    return read_data(tmp_path / "report")


def test_one_run(tmp_path: Path, config: Path) -> None:
    content = report_of(tmp_path, write_run(tmp_path, "run", config, missing_nose))
    assert content["notes"] == []
    assert content["runs"][0]["metrics"]["keypoints/AP"] == {"value": 40, "iteration": 9}
    hidden = {
        figure["title"]: [trace["name"] for trace in figure["data"] if "visible" in trace]
        for figure in content["curves"]
    }
    assert hidden == {
        "Losses": [], "Evaluation: keypoints": ["ARm"], "Evaluation: progress": [], "Learning rate": [],
    }  # fmt: skip
    (errors,) = content["errors"]
    assert errors["shares_of_errors"] == {"jitter": 0, "inversion": 0, "swap": 0, "miss": 100}
    assert content["difference"] is None
    assert len(content["images"]) == 6
    image = content["images"][0]
    assert image["runs"][0]["detections"][0]["kinds"] == ["miss", *["good"] * 16]
    # Pixel indices become continuous coordinates.
    assert image["persons"][0]["keypoints"][0][0] % 1 == 0.5
    files = {str(path.relative_to(tmp_path / "report")) for path in (tmp_path / "report").rglob("*.*")}
    assert files == {
        "index.html", "report.css", "report.js", "plotly.js", "data.js", *(f"images/{n:04d}.jpg" for n in range(6)),
    }  # fmt: skip


def test_two_runs_have_a_difference_with_an_interval_and_changed_images(tmp_path: Path, config: Path) -> None:
    worse, better = write_run(tmp_path, "worse", config, missing_nose), write_run(tmp_path, "better", config)
    content = report_of(tmp_path, worse, better)
    assert content["analyzed"] == ["worse", "better"]
    assert content["difference"]["runs"] == ["worse", "better"]
    assert 0 < content["difference"]["low"] <= content["difference"]["ap"] <= content["difference"]["high"]
    assert [run["loss"] for run in content["images"][-1]["runs"]] == pytest.approx(
        [content["images"][-1]["runs"][0]["loss"], 0]
    )
    assert {name for image in content["images"] for name in image["lists"]} == {"worst", "changed", "best"}


def test_attention_needs_weights_and_says_so(tmp_path: Path, config: Path) -> None:
    content = report_of(tmp_path, write_run(tmp_path, "run", config), num_explained=2)
    assert content["attention"] == []
    assert "has no model_final.pth" in content["notes"][0]


def test_attention_of_the_worst_images(tmp_path: Path, config: Path) -> None:
    run = write_run(tmp_path, "run", config)
    cfg = tiny_config()
    for key in ("TRAIN", "TEST"):
        cfg.DATASETS[key] = ["toy"]
    cfg.DATASETS.CUSTOM = json.loads(config.read_text())["DATASETS"]["CUSTOM"]
    run.joinpath("config.yaml").write_text(cfg.dump())
    register_custom_datasets(cfg)
    torch.save({"model": build_model(cfg).state_dict()}, run / "model_final.pth")
    (entry,) = report_of(tmp_path, run, num_explained=1)["attention"]
    titles = [picture["title"] for picture in entry["pictures"]]
    assert titles == ["image", "pose 1", "pose 2", "from stage to stage"]
    assert all((tmp_path / "report" / picture["file"]).is_file() for picture in entry["pictures"])


def test_config_rows_say_what_differs(tmp_path: Path, config: Path) -> None:
    first, second = write_run(tmp_path, "first", config), write_run(tmp_path, "second", config)
    second.joinpath("config.yaml").write_text(config.read_text().replace('"BASE_LR": 0.05', '"BASE_LR": 0.1'))
    rows = config_rows([read_run(first), read_run(second)])
    differing = [row for row in rows if row["differs"]]
    assert [(row["key"], row["values"]) for row in differing] == [("SOLVER.BASE_LR", ["0.05", "0.1"])]
    alone = {row["key"] for row in config_rows([read_run(first)]) if row["differs"]}
    assert "SOLVER.BASE_LR" in alone
    assert "SOLVER.WEIGHT_DECAY" not in alone


def test_images_missing_on_disk_are_said_and_the_poses_shown(tmp_path: Path, config: Path) -> None:
    run = write_run(tmp_path, "run", config)
    for image in toy_json(config).parent.glob("[0-2].png"):
        image.unlink()
    content = report_of(tmp_path, run)
    assert "3 of 6 images cannot be read" in content["notes"][0]
    assert sum(image["file"] is None for image in content["images"]) == 3
    assert all(image["runs"][0]["detections"] for image in content["images"])


def test_results_of_another_dataset_are_said_and_the_other_run_is_shown(tmp_path: Path, config: Path) -> None:
    good, other = write_run(tmp_path, "good", config), write_run(tmp_path, "other", config)
    write_results(other, [{**result, "image_id": 785} for result in true_results(config)])
    content = report_of(tmp_path, other, good)
    assert "no image of this id" in content["notes"][0]
    assert content["analyzed"] == ["good"]
    assert len(content["curves"]) == 4


@pytest.mark.parametrize(
    ("file", "text", "note"),
    [
        ("inference/coco_instances_results.json", None, "no results of toy yet"),
        ("inference/coco_instances_results.json", "[{", "is not valid json"),
        ("metrics.json", None, "has not written any metrics yet"),
        ("metrics.json", "nonsense\n{}\n", "metrics cannot be read"),
        ("config.yaml", "SOLVER: {BASE_LR: fast}", "config cannot be read"),
    ],
)
def test_a_run_with_a_part_missing_or_damaged_shows_the_rest(
    tmp_path: Path, config: Path, file: str, text: str | None, note: str
) -> None:
    run = write_run(tmp_path, "run", config)
    run.joinpath(file).unlink() if text is None else run.joinpath(file).write_text(text)
    content = report_of(tmp_path, run)
    assert any(note in line for line in content["notes"])
    assert content["curves"] or "metrics" in note


def test_a_run_that_goes_on_or_died_says_how_far_it_came(tmp_path: Path, config: Path) -> None:
    run = write_run(tmp_path, "run", config)
    lines = run.joinpath("metrics.json").read_text().splitlines(keepends=True)
    run.joinpath("metrics.json").write_text("".join(lines[:5]) + lines[5][:7])  # killed within a line
    content = report_of(tmp_path, run)
    assert content["notes"] == ["run: It is at iteration 5 of 10: it is still going on, or it ended early."]


def test_no_detections_nobody_there_and_one_image(tmp_path: Path, config: Path) -> None:
    run = write_run(tmp_path, "run", config)
    write_results(run, [])
    content = report_of(tmp_path, run, num_images=1)
    assert (content["errors"][0]["AP"], len(content["images"])) == (0, 1)
    assert len(content["images"][0]["runs"][0]["missed"]) == 1
    change_annotations(config, lambda content: content.update(annotations=[]))
    content = report_of(tmp_path, run)
    assert content["errors"][0]["AP"] is None


def test_what_is_no_run_is_refused(tmp_path: Path, config: Path) -> None:
    with pytest.raises(EvaluationError, match="There is no folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="name OUTPUT_DIR of a training"):
        read_run(tmp_path / "empty")
    run = write_run(tmp_path, "run", config)
    with pytest.raises(EvaluationError, match="was named twice"):
        report_of(tmp_path, run, run)


def test_the_tool_prints_the_path_and_refuses_three_runs(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, "run", config)
    output = tmp_path / "report"
    assert run_script("tools/report.py", str(run), "--output", str(output)) == 0
    assert f"The report is {output / 'index.html'}" in capsys.readouterr().out
    assert run_script("tools/report.py", str(run), str(run), str(run), "--output", str(output)) == 2
    assert run_script("tools/report.py", str(tmp_path / "no"), "--output", str(output)) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_text_from_files_stays_text(tmp_path: Path, config: Path) -> None:
    name = "</script><script>alert(1)</script>\u2028.png"

    def rename(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = name

    change_annotations(config, rename)
    content = report_of(tmp_path, write_run(tmp_path, "run", config))
    assert name in {image["name"] for image in content["images"]}
    # An index.html that holds no data cannot be broken by it.
    assert "alert" not in (tmp_path / "report/index.html").read_text()
    assert json.dumps("\u2028")[1:-1] in (tmp_path / "report/data.js").read_text()


def test_chosen_images_are_the_worst_the_changed_and_the_best() -> None:
    first, second = np.array([0.0, 5.0, 1.0, 0.0, 2.0, 0.0]), np.array([9.0, 5.0, 1.0, 0.0, 8.0, 0.0])
    has_person_I = np.array([True, True, True, False, True, True])
    assert choose_images([first, second], has_person_I, 3) == {0: ["worst", "changed"], 4: [], 5: ["best"]}
    assert list(choose_images([second], has_person_I, 100)) == [0, 4, 1, 2, 3, 5]

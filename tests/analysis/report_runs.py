"""Folders of runs on the toy dataset, as trainings leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.toy_pose import write_toy_config

LAST_ITERATION = 9


def write_run(folder: Path, name: str, config: Path, change: Callable[[list[float]], list[float]] = list) -> Path:
    """A finished run whose results are the annotated poses after `change`; gives its folder."""
    run = folder / name
    (run / "inference").mkdir(parents=True)
    run.joinpath("config.yaml").write_text(config.read_text())
    rows = [
        {"iteration": iteration, "total_loss": 3 - 0.2 * iteration, "lr": 0.05} for iteration in range(LAST_ITERATION)
    ]
    last = {"total_loss": 1.0, "keypoints/AP": 40.0, "keypoints/ARm": 70.0, "progress/PCK": 50.0}
    rows.append({"iteration": LAST_ITERATION, **last})
    run.joinpath("metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_results(run, [{**result, "keypoints": change(result["keypoints"])} for result in true_results(config)])
    return run


def toy_config(folder: Path) -> Path:
    """A config on a toy dataset of its own."""
    return write_toy_config(folder)


def toy_json(config: Path) -> Path:
    """The annotations of that dataset."""
    return Path(json.loads(config.read_text())["DATASETS"]["CUSTOM"][0]["json"])


def change_annotations(config: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the annotations after `change` of their content."""
    content = json.loads(toy_json(config).read_text())
    change(content)
    toy_json(config).write_text(json.dumps(content))


def true_results(config: Path) -> list[dict[str, Any]]:
    """The annotated poses as results; the later the image, the less sure."""
    return [
        {
            "image_id": person["image_id"],
            "category_id": 1,
            "keypoints": [float(value) for value in person["keypoints"]],
            "score": 0.9 - 0.05 * index,
        }
        for index, person in enumerate(json.loads(toy_json(config).read_text())["annotations"])
    ]


def write_results(run: Path, results: list[dict[str, Any]]) -> None:
    run.joinpath("inference/coco_instances_results.json").write_text(json.dumps(results))


def missing_nose(keypoints: list[float]) -> list[float]:
    """The first keypoint far outside."""
    return [500.0, 500.0, 1.0, *keypoints[3:]]


def read_data(report: Path) -> dict[str, Any]:
    """What the page shows."""
    text = report.joinpath("data.js").read_text()
    content: dict[str, Any] = json.loads(text.removeprefix("window.REPORT = ").removesuffix(";\n"))
    return content

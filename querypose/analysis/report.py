"""A report of one run or two: a folder with a page that opens from the disk, without server and network.

The page (`report_page/`) is plain HTML, CSS and JavaScript with plotly.js. All it shows is in `data.js`, as JSON: text
from files reaches the page as text, never as markup.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querypose.analysis.report_attention import attention_entries
from querypose.analysis.report_figures import curve_figures, error_figures
from querypose.analysis.report_images import best_threshold, image_entries
from querypose.analysis.runs import Run, common_names, config_rows
from querypose.d2 import MetadataCatalog, atomic_write
from querypose.data import DatasetError, register_custom_datasets
from querypose.data.coco import PoseAnnotations
from querypose.data.datasets import dataset_annotations
from querypose.data.results import read_results
from querypose.evaluation import EvaluationError, detections_of
from querypose.evaluation.error_analysis import REPAIRS, ErrorAnalysis, analyze_errors
from querypose.evaluation.evaluator import PICTURES_FOLDER
from querypose.evaluation.oks import person_areas
from querypose.evaluation.resampling import PrecisionCurves, paired_bootstrap
from querypose.skeleton import SkeletonError

PAGE = Path(__file__).with_name("report_page")


def write_report(
    runs: Sequence[Run],
    output: Path,
    *,
    dataset: str = "",
    num_images: int = 60,
    max_side: int = 960,
    num_explained: int = 0,
) -> Path:
    """Writes the report; what cannot be shown is said in it, and the rest is shown.

    Args:
        runs: one or two.
        output: its folder; files of an earlier report in it are replaced.
        dataset: whose results are shown; by default the first of DATASETS.TEST of the first run that has a config.
        num_images: that are shown at most.
        max_side: of their JPEGs, in pixels.
        num_explained: of the worst of them, that the last run's model is asked about what it looked at.

    Returns:
        index.html.

    Raises:
        EvaluationError: plotly is not installed, or one run was named twice.
    """
    library = plotly_js()
    names = common_names(runs)
    notes = [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes]
    output.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "runs": [
            {"name": name, "folder": str(run.folder), "metrics": _metrics(run)}
            for name, run in zip(names, runs, strict=True)
        ],
        "curves": curve_figures({name: run.curves for name, run in zip(names, runs, strict=True)}),
        "config": config_rows(runs),
        "pictures": _training_pictures(dict(zip(names, runs, strict=True)), output / PICTURES_FOLDER),
        "images": [],
        "attention": [],
    }
    analyses = _analyses(dict(zip(names, runs, strict=True)), dataset, notes)
    if analyses:
        content |= _of_errors(analyses)
        images, num_missing = image_entries(analyses, num_images, output / "images", max_side)
        content["images"] = images
        if num_explained:
            name, analysis = list(analyses.items())[-1]
            file = analysis.evaluation.annotations
            worst = [file.image_ids.index(image["id"]) for image in images[:num_explained]]
            try:
                content["attention"] = attention_entries(runs[names.index(name)], file, worst, output / "attention")
            except EvaluationError as error:
                notes.append(f"{name}: {error}")
        if num_missing:
            root = next(iter(analyses.values())).evaluation.annotations.image_root
            notes.append(
                f"{num_missing} of {len(images)} images cannot be read from {root}: their poses are shown on gray."
            )
    content["notes"] = notes
    for path in PAGE.iterdir():
        shutil.copyfile(path, output / path.name)
    for name, text in (("plotly.js", library), ("data.js", f"window.REPORT = {_json(content)};\n")):
        with atomic_write(output / name, "w") as stream:
            stream.write(text)
    return output / "index.html"


def plotly_js() -> str:
    """The library that draws the charts, as the package plotly ships it.

    Raises:
        EvaluationError: the package is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise EvaluationError("Reports need the package plotly", "install it: pip install plotly") from error
    text: str = get_plotlyjs()
    return text


def _analyses(runs: Mapping[str, Run], dataset: str, notes: list[str]) -> dict[str, ErrorAnalysis]:
    """The analyses of those runs that have results of the dataset; `notes` get why others have none."""
    for run in runs.values():
        if run.cfg is not None:
            try:
                register_custom_datasets(run.cfg)
                dataset = dataset or next(iter(run.cfg.DATASETS.TEST), "")
            except (DatasetError, SkeletonError) as error:
                notes.append(str(error))
    if not dataset:
        notes.append("No run names a dataset in DATASETS.TEST, so that there is no error analysis.")
        return {}
    try:
        annotations = dataset_annotations(dataset).require_sound()
    except (DatasetError, SkeletonError) as error:
        notes.append(f"There is no error analysis: {error}")
        return {}
    analyses = {}
    for name, run in runs.items():
        path = run.results_file(dataset)
        if path is None:
            notes.append(f"{name}: it has no results of {dataset} yet; an evaluation writes them to inference/.")
            continue
        try:
            analyses[name] = _analysis(path, annotations, dataset)
        except (DatasetError, EvaluationError) as error:
            notes.append(f"{name}: {error}")
    return analyses


def _analysis(path: Path, annotations: PoseAnnotations, dataset: str) -> ErrorAnalysis:
    detections = detections_of(read_results(path, annotations.skeleton), annotations)
    return analyze_errors(
        annotations, detections, person_areas(annotations, MetadataCatalog.get(dataset).evaluator_type)
    )


def _of_errors(analyses: Mapping[str, ErrorAnalysis]) -> dict[str, Any]:
    """What the page shows of the analyses."""
    first = next(iter(analyses.values()))
    skeleton = first.evaluation.annotations.skeleton
    difference = None
    if len(analyses) == 2:
        curves = [PrecisionCurves(analysis.evaluation) for analysis in analyses.values()]
        interval = paired_bootstrap(*curves)
        difference = None if interval is None else {**vars(interval), "runs": list(analyses)}
    return {
        "dataset": {
            "path": first.evaluation.annotations.path,
            "images": len(first.evaluation.annotations.image_ids),
            "persons": first.num_persons,
        },
        "skeleton": {"keypoints": skeleton.keypoints, "edges": skeleton.edges},
        "analyzed": list(analyses),
        "threshold": min(best_threshold(analysis) for analysis in analyses.values()),
        "difference": difference,
        "errors": [analysis.to_dict() for analysis in analyses.values()],
        "repairs": REPAIRS,
        "figures": error_figures(analyses),
    }


def _metrics(run: Run) -> dict[str, dict[str, float]]:
    return {name: {"value": value, "iteration": iteration} for name, (value, iteration) in run.metrics().items()}


def _training_pictures(runs: Mapping[str, Run], folder: Path) -> list[dict[str, str]]:
    """Copies of the animations that TEST.PICTURES left in the runs."""
    copied = []
    for index, (name, run) in enumerate(runs.items()):
        for number, animation in enumerate(sorted((run.folder / PICTURES_FOLDER).glob("**/*.gif"))):
            folder.mkdir(parents=True, exist_ok=True)
            file = f"{index}_{number:03d}.gif"
            shutil.copyfile(animation, folder / file)
            copied.append({"run": name, "name": animation.stem, "file": f"{folder.name}/{file}"})
    return copied


def _json(content: Any) -> str:
    """As JavaScript reads it: no NaN, and nothing beyond ASCII that could end a line."""
    return json.dumps(_finite(content), allow_nan=False, ensure_ascii=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

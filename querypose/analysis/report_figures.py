"""The charts of a report, as plotly.js takes them: dicts with `data` and `layout`; the page gives them its colors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from querypose.evaluation.error_analysis import KINDS, ErrorAnalysis
from querypose.visualization.charts import Curve

Figure = dict[str, Any]
_AT_FIRST = ("total_loss", "AP", "AP50", "AP75", "lr", "images_per_second")
_STAGE = re.compile(r"_\d+$")


def curve_figures(curves_of_run: Mapping[str, Mapping[str, Curve]]) -> list[Figure]:
    """Losses, metrics, learning rate and speed over the iterations.

    Of a chart with the total loss or AP, only these are shown at first; the legend turns the others on. Losses of
    stages before the last are left to TensorBoard.
    """
    names = list(dict.fromkeys(name for curves in curves_of_run.values() for name in curves))
    losses = [name for name in names if "loss" in name and not _STAGE.search(name)]
    groups: dict[str, list[str]] = {"Losses": sorted(losses, key=lambda name: name != "total_loss")}
    for name in names:
        if "/" in name and "loss" not in name:
            groups.setdefault(f"Evaluation: {name.rpartition('/')[0]}", []).append(name)
    groups["Learning rate"] = [name for name in names if name == "lr"]
    groups["Images per second"] = [name for name in names if name == "images_per_second"]
    return [
        _figure(
            title,
            [
                {
                    "type": "scatter",
                    "mode": "lines+markers" if "/" in name else "lines",
                    "name": _label(name.rpartition("/")[2], run, curves_of_run),
                    "x": [iteration for iteration, _ in curves[name]],
                    "y": [value for _, value in curves[name]],
                    **({} if name in _shown_at_first(members) else {"visible": "legendonly"}),
                }
                for name in members
                for run, curves in curves_of_run.items()
                if name in curves
            ],
            x="iteration",
        )
        for title, members in groups.items()
        if any(name in curves for name in members for curves in curves_of_run.values())
    ]


def error_figures(analyses: Mapping[str, ErrorAnalysis]) -> list[Figure]:
    """Kinds of errors, what they cost, OKS of keypoints, parts of the persons, scores against OKS."""
    figures = []
    if len(analyses) > 1:
        totals = [
            _bars(run, KINDS[1:], [analysis.shares()[kind] for kind in KINDS[1:]]) for run, analysis in analyses.items()
        ]
        figures.append(_figure("Kinds of errors (% of labeled keypoints)", totals))
    for run, analysis in analyses.items():
        rows = analysis.keypoints()
        stacked = [
            {**_bars(kind, [row["name"] for row in rows], [row[kind] for row in rows]), "meta": {"kind": kind}}
            for kind in KINDS[1:]
        ]
        title = _label("Kinds of errors by keypoint (% of labeled)", run, analyses)
        figures.append(_figure(title, stacked, barmode="stack"))
    figures += [
        _figure(
            "AP that mending one kind alone would add",
            [
                _bars(run, [repair.kind for repair in analysis.repairs], [r.ap - analysis.ap for r in analysis.repairs])
                for run, analysis in analyses.items()
            ],
        ),
        _figure(
            "Mean OKS of each keypoint, of detections near a person",
            [
                _bars(run, [row["name"] for row in analysis.keypoints()], [row["oks"] for row in analysis.keypoints()])
                for run, analysis in analyses.items()
            ],
        ),
        _figure(
            "AP of parts of the persons",
            [
                {
                    "type": "bar",
                    "name": run,
                    "orientation": "h",  # the names are long
                    "x": [part.ap for part in analysis.slices],
                    "y": [f"{part.group}: {part.name}" for part in analysis.slices],
                    "customdata": [part.num_persons for part in analysis.slices],
                    "hovertemplate": "%{x:.1f} (%{customdata} persons)",
                }
                for run, analysis in analyses.items()
            ],
            is_from_top=True,
        ),
        _figure(
            "Score against the highest OKS with a person",
            [
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": run,
                    "x": [part.score for part in analysis.calibration],
                    "y": [part.oks for part in analysis.calibration],
                }
                for run, analysis in analyses.items()
            ],
            x="mean score of a tenth of the detections",
        ),
    ]
    return [figure for figure in figures if figure["data"]]


def _shown_at_first(names: Sequence[str]) -> Sequence[str]:
    """Those of a chart that matter most; all where none does, because plotly.js cannot scale the axes of nothing."""
    return [name for name in names if name.rpartition("/")[2] in _AT_FIRST] or names


def _figure(
    title: str, data: Sequence[Mapping[str, Any]], x: str = "", barmode: str = "group", is_from_top: bool = False
) -> Figure:
    layout: dict[str, Any] = {"barmode": barmode, "xaxis": {"title": {"text": x}}}
    layout["yaxis"] = {"autorange": "reversed"} if is_from_top else {"rangemode": "tozero"}
    return {"title": title, "data": list(data), "layout": layout}


def _bars(name: str, x: Sequence[str], y: Sequence[float]) -> dict[str, Any]:
    return {"type": "bar", "name": name, "x": list(x), "y": list(y)}


def _label(name: str, run: str, runs: Mapping[str, Any]) -> str:
    return f"{name}, {run}" if len(runs) > 1 else name

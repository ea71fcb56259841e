#!/usr/bin/env python
"""Says what kinds of errors a results file has, and what AP would be without each (Ronchi and Perona, ICCV 2017).

    python tools/analyze_results.py --dataset keypoints_coco_2017_val --results res.json
    python tools/analyze_results.py --dataset my_val --config-file my.yaml --results res.json --output errors.json

Results may come from any model, in the COCO format, and the dataset may have any skeleton. docs/errors.md explains the
tables. tools/report.py shows the same for a run, with pictures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from querypose.config import add_import_argument, load_config
from querypose.d2 import MetadataCatalog
from querypose.data import register_custom_datasets
from querypose.data.datasets import dataset_annotations
from querypose.data.results import read_results
from querypose.engine import report_user_errors
from querypose.evaluation import detections_of, require_persons, write_json
from querypose.evaluation.error_analysis import KINDS, ErrorAnalysis, analyze_errors
from querypose.evaluation.oks import person_areas
from querypose.skeleton import skeleton_of_datasets


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered name of the dataset")
    parser.add_argument("--results", required=True, metavar="R.json", help="COCO results of it, of any model")
    parser.add_argument("--config-file", metavar="F", help="a YAML file with the dataset in DATASETS.CUSTOM")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write everything to this json file")
    add_import_argument(parser)
    return parser.parse_args(arguments)


def tables(analysis: ErrorAnalysis) -> str:
    """The analysis as text."""
    content = analysis.to_dict()
    totals = (
        f"{content['images']} images, {content['persons']} persons, {content['detections']} detections (20 an image): "
        f"{content['matched']} near a person, {content['false_positives']} on the background; "
        f"{content['false_negatives']} persons have no detection near them.\n"
        f"AP {_number(analysis.ap)}, AR {_number(analysis.ar)}"
    )
    whole = {"name": "all", "labeled": sum(row["labeled"] for row in content["keypoints"]), **content["shares"]}
    sections = {
        "Keypoints of these detections, in percent of those that are labeled": _table(
            [*content["keypoints"], whole], ("name", "labeled", "oks", *KINDS)
        ),
        "AP and AR if errors of a kind were mended, alone and after the kinds above it": _table(
            content["repairs"], ("kind", "ap", "ar", "ap_in_turn", "ar_in_turn")
        ),
        "Parts of the persons": _table(content["slices"], ("group", "name", "num_persons", "ap", "ar")),
        "Scores and the highest OKS with a person, a tenth of the detections a row": _table(
            content["calibration"], ("count", "score", "oks")
        ),
    }
    return "\n\n".join([totals, *(f"{title}:\n{table}" for title, table in sections.items())])


def _table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    cells = [[_number(row.get(column), 3 if column in ("oks", "score") else 1) for column in columns] for row in rows]
    return tabulate(cells, [column.replace("_", " ") for column in columns], disable_numparse=True)


def _number(value: Any, digits: int = 1) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def main(arguments: argparse.Namespace) -> None:
    register_custom_datasets(load_config(arguments.config_file, imports=arguments.imports))
    skeleton = skeleton_of_datasets([arguments.dataset])
    annotations = dataset_annotations(arguments.dataset).require_sound()
    require_persons(annotations)
    detections = detections_of(read_results(arguments.results, skeleton), annotations)
    areas_N = person_areas(annotations, MetadataCatalog.get(arguments.dataset).evaluator_type)
    analysis = analyze_errors(annotations, detections, areas_N)
    print(tables(analysis))
    if arguments.output is not None:
        write_json(arguments.output, analysis.to_dict())
        print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    with report_user_errors("analyze_results.py"):
        main(parse_arguments())

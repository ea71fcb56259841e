#!/usr/bin/env python
"""Writes a report of a run, or of two beside each other: one folder whose index.html opens in a browser from the disk.

    python tools/report.py output/run --output report
    python tools/report.py output/run output/other --output report

It shows metrics and curves, the config and what differs, the kinds of errors and what they cost, and images with their
poses: the worst, the best and, of two runs, those that changed most. Of two runs the difference of AP has a 95 %
interval (paired bootstrap over the images). Needs plotly: pip install plotly
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from querypose.analysis.report import write_report
from querypose.analysis.runs import read_run
from querypose.config import add_import_argument
from querypose.engine import report_user_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a training; one or two")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument(
        "--dataset", default="", metavar="NAME", help="whose results to show (default: the first of DATASETS.TEST)"
    )
    parser.add_argument("--num", type=int, default=60, metavar="N", help="images, at most (default: %(default)s)")
    parser.add_argument(
        "--max-side", type=int, default=960, metavar="PIXELS", help="of the images (default: %(default)s)"
    )
    parser.add_argument(
        "--attention", type=int, nargs="?", const=4, default=0, metavar="N",
        help="ask the last run's model_final.pth what it looked at in the N worst images (default of N: %(const)s)",
    )  # fmt: skip
    add_import_argument(parser)
    parsed = parser.parse_args(arguments)
    if len(parsed.runs) > 2:
        parser.error(f"{len(parsed.runs)} runs were named; a report shows one, or two beside each other.")
    for option, value in (("--num", parsed.num), ("--max-side", parsed.max_side)):
        if value < 1:
            parser.error(f"{option} is {value}; allowed: 1 and more.")
    return parsed


def main(arguments: argparse.Namespace) -> None:
    runs = [read_run(folder, arguments.imports) for folder in arguments.runs]
    page = write_report(
        runs,
        arguments.output,
        dataset=arguments.dataset,
        num_images=arguments.num,
        max_side=arguments.max_side,
        num_explained=arguments.attention,
    )
    print(f"The report is {page.resolve()}")


if __name__ == "__main__":
    with report_user_errors("report.py"):
        main(parse_arguments())

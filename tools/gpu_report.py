#!/usr/bin/env python
"""Proves and measures everything on a GPU in one command, within minutes: `make gpu`.

    python tools/gpu_report.py
    python tools/gpu_report.py --limit 9 --minutes 3 --output docs/gpu.md

The page, and beside it the same in json, is written anew after every part, so that what was measured is there even if
the machine goes. Nothing is taken from a network. Exit code: 0 all is well, or there is no GPU; 1 a part failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from querypose.analysis.gpu_report import ROOT, Page, Scope, all_parts
from querypose.engine import report_user_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--limit", type=float, default=9.0, metavar="M", help="minutes for all parts together (default: %(default)g)"
    )
    parser.add_argument(
        "--minutes", type=float, default=3.0, metavar="M", help="of the short training (default: %(default)g)"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "gpu.md", metavar="FILE.md",
        help="the page; FILE.json is written beside it (default: docs/gpu.md)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("gpu_report.py: torch finds no GPU here, so there is nothing to measure.")
        return 0
    scope = Scope("cuda", time.monotonic() + 60 * arguments.limit, minutes=arguments.minutes)
    page = Page(arguments.output, arguments.output.with_suffix(".json"))
    is_good = page.run(all_parts(arguments.minutes), scope)
    print(f"The page is {arguments.output}.")
    return 0 if is_good else 1


if __name__ == "__main__":
    with report_user_errors("gpu_report.py"):
        sys.exit(main(parse_arguments()))

#!/usr/bin/env python
"""Exports a trained model: a folder that `querypose.load` reads.

    python tools/export.py output/run --format safetensors --output exported/

The model is a run's folder, a checkpoint in it, or a file that was exported before. Nothing of its code runs; for a
model of a project of your own add --import.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from querypose.config import add_import_argument
from querypose.config.imports import import_modules
from querypose.deployment import read_package
from querypose.engine import report_user_errors

FORMATS = ("safetensors",)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder of a run, a checkpoint in it, or an exported file")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder that is written")
    add_import_argument(parser)
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    import_modules(arguments.imports)
    package = read_package(arguments.model)
    print(f"Written: {package.save(arguments.output)} and what describes it.")


if __name__ == "__main__":
    with report_user_errors("export.py"):
        main(parse_arguments())

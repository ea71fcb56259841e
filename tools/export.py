#!/usr/bin/env python
"""Exports a trained model: a folder for Python, an ONNX file that runs without torch, or a page for the browser.

    python tools/export.py output/run --format safetensors --output exported/
    python tools/export.py output/run --format onnx --output exported/
    python tools/export.py output/run --format onnx --precision int8 --calibration photos/*.jpg --output exported/
    python tools/export.py output/run --format web --output page/ --samples photo1.jpg photo2.jpg

The model is a run's folder, a checkpoint in it, or a file that was exported before. Nothing of its code runs; for a
model of a project of your own add --import. ONNX and web need the extra: pip install querypose[export]
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from querypose.config import add_import_argument
from querypose.config.imports import import_modules
from querypose.deployment import read_package
from querypose.deployment.onnx_export import ONNX_PRECISIONS, export_onnx
from querypose.deployment.web_export import export_web
from querypose.engine import report_user_errors

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("safetensors", "onnx", "web")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder of a run, a checkpoint in it, or an exported file")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder that is written")
    parser.add_argument(
        "--no-preprocessing", action="store_true",
        help="onnx: the file takes what the pipeline makes of images, not the images themselves",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=ONNX_PRECISIONS, default="float32",
        help="onnx, web: float16 stores weights in half the bytes; int8 computes the backbone in integers "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", nargs="*", type=Path, default=[], metavar="FILE",
        help="int8: some photos like those that the model will see",
    )  # fmt: skip
    parser.add_argument(
        "--license", metavar="NAME",
        help="safetensors: of the weights, as the Hub calls it, such as cc-by-4.0 (default: that of MODEL, else other)",
    )  # fmt: skip
    parser.add_argument("--samples", nargs="*", type=Path, default=[], metavar="FILE", help="web: photos to offer")
    parser.add_argument(
        "--runtime-folder", type=Path, metavar="DIR",
        help="web: folder dist of an installed onnxruntime-web, where npm or the network is missing",
    )  # fmt: skip
    add_import_argument(parser)
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    import_modules(arguments.imports)
    package, output = read_package(arguments.model), arguments.output
    stored = {"precision": arguments.precision, "calibration": arguments.calibration}
    if arguments.format == "safetensors":
        if arguments.license is not None:
            package = dataclasses.replace(package, license_name=arguments.license)
        package.save(output)
        print(f"Written: {output}. Load it: querypose.load({str(output)!r})")
    elif arguments.format == "onnx":
        path = export_onnx(package, output / "model.onnx", with_preprocessing=not arguments.no_preprocessing, **stored)
        shutil.copyfile(ROOT / "querypose" / "runtime.py", output / "runtime.py")
        print(f"Written: {path}. Run it without torch: python {output / 'runtime.py'} {path} photo.jpg")
    else:
        export_web(package, output, samples=arguments.samples, runtime_folder=arguments.runtime_folder, **stored)
        print(f"Written: {output}. Serve it: python -m http.server --directory {output}")


if __name__ == "__main__":
    with report_user_errors("export.py"):
        main(parse_arguments())

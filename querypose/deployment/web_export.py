"""A folder with a page that runs a model in the browser: page, model, onnxruntime-web, samples."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from querypose.deployment.onnx_export import METADATA, ExportError, export_onnx
from querypose.deployment.package import ModelPackage

RUNTIME_VERSION = "1.30.0"
_RUNTIME_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
_RUNTIME_FILES = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
_PAGE = ("index.html", "style.css", "app.js")


def export_web(
    package: ModelPackage,
    folder: str | Path,
    *,
    samples: Sequence[Path] = (),
    runtime_folder: Path | None = None,
    precision: str = "float32",
    calibration: Sequence[str | Path] = (),
) -> Path:
    """Writes the folder, which any server of files serves: `python -m http.server --directory FOLDER`.

    Args:
        package: the model.
        folder: is made.
        samples: photos that the page offers.
        runtime_folder: `dist` of an installed onnxruntime-web; None takes the pinned version from npm, once a user.
        precision: of `export_onnx`; so `calibration`.
        calibration: see there.

    Raises:
        ExportError: the model cannot be exported, or onnxruntime-web cannot be had.
    """
    import onnx

    folder = Path(folder)
    (folder / "runtime").mkdir(parents=True, exist_ok=True)
    _copy_runtime(folder / "runtime", runtime_folder)
    path = export_onnx(package, folder / "model.onnx", precision=precision, calibration=calibration)
    model = onnx.load(path, load_external_data=False)
    info = json.loads(next(entry.value for entry in model.metadata_props if entry.key == METADATA))
    info["samples"] = []
    for number, sample in enumerate(samples, start=1):
        name = f"sample{number}{sample.suffix.lower()}"
        shutil.copyfile(sample, folder / name)
        info["samples"].append(name)
    (folder / "model.json").write_text(json.dumps(info), encoding="utf-8")
    for name in _PAGE:
        (folder / name).write_bytes((resources.files("querypose.deployment") / "web" / name).read_bytes())
    return folder


def _copy_runtime(target: Path, source: Path | None) -> None:
    if source is None:
        with tarfile.open(_runtime_archive()) as archive:
            for name in _RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                with member, open(target / name, "wb") as written:
                    shutil.copyfileobj(member, written)
        return
    for name in _RUNTIME_FILES:
        if not (source / name).is_file():
            raise ExportError(
                f"--runtime-folder {str(source)!r} has no {name}. Name the folder dist of onnxruntime-web "
                f"{RUNTIME_VERSION}."
            )
        shutil.copyfile(source / name, target / name)


def _runtime_archive() -> Path:
    """The package of onnxruntime-web, from the user's cache or from npm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "querypose"
    path = cache / f"onnxruntime-web-{RUNTIME_VERSION}.tgz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        remedy = (
            f"Install Node.js with npm and connect to the network once, or name the folder dist of an installed "
            f"onnxruntime-web {RUNTIME_VERSION} by --runtime-folder."
        )
        command = ["npm", "pack", f"onnxruntime-web@{RUNTIME_VERSION}", "--silent", "--pack-destination", str(cache)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise ExportError(
                f"npm cannot get onnxruntime-web {RUNTIME_VERSION} ({type(error).__name__}). {remedy}"
            ) from error
    digest = hashlib.sha512(path.read_bytes()).hexdigest()
    if digest != _RUNTIME_SHA512:
        path.unlink()
        raise ExportError(f"{path} was not the package onnxruntime-web {RUNTIME_VERSION} and is removed. Try again.")
    return path

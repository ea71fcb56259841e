#!/usr/bin/env python
"""Serves a page to try models: upload a photo, compare two models, move thresholds, download the poses as json.

    pip install -e ".[app]"
    python tools/app.py output/run exported/model.safetensors
    python tools/app.py output/run --host 0.0.0.0 --port 7860 --max-megabytes 10

Uploads are limited in bytes and pixels, no file of this machine can be read through the page, and errors of the program
stay in its log.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from querypose.data.image_io import ImageReadError, read_image_size
from querypose.deployment import ImagePoses, PoseEstimator, load
from querypose.deployment.results import import_or_explain
from querypose.engine import report_user_errors

NO_MODEL = "none"
_logger = logging.getLogger("querypose.app")


class App:
    """What the page calls.

    Args:
        models: by the name that the page shows.
        folder: for the files to download.
        max_pixels: of an upload.
    """

    def __init__(self, models: Mapping[str, PoseEstimator], folder: str | Path, max_pixels: int) -> None:
        self.models = dict(models)
        self.folder = Path(folder)
        self.max_pixels = max_pixels

    def find(
        self, photo: str | None, first: str, second: str, threshold: float
    ) -> tuple[Image.Image | None, Image.Image | None, str | None, str]:
        """The drawings of both models, the file with the poses, and what to say.

        Raises:
            gradio.Error: the photo cannot be used; with a message for the user of the page.
        """
        gradio = import_or_explain("gradio", "querypose[app]")
        if photo is None:
            return None, None, None, "Choose a photo."
        chosen = [name for name in (first, second) if name != NO_MODEL]
        try:
            self._check_size(photo)
            found = {name: self.models[name](Path(photo)) for name in chosen}
            drawn = [found[name].draw(threshold) if name in found else None for name in (first, second)]
            return drawn[0], drawn[1], self._written(found), self._words(found, threshold)
        except ImageReadError as error:
            raise gradio.Error(error.remedy and f"The photo cannot be used: {error.remedy}.") from None
        except Exception:
            _logger.exception("A request failed.")
            raise gradio.Error("The photo cannot be used. The log of the server says why.") from None

    def _check_size(self, photo: str) -> None:
        height, width = read_image_size(photo)
        if width * height > self.max_pixels:
            raise ImageReadError("It is too large", f"send one of at most {self.max_pixels:,} pixels")

    def _written(self, found: Mapping[str, ImagePoses]) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=self.folder, delete=False) as file:
            json.dump({name: poses.to_coco() for name, poses in found.items()}, file)
        return file.name

    @staticmethod
    def _words(found: Mapping[str, ImagePoses], threshold: float) -> str:
        counts = (f"{name}: {int((poses.scores >= threshold).sum())} poses" for name, poses in found.items())
        return "; ".join(counts)


def build(app: App) -> Any:
    """The page, a `gradio.Blocks`."""
    gradio = import_or_explain("gradio", "querypose[app]")
    names = list(app.models)
    with gradio.Blocks(title="Poses", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# Poses\nUpload a photo, and compare what two models find.")
        with gradio.Row():
            with gradio.Column(scale=1):
                photo = gradio.Image(type="filepath", sources=["upload", "webcam"], label="Photo")
                first = gradio.Dropdown(names, value=names[0], label="Model")
                second = gradio.Dropdown([NO_MODEL, *names], value=(names[1:] or [NO_MODEL])[0], label="Beside it")
                threshold = gradio.Slider(0, 1, value=0.3, step=0.01, label="Least score")
                button = gradio.Button("Find poses", variant="primary")
            with gradio.Column(scale=2):
                with gradio.Row():
                    drawings = [gradio.Image(label=label, interactive=False) for label in ("Model", "Beside it")]
                words = gradio.Markdown()
                download = gradio.DownloadButton("Download the poses (json)")
        inputs, outputs = [photo, first, second, threshold], [*drawings, download, words]
        gradio.on([button.click, threshold.release], app.find, inputs, outputs, api_name="find")
    return page


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="as of querypose.load: a run, a file, user/name")
    parser.add_argument("--device", metavar="D", help="where the models compute (default: a GPU if there is one)")
    parser.add_argument("--host", default="127.0.0.1", help="to serve at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--max-megabytes", type=int, default=20, metavar="N", help="of an upload (default: %(default)s)"
    )
    parser.add_argument("--max-megapixels", type=int, default=40, metavar="N", help="of a photo (%(default)s)")
    return parser.parse_args(arguments)


def launch_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What keeps the server to itself."""
    return {
        "server_name": arguments.host,
        "server_port": arguments.port,
        "max_file_size": f"{arguments.max_megabytes}mb",
        "allowed_paths": [],
        "show_error": False,
        "share": False,
    }


def main(arguments: argparse.Namespace) -> None:
    import_or_explain("gradio", "querypose[app]")
    models = {str(path): load(path, device=arguments.device) for path in dict.fromkeys(arguments.models)}
    with tempfile.TemporaryDirectory() as folder:
        build(App(models, folder, arguments.max_megapixels * 10**6)).launch(**launch_options(arguments))


if __name__ == "__main__":
    with report_user_errors("app.py"):
        main(parse_arguments())

"""What the model of a run looked at in some images, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querypose.analysis.runs import Run
from querypose.d2 import CheckpointError
from querypose.data import ImageReadError, read_image
from querypose.data.coco import PoseAnnotations
from querypose.engine.predictor import PosePredictor
from querypose.evaluation import EvaluationError
from querypose.progress import progress
from querypose.visualization.explanation import draw_explanation, draw_stages
from querypose.visualization.media import save_animation, save_image

_WEIGHTS = "model_final.pth"
_NUM_POSES = 2


def attention_entries(run: Run, file: PoseAnnotations, images: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Pictures and animations of what led to the best poses, written to `folder`; an entry an image.

    A model that is fed crops gets those of the annotated persons.

    Args:
        run: whose model_final.pth is asked.
        file: the annotations of the images.
        images: their places in it.
        folder: for the pictures.

    Raises:
        EvaluationError: the run has no weights or no config, they do not fit, or the model shows nothing.
    """
    weights = run.folder / _WEIGHTS
    if run.cfg is None or not weights.is_file():
        raise EvaluationError(f"There is no attention: {run.folder} has no {_WEIGHTS} with a config", "finish the run")
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    try:
        predictor = PosePredictor(cfg)
    except CheckpointError as error:
        raise EvaluationError(f"There is no attention: {error}") from error
    entries = []
    for image in progress(images, "attention"):
        boxes = file.boxes_xyxy[file.of_image(image)][file.is_usable[file.of_image(image)]][:_NUM_POSES]
        try:
            pixels = read_image(file.image_file(image))
        except ImageReadError:
            continue
        pictures = []
        for number, (picture, layers) in enumerate(
            predictor.explain(pixels, boxes if len(boxes) else None, _NUM_POSES)
        ):
            if not layers:
                raise EvaluationError("There is no attention: the model does not say what it looked at.")
            stem = f"{file.image_ids[image]}_{number}"
            for name, drawn in draw_explanation(picture, layers, file.skeleton).items():
                save_image(folder / f"{stem}_{name}.png", drawn)
                pictures.append({"title": name.replace("_", " "), "file": f"{folder.name}/{stem}_{name}.png"})
            if len(frames := draw_stages(picture, layers, file.skeleton)) > 1:
                save_animation(folder / f"{stem}_stages.gif", frames)
                pictures.append({"title": "from stage to stage", "file": f"{folder.name}/{stem}_stages.gif"})
        entries.append({"name": file.file_names[image], "pictures": pictures})
    return entries

"""Where the persons of a picture are, for models that are fed crops: from a file, or from a detector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from querypose.config import ConfigError, load_config
from querypose.d2 import CheckpointError, read_checkpoint
from querypose.data import DatasetError, register_custom_datasets
from querypose.data.results import read_results
from querypose.engine.predictor import PosePredictor

Boxes = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Corners (N, 4) and scores (N)."""

FindPersons = Callable[[NDArray[np.uint8], int, str], Boxes]
"""From a picture, (H, W, 3) RGB, with its id and the name of its file, to the boxes in it."""

# Of the labels of torchvision's detectors, which are COCO's.
_TORCHVISION_PERSON = 1


def boxes_of_file(file: str | Path, threshold: float) -> FindPersons:
    """Those of a COCO results file; an image is known by the `file_name` of a box, or else by its `image_id`.

    Args:
        file: has a box of a person in each entry.
        threshold: boxes with less score are left out.

    Raises:
        DatasetError: the file cannot be used.
    """
    boxes = read_results(file)
    of_image: dict[object, list[int]] = {}
    is_shown = (boxes.boxes_xyxy[:, 2:] > boxes.boxes_xyxy[:, :2]).all(axis=1) & (boxes.scores >= threshold)
    for index in np.flatnonzero(is_shown).tolist():
        name = boxes.file_names[index]
        of_image.setdefault(boxes.image_ids[index] if name is None else name, []).append(index)
    if not of_image:
        raise DatasetError(f"{file} has no box with a score of {threshold} or more. Lower --box-threshold.")

    def find(image: NDArray[np.uint8], image_id: int, file_name: str) -> Boxes:
        chosen = np.array(of_image.get(Path(file_name).name, of_image.get(image_id, [])), np.int64)
        return boxes.boxes_xyxy[chosen], boxes.scores[chosen]

    return find


def detector(name: str, weights: str, threshold: float) -> FindPersons:
    """A model that finds persons.

    Args:
        name: a YAML file of a model here that predicts boxes, as QueryPose; or one of torchvision's detectors
            (`fasterrcnn_resnet50_fpn_v2`).
        weights: file of its weights; those of torchvision's are downloaded where none is named.
        threshold: persons with less score are left out.

    Raises:
        ConfigError: there is no such detector, it predicts no boxes, or its weights cannot be downloaded.
        CheckpointError: the file of weights cannot be used.
    """
    if name.endswith((".yaml", ".yml")):
        cfg = load_config(name, ["MODEL.WEIGHTS", weights])
        register_custom_datasets(cfg)
        predictor = PosePredictor(cfg)

        def find(image: NDArray[np.uint8], image_id: int, file_name: str) -> Boxes:
            persons = predictor(image)
            if not persons.has("pred_boxes"):
                raise ConfigError(f"The model of {name} predicts no boxes of persons. Name another --detector.")
            persons = persons[(persons.scores >= threshold) & persons.pred_boxes.nonempty()]
            return persons.pred_boxes.tensor.double().numpy(), persons.scores.double().numpy()

        return find

    from torchvision.models import detection as detection_models
    from torchvision.models import get_model, get_model_weights, list_models

    known = list_models(module=detection_models)
    if name not in known:
        raise ConfigError(
            f"There is no detector {name!r}. Name a YAML file of a model here, or a detector of torchvision: "
            f"{', '.join(known)}."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if weights:
        model = get_model(name, weights=None, weights_backbone=None)
        try:
            model.load_state_dict(read_checkpoint(weights))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{weights} does not hold the weights of torchvision's {name} ({error}).") from error
    else:
        try:
            model = get_model(name, weights="DEFAULT")
        except OSError as error:  # no network, or a full disk
            raise ConfigError(
                f"The weights of torchvision's {name} cannot be downloaded ({error}). Download "
                f"{get_model_weights(name).DEFAULT.url} elsewhere, and name the file with --detector-weights."
            ) from error
    model.eval().to(device)

    @torch.inference_mode()
    def find_by_torchvision(image: NDArray[np.uint8], image_id: int, file_name: str) -> Boxes:
        (found,) = model([torch.from_numpy(image.copy()).permute(2, 0, 1).to(device) / 255])
        is_person = (found["labels"] == _TORCHVISION_PERSON) & (found["scores"] >= threshold)
        return found["boxes"][is_person].double().cpu().numpy(), found["scores"][is_person].double().cpu().numpy()

    return find_by_torchvision

"""From a model's outputs over a dataset to the results file and the figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from querypose.d2 import (
    CfgNode,
    DatasetCatalog,
    DatasetEvaluator,
    Instances,
    MetadataCatalog,
    atomic_write,
    comm,
    configurable,
)
from querypose.evaluation.ground_truth import EvaluationError, GroundTruth, Protocol, read_ground_truth
from querypose.evaluation.oks import evaluate_oks, format_metrics
from querypose.skeleton import Skeleton

RESULTS_FILE = "coco_instances_results.json"


class PoseEvaluator(DatasetEvaluator):
    """Evaluates the poses of a whole dataset, on one process or on several.

    `process` turns `Instances` into results of the COCO keypoints format, `evaluate` gathers them on the main
    process, writes them to `coco_instances_results.json` and computes the figures.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        json_file: str | Path,
        skeleton: Skeleton,
        protocol: Protocol,
        category_ids: Callable[[], Sequence[Any]],
        output_dir: str | Path | None,
    ) -> None:
        """Reads and checks the annotations, so that a file that cannot be evaluated is known before the inference.

        Args:
            dataset_name: for the log.
            json_file: the annotation file of the dataset.
            skeleton: of its keypoints.
            protocol: "coco" or "crowdpose".
            category_ids: gives `category_id` in the file of class 0, 1, … of the model; asked once there is a
                prediction, since a dataset learns it when it is read.
            output_dir: receives the results file; None writes none.

        Raises:
            EvaluationError: there is no such file, or `read_ground_truth` refuses it.
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._skeleton = skeleton
        self._protocol: Protocol = protocol
        self._category_ids = category_ids
        self._output_dir = None if output_dir is None else Path(output_dir)
        content = read_json(json_file)
        # The image information files of test-dev are COCO files without the annotations.
        self._ground_truth: GroundTruth | None = None
        if not isinstance(content, dict) or "annotations" in content:
            self._ground_truth = read_ground_truth(content, skeleton, protocol, name=str(json_file))
        self._results_of_image: dict[Any, list[dict[str, Any]]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None) -> dict[str, Any]:
        """Looks the dataset up; `output_dir` None is the place that `inference_folder` names.

        Raises:
            EvaluationError: the dataset is not one of poses.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if not isinstance(getattr(metadata, "skeleton", None), Skeleton):
            raise EvaluationError(f"Dataset {dataset_name!r} has no skeleton; register it by register_pose_dataset.")
        if not Path(metadata.json_file).is_file():
            DatasetCatalog.get(dataset_name)  # one that makes its files when it is first used, or says what is missing
        return {
            "dataset_name": dataset_name,
            "json_file": metadata.json_file,
            "skeleton": metadata.skeleton,
            "protocol": metadata.evaluator_type,
            "category_ids": partial(dataset_category_ids, dataset_name),
            "output_dir": inference_folder(cfg, dataset_name) if output_dir is None else output_dir,
        }

    def reset(self) -> None:
        """Forgets what was processed."""
        self._results_of_image = {}

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Takes a batch.

        Args:
            inputs: the model's; of each the `image_id` is read.
            outputs: `{"instances": Instances}` each, with `scores` (N), `pred_classes` (N), `pred_keypoints` (N, K, 3)
                and `pred_boxes` in the frame of the original image, where pixel centres are at +0.5, and
                `pred_visibilities` (N, K); models that predict no boxes or no visibilities leave them out.

        Raises:
            EvaluationError: a prediction is NaN or infinite, or has another number of keypoints; names the image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            self._results_of_image[image["image_id"]] = instances_to_results(
                output["instances"], image["image_id"], self._category_ids(), self._skeleton
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Gathers, writes and evaluates what was processed since `reset`.

        Returns:
            on the main process `{"keypoints": {"AP": …, …}}`, figures in percent as `METRICS` lists them; on the
            others, and for a dataset without annotations, an empty dict.
        """
        gathered = comm.gather(self._results_of_image, dst=0)
        if not comm.is_main_process():
            return {}
        # A sampler that gives an image to two processes, to make their shares equal, gives it the same poses twice.
        results_of_image: dict[Any, list[dict[str, Any]]] = {}
        for results in gathered:
            for image_id, results_of_one in results.items():
                results_of_image.setdefault(image_id, results_of_one)
        # In the order of the ids: the figures do not depend on how images were shared out.
        order = sorted(results_of_image, key=lambda image_id: (isinstance(image_id, str), image_id))
        results = [result for image_id in order for result in results_of_image[image_id]]
        written = self._write(results)
        if self._ground_truth is None:
            self._logger.warning(
                "%s has no published annotations, so there are no figures. %s",
                self._dataset_name,
                f"The results for its server are in {written}." if written else "No results file was asked for either.",
            )
            return {}
        self._warn(self._ground_truth, results_of_image)
        metrics = evaluate_oks(self._ground_truth, results, self._skeleton, self._protocol)
        title = f"Keypoints of {self._dataset_name} ({len(self._ground_truth.image_numbers)} images), in percent:"
        self._logger.info("%s", format_metrics(metrics, title))
        return {"keypoints": metrics}

    def _write(self, results: list[dict[str, Any]]) -> Path | None:
        if self._output_dir is None:
            return None
        path = self._output_dir / RESULTS_FILE
        write_json(path, results)
        self._logger.info("%d poses of %s written to %s", len(results), self._dataset_name, path)
        return path

    def _warn(self, ground_truth: GroundTruth, processed: Mapping[Any, Any]) -> None:
        """Says what a reader of the figures has to know about the annotations and the inference."""
        missed = len(ground_truth.image_numbers.keys() - processed.keys())
        if missed:
            self._logger.warning(
                "%d of the %d images of %s were not processed; they count as images without a detection.",
                missed, len(ground_truth.image_numbers), self._dataset_name,
            )  # fmt: skip
        for note in ground_truth.notes():
            self._logger.warning("%s", note)


def build_pose_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None) -> PoseEvaluator:
    """The evaluator of a registered dataset; writes to `output_dir`, by default to what `inference_folder` names."""
    return PoseEvaluator(cfg, dataset_name, output_dir)


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """OUTPUT_DIR/inference as detectron2 has it; with several DATASETS.TEST a folder in it for each.

    Deviates: detectron2 lets the datasets of one run overwrite each other's results.
    """
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder


def dataset_category_ids(dataset_name: str) -> list[Any]:
    """`category_id` in the json of class 0, 1, … of a registered dataset that has been read."""
    contiguous_of_id: Mapping[Any, int] = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
    id_of_contiguous = {contiguous: category for category, contiguous in contiguous_of_id.items()}
    return [id_of_contiguous[contiguous] for contiguous in sorted(id_of_contiguous)]


def instances_to_results(
    instances: Instances, image_id: Any, category_ids: Sequence[Any], skeleton: Skeleton
) -> list[dict[str, Any]]:
    """Predictions of an image as results of the COCO keypoints format.

    COCO's coordinates call the first pixel's centre 0, the model's call it 0.5: 0.5 is taken off the keypoints (not
    off the boxes, which are the same in both), as detectron2 does. The third number of a keypoint is its score, to
    which the evaluation pays no regard. Coordinates are rounded to 1e-4 pixel, about what float32 resolves.

    Args:
        instances: see `PoseEvaluator.process`.
        image_id: as in the annotation file.
        category_ids: `category_id` of class 0, 1, …
        skeleton: of the K keypoints that are expected.

    Returns:
        a dict for each, as `read_detections` takes it; `keypoints` are a float64 array (3K), a row of one for them all,
        which takes a quarter of the memory of Python's numbers. `write_json` writes it as a list. `visibilities` (K) in
        [0, 1] stand beside them where the model predicts them.

    Raises:
        EvaluationError: a prediction is NaN or infinite, or has another number of keypoints.
    """
    count = len(instances)
    if not count:
        return []
    keypoints_NK3 = np.array(instances.pred_keypoints.detach().double().cpu().numpy())
    scores_N = np.asarray(instances.scores.detach().double().cpu().numpy())
    fields = {"keypoints": keypoints_NK3.reshape(count, -1), "scores": scores_N.reshape(count, -1)}
    if keypoints_NK3.shape[1:] != (skeleton.num_keypoints, 3):
        raise EvaluationError(
            f"Image {image_id!r}: predictions have shape {keypoints_NK3.shape}; skeleton {skeleton.name!r} needs "
            f"(N, {skeleton.num_keypoints}, 3)."
        )
    if instances.has("pred_boxes"):
        boxes_N4 = np.asarray(instances.pred_boxes.tensor.detach().double().cpu().numpy())
        boxes_N4 = np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], axis=1)
        fields["boxes"] = boxes_N4
    if instances.has("pred_visibilities"):
        fields["visibilities"] = np.asarray(instances.pred_visibilities.detach().double().cpu().numpy())
    for name, values in fields.items():
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise EvaluationError(
                f"Image {image_id!r}: {bad} of {count} predictions have NaN or infinite {name}. Such a model has "
                "diverged; a NaN would count as a correct pose, so nothing is evaluated."
            )
    keypoints_NK3[:, :, :2] -= 0.5
    flat = np.round(keypoints_NK3.reshape(count, -1), 4)
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "keypoints": keypoints, "score": score}
        for label, keypoints, score in zip(instances.pred_classes.tolist(), flat, scores_N.tolist(), strict=True)
    ]
    if "boxes" in fields:
        for result, box in zip(results, np.round(fields["boxes"], 4).tolist(), strict=True):
            result["bbox"] = box
    if "visibilities" in fields:
        for result, visibilities in zip(results, np.round(fields["visibilities"], 4), strict=True):
            result["visibilities"] = visibilities
    return results


def read_json(path: str | Path) -> Any:
    """The content of a json file.

    Raises:
        EvaluationError: there is no such file, or it is not json.
    """
    if not Path(path).is_file():
        raise EvaluationError(f"There is no file {str(path)!r}.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{path} is not a json file: {error}.") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a json file whole or not at all; arrays become lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, default=np.ndarray.tolist))

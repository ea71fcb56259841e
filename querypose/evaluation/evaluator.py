"""From a model's outputs over a dataset to the results file and the metrics: collect, finish, score."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from querypose.d2 import CfgNode, DatasetEvaluator, comm, configurable
from querypose.data.coco import PoseAnnotations
from querypose.data.datasets import dataset_annotations
from querypose.evaluation.detections import (
    Detections,
    EvaluationError,
    Poses,
    instances_to_poses,
    poses_to_results,
    write_json,
)
from querypose.evaluation.finishing import FinishingStep, build_finishing
from querypose.evaluation.metrics import Metric, format_metrics, metrics_of_dataset, require_usable
from querypose.evaluation.pictures import EvaluationPictures
from querypose.lost_output import note_loss
from querypose.paths import path_within

RESULTS_FILE = "coco_instances_results.json"
PICTURES_FOLDER = "pictures"


class PoseEvaluator(DatasetEvaluator):
    """Evaluates the poses of a whole dataset, on one process or on several.

    `process` collects poses by image and sample: an image may have many samples, such as the crops of its persons.
    `evaluate` gathers them on the main process, drops samples that two processes had, runs the finishing steps on each
    image, writes the results file in the COCO format and computes the metrics.

    Attributes:
        metric_names: what `evaluate` gives, as "task/metric"; none where the dataset has no annotations.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        annotations: PoseAnnotations,
        metrics: Mapping[str, Metric],
        finishing: Sequence[FinishingStep] = (),
        output_dir: str | Path | None = None,
        pictures: EvaluationPictures | None = None,
    ) -> None:
        """Checks the annotations, so that errors in them end the run before the inference.

        Args:
            dataset_name: for the log.
            annotations: of the dataset.
            metrics: by task.
            finishing: steps for the poses of an image, in their order.
            output_dir: receives the results file; None writes none.
            pictures: draws images at every evaluation, or None.

        Raises:
            DatasetError: the annotations have errors.
            EvaluationError: a metric cannot use them.
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._annotations = annotations.require_sound()
        self._metrics = dict(metrics)
        self._finishing = tuple(finishing)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._pictures = pictures
        self._index_of_image = {image_id: index for index, image_id in enumerate(annotations.image_ids)}
        self._poses: dict[tuple[Any, Any], Poses] = {}
        self.metric_names = require_usable(annotations, metrics)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None) -> dict[str, Any]:
        """Finds dataset and metrics; `output_dir` is `inference_folder` by default.

        Raises:
            DatasetError: it is not a pose dataset.
            EvaluationError: a metric is not registered.
        """
        annotations = dataset_annotations(dataset_name)
        return {
            "dataset_name": dataset_name,
            "annotations": annotations,
            "metrics": metrics_of_dataset(dataset_name, cfg.TEST.METRICS),
            "finishing": build_finishing(cfg, annotations.skeleton),
            "output_dir": inference_folder(cfg, dataset_name) if output_dir is None else output_dir,
            "pictures": EvaluationPictures(
                annotations, cfg.TEST.PICTURES, _folder_of_dataset(cfg, PICTURES_FOLDER, dataset_name)
            )
            if cfg.TEST.PICTURES
            else None,
        }

    def reset(self) -> None:
        """Forgets what was processed."""
        self._poses = {}

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Takes a batch.

        Args:
            inputs: the model's; of each the `image_id` is read, and `sample_id` where an image has several samples.
            outputs: `{"instances": Instances}` each, see `instances_to_poses`.

        Raises:
            EvaluationError: a prediction is NaN or infinite, or has another number of keypoints, or the image is not of
                the dataset; names the image.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self._index_of_image:
                raise EvaluationError(
                    f"Image {image_id!r} was processed, but {self._annotations.path} does not list it. Load and "
                    "evaluate the same dataset."
                )
            poses = instances_to_poses(output["instances"], image_id, self._annotations.skeleton)
            self._poses[image_id, sample.get("sample_id", image_id)] = poses

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Gathers, finishes, writes and scores what was processed since `reset`.

        Returns:
            on the main process `{"keypoints": {"AP": …, …}}` in percent, with a further task for each of TEST.METRICS;
            on the others, and for a dataset without annotations, an empty dict.
        """
        gathered = comm.gather(self._poses, dst=0)
        if not comm.is_main_process():
            return {}
        of_image = self._finish(gathered)
        written = self._write(of_image)
        if self._pictures is not None:
            try:
                self._pictures.draw(of_image)
            except OSError as error:
                note_loss(str(self._pictures.folder), error)
        annotations = self._annotations
        if not annotations.has_annotations:
            self._logger.warning(
                "Dataset %s has no annotations, so that no metrics are computed. %s",
                self._dataset_name,
                f"Upload the results {written} to its server." if written else "No results file was written either.",
            )
            return {}
        if missed := len(annotations.image_ids) - len(of_image):
            self._logger.warning(
                "%d of the %d images of %s were not processed. They count as images without a detection.",
                missed, len(annotations.image_ids), self._dataset_name,
            )  # fmt: skip
        detections = Detections.joined(of_image, annotations.skeleton.num_keypoints)
        results = {}
        for task, metric in self._metrics.items():
            results[task] = metric(annotations, detections)
            title = f"Metrics {task!r} of {self._dataset_name} ({len(annotations.image_ids)} images), in percent:"
            self._logger.info("%s", format_metrics(results[task], title))
        return results

    def _finish(self, gathered: Iterable[Mapping[tuple[Any, Any], Poses]]) -> dict[int, Poses]:
        """The finished poses of each image by its place in the annotations, in the order of the places."""
        # Some samplers give a sample to two processes, to make their shares equal: it must count once.
        of_sample: dict[tuple[Any, Any], Poses] = {}
        for of_process in gathered:
            of_sample = {**of_process, **of_sample}
        samples_of_image: dict[int, list[Poses]] = {}
        # In the order of the ids, so that the metrics do not depend on which process had which sample.
        for image_id, sample_id in sorted(of_sample):
            index = self._index_of_image[image_id]
            samples_of_image.setdefault(index, []).append(of_sample[image_id, sample_id])
        of_image = {}
        for index, parts in samples_of_image.items():
            poses = Poses.joined(parts, self._annotations.skeleton.num_keypoints)
            for step in self._finishing:
                poses = step(poses)
            of_image[index] = poses.rounded()
        return of_image

    def _write(self, of_image: Mapping[int, Poses]) -> Path | None:
        if self._output_dir is None:
            return None
        image_ids, category_id = self._annotations.image_ids, self._annotations.category_id
        results = [
            result
            for index, poses in of_image.items()
            for result in poses_to_results(poses, image_ids[index], category_id)
        ]
        path = self._output_dir / RESULTS_FILE
        try:
            write_json(path, results)
        except OSError as error:  # the metrics do not need the file
            note_loss(str(path), error)
            return None
        self._logger.info("%d poses of %s written to %s", len(results), self._dataset_name, path)
        return path


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """OUTPUT_DIR/inference as detectron2 has it; with several DATASETS.TEST a folder in it for each.

    Deviates: detectron2 lets the datasets of one run overwrite each other's results.
    """
    return _folder_of_dataset(cfg, "inference", dataset_name)


def _folder_of_dataset(cfg: CfgNode, name: str, dataset_name: str) -> Path:
    folder = Path(cfg.OUTPUT_DIR) / name
    return path_within(folder, dataset_name, "the name of a dataset") if len(cfg.DATASETS.TEST) > 1 else folder

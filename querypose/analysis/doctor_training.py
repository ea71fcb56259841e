"""The doctor's checks that train for some minutes: gradients, learning rate, eight samples by heart, matching, strays.

They train on samples that are drawn once, augmentation included, and compare poses in the frame of these samples. So
they need nothing of a model but what `PoseModel` promises, whatever its pipeline does.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from querypose.analysis.doctor import CHECK_REGISTRY, Case, Finding, draw_samples
from querypose.d2 import CfgNode
from querypose.data import build_pipeline
from querypose.data.coco import PIXEL_INDEX_TO_CONTINUOUS, PoseAnnotations
from querypose.data.loading import Samples
from querypose.data.training_order import Draw
from querypose.data.transforms import identity
from querypose.engine.ema import load_evaluation_weights
from querypose.engine.inference import InferenceModel
from querypose.engine.trainer import PoseTrainer
from querypose.evaluation.detections import Detections, instances_to_poses
from querypose.evaluation.early_metrics import progress
from querypose.evaluation.oks import coco, object_keypoint_similarity
from querypose.layers.precision import PRECISIONS
from querypose.modeling import PoseModel
from querypose.skeleton import Skeleton
from querypose.visualization import draw_poses, draw_sample, image_grid, image_of_sample

NUM_SAMPLES = 8
_GRADIENT_STEPS = 4
_RATES = (1e-6, 10.0)
_MIN_RATE_STEPS, _MAX_RATE_STEPS = 15, 60
_DIVERGED = 3.0, 1.5  # a loss of so many times the least one so far, and of so many times the first one
_WARMUP_STEPS = 10
_LEARNED_OKS = 55.0
_NUM_TEST_IMAGES = 100
# Shares of the minutes.
_RATE_SHARE, _OVERFIT_SHARE = 0.25, 0.6


def build_model(case: Case) -> PoseModel:
    """The model of the config in training mode, with MODEL.WEIGHTS if there are any; the same one each time."""
    torch.manual_seed(case.seed)
    model: Any = PoseTrainer.build_model(case.cfg)
    if case.cfg.MODEL.WEIGHTS:
        load_evaluation_weights(model, case.cfg.MODEL.WEIGHTS, use_average=False)
    trained: PoseModel = model.train()
    return trained


def eight_samples(case: Case) -> list[dict[str, Any]]:
    """Samples with somebody in them."""
    if "eight" not in case.shared:
        drawn = [sample for sample in draw_samples(case.cfg, 4 * NUM_SAMPLES, case.seed) if len(sample["instances"])]
        if not drawn:
            raise ValueError("No sample has a person.")
        case.shared["eight"] = drawn[:NUM_SAMPLES]
    samples: list[dict[str, Any]] = case.shared["eight"]
    return samples


def train(
    model: PoseModel,
    cfg: CfgNode,
    samples: Sequence[dict[str, Any]],
    rate_of_step: Callable[[int], float],
    after_backward: Callable[[], object] = lambda: None,
) -> Iterator[float]:
    """Trains as the config says, but for the data and the learning rate; gives the loss of every step, without end.

    Args:
        model: is changed.
        cfg: of the training.
        samples: seen again and again, SOLVER.IMS_PER_BATCH at a time.
        rate_of_step: the learning rate of a step as a factor of SOLVER.BASE_LR.
        after_backward: called when the gradients are there.
    """
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    precision = PRECISIONS[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None
    size, step = min(cfg.SOLVER.IMS_PER_BATCH, len(samples)), 0
    while True:
        batch = [samples[(step * size + index) % len(samples)] for index in range(size)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_of_step(step)
        with torch.autocast(model.device.type, precision, enabled=precision is not None):
            losses: Any = model(batch)
        loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        after_backward()
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if clip.ENABLED:
            nn.utils.clip_grad_norm_(model.parameters(), clip.CLIP_VALUE, clip.NORM_TYPE)
        optimizer.step()
        step += 1
        yield float(loss.detach())


@CHECK_REGISTRY.register()
def gradients(case: Case) -> Finding:
    """Gradients of every part of the model, over the first steps."""
    model = build_model(case)
    squares: dict[str, list[float]] = defaultdict(list)
    silent = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    num_trainable = len(silent)

    def look() -> None:
        of_part: dict[str, float] = defaultdict(float)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            square = float(parameter.grad.double().square().sum())
            of_part[_part_of(name)] += square
            if square > 0:  # not of NaN
                silent.discard(name)
        for part, square in of_part.items():
            squares[part].append(square)

    steps = train(model, case.cfg, eight_samples(case), lambda step: 0.1, look)
    losses = [next(steps) for _ in range(_GRADIENT_STEPS)]
    norms = {part: float(np.sqrt(np.median(values))) for part, values in squares.items()}
    total = math.sqrt(sum(norm**2 for norm in norms.values()))
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    table = [["part", "norm of the gradient"], *([part, f"{norm:.3g}"] for part, norm in norms.items())]
    text = f"Loss {losses[0]:.3g}, norm {total:.3g} (median of {_GRADIENT_STEPS} steps), {frozen} parameters frozen."
    if not (np.isfinite(losses).all() and math.isfinite(total)):
        advice = (
            "Inspect labels and images: check_dataset.py --images pixels. Train in float32 (SOLVER.AMP.ENABLED False)."
        )
        return Finding("bad", f"{text} They are not finite.", advice, table)
    if silent:
        text = (
            f"{text} {len(silent)} of {num_trainable} trainable parameters got none: {', '.join(sorted(silent)[:4])}."
        )
    if len(silent) > 0.02 * num_trainable:
        verdict: Any = "bad" if len(silent) > 0.2 * num_trainable else "unclear"
        return Finding(
            verdict, text,
            "They do not learn: a part that no loss reads, a loss of weight 0, or zeros that nothing moves.", table,
        )  # fmt: skip
    clip = case.cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and total > 100 * clip.CLIP_VALUE:
        advice = "The loudest part decides every step. Lower its loss weight, or look for samples with extreme labels."
        return Finding("unclear", f"{text} It is clipped to {clip.CLIP_VALUE:g}.", advice, table)
    return Finding("good", text, table=table)


@CHECK_REGISTRY.register()
def learning_rate(case: Case) -> Finding:
    """A range test: the learning rate rises step by step until the loss does."""
    model, base = build_model(case), case.cfg.SOLVER.BASE_LR
    seconds, start = _RATE_SHARE * 60 * case.minutes, time.perf_counter()
    samples = eight_samples(case)
    next(train(model, case.cfg, samples, lambda step: 0.0))
    num_steps = int(seconds / max(time.perf_counter() - start, 1e-6))
    num_steps = min(max(num_steps, _MIN_RATE_STEPS), _MAX_RATE_STEPS)
    rates = np.geomspace(*_RATES, num_steps)
    losses: list[float] = []
    has_diverged = False
    for loss in train(model, case.cfg, samples, lambda step: rates[step] / base):
        losses.append(loss)
        has_diverged = not loss <= max(_DIVERGED[0] * min(losses), _DIVERGED[1] * losses[0])  # of NaN too
        if has_diverged or len(losses) == num_steps:
            break
    table = [
        ["learning rate", "loss"],
        *([f"{r:.1e}", f"{v:.3g}"] for r, v in zip(rates[::4], losses[::4], strict=False)),
    ]
    limit = float(rates[len(losses) - 1]) if has_diverged else math.inf
    best = float(rates[int(np.nanargmin(losses))])
    text = f"SOLVER.BASE_LR is {base:g}. The loss is least at {best:.1e}" + (
        f", and explodes at {limit:.1e}." if has_diverged else f"; up to {_RATES[1]:g} it does not explode."
    )
    if base >= limit:
        return Finding("bad", text, f"Set SOLVER.BASE_LR to about {limit / 30:.1e}.", table)
    if base > limit / 5:
        return Finding("unclear", text, f"Close to the limit; if the loss jumps, try {limit / 30:.1e}.", table)
    if base < best / 1000:
        return Finding("unclear", text, f"Slow for a training from scratch: try {best / 10:.1e}.", table)
    return Finding("good", text, table=table)


@CHECK_REGISTRY.register()
def overfit(case: Case) -> Finding:
    """Eight samples by heart: a model that cannot do that has a mistake, not too little data."""
    model, samples = build_model(case), eight_samples(case)
    start, limit = time.perf_counter(), _OVERFIT_SHARE * 60 * case.minutes

    def share() -> float:
        return min(1.0, (time.perf_counter() - start) / limit)

    def rate(step: int) -> float:
        model.progress = share()
        return min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * share()))

    losses: list[float] = []
    for loss in train(model, case.cfg, samples, rate):
        losses.append(loss)
        if share() == 1 or not math.isfinite(loss):
            break
    first, last = losses[0], float(np.median(losses[-3:]))
    text = f"{len(losses)} steps in {time.perf_counter() - start:.0f} s: loss {first:.3g} to {last:.3g}."
    if not math.isfinite(losses[-1]) or (last > 0.95 * first and len(losses) >= 3 * _WARMUP_STEPS):
        advice = "It does not learn at all: see the learning rate and the gradients; lower SOLVER.BASE_LR ten times."
        return Finding("bad", text, advice)
    annotations = annotations_of_samples(samples, case.skeleton)
    detections = predict_samples(case.cfg, model, samples, case.skeleton)
    case.shared["learned"] = annotations, detections
    metrics = progress(annotations, detections)
    table = [list(metrics), [f"{value:.1f}" for value in metrics.values()]]
    picture = _truth_and_predictions(samples, detections, case)
    if metrics["OKS"] >= _LEARNED_OKS:
        return Finding("good", f"{text} It knows them: the pipeline is sound.", table=table, picture=picture)
    advice = (
        f"Give it more time (--minutes {4 * case.minutes:g}). If OKS then stays below {_LEARNED_OKS:g}: `found` low "
        "means that boxes are not learned; PCK low, that keypoints or their flips are wrong; PCK high and OKS low, "
        "that persons are too small."
    )
    return Finding("unclear", f"{text} It does not know them yet.", advice, table, picture)


@CHECK_REGISTRY.register()
def matching(case: Case) -> Finding:
    """Whether every person has a prediction of its own, after learning by heart."""
    if "learned" not in case.shared:
        return Finding("skipped", "It follows the check `overfit`, which has not been made or has failed.")
    annotations, detections = case.shared["learned"]
    shares, num_shared, num_persons, num_predictions = [], 0, 0, 0
    sigmas_K = np.array(case.skeleton.sigmas)
    for image in range(len(annotations.image_ids)):
        place, poses = annotations.of_image(image), detections.of_image(image)
        if not len(poses) or place.stop == place.start:
            continue
        oks_GN = object_keypoint_similarity(
            poses.keypoints[None, ..., :2], annotations.keypoints[place][:, None],
            annotations.boxes_xywh[place][:, None], annotations.areas[place][:, None], sigmas_K,
        )  # fmt: skip
        best_G = oks_GN.argmax(axis=1)
        num_persons, num_predictions = num_persons + len(best_G), num_predictions + len(poses)
        num_shared += len(best_G) - len(set(best_G.tolist()))
        shares.append(len(set(best_G.tolist())) / len(poses))
    if not num_persons:
        return Finding("bad", "The model predicts nobody.", "Lower TEST.SCORE_THRESHOLD; train longer.")
    num_samples = len(annotations.image_ids)
    text = (
        f"{num_predictions / num_samples:.1f} predictions for {num_persons / num_samples:.1f} persons a sample; "
        f"{np.mean(shares):.0%} of the predictions are the best of a person. "
        f"{num_shared} of {num_persons} persons have to share theirs."
    )
    if num_shared > 0.2 * num_persons:
        advice = "Predictions have collapsed onto each other: more queries or peaks, or more time."
        return Finding("bad" if num_shared > 0.5 * num_persons else "unclear", text, advice)
    return Finding("good", text)


@CHECK_REGISTRY.register()
def bystanders(case: Case) -> Finding:
    """What unlabeled persons cost: confident poses of MODEL.WEIGHTS where no label is."""
    cfg = case.cfg
    if not cfg.MODEL.WEIGHTS or not cfg.DATASETS.TEST:
        return Finding(
            "skipped", "It needs a trained model: give MODEL.WEIGHTS. `ceiling` says what unlabeled persons may cost."
        )  # fmt: skip
    annotations, detections = predict_images(case)
    count = int((~annotations.is_crowd).sum())
    surest = np.zeros(len(detections.poses), dtype=bool)
    surest[np.argsort(-detections.poses.scores)[:count]] = True
    is_stray = strays(annotations, detections)
    now = coco(annotations, detections)["AP"]
    without = coco(
        annotations, Detections(detections.image_indices[~is_stray], detections.poses[~is_stray])
    )["AP"]  # fmt: skip
    text = (
        f"On {len(annotations.image_ids)} images with {count} persons {(is_stray & surest).sum()} of the {count} "
        f"surest poses touch no labeled person. AP {now:.1f}; without such poses {without:.1f}."
    )
    if without - now > max(2.0, 0.1 * now):
        return Finding(
            "bad", text,
            "Label these persons, or mark them as crowds (iscrowd 1). Until then compare by progress/OKS.",
        )  # fmt: skip
    return Finding("good", text)


def predict_images(case: Case) -> tuple[PoseAnnotations, Detections]:
    """The poses of MODEL.WEIGHTS on the first images of the evaluation, and the labels of these images."""
    cfg, annotations = case.cfg, subset(case.test, range(min(_NUM_TEST_IMAGES, len(case.test.image_ids))))
    pipeline = build_pipeline(cfg, is_train=False)
    chosen = set(annotations.image_ids)
    records = [record for record in pipeline.records([cfg.DATASETS.TEST[0]]) if record["image_id"] in chosen]
    samples, model = Samples(records, pipeline), InferenceModel(cfg, build_model(case).eval(), in_place=True)
    of_image: dict[int, list[Any]] = defaultdict(list)
    with torch.no_grad():
        for index in range(len(samples)):
            sample = samples[Draw(index, (0, index))]
            [output] = model([sample])
            poses = instances_to_poses(output["instances"], sample["image_id"], annotations.skeleton)
            of_image[annotations.image_ids.index(sample["image_id"])].append(poses)
    K = annotations.skeleton.num_keypoints
    joined = {image: type(parts[0]).joined(parts, K) for image, parts in sorted(of_image.items())}
    return annotations, Detections.joined(joined, K)


def strays(annotations: PoseAnnotations, detections: Detections) -> NDArray[np.bool_]:
    """Which detections have no keypoint in any labeled box, crowds included (N)."""
    is_stray_N = np.ones(len(detections.poses), dtype=bool)
    for index, image in enumerate(detections.image_indices.tolist()):
        xy_K12 = detections.poses.keypoints[index][:, None, :2]
        boxes_G4 = annotations.boxes_xywh[annotations.of_image(image)]
        is_inside_KG = ((xy_K12 >= boxes_G4[:, :2]) & (xy_K12 <= boxes_G4[:, :2] + boxes_G4[:, 2:])).all(axis=-1)
        is_stray_N[index] = not is_inside_KG.any()
    return is_stray_N


def subset(annotations: PoseAnnotations, images: Sequence[int]) -> PoseAnnotations:
    """The labels of some images, by their places in ascending order."""
    chosen = np.array(images, dtype=np.int64)
    kept = np.flatnonzero(np.isin(annotations.image_indices, chosen))
    result = replace(
        annotations,
        image_ids=[annotations.image_ids[index] for index in images],
        file_names=[annotations.file_names[index] for index in images],
        ids=[annotations.ids[index] for index in kept.tolist()],
        image_indices=np.searchsorted(chosen, annotations.image_indices[kept]),
        **{name: getattr(annotations, name)[chosen] for name in ("sizes_hw", "crowd_indices")},
        **{name: getattr(annotations, name)[kept] for name in _OF_PERSONS},
    )
    result.keypoints = annotations.keypoints[kept]
    return result


_OF_PERSONS = ("boxes_xywh", "boxes_xyxy", "is_usable", "is_crowd", "num_keypoints", "areas", "head_sizes")


def annotations_of_samples(samples: Sequence[dict[str, Any]], skeleton: Skeleton) -> PoseAnnotations:
    """The labels of samples in their own frame: sample i is image i."""
    instances = [sample["instances"] for sample in samples]
    counts = [len(of_sample) for of_sample in instances]
    boxes = torch.cat([of_sample.gt_boxes.tensor for of_sample in instances]).double().numpy()
    keypoints = torch.cat([of_sample.gt_keypoints.tensor for of_sample in instances]).double().numpy()
    result = PoseAnnotations(
        "samples of training", None, skeleton,
        has_annotations=True,
        image_ids=list(range(len(samples))),
        file_names=[sample["file_name"] for sample in samples],
        sizes_hw=np.array([sample["image"].shape[1:] for sample in samples]),
        crowd_indices=np.full(len(samples), np.nan),
        ids=list(range(sum(counts))),
        image_indices=np.repeat(np.arange(len(samples)), counts),
        boxes_xyxy=boxes,
        boxes_xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        is_usable=np.ones(sum(counts), dtype=bool),
        is_crowd=np.zeros(sum(counts), dtype=bool),
        num_keypoints=(keypoints[..., 2] > 0).sum(axis=1),
        areas=torch.cat([of_sample.gt_areas for of_sample in instances]).double().numpy(),
        head_sizes=np.full(sum(counts), np.nan),
    )  # fmt: skip
    result.keypoints = keypoints - np.array([PIXEL_INDEX_TO_CONTINUOUS, PIXEL_INDEX_TO_CONTINUOUS, 0.0])
    return result


def predict_samples(
    cfg: CfgNode, model: PoseModel, samples: Sequence[dict[str, Any]], skeleton: Skeleton
) -> Detections:
    """The poses of a model on samples, in their own frame."""
    ready, of_sample = InferenceModel(cfg, model), {}
    with torch.no_grad():
        for index, sample in enumerate(samples):
            height, width = sample["image"].shape[1:]
            given = {key: value for key, value in sample.items() if key not in ("instances", "valid_mask")}
            given |= {"height": height, "width": width, "frame": identity((height, width))}
            [output] = ready([given])
            of_sample[index] = instances_to_poses(output["instances"], index, skeleton)
    return Detections.joined(of_sample, skeleton.num_keypoints)


def _part_of(name: str) -> str:
    """Names of at most two levels, `box_decoder.stages` of `box_decoder.stages.0.attention.weight`."""
    return ".".join(word for word in name.split(".")[:-1][:2] if not word.isdigit()) or name


def _truth_and_predictions(samples: Sequence[dict[str, Any]], detections: Detections, case: Case) -> NDArray[np.uint8]:
    pictures, titles = [], []
    for index, sample in enumerate(samples):
        poses = detections.of_image(index)
        best = np.argsort(-poses.scores)[: len(sample["instances"])]
        image = image_of_sample(sample, case.cfg.INPUT.FORMAT)
        predicted = draw_poses(image, poses.keypoints[best][..., :2] + PIXEL_INDEX_TO_CONTINUOUS, case.skeleton)
        pictures += [draw_sample(sample, case.skeleton, case.cfg.INPUT.FORMAT), predicted]
        titles += ["label", "prediction"]
    return image_grid(pictures, titles=titles, columns=4, cell_size=(260, 200))

"""AP of resampled images and without an image's errors equals that of results made so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import querypose.evaluation.resampling as resampling
from querypose.evaluation import read_detections
from querypose.evaluation.oks_matching import evaluation_of
from querypose.evaluation.resampling import PrecisionCurves, paired_bootstrap
from querypose.skeleton import COCO_SKELETON
from tests.evaluation.generated import damaged_results, generate, perfect_results, read


def curves_of(content: dict[str, Any], results: list[dict[str, Any]]) -> PrecisionCurves:
    annotations = read(content, COCO_SKELETON)
    return PrecisionCurves(evaluation_of(annotations, read_detections(results, annotations)))


def test_some_images_count_alone() -> None:
    content, results = generate(COCO_SKELETON, 0)
    annotations = read(content, COCO_SKELETON)
    evaluation = evaluation_of(annotations, read_detections(results, annotations))
    weights_IS = (np.random.default_rng(0).uniform(size=(len(annotations.image_ids), 4)) < 0.5).astype(float)
    weights_IS[:, 0], weights_IS[:, 1] = 1, 0
    expected = [evaluation.ap_and_ar(is_image_I=weights_I > 0)[0] for weights_I in weights_IS.T]
    np.testing.assert_allclose(PrecisionCurves(evaluation).of_weighted_images(weights_IS), expected, atol=1e-9)


def test_an_image_that_counts_twice_is_two_images() -> None:
    content, _ = generate(COCO_SKELETON, 1, num_images=12)
    results = damaged_results(content, 1)
    for index, result in enumerate(results):
        result["score"] = 0.9 - 0.001 * index  # ties would come in another order
    shift = 10_000
    doubled = {
        **content,
        "images": content["images"] + [{**image, "id": image["id"] + shift} for image in content["images"]],
        "annotations": content["annotations"]
        + [
            {**person, "id": person["id"] + shift, "image_id": person["image_id"] + shift}
            for person in content["annotations"]
        ],
    }
    twice = [copy for one in results for copy in (one, {**one, "image_id": one["image_id"] + shift})]
    (expected,) = curves_of(doubled, twice).of_weighted_images(np.ones((24, 1)))
    (weighted,) = curves_of(content, results).of_weighted_images(np.full((12, 1), 2.0))
    assert weighted == pytest.approx(expected, abs=1.0)  # at the first of two equal ranks precision may differ
    assert weighted == pytest.approx(curves_of(content, results).of_weighted_images(np.ones((12, 1)))[0])


def test_the_loss_of_an_image_is_what_perfect_poses_in_it_would_gain() -> None:
    content, _ = generate(COCO_SKELETON, 2, num_images=15)
    results = damaged_results(content, 2)
    annotations = read(content, COCO_SKELETON)
    losses = curves_of(content, results).loss_of_images()
    (ap,) = curves_of(content, results).of_weighted_images(np.ones((15, 1)))
    for index, image_id in enumerate(annotations.image_ids):
        perfect = [{**result, "score": 2.0} for result in perfect_results(content) if result["image_id"] == image_id]
        others = [result for result in results if result["image_id"] != image_id]
        (mended,) = curves_of(content, [*others, *perfect]).of_weighted_images(np.ones((15, 1)))
        assert losses[index] == pytest.approx(mended - ap, abs=1e-9)
    assert losses.max() > 0


def test_fewer_knots_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    content, _ = generate(COCO_SKELETON, 3, num_images=120)
    results, weights = damaged_results(content, 3), np.ones((120, 1))
    exact = curves_of(content, results).of_weighted_images(weights)
    monkeypatch.setattr(resampling, "_MAX_KNOTS", 60)
    assert curves_of(content, results).of_weighted_images(weights) == pytest.approx(exact, abs=1.0)


def test_the_interval_of_equal_files_is_zero_and_of_a_better_one_above() -> None:
    content, _ = generate(COCO_SKELETON, 4)
    bad, good = curves_of(content, damaged_results(content, 4)), curves_of(content, perfect_results(content))
    same = paired_bootstrap(bad, bad, num_samples=60)
    assert same is not None
    assert (same.ap, same.low, same.high) == (0, 0, 0)
    better = paired_bootstrap(bad, good, num_samples=60)
    assert better is not None
    assert 0 < better.low < better.ap < better.high
    worse = paired_bootstrap(good, bad, num_samples=60)
    assert worse is not None
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


def test_nobody_to_find_and_nothing_found() -> None:
    content, results = generate(COCO_SKELETON, 5, num_images=6)
    empty = curves_of({**content, "annotations": []}, results)
    assert paired_bootstrap(empty, empty) is None
    assert not empty.loss_of_images().any()
    nothing = curves_of(content, [])
    assert nothing.of_weighted_images(np.ones((6, 1))) == pytest.approx([0])
    assert nothing.loss_of_images().sum() > 0

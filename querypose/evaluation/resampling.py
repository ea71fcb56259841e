"""AP of many variants of one results file, from one matching: of resampled images, and without an image's errors.

Letters of shapes: T OKS thresholds, F detections that count, V knots of a curve, I images, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from querypose.evaluation.oks_matching import THRESHOLDS, OksEvaluation, average_precision
from querypose.progress import progress

# A curve is read at so many ranks at most. It is exact while no threshold has more right detections.
_MAX_KNOTS = 1000
_AT_ONCE = 50


class PrecisionCurves:
    """Precision and recall of a ranking, kept by image.

    Args:
        evaluation: of the results.
    """

    def __init__(self, evaluation: OksEvaluation) -> None:
        self._evaluation = evaluation
        counts_N = ~evaluation.does_not_count_N
        self.persons_I = np.bincount(
            evaluation.annotations.image_indices[counts_N], minlength=len(evaluation.annotations.image_ids)
        )

    @cached_property
    def _blocks(self) -> tuple[csr_array, csr_array]:
        """How many right and wrong detections each image has between two knots: two tables (T · V, I)."""
        candidates, matches = self._evaluation.candidates, self._evaluation.match()
        order_F = np.argsort(-candidates.scores_F, kind="stable")
        is_true_TF, is_false_TF = matches.is_true_TF[:, order_F], matches.is_false_TF[:, order_F]
        found_TF, total_T1 = is_true_TF.cumsum(axis=1), is_true_TF.sum(axis=1, keepdims=True)
        num_found = int(total_T1.max(initial=0))
        step = max(1, -(-num_found // _MAX_KNOTS))
        num_knots = -(-num_found // step) + 1
        # A knot lies at a right detection, where precision is at its highest; wrong ones count for the next right one,
        # those after the last one for a last knot.
        after_TF = np.where(found_TF == total_T1, step * num_knots - 1, found_TF)
        knot_TF = np.where(is_true_TF, found_TF - 1, after_TF) // step

        def table(is_counted_TF: NDArray[np.bool_]) -> csr_array:
            threshold_R, place_R = is_counted_TF.nonzero()
            row_R = threshold_R * num_knots + knot_TF[threshold_R, place_R]
            image_R = candidates.image_F[order_F][place_R]
            shape = (len(THRESHOLDS) * num_knots, len(self.persons_I))
            return csr_array((np.ones(len(row_R)), (row_R, image_R)), shape=shape)

        return table(is_true_TF), table(is_false_TF)

    def of_weighted_images(self, weights_IS: NDArray[np.float64]) -> NDArray[np.float64]:
        """AP in percent (S) where every image counts as often as its weight says; NaN where nobody counts."""
        true, false = (self._cumulative(table @ weights_IS) for table in self._blocks)
        persons_S = self.persons_I @ weights_IS
        with np.errstate(divide="ignore", invalid="ignore"):
            ap_TS = average_precision(true, false, persons_S)
        return np.where(persons_S > 0, 100 * ap_TS.mean(axis=0), np.nan)

    def loss_of_images(self) -> NDArray[np.float64]:
        """What AP, in percent, would gain were an image alone without an error (I): all found first, nothing else."""
        num_images, num_persons = len(self.persons_I), int(self.persons_I.sum())
        if not num_persons:
            return np.zeros(num_images)
        true, false = self._blocks
        all_images = np.ones((num_images, 1))
        true_TSV, false_TSV = self._cumulative(true @ all_images), self._cumulative(false @ all_images)
        ap = average_precision(true_TSV, false_TSV, num_persons).mean()
        gains = []
        for first in progress(range(0, num_images, _AT_ONCE), "what images cost", unit="batch"):
            images = slice(first, first + _AT_ONCE)
            own_true, own_false = (self._cumulative(table[:, images].toarray()) for table in (true, false))
            persons_S1 = self.persons_I[images, None]
            # They come before the first knot, where precision is 1.
            others_true = np.concatenate([0 * own_true[..., :1], true_TSV - own_true], axis=-1) + persons_S1
            others_false = np.concatenate([0 * own_false[..., :1], false_TSV - own_false], axis=-1)
            gains.append(average_precision(others_true, others_false, num_persons).mean(axis=0) - ap)
        return 100 * np.concatenate(gains)

    @staticmethod
    def _cumulative(blocks_RS: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums (T, S, V) down to each knot."""
        return blocks_RS.reshape(len(THRESHOLDS), -1, blocks_RS.shape[1]).cumsum(axis=1).swapaxes(1, 2)


@dataclass(frozen=True)
class Difference:
    """AP of one results file less that of another, in percent.

    Attributes:
        ap: the difference.
        low: end of the interval that holds 95 % of the differences of resampled images.
        high: its other end.
        num_samples: that were drawn.
    """

    ap: float
    low: float
    high: float
    num_samples: int


def paired_bootstrap(
    first: PrecisionCurves, second: PrecisionCurves, *, num_samples: int = 1000, seed: int = 0
) -> Difference | None:
    """How far AP of `second` less AP of `first` depends on the images (Efron's percentile interval).

    Each sample draws as many images as there are, with replacement, the same ones for both files. None where nobody
    counts.

    Args:
        first: of the dataset.
        second: of the same.
        num_samples: to draw.
        seed: of the drawing.
    """
    num_images = len(first.persons_I)
    if not first.persons_I.sum():
        return None
    generator, parts = np.random.default_rng(seed), []
    for begin in progress(range(0, num_samples, _AT_ONCE), "bootstrap", unit="batch"):
        size = min(_AT_ONCE, num_samples - begin)
        weights_IS = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size).T.astype(float)
        parts.append(second.of_weighted_images(weights_IS) - first.of_weighted_images(weights_IS))
    differences_S = np.concatenate(parts)
    whole_I1 = np.ones((num_images, 1))
    difference = second.of_weighted_images(whole_I1) - first.of_weighted_images(whole_I1)
    low, high = np.nanquantile(differences_S, (0.025, 0.975)).tolist()
    return Difference(float(difference[0]), low, high, num_samples)

"""Selection of the queries that inference decodes: those whose pose can be among the best N, which are kept.

A pose score is the class score times the mean of 1 - sigma, a factor below one (Sec. 3.4). So a query cannot be among
the N best if its class score is not above the N-th best pose score so far, whatever its keypoints are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from querypose.layers import at_least_float32

RowDecoder = Callable[[Tensor], tuple[Tensor, Tensor]]

QUERIES_PER_ROUND = 10
"""Queries of an image that a round after the first decodes: enough to use all cores of a CPU."""


def class_scores(logits: Tensor) -> Tensor:
    """Scores in (0, 1) from class logits, in float32 at least."""
    return at_least_float32(logits).sigmoid()


def keypoint_scores(sigma: Tensor) -> Tensor:
    """Score (…, K) of every keypoint from its sigma (…, K, D): 1 - sigma, averaged over x and y (Sec. 3.4)."""
    return 1 - sigma.mean(-1)


def pose_scores(class_score: Tensor, sigma: Tensor) -> Tensor:
    """Score (…) of every pose from its class score (…) and its sigma (…, K, D) (Sec. 3.4)."""
    return class_score * keypoint_scores(sigma).mean(-1)


@dataclass(frozen=True)
class QuerySelection:
    """The poses that inference returns, which decide the queries that it decodes.

    Attributes:
        num_poses: poses of an image that are kept, those with the best pose scores.
        score_threshold: poses with a score not above it are left out.
        num_queries: queries of an image that are decoded, those with the best class scores, even if others could have
            better poses. 0 decodes all that can matter.
    """

    num_poses: int
    score_threshold: float = 0.0
    num_queries: int = 0

    def decode(self, class_scores_BQ: Tensor, decode_rows: RowDecoder) -> tuple[Tensor, Tensor]:
        """Runs `decode_rows` on the queries that matter, in rounds of falling class score.

        With `num_queries` there is one round of fixed shape, and the host never waits for the device. Else the first
        round is the `num_poses` best queries, which all matter; before each later round the host waits to learn which
        queries can still matter.

        Args:
            class_scores_BQ: of the last box stage.
            decode_rows: gives mean and sigma (R, K, D) of R queries, named by their places in the batch, image·Q +
                query.

        Returns:
            mean and sigma (B, Q, K, D). Where a query was not decoded they are 0 and 1, so its pose scores 0.
        """
        num_images, num_queries = class_scores_BQ.shape
        if torch.compiler.is_exporting():
            # A graph has one round, because it does not know the scores that decide how many there are.
            self = replace(self, num_queries=self.num_queries or num_queries, score_threshold=0.0)
        ranked_BQ = class_scores_BQ.argsort(dim=1, descending=True, stable=True)
        scores_BQ = torch.zeros_like(class_scores_BQ)
        bar_B1 = scores_BQ.new_full((num_images, 1), self.score_threshold)
        decoded: list[tuple[Tensor, Tensor, Tensor]] = []
        rounds = [(0, min(self.num_queries or self.num_poses, num_queries))]
        if not self.num_queries:
            begins = range(rounds[0][1], num_queries, QUERIES_PER_ROUND)
            rounds += [(begin, min(begin + QUERIES_PER_ROUND, num_queries)) for begin in begins]
        for begin, end in rounds:
            row_R = _rows(ranked_BQ[:, begin:end], num_queries)
            if begin or self.score_threshold:
                row_R = row_R[(class_scores_BQ.flatten()[row_R].view(num_images, -1) > bar_B1).flatten()]
                if not len(row_R) and decoded:
                    break
            mean_RKD, sigma_RKD = decode_rows(row_R)
            decoded.append((row_R, mean_RKD, sigma_RKD))
            scores_BQ.view(-1)[row_R] = pose_scores(class_scores_BQ.flatten()[row_R], sigma_RKD)
            bar_B1 = torch.maximum(bar_B1, scores_BQ.topk(min(self.num_poses, num_queries), dim=1).values[:, -1:])
        row_R, mean_RKD, sigma_RKD = map(torch.cat, zip(*decoded, strict=True))
        shape_BQKD = (num_images, num_queries, *mean_RKD.shape[1:])
        mean_BQKD, sigma_BQKD = mean_RKD.new_zeros(shape_BQKD), sigma_RKD.new_ones(shape_BQKD)
        mean_BQKD.view(-1, *mean_RKD.shape[1:])[row_R] = mean_RKD
        sigma_BQKD.view(-1, *sigma_RKD.shape[1:])[row_R] = sigma_RKD
        return mean_BQKD, sigma_BQKD


def best_rows(logits_BQ: Tensor, num_queries: int) -> Tensor:
    """Places in the batch, image·Q + query, of every image's `num_queries` best; all of them in order if not more."""
    num_images, num_all = logits_BQ.shape
    if num_queries >= num_all:
        return torch.arange(num_images * num_all, device=logits_BQ.device)
    return _rows(logits_BQ.topk(num_queries, dim=1).indices, num_all)


def _rows(query_BN: Tensor, num_queries: int) -> Tensor:
    first_row_B = torch.arange(query_BN.shape[0], device=query_BN.device) * num_queries
    return (query_BN + first_row_B[:, None]).flatten()

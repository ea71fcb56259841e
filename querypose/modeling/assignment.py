"""One-to-one assignment of queries to persons by their costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from querypose.modeling.targets import Matches

# Replaces a cost that is not finite, which scipy refuses: worse than any other cost, whatever the weights.
WORST_COST = 1e6


def assign_queries(cost_SBQG: Tensor, counts: Sequence[int]) -> list[Matches]:
    """Finds for every stage and image the assignment of least total cost; all costs cross to the host at once.

    Args:
        cost_SBQG: of every query for every person of its image, at each of the S stages.
        counts: persons of each image. If an image has more persons than queries, some persons have no match. Costs
            beyond an image's own persons are padding and never read.

    Returns:
        the matches of every stage, equally many.
    """
    if sum(counts) == 0:
        empty = torch.zeros(0, dtype=torch.long, device=cost_SBQG.device)
        return [Matches(empty, empty, empty, empty, is_complete=True)] * len(cost_SBQG)
    host_SBQG = np.nan_to_num(to_host(cost_SBQG), nan=WORST_COST, posinf=WORST_COST, neginf=-WORST_COST)
    indices_S4R = torch.from_numpy(np.stack([_assign(cost_BQG, counts) for cost_BQG in host_SBQG]))
    is_complete = indices_S4R.shape[2] == sum(counts)
    matches_S = []
    for indices_4R in indices_S4R.to(cost_SBQG.device, non_blocking=True):
        image_R, query_R, person_R, slot_R = indices_4R.unbind()
        matches_S.append(Matches(image_R, query_R, person_R, slot_R, is_complete=is_complete))
    return matches_S


def to_host(costs: Tensor) -> np.ndarray:
    """The costs for scipy: here, and nowhere else, an iteration of training waits for the device."""
    return costs.detach().cpu().numpy()


def _assign(cost_BQG: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Image, query, person and slot (4, R) of the cheapest pairs of every image, sorted by person."""
    columns = []
    first_slot = 0
    for image, (cost_QG, count) in enumerate(zip(cost_BQG, counts, strict=True)):
        # Image by image: columns beyond an image's own persons are padding.
        query, person = linear_sum_assignment(cost_QG[:, :count])
        order = person.argsort()
        query, person = query[order], person[order]
        columns.append(np.stack([np.full_like(person, image), query, person, first_slot + person]))
        first_slot += count
    return np.concatenate(columns, axis=1)

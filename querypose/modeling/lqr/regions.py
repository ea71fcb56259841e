"""Which cells answer for which person: the regions Ω of the paper, their owners, and cells without a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from querypose.modeling.lqr.sampling import read_cells
from querypose.modeling.targets import PersonTargets

STRIDE = 4
"""Input pixels a cell."""


@dataclass(frozen=True)
class Regions:
    """The persons of B images and the cells about their centers; all positions and areas in cells.

    Attributes:
        center_BGD: mean of the labeled keypoints, those outside the image too.
        is_positive_BG: whether a person is trained on.
        keypoints_BGKD: arbitrary where not in `labeled_BGK`.
        labeled_BGK: labeled, and inside the image (V of the paper).
        area_BG: s² of the OKS.
        cell_BGN: places of the N candidate cells of a person in the flattened map.
        position_BGND: their x and y.
        is_owned_BGN: whether a candidate lies in the person's region and belongs to that person.
        is_supervised_BHW: M, False where a score is not trained: in crowds, in persons without a keypoint, outside the
            image, and about persons whose labeled keypoints all lie outside.
    """

    center_BGD: Tensor
    is_positive_BG: Tensor
    keypoints_BGKD: Tensor
    labeled_BGK: Tensor
    area_BG: Tensor
    cell_BGN: Tensor
    position_BGND: Tensor
    is_owned_BGN: Tensor
    is_supervised_BHW: Tensor

    @property
    def is_scored_BGN(self) -> Tensor:
        """Owned cells whose score is supervised."""
        return self.is_owned_BGN & self.at_cells(self.is_supervised_BHW)

    def at_cells(self, values: Tensor) -> Tensor:
        """Maps (B, …, H, W) at the candidate cells, (B, G, N, …)."""
        return read_cells(values, self.cell_BGN.flatten(1)).unflatten(1, self.cell_BGN.shape[1:])

    def num_scored(self) -> Tensor:
        """N_pos: cells with an owner and a supervised score."""
        return self.is_scored_BGN.sum()

    def num_coordinates(self) -> Tensor:
        """Coordinates in the offset loss: x and y of the labeled keypoints at every owned cell."""
        return 2 * (self.is_owned_BGN.sum(2) * self.labeled_BGK.sum(2)).sum()

    @classmethod
    def of_persons(
        cls,
        persons: PersonTargets,
        area_BG: Tensor,
        is_large_BG: Tensor,
        is_valid_BHW: Tensor,
        radius: float,
    ) -> Regions:
        """Finds centers, regions and owners; a cell in several regions belongs to the smallest person.

        Args:
            persons: of the batch, in pixels of the input.
            area_BG: of the whole persons, in square pixels of the input.
            is_large_BG: persons that are large enough to be trained on; the others are background.
            is_valid_BHW: cells of the image, crowds and persons without a keypoint left out.
            radius: γ, in cells: cells nearer than that to the center are a person's region.
        """
        # The center of the pixel of index 0 lies at 0.5.
        keypoints_BGKD = (persons.keypoints_BGKD - 0.5) / STRIDE
        size_B1D = persons.image_size_B4[:, None, :2] / STRIDE
        is_annotated_BGK1 = persons.labelled_BGK[..., None]
        num_annotated_BG1 = persons.labelled_BGK.sum(-1, keepdim=True)
        # Unlabeled keypoints may lie anywhere, at NaN too.
        center_BGD = torch.where(is_annotated_BGK1, keypoints_BGKD, 0.0).sum(2) / num_annotated_BG1.clamp(min=1)
        labeled_BGK = persons.labelled_BGK & _is_inside(keypoints_BGKD, size_B1D[:, None])
        is_candidate_BG = (num_annotated_BG1[..., 0] > 0) & is_large_BG & _is_inside(center_BGD, size_B1D)
        is_positive_BG = is_candidate_BG & labeled_BGK.any(-1)

        cell_BGN, position_BGND, is_on_map_BGN = _window(
            center_BGD, -math.ceil(radius), math.ceil(radius) + 1, size_B1D
        )
        cell_BGN = (cell_BGN[..., 1] * is_valid_BHW.shape[2] + cell_BGN[..., 0]) * is_on_map_BGN
        is_near_BGN = (position_BGND - center_BGD[:, :, None]).square().sum(-1) < radius**2
        is_in_region_BGN = is_on_map_BGN & is_near_BGN
        is_claimed_BGN = is_in_region_BGN & is_positive_BG[..., None]

        # Among equals the later annotation comes first.
        is_smaller_BGG = area_BG[:, None, :] < area_BG[:, :, None]
        is_equal_BGG = area_BG[:, None, :] == area_BG[:, :, None]
        rank_BG = (is_smaller_BGG | (is_equal_BGG & torch.ones_like(is_equal_BGG).triu(1))).sum(2)
        num_persons = area_BG.shape[1]
        first_BM = torch.full_like(is_valid_BHW, num_persons, dtype=torch.long).flatten(1)
        claim_BGN = torch.where(is_claimed_BGN, rank_BG[..., None], num_persons)
        first_BM = first_BM.scatter_reduce(1, cell_BGN.flatten(1), claim_BGN.flatten(1), "amin")
        owner_BGN = first_BM.gather(1, cell_BGN.flatten(1)).view(cell_BGN.shape)

        is_lost_BGN = is_in_region_BGN & (is_candidate_BG & ~is_positive_BG)[..., None]
        is_lost_BM = torch.zeros_like(first_BM).scatter_reduce(
            1, cell_BGN.flatten(1), is_lost_BGN.flatten(1).long(), "amax"
        )
        return cls(
            center_BGD=center_BGD,
            is_positive_BG=is_positive_BG,
            keypoints_BGKD=keypoints_BGKD,
            labeled_BGK=labeled_BGK,
            area_BG=area_BG / STRIDE**2,
            cell_BGN=cell_BGN,
            position_BGND=position_BGND,
            is_owned_BGN=is_claimed_BGN & (owner_BGN == rank_BG[..., None]),
            is_supervised_BHW=is_valid_BHW & ~is_lost_BM.view(is_valid_BHW.shape).bool(),
        )


def gaussian_labels(regions: Regions, sigma: float = 4.0) -> tuple[Tensor, Tensor]:
    """The labels of Table 2 without CIR: the highest of the Gaussians about the persons' centers, and where they are.

    A Gaussian is drawn in the window from `floor(center - 3 sigma - 1)` to `ceil(center + 3 sigma + 2)`, as in DEKR.

    Returns:
        (B, H, W) labels; (B, H, W) True in the windows.
    """
    center_BGD, map_BHW = regions.center_BGD, regions.is_supervised_BHW
    (height, width), reach = map_BHW.shape[1:], 3 * sigma + 1
    size_D = center_BGD.new_tensor([width, height])
    cell_BGND, position_BGND, is_on_map_BGN = _window(
        center_BGD, -math.ceil(reach), math.ceil(reach) + 2, size_D.expand(len(center_BGD), 1, 2)
    )
    low_BG1D, high_BG1D = (center_BGD - reach).floor()[:, :, None], (center_BGD + reach + 1).ceil()[:, :, None]
    is_drawn_BGN = ((position_BGND >= low_BG1D) & (position_BGND < high_BG1D)).all(-1) & is_on_map_BGN
    is_drawn_BGN &= regions.is_positive_BG[..., None]
    value_BGN = torch.exp(-(position_BGND - center_BGD[:, :, None]).square().sum(-1) / (2 * sigma**2)) * is_drawn_BGN
    cell_BM = ((cell_BGND[..., 1] * width + cell_BGND[..., 0]) * is_on_map_BGN).flatten(1)
    zero_BM = torch.zeros_like(map_BHW, dtype=value_BGN.dtype).flatten(1)
    label_BM = zero_BM.scatter_reduce(1, cell_BM, value_BGN.flatten(1), "amax")
    return label_BM.view(map_BHW.shape), (label_BM > 0).view(map_BHW.shape)


def valid_cells(samples: Sequence[tuple[tuple[int, int], Tensor | None]], height: int, width: int) -> Tensor:
    """Which cells of a map (B, height, width) show the image, and in it what its mask leaves.

    Args:
        samples: height and width of each image in pixels, and its `valid_mask` (H, W) where it has one.
        height: of the map, in cells.
        width: of the map, in cells.
    """
    maps = []
    for image_size, mask_HW in samples:
        mask_HW = torch.ones(image_size, dtype=torch.bool) if mask_HW is None else mask_HW
        cells_HW = mask_HW[::STRIDE, ::STRIDE]
        maps.append(F.pad(cells_HW, (0, width - cells_HW.shape[1], 0, height - cells_HW.shape[0])))
    return torch.stack(maps)


def _is_inside(position: Tensor, size: Tensor) -> Tensor:
    """Whether positions (…, D) lie in maps of some size (…, D), in cells."""
    return ((position >= 0) & (position < size)).all(-1)


def _window(center_BGD: Tensor, first: int, end: int, size_B1D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells about some centers: (B, G, N, D) as integers and as numbers, and (B, G, N) whether they are of the map.

    Args:
        center_BGD: in cells; arbitrary for those who have none.
        first: of a window, from the cell before the center.
        end: of a window, which lies outside it, from the cell before the center.
        size_B1D: of the maps.
    """
    side = torch.arange(first, end + 1, device=center_BGD.device)
    offset_ND = torch.cartesian_prod(side, side).flip(-1)
    # A center that is nobody's may be anywhere, also where integers end.
    start_BGD = center_BGD.nan_to_num(nan=-1e6).clamp(-1e6, 1e6).floor().long()
    cell_BGND = start_BGD[:, :, None] + offset_ND
    position_BGND = cell_BGND.to(center_BGD)
    return cell_BGND, position_BGND, _is_inside(position_BGND, size_B1D[:, None])

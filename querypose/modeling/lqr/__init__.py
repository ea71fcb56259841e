"""LQR (Learning Quality-aware Representation, AAAI 2022): a pose and its quality at every cell, and no code of its own.

The files follow the paper: `keypoint_queries` (KQE, eq. 4), `pose_queries` (PQE, eq. 7), `regions` (who owns a cell),
`criterion` (consistent instance representation, eq. 1 and 2; losses, eq. 3, 5 and 6), `decoding` (inference),
`meta_arch`. Further letters of shapes: N points of a keypoint, or cells of a region · G persons of an image.

Displacements are (dx, dy) from origin to destination, in cells. Cell (x, y) of a map stands for the input pixel of the
indices (4x, 4y), on which convolutions of stride 4 are centered.
"""

from querypose.modeling.lqr import config as config
from querypose.modeling.lqr.meta_arch import LQR

__all__ = ["LQR"]

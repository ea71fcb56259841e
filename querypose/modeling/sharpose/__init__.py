"""SHaRPose (Sparse High-Resolution Representations for human Pose estimation): top-down, coarse, then partly fine.

The files follow the paper: `blocks` and `transformer` (Sec. 3.2 and 3.3), `selection` (eq. 5 to 7), `quality` (eq. 4,
and the similarity of eq. 11), `heatmaps` (eq. 3, UDP), `criterion` (Sec. 3.4), `meta_arch`.
"""

from querypose.modeling.sharpose import config as config
from querypose.modeling.sharpose.meta_arch import SHaRPose

__all__ = ["SHaRPose"]

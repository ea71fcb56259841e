"""POET (POse Estimation Transformer): poses as vectors, directly from a transformer's queries.

The files follow the paper: `pose_vector` (Figure 2b), `pose_transformer` (Figure 2a), `pose_terms` and `criterion`
(Training Loss, eq. 1 to 4), `meta_arch`.
"""

from querypose.modeling.poet import config as config
from querypose.modeling.poet import similarity_loss as similarity_loss
from querypose.modeling.poet.meta_arch import POET

__all__ = ["POET"]

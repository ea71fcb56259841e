"""From a feature map to classes and pose vectors: POET's transformer and its heads (Figure 2a)."""

from __future__ import annotations

from torch import Tensor, nn

from querypose.layers import SinePositionEncoding, Transformer, at_least_float32, full_precision
from querypose.modeling.poet.criterion import QueryOutputs
from querypose.modeling.poet.pose_vector import PoseVector


class PoseTransformer(nn.Module):
    """Projects a feature map, runs the transformer on its cells, and reads every query by two heads.

    The heads are shared by all layers of the decoder: a linear layer for the class, a network of three for the pose.

    Args:
        in_channels: of the feature map.
        transformer: of width `dim`.
        dim: width C of cells and queries.
        num_keypoints: K.
        num_classes: 2 (person, no object), or 3 with an empty one before them.
    """

    def __init__(
        self, *, in_channels: int, transformer: Transformer, dim: int, num_keypoints: int, num_classes: int
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, kernel_size=1)
        self.position_encoding = SinePositionEncoding(dim)
        self.transformer = transformer
        self.class_head = nn.Linear(dim, num_classes)
        self.pose_head = nn.Sequential(
            nn.Linear(dim, dim),
            nn.ReLU(),
            nn.Linear(dim, dim),
            nn.ReLU(),
            nn.Linear(dim, PoseVector.length(num_keypoints)),
        )

    def forward(
        self, feature_BCHW: Tensor, is_image_BHW: Tensor, is_padded: bool, every_layer: bool = False
    ) -> QueryOutputs:
        """Classes and poses of the queries: after every layer of the decoder in training, else after the last.

        Args:
            feature_BCHW: of the backbone.
            is_image_BHW: False where a cell shows padding, which is no key.
            is_padded: whether any does, known to the host.
            every_layer: after every layer in inference too.
        """
        token_BTC = self.projection(feature_BCHW).flatten(2).transpose(1, 2)
        position_BTC = self.position_encoding(is_image_BHW, feature_BCHW.dtype).flatten(1, 2)
        is_padding_BT = ~is_image_BHW.flatten(1) if is_padded else None
        query_SBQC = self.transformer(token_BTC, position_BTC, is_padding_BT)
        if not (self.training or every_layer):
            query_SBQC = query_SBQC[-1:]
        with full_precision(query_SBQC):
            query_SBQC = at_least_float32(query_SBQC)
            return QueryOutputs(self.class_head(query_SBQC), PoseVector.decode(self.pose_head(query_SBQC).sigmoid()))

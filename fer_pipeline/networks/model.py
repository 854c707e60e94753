"""Define the expression network, which turns prepared crops into features and class scores by any backbone."""

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn


class ExpressionNet(nn.Module):
    """A backbone (`[n 3 s s]` to `[n feature_dim]`), an optional layer of other features, dropout and a linear head."""

    def __init__(
        self, backbone: nn.Module, num_classes: int, *, feature_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        own = cast(Any, backbone).feature_dim
        self.backbone = backbone
        self.neck = nn.Sequential(nn.Linear(own, feature_dim), nn.ReLU()) if feature_dim else nn.Identity()
        self.feature_dim: int = feature_dim or own
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Computes the penultimate layer: what centroids and cosines are made of."""
        return self.neck(self.backbone(x))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        return self.head(self.dropout(self.features(x)))

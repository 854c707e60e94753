"""Define the expression network, which turns prepared crops into features and class scores by any backbone.

Networks that were trained to tell people apart discard expression towards their end; their middle keeps it. So features
may also be taken from the maps of any stages, each averaged to a small grid, flattened (channels, rows, columns) and
joined in the network's order. The forward pass then ends with the last stage that is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ExpressionNet(nn.Module):
    """A backbone (`[n 3 s s]` to `[n feature_dim]`), an optional layer of other features, dropout and a linear head."""

    loaded: frozenset[str] = frozenset()  # names of the parameters that were filled from weights, where that matters
    frozen: frozenset[str] = frozenset()  # names of the modules that stay as in use: no statistics, no dropout

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        feature_dim: int | None = None,
        dropout: float = 0.0,
        grids: Mapping[str, int] | None = None,
        pooled: Sequence[int] = (),  # how many features each of the grids gives, in the network's order
    ) -> None:
        super().__init__()
        own = sum(pooled) or cast(Any, backbone).feature_dim
        self.backbone, self.grids = backbone, grids
        # The widths of parts of the features that belong together: of a stage each, or of a network each.
        self.widths: tuple[int, ...] = tuple(pooled) or getattr(backbone, "widths", (own,))
        self.neck = nn.Sequential(nn.Linear(own, feature_dim), nn.ReLU()) if feature_dim else nn.Identity()
        self.feature_dim: int = feature_dim or own
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.feature_dim, num_classes)
        self.confidence: nn.Linear | None = None

    def add_confidence(self) -> None:
        """Adds a head that says how sure the network is of its classes."""
        self.confidence = nn.Linear(self.feature_dim, 1)

    def with_confidence(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
        """Computes the class scores, and a score whose sigmoid is the confidence in them."""
        assert self.confidence is not None, "call add_confidence() first"
        features = self.dropout(self.features(x))
        return self.head(features), self.confidence(features).squeeze(1)

    def freeze_before(self, stage: str, *, size: int) -> None:
        """Takes all that the map before a stage is made of out of training, for good; `size` is that of the input."""
        names, called = stages_of(self.backbone), set[str]()
        before = names[names.index(stage) - 1]
        hooks = [
            module.register_forward_hook(lambda *_, name=name: called.add(name))
            for name, module in self.named_modules()
        ]
        self.eval()
        found = cast(Any, self.backbone).feature_maps(torch.zeros(1, 3, size, size), last=before)[before]
        for hook in hooks:
            hook.remove()
        parameters = list(self.parameters())
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:  # the map depends on it
                parameter.requires_grad_(False)
        self.frozen |= called
        self.train()

    def freeze_loaded(self) -> None:
        """Takes what was filled from weights out of training, for good."""
        for name in self.loaded:
            self.get_parameter(name).requires_grad_(False)
        self.frozen |= {name.rpartition(".")[0] for name in self.loaded}
        self.train()

    def train(self, mode: bool = True) -> "ExpressionNet":
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).training = False
        return self

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Computes the penultimate layer: what centroids and cosines are made of."""
        return self.neck(self.pooled(x, self.grids))

    def pooled(self, x: Float[Tensor, "n 3 h w"], grids: Mapping[str, int] | None) -> Float[Tensor, "n d"]:
        """Computes the averaged maps of some stages, in the network's order; the backbone's own features for None."""
        return self.backbone(x) if grids is None else pool_maps(self.backbone, x, grids)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        return self.head(self.dropout(self.features(x)))


def pool_maps(backbone: nn.Module, x: Float[Tensor, "n 3 h w"], grids: Mapping[str, int]) -> Float[Tensor, "n d"]:
    """Computes the averaged maps of some stages of a backbone, in its own order; none after the last is computed."""
    names = [name for name in stages_of(backbone) if name in grids]
    maps = cast(Any, backbone).feature_maps(x, last=names[-1])
    return torch.cat([functional.adaptive_avg_pool2d(maps[name], grids[name]).flatten(1) for name in names], 1)


def stages_of(backbone: nn.Module) -> tuple[str, ...]:
    """Returns the names of a backbone's stages, first to last; none where it has no maps to take features from."""
    own = vars(backbone).get("stage_names")  # of a network that is not ours, which may have a layer called `stages`
    return cast(Any, backbone).stages if own is None else own

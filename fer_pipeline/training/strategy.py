"""The seam between the loop and what is trained: a strategy owns networks and losses, the loop owns all the rest.

A strategy is a file in `strategies/` with a docstring that names its source and

    class Options(Settings)                                       its own settings
    def build(options, ingredients) -> Strategy                   makes its networks by `ingredients.network(name)`

The loop hands `step` one batch of every stream (`labelled`, `auxiliary`, `unlabelled`: uint8 crops; `distilled`:
network inputs) and a `Learner`. The strategy makes its own views of the crops, computes its losses and calls
`learner.update(loss, network)` as often and in the order that its method wants, so that two networks may take turns
and a second step may look at what the first one changed. What must survive a pause lies in its state_dict.

Several processes may train together, each on its part of every batch. Gradients are averaged over them in `update`; a
mean over the batch must be `losses.weighted_mean`, which takes it over all parts. Random draws differ among them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import Batch


@dataclass(frozen=True)
class Ingredients:
    """What a strategy is built from."""

    num_classes: int
    network: Callable[[str], ExpressionNet]  # by name: "main" has the recipe's initial weights, others their own draw
    augmentation: Augmentation
    class_weights: Mapping[str, Float[Tensor, " c"]] = field(default_factory=dict)  # by stream, where balance: weights


@runtime_checkable
class Learner(Protocol):
    """What the loop offers within one step."""

    step: int  # from 0, over the whole training
    total_steps: int
    steps_per_epoch: int

    def generator(self, *names: str | int) -> torch.Generator:
        """A CPU generator for this step and purpose; the same after a pause."""
        ...

    def update(self, loss: Tensor, network: str = "main") -> None:
        """One optimiser step of the named network down the gradient of `loss`."""
        ...

    def rate(self, network: str = "") -> float:
        """The learning rate of this step, of the first network where none is named."""
        ...


@runtime_checkable
class Strategy(Protocol):
    """An `nn.Module` that knows how to learn from one step's batches."""

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        """Rows a step of every stream, given the settings' batch and the streams' sizes; 0 takes all of it."""
        ...

    def trained(self) -> Mapping[str, nn.Module]:
        """What gradients change: one optimiser for each name."""
        ...

    def predictor(self) -> ExpressionNet:
        """The network that is validated and, in the end, kept."""
        ...

    def step(self, batches: Mapping[str, Batch], learner: Learner) -> dict[str, Tensor]:
        """Learns from one batch of every stream; the losses are for the history."""
        ...

    def train(self, mode: bool = True) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Any: ...


class StepLearner:
    """The loop's `Learner`: counts steps and hands losses to the optimisers."""

    def __init__(
        self,
        *,
        seed: int,
        total_steps: int,
        steps_per_epoch: int,
        apply: Callable[[Tensor, str], None],
        rates: Callable[[str], float],
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.seed, self.total_steps, self.steps_per_epoch = seed, total_steps, steps_per_epoch
        self.part = part
        self.step = 0
        self.update = lambda loss, network="main": apply(loss, network)
        self.rate = lambda network="": rates(network)

    def child_seed(self, *names: str | int) -> int:
        """A seed for this step and purpose; processes that train together draw apart."""
        own = ("part", self.part[0]) if self.part[1] > 1 else ()
        return derive(self.seed, "step", self.step, *names, *own)

    def generator(self, *names: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(self.child_seed(*names))

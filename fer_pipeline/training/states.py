"""The state of a training between two epochs: all that the next step depends on, in one file, whole or not at all.

Orders, augmentations, dropout and learning rates are functions of seed and step, so no generator's state is needed:
weights, optimisers, the loss scale of 16-mixed, the average, the best weights so far and the history are all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.training.averaging import Average
from fer_pipeline.training.records import Row
from fer_pipeline.training.strategy import Strategy

FILE = "epoch.pt"


@dataclass
class Progress:
    """What a pause must not lose beside weights and optimisers."""

    epoch: int = 0  # finished ones
    seconds: float = 0.0  # of training steps
    waited: float = 0.0  # of these, for images
    rows: list[Row] = field(default_factory=list)
    best: dict[str, float] | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Parts:
    """What has a state: Fabric's optimisers by name, its precision, the strategy and the average."""

    strategy: Strategy
    optimizers: Mapping[str, Any]
    precision: Any
    average: Average | None

    def save(self, folder: Path, progress: Progress) -> None:
        """Replaces the state of the epoch before."""
        state = {
            "strategy": self.strategy.state_dict(),
            "optimizers": {name: optimizer.optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "precision": self.precision.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "progress": vars(progress),
        }
        with replacing(folder / FILE) as temporary:
            torch.save(state, temporary)

    def resume(self, folder: Path, device: torch.device) -> Progress:
        """Takes up the last whole state; the beginning where there is none."""
        path = folder / FILE
        if not path.exists():
            return Progress()
        try:
            saved = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # a damaged archive raises whatever its bytes happen to look like
            first = " ".join(str(error).split())[:120]
            raise DataError(f"{path} is damaged ({first}); remove it and run the stage again") from None
        self.strategy.load_state_dict(saved["strategy"])
        for name, optimizer in self.optimizers.items():
            optimizer.optimizer.load_state_dict(saved["optimizers"][name])
        self.precision.load_state_dict(saved["precision"])
        if self.average:
            self.average.model.load_state_dict(saved["average"])
        return Progress(**saved["progress"])

"""Save and restore a training between two epochs: all that the next step depends on, in one file, whole or not at all.

Orders, augmentations, dropout and learning rates are functions of seed and step, so no generator's state is needed: the
strategy, the phase's optimisers, the loss scale of 16-mixed, the average, the best weights so far and the history are
all. A pause may fall on the border of two phases: the next one then begins with fresh optimisers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.training.records import Row

FILE = "epoch.pt"


@dataclass
class Progress:
    """How far a training is, beside its weights and optimisers."""

    phase: int = 0  # the one to go on with
    epoch: int = 0  # finished ones of that phase
    step: int = 0  # finished ones of all phases
    seconds: float = 0.0  # of training steps
    waited: float = 0.0  # of these, for images
    rows: list[Row] = field(default_factory=list)
    best: dict[str, float] | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class TrainingState:
    """What has a state, and the folder where it is saved."""

    folder: Path
    strategy: nn.Module
    precision: Any  # of Fabric
    average: nn.Module | None

    def save(self, progress: Progress, optimizers: Mapping[str, Any]) -> None:
        """Replaces the state of the epoch before; `optimizers` are those of a phase that has begun and not ended."""
        state = {
            "strategy": self.strategy.state_dict(),
            "optimizers": {name: optimizer.optimizer.state_dict() for name, optimizer in optimizers.items()},
            "precision": self.precision.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "progress": vars(progress),
        }
        with replacing(self.folder / FILE) as temporary:
            torch.save(state, temporary)

    def restore(self, device: torch.device) -> tuple[Progress, dict[str, Any]]:
        """Takes up the last whole state, the beginning where there is none; the optimisers' states are given back."""
        path = self.folder / FILE
        if not path.exists():
            return Progress(), {}
        try:
            saved = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # a damaged archive raises whatever its bytes happen to look like
            first = " ".join(str(error).split())[:120]
            raise DataError(f"{path} is damaged ({first}); remove it and run the stage again") from None
        self.strategy.load_state_dict(saved["strategy"])
        self.precision.load_state_dict(saved["precision"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        return Progress(**saved["progress"]), saved["optimizers"]

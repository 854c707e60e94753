"""Write what a training leaves on disk while it runs: the course of its epochs, and the state from which it goes on.

The course, one row an epoch, is `history.csv` and DVCLive's files for DVC's metrics and plots. DVCLive runs apart from
git, DVC's experiments and the network, and without its clock: its files depend on the rows alone.

The state is all that the next step depends on, in one file, whole or not at all: the strategy, the phase's optimisers,
the loss scale of 16-mixed, the average, the best weights so far and the history. Orders, augmentations, dropout and
learning rates are functions of seed and step. After a pause on the border of two phases the optimisers are fresh.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, TypeAdapter
from torch import Tensor, nn

from fer_pipeline.artifacts.history import Row
from fer_pipeline.core.files import replacing
from fer_pipeline.networks.states import read_state, refuse_state, restore_optimizer

STATE = "epoch.pt"
REMEDY = "remove it and run the stage again"
LIVE = "dvclive"


@dataclass
class Progress:
    """How far a training is, beside its weights and optimisers. The seconds are those of steps, over all pauses."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    phase: NonNegativeInt = 0  # the one to go on with
    phase_epochs: NonNegativeInt = 0  # finished ones of that phase
    steps: NonNegativeInt = 0  # finished ones of all phases
    seconds: NonNegativeFloat = 0.0
    waited: NonNegativeFloat = 0.0  # of these, for images
    history: list[Row] = field(default_factory=list)
    epoch: NonNegativeInt = 0  # the best so far, from 1; 0 where none is chosen
    stopped_rising: bool | None = None  # whether the validation had, where it says when a training ends
    best: dict[str, float] | None = None  # its figures
    best_weights: dict[str, Tensor] | None = None

    def save(self, folder: Path, parts: Mapping[str, Any], optimizers: Mapping[str, Any]) -> None:
        """Replaces the state of the epoch before; `optimizers` are those of a phase that has begun and not ended."""
        states = {name: part.state_dict() for name, part in parts.items()}
        states["optimizers"] = {name: optimizer.optimizer.state_dict() for name, optimizer in optimizers.items()}
        with replacing(folder / STATE) as temporary:
            torch.save({**states, "progress": vars(self)}, temporary)


def restore(
    folder: Path, parts: Mapping[str, Any], predictor: nn.Module, device: torch.device
) -> tuple[Progress, dict[str, Any]]:
    """Takes up the last whole state, the beginning where there is none; the optimisers' states are given back.

    The best weights so far must be such as those of `predictor`. A damaged state is a DataError.
    """
    path = folder / STATE
    if not path.exists():
        return Progress(), {}
    with refuse_state(path, REMEDY):
        saved = read_state(path, device)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        progress = TypeAdapter(Progress).validate_python(saved["progress"])
        if progress.best_weights is not None and _shapes(progress.best_weights) != _shapes(predictor.state_dict()):
            raise ValueError("the best weights are those of another network")
        return progress, dict(saved["optimizers"])


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def restore_one(folder: Path, optimizer: torch.optim.Optimizer, name: str, saved: Mapping[str, Any]) -> None:
    """Puts one of the states that `restore` gave into an optimiser; one that does not fit is a DataError."""
    with refuse_state(folder / STATE, REMEDY):
        restore_optimizer(optimizer, saved[name])


def log_row(live: Any, row: Row) -> None:
    live.step = int(row["epoch"])
    for name, value in row.items():
        if name != "epoch":
            live.log_metric(name, value, timestamp=False)
    live.make_summary()


def quiet_live(folder: Path) -> Any:
    # dvclive imports DVC, which takes a second.
    from dvclive.live import Live

    class Apart(Live):
        """DVCLive that opens (and where there is none, would found) no DVC repository."""

        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

        def _init_studio(self) -> None:
            self._studio_events_to_skip |= {"start", "data", "done"}

    logging.getLogger("dvclive").setLevel(logging.ERROR)
    return Apart(dir=str(folder / LIVE), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)

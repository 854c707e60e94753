"""Say what a method of distillation is given and what it gives back, whatever it minimises.

The loop owns the outer steps, the stopping rule, the state on disk and the history; a method sets the gradients of the
synthetic images and step sizes, and scores them on real images that were held out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.distillation.start import InitialWeights, Synthetic
from fer_pipeline.networks.preprocessing import Inputs, Preprocessing

Row = dict[str, float]


@dataclass(frozen=True)
class Problem:
    """What is distilled, for which network, and where a method may keep what it makes on the way (`state`)."""

    settings: DistillSettings
    source: Source
    heldout: Source  # perhaps empty
    initial: InitialWeights  # theta_0
    fresh: InitialWeights  # random weights of the same network, others for every use
    preprocessing: Preprocessing
    seed: int
    device: torch.device
    state: Path

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    def real(self, source: Source, rows: Int[np.ndarray, " b"]) -> tuple[Inputs, Int[Tensor, " b"]]:
        """Returns some real images as network inputs, with their labels, on the device."""
        images = self.preprocessing.apply(source.images(rows)).to(self.device)
        return images, torch.from_numpy(source.labels[rows]).to(self.device)


class Method(Protocol):
    """One way to distil, built from a `Problem`. It keeps nothing between two outer steps that a resume would lack."""

    has_step_sizes: ClassVar[bool]  # whether its images come with a training of their own: steps and their sizes

    def set_gradients(self, synthetic: Synthetic, rows: Int[np.ndarray, " b"], *, step: int) -> Row:
        """Sets the gradients of outer step number `step` on real images; returns figures for the history.

        `loss` is what is minimised.
        """
        ...

    def score(self, synthetic: Synthetic) -> Row:
        """Returns `heldout_loss`, which stops the distillation, and perhaps more figures on the held-out images."""
        ...

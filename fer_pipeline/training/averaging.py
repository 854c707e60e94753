"""An exponential average of a network's weights (EMA): the trained network in, a smoother one out.

Source: Tarvainen & Valpola, Mean Teacher (arXiv:1703.01780). The decay rises as min(decay, (1 + t) / (10 + t)), so that
the first random weights are forgotten soon; buffers (running statistics) are copied.
"""

import copy

import torch

from fer_pipeline.networks.model import ExpressionNet


class Average:
    """The averaged copy of a network."""

    def __init__(self, model: ExpressionNet, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: ExpressionNet, step: int) -> None:
        """Takes in the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, new in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(new.detach(), 1 - decay)
        for own, new in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(new)

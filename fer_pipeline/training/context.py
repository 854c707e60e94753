"""Offer a strategy what it needs within a step: random numbers, optimiser steps, gradients, other processes' rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Crops, Preprocessing
from fer_pipeline.training.batches import Stream
from fer_pipeline.training.validation import predict_logits
from fer_pipeline.training.worker import Worker


@dataclass
class StepContext:
    worker: Worker
    streams: Mapping[str, Stream]
    preprocessing: Preprocessing
    _: KW_ONLY
    seed: int
    clip: float | None
    steps_per_epoch: int  # how many steps see each labelled image once
    advance: Callable[[int], None] = lambda steps: None
    step: int = 0  # of the whole training, from 0
    phase: str = ""
    phase_step: int = 0  # of the phase, from 0
    phase_steps: int = 0  # the length of the phase
    epoch: int = 0  # of the phase, from 0
    optimizers: dict[str, Any] = field(default_factory=dict)  # of Fabric, by name
    modules: dict[str, nn.Module] = field(default_factory=dict)  # what each optimiser changes

    def child_seed(self, *names: str | int) -> int:
        """A seed for this step and purpose; processes that train together draw apart."""
        own = ("part", self.worker.rank) if self.worker.world_size > 1 else ()
        return derive(self.seed, "step", self.step, *names, *own)

    def generator(self, *names: str | int) -> torch.Generator:
        """A CPU generator for this step and purpose; the same after a pause."""
        return torch.Generator().manual_seed(self.child_seed(*names))

    def ramp(self, share: float) -> float:
        """From 0 to 1, linearly over a share of the phase's steps; 1 where the share is 0."""
        return min(1.0, self.phase_step / (share * self.phase_steps)) if share else 1.0

    def rate(self, name: str | None = None) -> float:
        """The learning rate of this step, of the first optimiser where none is named."""
        return self.optimizers[name or next(iter(self.optimizers))].param_groups[0]["lr"]

    def update(self, loss: Tensor, *names: str) -> None:
        """One step of the named optimisers (of all where none is named) down the gradient of `loss`."""
        chosen = names or tuple(self.optimizers)
        for name in chosen:
            self.optimizers[name].zero_grad()
        with torch.autocast(self.worker.device.type, enabled=False):  # gradients have their forward pass's precision
            self.worker.fabric.backward(loss)
        for name in chosen:
            self.worker.average_gradients([p.grad for p in self.modules[name].parameters() if p.grad is not None])
        self._step([name for name in chosen if any(p.grad is not None for p in self._parameters(name))], self._scaler)

    def _step(self, names: Sequence[str], scaler: Any = None) -> None:
        """Steps with one loss scale for all: Fabric's own step would change it between two optimisers."""
        for name in names:
            optimizer = self.optimizers[name].optimizer
            if scaler:
                scaler.unscale_(optimizer)
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self._parameters(name), self.clip)
            step = scaler.step if scaler else type(optimizer).step
            step(optimizer)
        if scaler and names:
            scaler.update()
        torch.clear_autocast_cache()  # else a second forward pass of this step would use the weights of before

    def gradients(self, loss: Tensor, name: str = "main", *, retain_graph: bool = False) -> tuple[Tensor, ...]:
        """The gradient of `loss` by what the named optimiser changes, as values: nothing is updated.

        They are float32, averaged over all processes and free of the scale that 16-mixed precision puts on losses; 0
        where the loss does not depend on a parameter. Where float16 overflows they are not finite, and the scale is
        lowered for the next ones; as after `update`, it grows when all have been finite for long.
        """
        scaler = self._scaler
        with torch.autocast(self.worker.device.type, enabled=False):
            scaled = loss if scaler is None else scaler.scale(loss)
            raw = torch.autograd.grad(scaled, self._parameters(name), retain_graph=retain_graph, materialize_grads=True)
        gradients = tuple(gradient.to(torch.float32, copy=True) for gradient in raw)
        self.worker.average_gradients(gradients)
        if scaler is not None:
            holders = [nn.Parameter(gradient, requires_grad=False) for gradient in gradients]
            for holder, gradient in zip(holders, gradients, strict=True):
                holder.grad = gradient  # where the scaler looks
            scaler.unscale_(torch.optim.SGD(holders))
            scaler.update()
        return gradients

    def apply(self, gradients: Sequence[Tensor], name: str = "main") -> None:
        """One step of the named optimiser with gradients that `gradients` gave, or sums of such.

        They are clipped as those of `update` are; in 16-mixed precision nothing is done where one is not finite.
        """
        for parameter, gradient in zip(self._parameters(name), gradients, strict=True):
            parameter.grad = gradient.detach().to(parameter.dtype).clone()
        if self._scaler is None or all(bool(gradient.isfinite().all()) for gradient in gradients):
            self._step([name])

    def gather(self, values: Tensor) -> Tensor:
        return self.worker.gather(values)

    def pixels(self, stream: str, rows: Int64[Tensor, " k"]) -> Crops:
        """The crops of some rows of a stream, on the device of the training."""
        return self.streams[stream].set.pixels(rows.cpu().numpy()).to(self.worker.device)

    def predict(
        self, stream: str, network: ExpressionNet, preprocessing: Preprocessing | None = None
    ) -> Float[Tensor, "n c"]:
        """The probabilities of all images of a stream, in the order of its rows, not augmented, on the CPU.

        A network of another architecture wants the `preprocessing` that it came with.
        Every process gets all of them; each computes its part. Memory does not grow with the images.
        """

        def probabilities(x: Float[Tensor, "k 3 s s"]) -> Float[Tensor, "k c"]:
            return network(x).float().softmax(1)

        return self.compute(stream, network, probabilities, network.head.out_features, preprocessing)

    def compute(
        self,
        stream: str,
        network: nn.Module,
        function: Callable[[Tensor], Tensor],
        columns: int,
        preprocessing: Preprocessing | None = None,
    ) -> Float[Tensor, "n d"]:
        """What a function of the network makes of all images of a stream, as `predict` does: `columns` for each."""
        images = self.streams[stream].set
        rows = np.array_split(np.arange(len(images)), self.worker.world_size)[self.worker.rank]
        parts = [torch.zeros(0, columns)]
        device, chosen = self.worker.device, preprocessing or self.preprocessing
        for values in predict_logits(network, images, rows, chosen, device, function):
            parts.append(values.cpu())
            self.advance(0)  # no step was made, but whoever watches sees that the training is alive
        return self.worker.gather(torch.cat(parts).to(device)).cpu()

    @property
    def _scaler(self) -> Any:
        return getattr(self.worker.fabric._precision, "scaler", None)

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return [parameter for parameter in self.modules[name].parameters() if parameter.requires_grad]

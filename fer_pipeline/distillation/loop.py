"""Move synthetic images and step sizes down the gradients that a method gives: the outer loop, whatever the method.

Source: Wang et al. (arXiv:1811.10959), algorithm 1, with their published code's outer optimiser (Adam, betas 0.5 and
0.999, rate 0.01 halved every 40 epochs) as default; OS-FER (arXiv:2005.08551) eq. 8. Per outer step: a batch of real
images, the method's gradients, one step of the optimiser. Difference: it stops where the method's loss on held-out
images has not fallen for `patience` looks, and gives back the images of the lowest.

It resumes from the last finished epoch: order, draws and augmentations come from the seed and the step's number alone.
Images, step sizes, the best of them, the optimiser's moments and the history stand in *one* file, so that a kill
between two writes cannot leave halves of two epochs.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64
from pydantic import TypeAdapter
from torch import Tensor

from fer_pipeline.artifacts.arrays import write_arrays
from fer_pipeline.artifacts.distilled import saved_name
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.progress import progress
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.distribution_matching import DistributionMatching
from fer_pipeline.distillation.method import Method, Problem, Row
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.start import Synthetic, start_synthetic
from fer_pipeline.distillation.trajectory_matching import TrajectoryMatching
from fer_pipeline.distillation.unrolled import UnrolledMethod
from fer_pipeline.networks.states import read_state, refuse_state, restore_optimizer

STATE = "state.pt"
METHODS = {
    "unrolled": UnrolledMethod,
    "distribution_matching": DistributionMatching,
    "trajectory_matching": TrajectoryMatching,
}


@dataclass
class DistillationProgress:
    """The rows of the history, and the images with the lowest held-out loss so far (none: it is not looked at)."""

    history: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_loss: float = float("inf")
    best_epoch: int = 0
    looks_since: int = 0

    def look(self, synthetic: Synthetic, loss: float) -> None:
        """Keeps the images where their loss is the lowest yet."""
        self.looks_since += 1
        if loss < self.best_loss:
            self.best = {"images": synthetic.images.detach().clone(), "raw_sizes": synthetic.raw_sizes.detach().clone()}
            self.best_loss, self.best_epoch, self.looks_since = loss, len(self.history) + 1, 0


def distill(problem: Problem) -> tuple[Synthetic, DistillationProgress]:
    """Moves synthetic images until the held-out loss stops falling, and saves some of them in `state/saved`.

    Returns the best of them, the last where nothing is held out, and how it went.
    """
    settings, state, source, seed = problem.settings, problem.state, problem.source, problem.seed
    method: Method = METHODS[settings.method](problem)
    synthetic = start_synthetic(settings, source, problem.preprocessing, seed=seed, device=problem.device)
    tensors, rate = [synthetic.images, synthetic.raw_sizes], settings.learning_rate
    optimizer: torch.optim.Optimizer = torch.optim.Adam(tensors, lr=rate, betas=(0.5, 0.999))
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(tensors, lr=rate, momentum=settings.momentum)
    done = load_state(state, synthetic, optimizer)
    per_epoch, ends = batches_per_epoch(len(source.labels), settings), torch.tensor([0.0, 255.0], device=problem.device)
    black, white = problem.preprocessing.normalise(ends.view(2, 1, 1, 1).expand(2, 3, 1, 1))
    with progress("distill", settings.outer_epochs * per_epoch, "outer steps") as advance:
        advance(len(done.history) * per_epoch, earlier=True)
        for epoch in range(len(done.history), settings.outer_epochs):
            if settings.patience and done.looks_since >= settings.patience:
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.decay ** (epoch // settings.decay_every)
            rows = []
            for number, chosen in enumerate(epoch_batches(source.labels, settings, epoch=epoch, seed=seed)):
                rows.append(method.set_gradients(synthetic, chosen, step=epoch * per_epoch + number))
                gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
                if not (np.isfinite(rows[-1]["loss"]) and all(gradient.isfinite().all() for gradient in gradients)):
                    raise DataError(
                        f"distill: the outer loss or its gradient is not finite in epoch {epoch + 1}; "
                        "lower distill.step_size, distill.learning_rate or the number of steps and epochs"
                    )
                optimizer.step()
                if settings.clamp:
                    with torch.no_grad():
                        synthetic.images.clamp_(black, white)
                advance(1)
            row: Row = {"epoch": epoch + 1}
            row |= {name: round(float(np.mean([one[name] for one in rows])), 6) for name in rows[0]}
            if len(problem.heldout.labels) and (epoch + 1) % settings.check_every == 0:
                looked = method.score(synthetic)
                done.look(synthetic, looked["heldout_loss"])
                row |= {**{name: round(value, 6) for name, value in looked.items()}, "best_epoch": done.best_epoch}
            if method.has_step_sizes:
                sizes = enumerate(synthetic.step_sizes.tolist())
                row |= {f"step_size_{index}": round(size, 8) for index, size in sizes}
            done.history.append(row)
            if len(done.history) % settings.save_every == 0:
                arrays = {"images": synthetic.images.cpu().numpy(), "step_sizes": synthetic.step_sizes.cpu().numpy()}
                write_arrays(state / "saved" / saved_name(len(done.history)), arrays)
            save_state(state, synthetic, optimizer, done)
    if done.best is not None:
        synthetic.images.copy_(done.best["images"])
        synthetic.raw_sizes.copy_(done.best["raw_sizes"])
    return synthetic, done


def batches_per_epoch(count: int, settings: DistillSettings) -> int:
    """Returns the outer steps of one epoch over `count` real images."""
    return settings.batches or -(-count // settings.batch_size)


def epoch_batches(
    labels: Int64[np.ndarray, " n"], settings: DistillSettings, *, epoch: int, seed: int
) -> list[Int[np.ndarray, " b"]]:
    """Returns the rows of each real batch of an epoch: a pass in random order, or draws with every class alike."""
    draw = np.random.default_rng(derive(seed, "distill", "order", epoch))
    total, size = batches_per_epoch(len(labels), settings), settings.batch_size
    if settings.balance == "batch":
        counts = np.bincount(labels)
        weights = 1 / counts[labels] / np.count_nonzero(counts)
        return [draw.choice(len(labels), size=min(size, len(labels)), p=weights) for _ in range(total)]
    passes = 1 if settings.batches is None else -(-total * size // len(labels))
    order = np.concatenate([draw.permutation(len(labels)) for _ in range(passes)])
    return [order[number * size : (number + 1) * size] for number in range(total)]


def save_state(
    folder: Path, synthetic: Synthetic, optimizer: torch.optim.Optimizer, done: DistillationProgress
) -> None:
    tensors = {"images": synthetic.images.detach(), "raw_sizes": synthetic.raw_sizes.detach()}
    with replacing(folder / STATE) as temporary:
        torch.save({**tensors, "optimizer": optimizer.state_dict(), "progress": vars(done)}, temporary)


def load_state(folder: Path, synthetic: Synthetic, optimizer: torch.optim.Optimizer) -> DistillationProgress:
    """Puts the state of `folder` into the tensors and the optimiser; returns how far it is, new without a state."""
    path = folder / STATE
    if not path.exists():
        return DistillationProgress()
    with refuse_state(path, "remove it to distil from the start"), torch.no_grad():
        state = read_state(path, synthetic.images.device)
        tensors = {"images": synthetic.images, "raw_sizes": synthetic.raw_sizes}
        TypeAdapter(list[Row]).validate_python(state["progress"]["history"], strict=True)  # makes floats of integers
        done = DistillationProgress(**state["progress"])
        for found in (state, done.best or tensors):
            for name, tensor in tensors.items():
                if found[name].shape != tensor.shape or not found[name].isfinite().all():
                    raise ValueError(f"its {name} have another shape, or are not finite")
        restore_optimizer(optimizer, state["optimizer"])
        numbers = (done.best_loss, done.best_epoch, done.looks_since)
        TypeAdapter(tuple[float, int, int]).validate_python(numbers, strict=True)
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
        return done

"""The outer loop: real images, a learner and settings in; distilled images, step sizes and their history out.

Source: Wang et al. (arXiv:1811.10959), algorithm 1, with their published code's outer optimiser (Adam, betas 0.5 and
0.999, rate 0.01 halved every 40 epochs) as default; OS-FER (arXiv:2005.08551) eq. 8. Per outer step: a batch of real
images, one or several starts, the gradient of unrolled.py averaged over the starts, one step of the optimiser.

It resumes from the last finished epoch: order and starts are drawn from the seed and the epoch's number alone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional

from fer_pipeline.artifacts.distilled import saved_name, write_arrays
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.distillation.starts import Learner
from fer_pipeline.distillation.state import Progress, Row, load_state, save_state
from fer_pipeline.distillation.synthetic import Synthetic, pixel_bounds
from fer_pipeline.distillation.unrolled import Parameters, cross_entropy_of, logits_of, unrolled_gradients
from fer_pipeline.networks.preprocessing import Preprocessing


def distill(
    settings: DistillSettings,
    *,
    source: Source,
    learner: Learner,
    preprocessing: Preprocessing,
    synthetic: Synthetic,
    seed: int,
    state: Path,
    advance: Callable[[int], None],
) -> list[Row]:
    """Moves `synthetic` through all outer epochs; gives the history back. Saved images lie in `state / "saved"`."""
    optimizer = _optimizer(settings, synthetic)
    progress = load_state(state, synthetic, optimizer)
    advance(progress.epoch * batches_per_epoch(len(source.labels), settings))
    bounds = [bound.to(synthetic.images.device) for bound in pixel_bounds(preprocessing)] if settings.clamp else None
    for epoch in range(progress.epoch, settings.outer_epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * settings.decay ** (epoch // settings.decay_every)
        rows = []
        for number, chosen in enumerate(epoch_batches(source.labels, settings, epoch=epoch, seed=seed)):
            real = preprocessing.apply(source.images(chosen)).to(synthetic.images.device)
            truth = torch.from_numpy(source.labels[chosen]).to(real.device)
            first_start = (epoch * batches_per_epoch(len(source.labels), settings) + number) * settings.draws
            rows.append(_outer_step(settings, learner, synthetic, optimizer, real, truth, first_start, epoch))
            if bounds is not None:
                with torch.no_grad():
                    synthetic.images.clamp_(*bounds)
            advance(1)
        progress = Progress(epoch + 1, [*progress.history, _row(epoch + 1, rows, synthetic)])
        if progress.epoch % settings.save_every == 0:
            arrays = {"images": synthetic.images.cpu().numpy(), "step_sizes": synthetic.step_sizes.cpu().numpy()}
            write_arrays(state / "saved" / saved_name(progress.epoch), arrays)
        save_state(state, synthetic, optimizer, progress)
    return progress.history


def batches_per_epoch(count: int, settings: DistillSettings) -> int:
    """Outer steps of one epoch."""
    return settings.batches or -(-count // settings.batch_size)


def epoch_batches(
    labels: Int64[np.ndarray, " n"], settings: DistillSettings, *, epoch: int, seed: int
) -> Iterator[Int[np.ndarray, " b"]]:
    """The rows of each real batch of an epoch: a pass in random order, or draws with every class alike."""
    draw = np.random.default_rng(derive(seed, "distill", "order", epoch))
    total = batches_per_epoch(len(labels), settings)
    if settings.balance == "batch":
        counts = np.bincount(labels)
        weights = 1 / counts[labels] / np.count_nonzero(counts)
        for _ in range(total):
            yield draw.choice(len(labels), size=min(settings.batch_size, len(labels)), p=weights)
        return
    passes = 1 if settings.batches is None else -(-total * settings.batch_size // len(labels))
    order = np.concatenate([draw.permutation(len(labels)) for _ in range(passes)])
    for number in range(total):
        yield order[number * settings.batch_size : (number + 1) * settings.batch_size]


def _outer_step(
    settings: DistillSettings,
    learner: Learner,
    synthetic: Synthetic,
    optimizer: torch.optim.Optimizer,
    real: Float[Tensor, "b 3 h w"],
    truth: Int[Tensor, " b"],
    first_start: int,
    epoch: int,
) -> Row:
    """One step of the outer optimiser; gives loss and accuracy on the real batch before and after the unroll."""
    logits, inner = logits_of(learner.network), cross_entropy_of(learner.network)
    right: list[float] = []

    def outer(parameters: Parameters) -> Tensor:
        scores = logits(parameters, real)
        right.append(_accuracy(scores, truth))
        return functional.cross_entropy(scores, truth)

    image_gradient, size_gradient = torch.zeros_like(synthetic.images), torch.zeros_like(synthetic.raw_sizes)
    row: Row = dict.fromkeys(("loss_before", "accuracy_before", "loss", "accuracy"), 0.0)
    for number in range(settings.draws):
        start = learner.start(first_start + number)
        with torch.no_grad():
            scores = logits(start, real)
        found = unrolled_gradients(
            inner,
            outer,
            start,
            synthetic.images,
            synthetic.labels,
            synthetic.step_sizes,
            epochs=settings.epochs,
            weights_kept=settings.weights_kept,
        )
        image_gradient += found.images / settings.draws
        size_gradient += found.step_sizes / settings.draws
        row["loss_before"] += float(functional.cross_entropy(scores, truth)) / settings.draws
        row["accuracy_before"] += _accuracy(scores, truth) / settings.draws
        row["loss"] += float(found.loss) / settings.draws
        row["accuracy"] += right[-1] / settings.draws
    if not (image_gradient.isfinite().all() and size_gradient.isfinite().all() and np.isfinite(row["loss"])):
        raise DataError(
            f"distill: the outer loss or its gradient is not finite in epoch {epoch + 1}; "
            "lower distill.step_size, distill.learning_rate or the number of steps and epochs"
        )
    synthetic.images.grad = image_gradient
    synthetic.raw_sizes.grad = size_gradient * synthetic.size_slope()
    optimizer.step()
    return row


def _optimizer(settings: DistillSettings, synthetic: Synthetic) -> torch.optim.Optimizer:
    moved = [synthetic.images, synthetic.raw_sizes]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(moved, lr=settings.learning_rate, momentum=0.9)
    return torch.optim.Adam(moved, lr=settings.learning_rate, betas=(0.5, 0.999))


def _row(epoch: int, rows: list[Row], synthetic: Synthetic) -> Row:
    means = {name: round(float(np.mean([row[name] for row in rows])), 6) for name in rows[0]}
    sizes = {f"step_size_{index}": round(size, 8) for index, size in enumerate(synthetic.step_sizes.tolist())}
    return {"epoch": epoch, **means, **sizes}


def _accuracy(scores: Float[Tensor, "b c"], truth: Int[Tensor, " b"]) -> float:
    return float((scores.argmax(1) == truth).float().mean())

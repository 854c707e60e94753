"""Move synthetic images and step sizes so that a training on them alone does well on real images: the outer loop.

Source: Wang et al. (arXiv:1811.10959), algorithm 1, with their published code's outer optimiser (Adam, betas 0.5 and
0.999, rate 0.01 halved every 40 epochs) as default; OS-FER (arXiv:2005.08551) eq. 8. Per outer step: a batch of real
images, one or several starts, the gradient of unrolled.py averaged over the starts, one step of the optimiser.

It resumes from the last finished epoch: order and starts are drawn from the seed and the epoch's number alone. Images,
step sizes, the optimiser's moments and the history stand in *one* file, so that a kill between two writes
cannot leave halves of two epochs.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from fer_pipeline.artifacts.arrays import write_arrays
from fer_pipeline.artifacts.distilled import saved_name
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.progress import progress
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.distillation.start import (
    InitialWeights,
    Synthetic,
    fixed_weights,
    random_weights,
    start_synthetic,
)
from fer_pipeline.distillation.unrolled import Parameters, cross_entropy_of, logits_of, unrolled_gradients
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.weights import read_state, refuse_state, restore_optimizer

STATE = "state.pt"

Row = dict[str, float]


def distill(
    settings: DistillSettings, source: Source, classifier: Classifier, *, seed: int, state: Path
) -> tuple[Synthetic, list[Row]]:
    """Moves synthetic images through all outer epochs; returns them and the history, and saves some in `state/saved`.

    `classifier` is the fixed start, and says for which network, classes and preprocessing the images are.
    """
    card, device = classifier.card, classifier.device
    synthetic = start_synthetic(settings, source, card.preprocessing, seed=seed, device=device)
    if settings.start == "fixed":
        initial = fixed_weights(classifier.model)
    else:
        initial = random_weights(card.network, len(card.classes), seed=seed, device=device)
    tensors, rate = [synthetic.images, synthetic.raw_sizes], settings.learning_rate
    optimizer: torch.optim.Optimizer = torch.optim.Adam(tensors, lr=rate, betas=(0.5, 0.999))
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(tensors, lr=rate, momentum=0.9)
    history = load_state(state, synthetic, optimizer)
    per_epoch = batches_per_epoch(len(source.labels), settings)
    ends = torch.tensor([0.0, 255.0], device=device).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    black, white = card.preprocessing.normalise(ends)
    with progress("distill", settings.outer_epochs * per_epoch, "outer steps") as advance:
        advance(len(history) * per_epoch, earlier=True)
        for epoch in range(len(history), settings.outer_epochs):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.decay ** (epoch // settings.decay_every)
            rows = []
            for number, chosen in enumerate(epoch_batches(source.labels, settings, epoch=epoch, seed=seed)):
                real = card.preprocessing.apply(source.images(chosen)).to(device)
                truth = torch.from_numpy(source.labels[chosen]).to(device)
                first = (epoch * per_epoch + number) * settings.draws
                rows.append(set_gradients(settings, initial, synthetic, real, truth, first_start=first))
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
            means = {name: round(float(np.mean([row[name] for row in rows])), 6) for name in rows[0]}
            sizes = {f"step_size_{index}": round(size, 8) for index, size in enumerate(synthetic.step_sizes.tolist())}
            history.append({"epoch": epoch + 1, **means, **sizes})
            if len(history) % settings.save_every == 0:
                arrays = {"images": synthetic.images.cpu().numpy(), "step_sizes": synthetic.step_sizes.cpu().numpy()}
                write_arrays(state / "saved" / saved_name(len(history)), arrays)
            save_state(state, synthetic, optimizer, history)
    return synthetic, history


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


def set_gradients(
    settings: DistillSettings,
    initial: InitialWeights,
    synthetic: Synthetic,
    real: Float[Tensor, "b 3 h w"],
    truth: Int[Tensor, " b"],
    *,
    first_start: int,
) -> Row:
    """Sets the gradients of one outer step; returns loss and accuracy on the real batch before and after the unroll."""
    logits, inner = logits_of(initial.network), cross_entropy_of(initial.network)

    def score(parameters: Parameters, when: str) -> Tensor:
        scores = logits(parameters, real)
        loss = functional.cross_entropy(scores, truth)
        row[f"loss{when}"] += float(loss.detach()) / settings.draws
        row[f"accuracy{when}"] += float((scores.argmax(1) == truth).float().mean()) / settings.draws
        return loss

    image_gradient, size_gradient = torch.zeros_like(synthetic.images), torch.zeros_like(synthetic.raw_sizes)
    row: Row = dict.fromkeys(("loss_before", "accuracy_before", "loss", "accuracy"), 0.0)
    for number in range(settings.draws):
        start = initial.draw(first_start + number)
        with torch.no_grad():
            score(start, "_before")
        gradients = unrolled_gradients(
            inner,
            lambda parameters: score(parameters, ""),
            start,
            synthetic.images,
            synthetic.labels,
            synthetic.step_sizes,
            epochs=settings.epochs,
            weights_kept=settings.weights_kept,
        )
        image_gradient += gradients.images / settings.draws
        size_gradient += gradients.step_sizes / settings.draws
    synthetic.images.grad = image_gradient
    synthetic.raw_sizes.grad = size_gradient * torch.sigmoid(synthetic.raw_sizes.detach())
    return row


def save_state(folder: Path, synthetic: Synthetic, optimizer: torch.optim.Optimizer, history: list[Row]) -> None:
    tensors = {"images": synthetic.images.detach(), "raw_sizes": synthetic.raw_sizes.detach()}
    with replacing(folder / STATE) as temporary:
        torch.save({**tensors, "optimizer": optimizer.state_dict(), "history": history}, temporary)


def load_state(folder: Path, synthetic: Synthetic, optimizer: torch.optim.Optimizer) -> list[Row]:
    """Puts the state of `folder` into the tensors and the optimiser and returns the history, empty without a state."""
    path = folder / STATE
    if not path.exists():
        return []
    with refuse_state(path, "remove it to distil from the start"), torch.no_grad():
        state = read_state(path)
        for name, tensor in (("images", synthetic.images), ("raw_sizes", synthetic.raw_sizes)):
            if state[name].shape != tensor.shape or not state[name].isfinite().all():
                raise ValueError(f"its {name} have another shape, or are not finite")
            tensor.copy_(state[name])
        restore_optimizer(optimizer, state["optimizer"])
        TypeAdapter(list[Row]).validate_python(state["history"], strict=True)  # which makes floats of integers
        return state["history"]

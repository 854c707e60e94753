"""Train on synthetic images step by step and differentiate the outer loss by the images and the step sizes.

Source: OS-FER (arXiv:2005.08551), eq. 7 and 8; Wang et al., Dataset Distillation (arXiv:1811.10959), algorithm 1.

    theta_{t+1} = theta_t - eta_s * dL(theta_t; x_s, y_s)/dtheta,     s = t mod steps,  t = 0 .. steps * epochs - 1
    minimise L(theta_T; real batch) over x and eta

Plain autograd through the unrolled steps keeps every step's graph of activations. Here only theta_t is needed; going
backwards with the adjoint a_t = dL/dtheta_t, each step is computed anew and gives by one product with its Hessian

    dL/deta_s -= <g_t, a_{t+1}>,   dL/dx_s -= eta_s d<g_t, a_{t+1}>/dx_s,
    a_t = a_{t+1} - eta_s d<g_t, a_{t+1}>/dtheta_t

The theta_t themselves would still grow with the steps, so at most `weights_kept` of them stay and the others are
computed anew from the nearest one before: equal results, flat memory. Griewank & Walther, Revolve (ACM TOMS 26, 2000)
place them for the fewest repeated steps: cost(T, s) = min over j of j + cost(T - j, s - 1) + cost(j, s) with s states
in memory; here the minimum is searched, not taken from the closed form, since T is small.

Difference from Wang et al.: their published code learns one step size for each of the steps * epochs updates; here a
step keeps its size in every epoch, so that a distillation is images and sizes of the same `steps`.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.augmentation import augment
from fer_pipeline.distillation.method import Problem, Row
from fer_pipeline.distillation.start import HELDOUT_DRAWS, Parameters, Synthetic, logits_of

ALIGNMENT = 16  # numbers: tensors begin where vectors of the processor do

State = TypeVar("State")
Images = Float[Tensor, "steps n *shape"]
Labels = Int[Tensor, "steps n"]
Sizes = Float[Tensor, " steps"]
InnerLoss = Callable[[Parameters, Tensor, Tensor], Tensor]  # (weights, images, labels) -> loss of one synthetic batch
OuterLoss = Callable[[Parameters], Tensor]  # weights after the last step -> loss on real images


class Unrolled(NamedTuple):
    loss: Tensor  # outer loss at the last weights
    images: Tensor  # its gradient by the synthetic images
    step_sizes: Tensor  # its gradient by the step sizes
    parameters: Parameters  # the last weights


def cross_entropy_of(model: nn.Module) -> InnerLoss:
    """Makes the loss of the unrolled steps: cross-entropy with the fixed labels."""
    logits = logits_of(model)
    return lambda parameters, images, labels: functional.cross_entropy(logits(parameters, images), labels)


class UnrolledMethod:
    """Lowers the loss on a batch of real images after the unrolled steps, averaged over the draws of theta_0.

    Difference from Wang et al.: the real images are augmented (`augment`), where a source is small.
    """

    has_step_sizes = True

    def __init__(self, problem: Problem) -> None:
        self.problem, self.network = problem, problem.initial.network
        self.inner = cross_entropy_of(self.network)

    def set_gradients(self, synthetic: Synthetic, rows: Int[np.ndarray, " b"], *, step: int) -> Row:
        """Returns loss and accuracy on the real batch before and after the unrolled steps."""
        problem, logits = self.problem, logits_of(self.network)
        settings = problem.settings
        real, truth = problem.real(problem.source, rows)
        if settings.augment:
            generator = torch.Generator().manual_seed(derive(problem.seed, "distill", "augment", step))
            real = augment(real, torch.arange(len(real)), settings.augment, generator, len(real))

        def score(parameters: Parameters, when: str) -> Tensor:
            scores = logits(parameters, real)
            loss = functional.cross_entropy(scores, truth)
            row[f"loss{when}"] += float(loss.detach()) / settings.draws
            row[f"accuracy{when}"] += float((scores.argmax(1) == truth).float().mean()) / settings.draws
            return loss

        image_gradient, size_gradient = torch.zeros_like(synthetic.images), torch.zeros_like(synthetic.raw_sizes)
        row: Row = dict.fromkeys(("loss_before", "accuracy_before", "loss", "accuracy"), 0.0)
        for number in range(settings.draws):
            start = problem.initial.draw("start", step * settings.draws + number)
            with torch.no_grad():
                score(start, "_before")
            gradients = unrolled_gradients(
                self.inner,
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
        synthetic.set_gradients(image_gradient, size_gradient)
        return row

    def score(self, synthetic: Synthetic) -> Row:
        """Returns loss and accuracy on the held-out images after the unrolled steps from theta_0."""
        return score_after_steps(self.problem, synthetic)


def score_after_steps(problem: Problem, synthetic: Synthetic) -> Row:
    """Trains on the synthetic images alone, from theta_0 or a few fixed draws of it, and looks at held-out ones."""
    images, truth = problem.real(problem.heldout, np.arange(len(problem.heldout.labels)))
    inner, losses, accuracies = cross_entropy_of(problem.initial.network), [], []
    for number in range(1 if problem.initial.is_fixed else HELDOUT_DRAWS):
        start = problem.initial.draw("heldout", number)
        arguments = (synthetic.images.detach(), synthetic.labels, synthetic.step_sizes)
        parameters = train(inner, start, *arguments, epochs=problem.settings.epochs)
        scores = problem.initial.logits(parameters, images)
        losses.append(float(functional.cross_entropy(scores, truth)))
        accuracies.append(float((scores.argmax(1) == truth).float().mean()))
    return {"heldout_loss": float(np.mean(losses)), "heldout_accuracy": float(np.mean(accuracies))}


def train(
    inner: InnerLoss, start: Parameters, images: Images, labels: Labels, step_sizes: Sizes, *, epochs: int = 1
) -> Parameters:
    """Returns the weights after all steps, without gradients: what a user of the distilled images gets."""
    parameters = start
    for step in range(len(images) * epochs):
        parameters = _descend(inner, images, labels, step_sizes, parameters, step)
    return parameters


def unrolled_gradients(
    inner: InnerLoss,
    outer: OuterLoss,
    start: Parameters,
    images: Images,
    labels: Labels,
    step_sizes: Sizes,
    *,
    epochs: int = 1,
    weights_kept: int = 8,
) -> Unrolled:
    """Computes the outer loss after `steps * epochs` updates from `start`, and its gradients."""
    images, step_sizes = images.detach(), step_sizes.detach()
    total = len(images) * epochs
    descend = partial(_descend, inner, images, labels, step_sizes)
    loss, last, adjoint = torch.zeros(()), start, []
    image_gradient, size_gradient = torch.zeros_like(images), torch.zeros_like(step_sizes)
    for step, parameters in iter_reversed(descend, start, total, checkpoints=weights_kept):
        if step == total - 1:
            last = descend(parameters, step)
            leaves = _leaves(last)
            outer_loss = outer(leaves)
            adjoint = list(torch.autograd.grad(outer_loss, tuple(leaves.values()), materialize_grads=True))
            loss = outer_loss.detach()
        which = step % len(images)
        adjoint, by_images, by_size = _differentiate_step(
            inner, parameters, adjoint, images[which], labels[which], step_sizes[which], is_first=step == 0
        )
        image_gradient[which] += by_images
        size_gradient[which] += by_size
    return Unrolled(loss=loss, images=image_gradient, step_sizes=size_gradient, parameters=last)


def iter_reversed(
    advance: Callable[[State, int], State], start: State, total: int, *, checkpoints: int
) -> Iterator[tuple[int, State]]:
    """Yields (t, state before step t) for t = total - 1 .. 0, where `advance(state, t)` takes step t from a state.

    At most `checkpoints` states, the start among them, are held at a time, and one more while it is used.
    """
    stored = [(0, start)]
    for step in reversed(range(total)):
        position, state = stored[-1]
        while position < step:
            free = checkpoints - len(stored)
            target = position + best_split(step - position + 1, free)[1] if free > 0 else step
            for number in range(position, target):
                state = advance(state, number)
            position = target
            if free > 0:
                stored.append((position, state))
        yield step, state
        if stored[-1][0] == step:
            stored.pop()


@cache
def best_split(steps: int, free: int) -> tuple[int, int]:
    """Returns the fewest steps that give back `steps` states with `free` checkpoints beside the first, and the next."""
    if steps == 1:
        return 0, 0
    if free == 0:
        return steps * (steps - 1) // 2, 0
    return min((j + best_split(steps - j, free - 1)[0] + best_split(j, free)[0], j) for j in range(1, steps))


def _descend(
    inner: InnerLoss, images: Tensor, labels: Tensor, step_sizes: Tensor, parameters: Parameters, step: int
) -> Parameters:
    which = step % len(images)
    leaves = _leaves(parameters)
    loss = inner(leaves, images[which].detach(), labels[which])
    gradients = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
    size = step_sizes[which].detach()
    moved = _empty_copy(parameters)
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        moved[name].copy_(value - size * gradient)
    return moved


def _empty_copy(parameters: Parameters) -> Parameters:
    """Allocates a copy of the weights, of the same strides, in one block of memory; all are of one type.

    Copies come and go between activations of all sizes; tensor by tensor they would leave holes in the heap: a sixth of
    the memory of 30 steps of a ResNet-18.
    """
    sizes = [-(-value.numel() // ALIGNMENT) * ALIGNMENT for value in parameters.values()]
    block = next(iter(parameters.values())).new_empty(sum(sizes))
    return {
        name: block.as_strided(value.shape, value.stride(), end - size)
        for (name, value), size, end in zip(parameters.items(), sizes, accumulate(sizes), strict=True)
    }


def _differentiate_step(
    inner: InnerLoss,
    parameters: Parameters,
    adjoint: list[Tensor],
    images: Tensor,
    labels: Tensor,
    size: Tensor,
    *,
    is_first: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The adjoint before one step, and the step's share of the gradients by its images and its size.

    It empties `adjoint`: with a large network every copy of the weights counts.
    """
    leaves = _leaves(parameters)
    images = images.detach().requires_grad_()
    loss = inner(leaves, images, labels)
    gradients = torch.autograd.grad(loss, tuple(leaves.values()), create_graph=True, materialize_grads=True)
    along = torch.stack([(gradient.detach() * a).sum() for gradient, a in zip(gradients, adjoint, strict=True)]).sum()
    moved = [(gradient, a) for gradient, a in zip(gradients, adjoint, strict=True) if gradient.requires_grad]
    # nothing lies before the first step, so its product with the Hessian by the weights is never asked for
    wanted = (images,) if is_first else (images, *leaves.values())
    by_images, *by_weights = torch.autograd.grad(
        [gradient for gradient, _ in moved], wanted, [a for _, a in moved], materialize_grads=True
    )
    del loss, gradients, moved
    before = []
    while by_weights:
        before.append(adjoint.pop(0) - size * by_weights.pop(0))
    return before, -size * by_images, -along


def _leaves(parameters: Parameters) -> Parameters:
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}

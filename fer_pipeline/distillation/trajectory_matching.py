"""Move synthetic images so that a few steps on them lead where many steps of real training lead.

Source: Cazenave et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022, arXiv:2203.11932), algorithm
1 and eq. 2: experts are trained on the real images and their weights theta*_t saved; a student starts at some theta*_t,
takes N steps on the synthetic images with a learned step size, and

    L = || theta_{t+N} - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2

is lowered over images and step sizes. It needs no theta_0: it serves any draw that its experts began from.

Differences: N = steps x epochs, and every one of `steps` has images and a step size of its own (there, batches are
drawn from all images and one step size serves all); moments are counted in steps of the expert and not in its epochs;
student steps are not augmented (there by siamese augmentation); the gradient through them is unrolled.py's, so that
memory does not grow with N. Experts are plain SGD without momentum, as in the published code.

Every saved moment is a file of its own in the stage's store, and an expert goes on from its last: its batches and
augmentations come from the seed and the step's number alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.progress import progress
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.augmentation import augment
from fer_pipeline.distillation.method import Problem, Row
from fer_pipeline.distillation.start import Parameters, Synthetic
from fer_pipeline.distillation.unrolled import OuterLoss, cross_entropy_of, score_after_steps, unrolled_gradients
from fer_pipeline.networks.weights import read_tensors


class TrajectoryMatching:
    """Follows experts, which are trained when it is built."""

    has_step_sizes = True

    def __init__(self, problem: Problem) -> None:
        self.problem, self.inner = problem, cross_entropy_of(problem.initial.network)
        experts = problem.settings.experts
        self.moments = expert_steps(problem) // experts.saved_every  # beside the start
        if self.moments < experts.ahead:
            raise ConfigError(
                f"distill.experts: a training saves {self.moments} moments and none is {experts.ahead} after another; "
                "lower saved_every or ahead, or raise epochs"
            )
        with progress("experts", experts.count * expert_steps(problem), "steps") as advance:
            for number in range(experts.count):
                for _ in train_expert(problem, number):
                    advance(1)

    def set_gradients(self, synthetic: Synthetic, rows: Int[np.ndarray, " b"], *, step: int) -> Row:
        """Returns the normalised distance after the student's steps; real images enter through the experts alone."""
        del rows
        problem, experts = self.problem, self.problem.settings.experts
        draw = np.random.default_rng(derive(problem.seed, "distill", "moment", step))
        expert = int(draw.integers(experts.count))
        moment = int(draw.integers(min(experts.latest, self.moments - experts.ahead) + 1))
        start = read_moment(problem, expert, moment * experts.saved_every)
        goal = read_moment(problem, expert, (moment + experts.ahead) * experts.saved_every)
        gradients = unrolled_gradients(
            self.inner,
            distance_from(start, goal),
            start,
            synthetic.images,
            synthetic.labels,
            synthetic.step_sizes,
            epochs=problem.settings.epochs,
            weights_kept=problem.settings.weights_kept,
        )
        synthetic.set_gradients(gradients.images, gradients.step_sizes)
        return {"loss_before": 1.0, "loss": float(gradients.loss)}  # staying where it is has the distance 1

    def score(self, synthetic: Synthetic) -> Row:
        """Returns loss and accuracy on the held-out images after the student's steps from theta_0."""
        return score_after_steps(self.problem, synthetic)


def distance_from(start: Parameters, goal: Parameters) -> OuterLoss:
    """Makes the squared distance of weights to `goal`, as a share of that of `start`."""
    whole = torch.stack([(start[name] - goal[name]).square().sum() for name in goal]).sum()

    def distance(parameters: Parameters) -> Tensor:
        return torch.stack([(parameters[name] - goal[name]).square().sum() for name in goal]).sum() / whole

    return distance


def expert_steps(problem: Problem) -> int:
    """Returns the steps of one expert: whole batches only, as many as its epochs have."""
    experts, images = problem.settings.experts, len(problem.source.labels)
    return experts.epochs * max(1, images // experts.batch_size)


def expert_batch(problem: Problem, number: int, step: int) -> Int[np.ndarray, " b"]:
    """Returns the rows of an expert's step: a pass through the source in random order, epoch by epoch."""
    size, images = problem.settings.experts.batch_size, len(problem.source.labels)
    epoch, batch = divmod(step, max(1, images // size))
    order = np.random.default_rng(derive(problem.seed, "distill", "expert", number, epoch)).permutation(images)
    return order[batch * size : (batch + 1) * size]


def train_expert(problem: Problem, number: int) -> Iterator[int]:
    """Trains one expert from its last saved moment on; yields the number of each step that was taken."""
    settings, experts, network = problem.settings, problem.settings.experts, problem.initial.network
    inner, total = cross_entropy_of(network), expert_steps(problem) // experts.saved_every * experts.saved_every
    done = max(
        (step for step in range(0, total + 1, experts.saved_every) if _file(problem, number, step).exists()), default=-1
    )
    parameters = read_moment(problem, number, done) if done >= 0 else problem.initial.draw("start", number)
    if done < 0:
        save_moment(problem, number, 0, parameters)
    for step in range(max(done, 0), total):
        images, labels = problem.real(problem.source, expert_batch(problem, number, step))
        if experts.augment and settings.augment:
            generator = torch.Generator().manual_seed(
                derive(problem.seed, "distill", "expert", number, "augment", step)
            )
            images = augment(images, torch.arange(len(images)), settings.augment, generator, len(images))
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        gradients = torch.autograd.grad(inner(leaves, images, labels), tuple(leaves.values()), materialize_grads=True)
        pairs = zip(parameters.items(), gradients, strict=True)
        parameters = {name: value - experts.learning_rate * gradient for (name, value), gradient in pairs}
        if (step + 1) % experts.saved_every == 0:
            if not all(value.isfinite().all() for value in parameters.values()):
                raise DataError("distill: an expert's weights are not finite; lower distill.experts.learning_rate")
            save_moment(problem, number, step + 1, parameters)
        yield step


def _file(problem: Problem, number: int, step: int) -> Path:
    return problem.state / "experts" / f"{number:03d}" / f"step-{step:06d}.safetensors"


def save_moment(problem: Problem, number: int, step: int, parameters: Parameters) -> None:
    """Writes the weights of an expert after some steps, whole or not at all."""
    with replacing(_file(problem, number, step)) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in parameters.items()}, temporary)


def read_moment(problem: Problem, number: int, step: int) -> Parameters:
    """Reads the weights of an expert after some steps, in the order of the network's."""
    path = _file(problem, number, step)
    tensors = read_tensors(path)
    expected = problem.initial.draw("start", number)
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: one.shape for name, one in expected.items()}:
        raise DataError(f"{path} does not fit its network; remove its folder and run: dvc repro distill")
    return {name: tensors[name].to(problem.device) for name in expected}

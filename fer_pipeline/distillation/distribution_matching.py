"""Move synthetic images so that random networks see in them, class by class, the mean of the real ones.

Source: Zhao & Bilen, Dataset Condensation with Distribution Matching (WACV 2023, arXiv:2110.04181), eq. 4 and 5 and
algorithm 1: per outer step a network psi is drawn, each class's real and synthetic images go through the same random
change A, and

    L = sum over classes c of || mean over real x of psi(A(x)) - mean over synthetic s of psi(A(s)) ||^2

is lowered over the images. No network is trained and no step size learned. As in the published code psi is the last
feature map, flattened: after it has been averaged, random networks hardly tell faces apart.

Differences: psi has the architecture of the final training, with group norms where it has batch norms; a real batch
holds all classes, drawn as `balance` says (there, 256 images of each). theta_0 plays no part: psi is always a fresh
draw.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.augmentation import augment
from fer_pipeline.distillation.method import Problem, Row
from fer_pipeline.distillation.start import HELDOUT_DRAWS, Parameters, Synthetic
from fer_pipeline.networks.preprocessing import Inputs


class DistributionMatching:
    """Matches the mean embeddings of each class."""

    has_step_sizes = False

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layer = last_map(problem.fresh.network, problem.preprocessing.size)

    def set_gradients(self, synthetic: Synthetic, rows: Int[np.ndarray, " b"], *, step: int) -> Row:
        """Returns the loss, the mean over `draws` networks."""
        problem, settings = self.problem, self.problem.settings
        real, truth = problem.real(problem.source, rows)
        images, labels = synthetic.images.detach().flatten(0, 1).requires_grad_(), synthetic.labels.flatten()
        losses = []
        for number in range(settings.draws):
            seed = derive(problem.seed, "distill", "augment", step, number)
            loss = self._loss("match", step * settings.draws + number, (real, truth), (images, labels), seed)
            (loss / settings.draws).backward()
            losses.append(float(loss.detach()))
        assert images.grad is not None
        synthetic.set_gradients(images.grad.view_as(synthetic.images))
        return {"loss": float(np.mean(losses))}

    def score(self, synthetic: Synthetic) -> Row:
        """Returns the loss against all held-out images, not augmented, over the same few networks at every look."""
        real = self.problem.real(self.problem.heldout, np.arange(len(self.problem.heldout.labels)))
        images = (synthetic.images.detach().flatten(0, 1), synthetic.labels.flatten())
        with torch.no_grad():
            losses = [float(self._loss("heldout", number, real, images, None)) for number in range(HELDOUT_DRAWS)]
        return {"heldout_loss": float(np.mean(losses))}

    def _loss(
        self,
        kind: str,
        number: int,
        real: tuple[Float[Tensor, "b 3 s s"], Int[Tensor, " b"]],
        synthetic: tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]],
        seed: int | None,
    ) -> Float[Tensor, ""]:
        parameters, augmentation = self.problem.fresh.draw(kind, number), self.problem.settings.augment
        means = []
        for images, labels in (real, synthetic):
            if augmentation and seed is not None:  # a class is a group: real and synthetic change alike
                images = augment(
                    images, labels, augmentation, torch.Generator().manual_seed(seed), self.problem.num_classes
                )
            with torch.set_grad_enabled(images.requires_grad):
                embedded = self._embed(parameters, images)
            means.append(class_means(embedded, labels, self.problem.num_classes))
        present = torch.bincount(real[1], minlength=self.problem.num_classes) > 0
        return (means[0] - means[1])[present].square().sum()

    def _embed(self, parameters: Parameters, images: Inputs) -> Float[Tensor, "n d"]:
        network, found = self.problem.fresh.network, []
        hook = network.get_submodule(self.layer).register_forward_hook(
            lambda module, inputs, output: found.append(output)
        )
        try:
            torch.func.functional_call(network, parameters, (images,))
        finally:
            hook.remove()
        return found[0].flatten(1)


def class_means(embedded: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "c d"]:
    """Returns each class's mean, 0 for one without an image."""
    weights = functional.one_hot(labels, num_classes).to(embedded.dtype)
    return (weights / weights.sum(0).clamp(min=1)).T @ embedded


def last_map(network: nn.Module, size: int) -> str:
    """Returns the name of the module that gives the last feature map with more than one place, as the network runs."""
    names: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: (
                names.append(name) if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1 else None
            )
        )
        for name, module in network.named_modules()
    ]
    device = next(network.parameters()).device
    with torch.no_grad():
        network(torch.zeros(2, 3, size, size, device=device))  # norms refuse a single value
    for hook in hooks:
        hook.remove()
    return names[-1]

"""Create what a distillation starts from: synthetic images, step sizes, and the weights theta_0 of each training.

Source: Wang et al. (arXiv:1811.10959). As in their published code a step size is the softplus of a free number, so that
it stays positive, and images start as standard normal noise in the network's normalised input space. Sections 3.2 and
3.4: a fixed start is one set of weights, a random start a fresh draw per outer step, so that the images serve any draw.
OS-FER (arXiv:2005.08551) eq. 8 has one theta_0 and only calls it an initialization, and its figure 4 shows the images
as pictures for a person's eye. Our theta_0 is by default what the final training starts from; at the network that mined
the source the loss is near zero before the first step, and the images would stay the noise that they began as.

Batch norm: weights from outside and the primitive learner bring running statistics, which stay frozen through all
unrolled steps. Weights drawn at random have none worth freezing, and those of seven odd images are no better, so their
batch norms are replaced by group norms, which have the same scales and shifts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Inputs, Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, initial_network

GAP = 2  # white pixels between the pictures
HELDOUT_DRAWS = 3  # of random weights, the same at every look at held-out images
MAX_GROUPS = 32  # as Wu & He (arXiv:1803.08494)


Parameters = dict[str, Tensor]


def logits_of(model: nn.Module) -> Callable[[Parameters, Tensor], Tensor]:
    """Makes the network a function of its trainable weights; what else it holds (running statistics) stays as it is."""
    return lambda parameters, images: functional_call(model, parameters, (images,))


def trainable(model: nn.Module) -> Parameters:
    """Returns the weights that a training moves, cut from any graph."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


class InitialWeights(NamedTuple):
    """A network in evaluation mode (frozen statistics, no dropout), and the weights theta_0 of the n-th use of it.

    `is_fixed`: every use has the same. Uses of another kind (`start`, `heldout`, `control` …) draw others.
    """

    network: ExpressionNet
    is_fixed: bool
    draw: Callable[[str, int], Parameters]

    def logits(self, parameters: Parameters, images: Inputs, *, batch: int = 256) -> Float[Tensor, "n c"]:
        """Computes class scores, in batches and without gradients."""
        compute = logits_of(self.network)
        with torch.no_grad():
            return torch.cat([compute(parameters, part) for part in images.split(batch)])


def primitive_weights(classifier: Classifier) -> InitialWeights:
    """Starts from the primitive learner."""
    network = classifier.model.requires_grad_(True).eval()
    parameters = trainable(network)
    return InitialWeights(network, True, lambda kind, number: parameters)


def final_weights(
    network: NetworkSettings,
    weights: WeightSettings | None,
    *,
    num_classes: int,
    seed: int,
    first_seed: int | None,
    device: torch.device,
) -> tuple[InitialWeights, Preprocessing]:
    """Starts as a final training does: from the very weights of `first_seed`, or from a fresh draw for every use.

    A fresh draw of a network that has weights from outside is a fresh head, as another seed of that training has.
    """
    own = seed if first_seed is None else first_seed
    first, preprocessing, report = initial_network(network, weights, num_classes=num_classes, seed=own)
    first = first if weights else without_running_statistics(first)
    if not weights and (statistics := [name for name, _ in first.named_buffers() if "running" in name]):
        raise ConfigError(
            f"distill.theta_0 wants random weights without running statistics, {network.name} has {statistics[0]}; "
            "name train_final.weights, or use theta_0: primitive or another network"
        )
    first = first.requires_grad_(True).eval().to(device)
    given, loaded = trainable(first), set(report.loaded if report else ())

    def draw(kind: str, number: int) -> Parameters:
        drawn = build(network, num_classes, derive(seed, "distill", kind, number))
        drawn = trainable((drawn if weights else without_running_statistics(drawn)).to(device))
        return {name: given[name] if name in loaded else value for name, value in drawn.items()}

    is_fixed = first_seed is not None
    return InitialWeights(first, is_fixed, (lambda kind, number: given) if is_fixed else draw), preprocessing


def without_running_statistics(network: ExpressionNet) -> ExpressionNet:
    """Replaces the batch norms of a network by group norms, in place; scales and shifts begin as 1 and 0 in both."""
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm):
            channels = module.num_features
            norm = nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels, eps=module.eps, affine=module.affine)
            network.set_submodule(name, norm)
    return network


@dataclass(frozen=True)
class Synthetic:
    """What a distillation learns. The tensors are changed in place by the outer optimiser."""

    images: Tensor  # [steps n 3 h w], normalised
    raw_sizes: Tensor  # [steps]
    labels: Tensor  # [steps n], fixed

    @property
    def step_sizes(self) -> Float[Tensor, " steps"]:
        return functional.softplus(self.raw_sizes.detach())

    def set_gradients(self, images: Tensor, step_sizes: Tensor | None = None) -> None:
        """Sets what the outer optimiser goes by, from gradients by images and step sizes (None: they do not move)."""
        self.images.grad = images
        self.raw_sizes.grad = None if step_sizes is None else step_sizes * torch.sigmoid(self.raw_sizes.detach())


def start_synthetic(
    settings: DistillSettings, source: Source, preprocessing: Preprocessing, *, seed: int, device: torch.device
) -> Synthetic:
    """Creates the tensors before the first outer step; every step has class 0 `per_class` times, then class 1, …"""
    classes = torch.arange(len(source.classes)).repeat_interleave(settings.per_class)
    labels = classes.expand(settings.steps, -1).contiguous()
    generator = torch.Generator().manual_seed(derive(seed, "distill", "noise"))
    images = torch.randn((*labels.shape, 3, preprocessing.size, preprocessing.size), generator=generator)
    draw = np.random.default_rng(derive(seed, "distill", "real"))
    for index in range(len(source.classes)) if settings.start == "real" else ():
        rows, members = np.flatnonzero(source.labels == index), labels == index
        if len(rows):  # a class without an image starts as noise
            count = int(members.sum())
            chosen = draw.choice(rows, size=count, replace=len(rows) < count)
            images[members] = preprocessing.apply(source.images(chosen))
    inverse_softplus = settings.step_size + float(np.log(-np.expm1(-settings.step_size)))
    sizes = torch.full((settings.steps,), inverse_softplus)
    return Synthetic(images=images.to(device), raw_sizes=sizes.to(device), labels=labels.to(device))


def write_previews(
    folder: Path, images: Float32[np.ndarray, "steps n 3 h w"], *, classes: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Writes `grid.png` (a row a step, columns by class) and `<class>.png` (a row a step, the class's images)."""
    pixels = preprocessing.restore(torch.from_numpy(images).flatten(0, 1)).unflatten(0, images.shape[:2]).numpy()
    parts = dict(zip(classes, np.split(pixels, len(classes), axis=1), strict=True))
    for name, pictures in {"grid": pixels, **parts}.items():
        padded = np.pad(pictures, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        rows, columns, height, width, _ = padded.shape
        joined = padded.swapaxes(1, 2).reshape(rows * height, columns * width, 3)[:-GAP, :-GAP]
        with replacing(folder / f"{name}.png") as temporary:
            Image.fromarray(joined).save(temporary, "PNG")

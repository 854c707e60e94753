"""Learn a linear head on frozen features: class-balanced multinomial logistic regression, solved to convergence.

Source: Kornblith et al. (arXiv:1805.08974), appendix A.2: L2-regularised regression by L-BFGS on the features of a
network that was trained elsewhere, its strength chosen on data that was left out. The convention is scikit-learn's:
minimise C * sum_i v_i CE(y_i, W z_i + b) + |W|^2 / 2 with v_i = n / (classes * faces of y_i) and z the standardised
features (mean 0, deviation 1 on the faces that are learned), those of a stage or of a joined network divided by the
root of their number: without it the seven opinions of an expression network drown in the thousands of a map. C is the
one of `strengths` with the lowest log-loss, averaged over the faces of a class and then over the classes, in a
cross-validation of the labelled set with every person in one fold; among equals the smallest. Mined faces are learned
in every fold and measured in none.

With `mining_features`, the stages that a labeller mines by are chosen too: of the listed sets of features that with the
best precision of nearest centroids (arXiv:2005.08551, eq. 4 and 5) in the same folds, averaged over the classes (0 for
one that nothing is nearest to); among equals the first. Only frozen features can be compared so: a layer that was
trained on these faces looks better on them than it is, and a head on it overfits to them. Nothing is cross-fitted here,
so that weights of a checkpoint of ours that learned from the very folder of a source are refused.

All sums are in float64. The standardisation is folded into the head, so that the network is like any other: W' = W / s,
b' = b - W' m. What differs from the source: the classes count alike, and a feature that is constant to the precision
of float32 is left unscaled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field, PositiveFloat, field_validator
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.settings import Grids
from fer_pipeline.networks.weights import own_card
from fer_pipeline.training.batches import LABELLED, Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.images import free_memory
from fer_pipeline.training.losses import balancing_weights
from fer_pipeline.training.settings import ModelSettings, TrainingSettings
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

DRAWS = False  # the solution is the one minimum, and the folds are the persons'
MOST_STEPS = 20_000  # of L-BFGS
TOLERANCE = 1e-7  # of the largest entry of the gradient of the mean loss
SAME = 1e-6  # relative deviation below which a feature is constant: some steps of float32
COPIES = 4  # of the features in float64 that are held at once


class Options(Settings):
    strengths: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
        3.0,
        10.0,
    )  # C, to try
    folds: Annotated[int, Field(ge=2)] = 5  # of the cross-validation
    mining_features: tuple[
        Grids | None, ...
    ] = ()  # sets to choose from what is mined by; null: the head's; none: no choice
    flip: bool = False  # learn from the mean of the features of a face and of its mirror image

    @field_validator("strengths")
    @classmethod
    def _rise(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(strengths)):
            raise ValueError("strengths must rise")
        return strengths


def sources(options: Options) -> dict[str, Source]:
    return {"labelled": Faces(required=True), "mined": Faces("pseudo_label")}


Config = TypeVar("Config", bound=ModelSettings)


def settle(config: Config) -> Config:
    """Returns the settings with those that a head without gradient steps cannot use at what they amount to here."""
    if config.weights is None and not config.network.members:
        raise ConfigError("the strategy linear learns a head alone, on features of loaded weights: set weights")
    if config.network.feature_dim is not None:
        raise ConfigError("network.feature_dim adds a layer that the strategy linear would not train; set it to null")
    if config.network.dropout:
        raise ConfigError("network.dropout has no effect with the strategy linear; set it to 0")
    training = TrainingSettings.without_steps(config.training.threads)
    return config.model_copy(update={"training": training})


class Linear(Strategy):
    used_settings = frozenset({"threads"})
    losses: Tensor
    precisions: Tensor

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        if (card := own_card(context.weights)) and (seen := set(card.data.values()) & set(context.data.values())):
            names = ", ".join(name for name, sha256 in context.data.items() if sha256 in seen)
            raise ConfigError(
                f"the weights {context.weights} have learned from the very faces of the source {names}, and a head on "
                "their features would overfit to them; start from weights that were trained on other faces"
            )
        self.options, self.num_classes = options, context.num_classes
        self.size = context.augmentation.preprocessing.size
        self.network = context.network().requires_grad_(False)
        self.network.head.requires_grad_(True)
        self.register_buffer("losses", torch.zeros(len(options.strengths), dtype=torch.float64))
        self.register_buffer("precisions", torch.zeros(len(options.mining_features), dtype=torch.float64))
        self.register_buffer("left_out", torch.zeros((), dtype=torch.int64))

    def phases(self) -> Sequence[Phase]:
        return [Phase("solve", {"main": Optimization(self.network.head)}, steps=1)]

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """Solves for the head on all faces of the streams; the batches are not looked at."""
        x, labels = self._features(run, [name for name in LABELLED if name in run.streams])
        labelled = run.streams["labelled"].set
        groups, folds = group_numbers(labelled.subjects), self.options.folds
        if groups.max() + 1 < folds:
            raise DataError(
                f"the labelled set shows {groups.max() + 1} persons, fewer than the {folds} folds of the "
                "cross-validation; lower the option folds"
            )
        units = block_units(self.network.widths)
        losses, left_out = cross_validate(
            x, labels, groups, strengths=self.options.strengths, folds=folds, units=units, rest=lambda: run.advance(0)
        )
        self.losses.copy_(losses)
        self.get_buffer("left_out").fill_(left_out)
        for number, grids in enumerate(self.options.mining_features):
            mined_by = self._features(run, ["labelled"], grids)[0]
            self.precisions[number] = centroid_precision(mined_by, labels[: len(groups)], groups, folds=folds)
            run.advance(0)
        mean, deviation = standardisation(x, units)
        z, axes = coordinates((x - mean) / deviation)
        solution = solve(z, labels, self.num_classes, strength=self._strength)
        weight = solution[:, :-1] @ axes.T / deviation
        bias = solution[:, -1] - weight @ mean
        with torch.no_grad():
            self.network.head.weight.copy_(weight)
            self.network.head.bias.copy_(bias)
        own = slice(len(labelled))
        loss = functional.cross_entropy(x[own] @ weight.T + bias, labels[own]).to(run.worker.device)
        return {"loss": loss, "labelled": loss}

    def facts(self) -> dict[str, Any]:
        tried = [list(pair) for pair in zip(self.options.strengths, self.losses.tolist(), strict=True)]
        left_out = int(self.get_buffer("left_out"))
        facts = {"strength": self._strength, "log_loss_of_strengths": tried, "not_validated": left_out}
        if sets := self.options.mining_features:
            table = [list(pair) for pair in zip(sets, self.precisions.tolist(), strict=True)]
            facts |= {"mining_precision": table, "mining_features": sets[int(self.precisions.argmax())]}
        return facts

    def notes(self) -> list[str]:
        notes, tried, left_out = [], self.options.strengths, int(self.get_buffer("left_out"))
        if len(tried) > 1 and self._strength in (tried[0], tried[-1]):
            end = "smallest" if self._strength == tried[0] else "largest"
            notes.append(f"the {end} strength, {self._strength:g}, was the best; try {end[:-3]}er ones as well")
        if left_out:
            notes.append(f"{left_out:,} faces chose no strength: all others of their class were in the same fold")
        return notes

    @property
    def _strength(self) -> float:
        return self.options.strengths[int(self.losses.argmin())]

    @torch.inference_mode()
    def _width(self, grids: Grids | None) -> int:
        if grids is None:
            return self.network.feature_dim
        image = torch.zeros(1, 3, self.size, self.size, device=self.network.head.weight.device)
        return self.network.eval().pooled(image, grids).shape[1]

    def _features(
        self, run: StepContext, names: Sequence[str], grids: Grids | None = None
    ) -> tuple[Float64[Tensor, "n d"], Int64[Tensor, " n"]]:
        """The features of the faces of some streams, those of the head or of other stages, and the labels."""
        sets = [run.streams[name].set for name in names]

        def compute(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
            if grids is not None:
                return self.network.pooled(x, grids)
            features = self.network.features(x)
            return (features + self.network.features(x.flip(3))) / 2 if self.options.flip else features

        faces = sum(map(len, sets))
        width = self._width(grids)
        needed, free = faces * width * 8 * COPIES, free_memory()
        if needed > free:
            raise DataError(
                f"the features of {faces:,} faces, {width:,} each, want {needed / 2**30:.1f} GiB of memory, and "
                f"{free / 2**30:.1f} are free; take coarser grids in network.features or fewer mined faces"
            )
        x = torch.cat([run.compute(name, self.network, compute, width).double() for name in names])
        if not x.isfinite().all():
            raise DataError("the features of some faces are NaN or infinite; check weights and network.normalisation")
        return x, torch.cat([one.labels for one in sets])


def group_numbers(subjects: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Returns the number of each face's person; a face without one is a person of its own."""
    names = [subject or f"\x00{index}" for index, subject in enumerate(subjects.tolist())]
    return np.unique(names, return_inverse=True)[1]


def block_units(widths: Sequence[int]) -> Float64[Tensor, " d"]:
    """Returns for every feature the root of how many its block has."""
    sizes = torch.tensor(widths, dtype=torch.float64)
    return sizes.sqrt().repeat_interleave(torch.tensor(widths))


def standardisation(
    x: Float64[Tensor, "n d"], units: Float64[Tensor, " d"] | None = None
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Returns the mean of every feature and what it is divided by: its deviation (1 if constant) times its unit."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > SAME * mean.abs(), deviation, 1.0)
    return mean, deviation if units is None else deviation * units


def coordinates(z: Float64[Tensor, "n d"]) -> tuple[Float64[Tensor, "n r"], Float64[Tensor, "d r"]]:
    """Returns points in orthonormal coordinates of the space that they span, and its axes.

    The regression is the same there, and its steps are shorter where there are fewer faces than features.
    """
    axes, z = torch.linalg.qr(z.T)
    return z.T.contiguous(), axes


def cross_validate(
    x: Float64[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    groups: Int64[np.ndarray, " n"],
    *,
    strengths: Sequence[float],
    folds: int,
    units: Float64[Tensor, " d"] | None = None,
    rest: Callable[[], None] = lambda: None,
) -> tuple[Float64[Tensor, " k"], int]:
    """Returns the log-loss of every strength, averaged by class, and how many faces no fold could be measured on.

    The first n faces, which have a group each, are divided into folds; the others are learned in each. A face whose
    class is in no other fold costs every strength the same and is left out. `rest` is called between two solutions.
    """
    own = len(groups)
    losses = torch.full((len(strengths), own), math.nan, dtype=torch.float64)
    for fit, test in GroupKFold(folds).split(np.zeros(own), groups=groups):
        rows = torch.from_numpy(np.concatenate([fit, np.arange(own, len(x))]))
        present, numbers = labels[rows].unique(return_inverse=True)
        mean, deviation = standardisation(x[rows], units)
        learned, axes = coordinates((x[rows] - mean) / deviation)
        measured = (x[test] - mean) / deviation @ axes
        known = torch.isin(labels[test], present)
        wanted = torch.searchsorted(present, labels[test][known])
        solution = None
        for number, strength in enumerate(strengths):  # each from the last one's solution, which is near
            solution = solve(learned, numbers, len(present), strength=strength, start=solution)
            logits = measured[known] @ solution[:, :-1].T + solution[:, -1]
            losses[number, torch.from_numpy(test)[known]] = functional.cross_entropy(logits, wanted, reduction="none")
            rest()
    members = [losses[:, labels[:own] == label].nanmean(1) for label in labels[:own].unique()]
    return torch.stack(members).nanmean(0), int(losses[0].isnan().sum())


def centroid_precision(
    x: Float64[Tensor, "n d"], labels: Int64[Tensor, " n"], groups: Int64[np.ndarray, " n"], *, folds: int
) -> float:
    """Returns the precision of the nearest centroid by cosine, averaged over the classes, with persons in one fold."""
    nearest, directions = torch.empty_like(labels), functional.normalize(x, dim=1)
    for fit, test in GroupKFold(folds).split(np.zeros(len(x)), groups=groups):
        present, numbers = labels[fit].unique(return_inverse=True)
        centroids = torch.stack([x[fit][numbers == number].mean(0) for number in range(len(present))])
        nearest[test] = present[(directions[test] @ functional.normalize(centroids, dim=1).T).argmax(1)]
    classes = labels.unique()
    right = [((nearest == k) & (labels == k)).sum().double() / (nearest == k).sum().clamp(min=1) for k in classes]
    return float(torch.stack(right).mean())


def solve(
    z: Float64[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    strength: float,
    start: Float64[Tensor, "c e"] | None = None,
) -> Float64[Tensor, "c e"]:
    """Returns weights and, as the last column, biases of the regression; a PipelineError where it does not converge.

    Every class must have a face. What is minimised is the objective of the module divided by C * sum_i v_i.
    """
    shape = (num_classes, z.shape[1] + 1)
    weights = balancing_weights(np.bincount(labels.numpy(), minlength=num_classes)).double()[labels]
    weights /= weights.sum()
    decay = 1 / (strength * len(z))
    truth = functional.one_hot(labels, num_classes).double()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat).view(shape)
        log_p = functional.log_softmax(z @ w[:, :-1].T + w[:, -1], dim=1)
        value = -(weights @ (truth * log_p).sum(1)) + decay / 2 * w[:, :-1].square().sum()
        residual = weights[:, None] * (log_p.exp() - truth)
        gradient = torch.cat([residual.T @ z + decay * w[:, :-1], residual.sum(0)[:, None]], dim=1)
        return float(value), gradient.flatten().numpy()

    first = np.zeros(math.prod(shape)) if start is None else start.flatten().numpy()
    options = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": 20}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    if np.abs(found.jac).max() > 10 * TOLERANCE:
        raise PipelineError(
            f"the regression of strength {strength:g} did not converge in {found.nit:,} steps; take it out of strengths"
        )
    return torch.from_numpy(found.x).view(shape)


build = Linear

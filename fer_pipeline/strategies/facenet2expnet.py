"""Train an expression net to make a face net's maps first, and then to tell expressions (FaceNet2ExpNet).

Source: Ding, Zhou & Chellappa (FG 2017), section III B, eq. 4 with p = 2, and eq. 5. In the first part the layers up to
a map learn by regression onto a map of a frozen face net, which sees the same views with a preprocessing of its own; no
label is used. In the second part everything is trained with cross-entropy; the layers after the map are drawn from a
Gaussian.

The scale of eq. 4 is that of Caffe's Euclidean loss, in which the paper's learning rates are written: half the squared
distance, summed over all units of the map, in the mean over the faces. A mean over the units, 25,088 in the paper,
would make the published `rate` 12,544 times too small, and nothing would be learned.

The face net is that of the source `face`, models of another recipe (which is how it is fine-tuned on the same training
part, as the paper has it), or the network `face` with `face_weights`. Which map, of either network, is a matter of
their settings: `features: {stage5: 7}` names a stage, whose map is averaged to that grid; without it the last stage's
map is taken whole. Maps of other channels than the face net's get a 1 x 1 convolution, smaller ones a transposed
convolution, larger ones are averaged; these layers serve the first part alone.

The paper's recipe: network {name: expnet, size: 224, feature_dim: 256, dropout: 0.5}, face {name: vgg16, size: 224,
features: {stage5: 7}}, 300 epochs of the first part, then 50 at 1e-4, a tenth of it after 20; batch 64. "Decrease it
after 100 epochs" is read as once, as in the second part. Not stated: the factor after `rate_every` epochs (here 0.1),
the Gaussian's deviation (0.01, Caffe's custom), a weight decay (none in the first part). What differs: the random crop
of 224 from 256 px is `training.augment.translate`.

Unlabelled faces, where a recipe has some, are beside the labelled ones in the first part alone (the paper has
expression images only); mined ones share the labelled batch in both. The history has the distance, and what share of
the squared sum of the face net's maps it is.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.model import ExpressionNet, stages_of
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, check_fit
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import LABELLED, Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.fit import length
from fer_pipeline.training.losses import weighted_mean
from fer_pipeline.training.settings import ModelSettings, Sgd, Step
from fer_pipeline.training.sources import Checkpoints, Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

FIRST, SECOND = "regression", "classification"


class Options(Settings):
    face: NetworkSettings = NetworkSettings()  # the frozen face net, where no source `face` is named
    face_weights: WeightSettings | None = None  # of it
    first_epochs: Annotated[int, Field(ge=0)] | None = None  # of the regression; null: as many as the training's
    rate: PositiveFloat = 1e-7  # the learning rate of the regression
    rate_every: PositiveFloat = 100  # epochs after which it falls to a tenth, once
    deviation: PositiveFloat = 0.01  # of the layers after the map, at the beginning of the second part
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 1.0  # unlabelled faces a step, as a multiple of the batch


def sources(options: Options) -> dict[str, Source]:
    return {
        "labelled": Faces(required=True),
        "face": Checkpoints(one=True),
        "unlabelled": Faces(None),
        "mined": Faces("pseudo_label"),
    }


def check(config: ModelSettings, options: Options, sources: Collection[str], classes: Sequence[str]) -> None:
    """Refuses a recipe with no face net or with two, and maps that are none."""
    if "face" not in sources and options.face_weights is None:
        raise ConfigError("no face net to learn from: set the option face_weights, or name models in the source face")
    if "face" in sources and (options.face_weights is not None or options.face != NetworkSettings()):
        raise ConfigError("two face nets: leave out the source face, or the options face and face_weights")
    if options.face_weights is not None:
        check_fit(options.face_weights, options.face)
    for place, network in (("network", config.network), ("the option face", options.face)):
        if len(network.features or "1") > 1 or network.members:
            raise ConfigError(
                f"{place}: one stage gives the map, {{stage: grid}}; name one in features, and no members"
            )


def stage_map(network: ExpressionNet, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n c h w"]:
    """The map that a network's settings name, averaged to its grid; without one the last stage's."""
    grids = network.grids or {}
    stage = next(iter(grids), stages_of(network.backbone)[-1])
    found = cast(Any, network.backbone).feature_maps(x, last=stage)[stage]
    return functional.adaptive_avg_pool2d(found, grids[stage]) if grids else found


class Adapter(nn.Module):
    """Brings a map to the channels and the side of another, where it has not."""

    def __init__(self, own: torch.Size, wanted: torch.Size) -> None:
        super().__init__()
        self.side = wanted[-1]
        self.bridge = nn.Identity() if own[1] == wanted[1] else nn.Conv2d(own[1], wanted[1], 1)
        ratio = math.ceil(self.side / own[-1])
        self.enlarge = nn.ConvTranspose2d(wanted[1], wanted[1], ratio, ratio) if ratio > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o s s"]:
        return functional.adaptive_avg_pool2d(self.enlarge(self.bridge(x)), self.side)


def euclidean_loss(found: Float[Tensor, "n c h w"], wanted: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Half the squared distance of each map from what is wanted; its mean is Caffe's Euclidean loss."""
    return (found.float() - wanted.float()).square().flatten(1).sum(1) / 2


class FaceNet2ExpNet(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()
        loaded = context.trained("face") or context.other_network("face", options.face, options.face_weights)
        # No module of this one: what is frozen is in its file, and no state need repeat it.
        self._face: tuple[ExpressionNet, Augmentation] = (loaded[0].requires_grad_(False).eval(), loaded[1])
        pairs = ((self.network, context.augmentation), self._face)
        self.adapter = Adapter(*(_shape(network, view) for network, view in pairs))
        for layer in (*self.network.neck.children(), self.network.head):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=options.deviation)
                nn.init.zeros_(layer.bias)

    def phases(self) -> Sequence[Phase]:
        own, per_epoch = length(self.context.settings, self.context.images["labelled"])
        epochs = self.options.first_epochs
        parts = nn.ModuleList([self.network.backbone, self.adapter])
        optimizer = Sgd(learning_rate=self.options.rate, momentum=0.9, weight_decay=0.0)
        plan = Optimization(parts, optimizer, Step(name="step", every=self.options.rate_every, factor=0.1, falls=1))
        return [
            Phase(FIRST, {"main": plan}, steps=own if epochs is None else epochs * per_epoch),
            Phase(SECOND, {"main": Optimization(self.network)}, streams=LABELLED),
        ]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        sizes = divide_batch(batch, images, LABELLED)
        if "unlabelled" in images:
            sizes["unlabelled"] = max(1, round(batch * self.options.unlabelled_ratio))
        return sizes

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update by the distance of maps, or by cross-entropy."""
        return self._regress(batches, run) if run.phase == FIRST else self._classify(batches, run)

    def _regress(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        face, view = self._face[0].to(run.worker.device), self._face[1]
        names, draws = list(batches), self.context.augmentation
        # Both see the same random views: equal draws, each in its own preprocessing.
        own, others = (
            torch.cat([one.random(batches[name].images, run.generator("augment", name)) for name in names]).contiguous(
                memory_format=torch.channels_last
            )
            for one in (draws, view)
        )
        with torch.no_grad():
            wanted = stage_map(face, others)
        values = euclidean_loss(self.adapter(stage_map(self.network, own)), wanted)
        loss = weighted_mean(values)
        run.update(loss)
        parts = loss.detach(), weighted_mean(euclidean_loss(torch.zeros_like(wanted), wanted))
        own, zero = (run.worker.mean(part) for part in parts)  # a ratio of means is no mean of ratios
        return {"loss": loss, "distance": loss, "share_of_map": own / zero.clamp(min=1e-12)}

    def _classify(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        total, losses = self.context.pooled_loss(self.network, batches, run)
        run.update(total)
        return {"loss": total, **losses}


@torch.no_grad()
def _shape(network: ExpressionNet, view: Augmentation) -> torch.Size:
    if not stages_of(network.backbone):
        raise ConfigError("a network without stages has no maps to learn from or by; choose another")
    modes = {module: module.training for module in network.modules()}
    network.eval()
    side = view.preprocessing.size
    shape = stage_map(network, torch.zeros(1, 3, side, side, device=network.head.weight.device)).shape
    for module, training in modes.items():
        module.training = training
    return shape


build = FaceNet2ExpNet

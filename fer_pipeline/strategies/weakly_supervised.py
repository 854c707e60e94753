"""Train with smoothed labels, then on targets of the network's own, with confident pool faces in the labelled set.

Source: Happy, Dantcheva & Bremond 2019 (Pattern Recognition Letters 128), eq. 2 to 5. In the first part labels are
smoothed: 1 - `smoothing` for the true class and `smoothing` / (K - 1) for every other (eq. 2). In the second part, at
the beginning of every epoch, the network predicts all faces as they are. The share `replaced` of the labelled set,
drawn at random, gives way to as many pool faces, drawn from those with a probability above `threshold` (eq. 3; all,
where there are fewer, and the model's card says so); their target is the predicted distribution. The target of a
labelled face is the predicted distribution too if that is right with a probability above `alpha` (eq. 4), else `alpha`
for the true class and (1 - `alpha`) / (K - 1) for every other (eq. 5).

A part ends where the validation's figure (`training.monitor`), averaged over the last `window` epochs of the part, is
lower than it was an epoch before; the paper writes "increasing" of the accuracy and must mean that. The epoch with the
highest average in the second part is kept, of those that have a whole window; where none has, the last.

What differs from the paper: it does not say how long the first part is ("until adequate performance"). Here both parts
together are as long as the training's settings say, the first part `first_epochs`, or at most half. With
`training.until` each part may be as long as that rule allows. Learning rates and optimisers begin anew with the second
part. The paper's pool on FER2013 is the test split; here no test split is ever a pool. Only the last convolution and
the layers after it are trained there: `training.frozen_until`, which goes by stages. With class weights a pool face has
that of its likeliest class.

Mined faces, where a recipe has some, are more labelled faces: they share the batch by the sizes of the sets, and are
replaced and get targets like these. With `replaced: 0`, `smoothing: 0`, `alpha: 1`, one part alone (`first_epochs: 0`)
that its rule does not end and `select: last` the network is that of the supervised strategy, bit for bit.

The history of the second part has the share of the pool with a probability above `threshold` (`confident`), that of the
labelled batch that pool faces have replaced (`replaced`), that of the labelled set whose targets eq. 5 has set
(`set_right`) and, where the truth of some of the replacing faces is known, in how many of these it is the likeliest
class (`right`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings
from fer_pipeline.training.batches import LABELLED, Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.fit import length
from fer_pipeline.training.losses import smoothed_cross_entropy, soft_cross_entropy, weighted_mean
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

Share = Annotated[float, Field(ge=0, le=1)]


class Options(Settings):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1  # epsilon of eq. 2, in the first part
    threshold: Share = 0.7  # tau of eq. 3
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.7  # of eq. 4 and 5
    replaced: Share = 0.1  # of the labelled set, in every epoch of the second part
    first_epochs: Annotated[int, Field(ge=0)] | None = None  # null: until the validation falls, at most half
    window: Annotated[int, Field(ge=1)] = 5  # epochs that the validation is averaged over


def sources(options: Options) -> dict[str, Source]:
    return {"labelled": Faces(required=True), "unlabelled": Faces(None, required=True), "mined": Faces("pseudo_label")}


def kept_confident(
    p: Float[Tensor, "n c"], labels: Int64[Tensor, " n"], *, alpha: float
) -> tuple[Float[Tensor, "n c"], Bool[Tensor, " n"]]:
    """Returns the targets of labelled faces (eq. 4 and 5) from their predictions, and which ones eq. 5 has set."""
    confidence, predicted = p.max(1)
    right = (predicted == labels) & (confidence > alpha)
    set_right = torch.full_like(p, (1 - alpha) / (p.shape[1] - 1))
    set_right.scatter_(1, labels.unsqueeze(1), alpha)
    return torch.where(right.unsqueeze(1), p, set_right), ~right


def has_fallen(values: Float[Tensor, " k"]) -> bool:
    """Says whether the mean of the last k - 1 values is below that of the k - 1 before the last; not with a NaN."""
    return bool(values[-1] < values[0])  # all others are in both means


class WeaklySupervised(Strategy):
    values: Tensor
    second: Tensor
    short: Tensor

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()
        self.names = [name for name in LABELLED if name in context.images]
        self.register_buffer("second", torch.tensor(False))  # whether the last epoch was of the second part
        self.register_buffer("values", torch.full((options.window + 1,), math.nan, dtype=torch.float64))
        self.register_buffer(
            "short", torch.zeros((), dtype=torch.int64)
        )  # epochs with fewer confident faces than wanted
        # What an epoch of the second part begins with is made from the weights, so that no state needs it.
        self._targets: dict[str, Tensor] = {}
        self._guests: dict[str, Tensor] = {}  # of each labelled row: the pool row in its place, or -1
        self._found: dict[str, Tensor] = {}

    def phases(self) -> Sequence[Phase]:
        first = self.options.first_epochs
        plan = {"main": Optimization(self.network)}
        if self.context.settings.until:
            return [*([] if first == 0 else [Phase("first", plan, epochs=first)]), Phase("second", plan)]
        total, per_epoch = length(self.context.settings, self.context.images["labelled"])
        half = math.ceil(total / per_epoch) // 2
        steps = min(total, per_epoch * (half if first is None else first))
        return [Phase(name, plan, steps=n) for name, n in (("first", steps), ("second", total - steps)) if n]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int | None]:
        return {**divide_batch(batch, images, LABELLED), "unlabelled": None}

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update by the labelled faces, in the second part with pool faces among them and targets for all."""
        second = run.phase == "second"
        if second and run.phase_step % run.steps_per_epoch == 0:
            self._begin_epoch(run)
        device = run.worker.device
        rows = {name: batches[name].rows for name in self.names}
        guests = {name: self._guests[name][rows[name]] if second else torch.full_like(rows[name], -1) for name in rows}
        guest = torch.cat([guests[name] >= 0 for name in self.names]).to(device)
        inputs = torch.cat([self._view(name, batches[name], guests[name], run) for name in self.names])
        logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
        labels = torch.cat([batches[name].labels for name in self.names])
        if second:
            targets = torch.cat([self._targets[name][rows[name]] for name in self.names]).to(device)
            labels = torch.where(guest, targets.argmax(1), labels)
            values = soft_cross_entropy(logits, targets)
        else:
            values = smoothed_cross_entropy(logits, labels, smoothing=self.options.smoothing)
        parts = labels.split([len(rows[name]) for name in self.names])
        weights = torch.cat(
            [self.context.label_weights(name, part) for name, part in zip(self.names, parts, strict=True)]
        )
        total = weighted_mean(values, weights)
        run.update(total)
        own = torch.arange(len(labels), device=device) < len(rows["labelled"])
        found = {"loss": total, "labelled": weighted_mean(values, weights * (own & ~guest))}
        if "mined" in rows:
            found["mined"] = weighted_mean(values, weights * (~own & ~guest))
        if second:
            found |= {"replaced": weighted_mean(guest.float()), **self._found}
        return found

    def _view(self, name: str, batch: Batch, guests: Int64[Tensor, " n"], run: StepContext) -> Tensor:
        """Random views of a batch, with pool faces in the place of some."""
        if (places := guests >= 0).any():
            images = batch.images.clone()
            images[places.to(images.device)] = run.pixels("unlabelled", guests[places])
            batch = replace(batch, images=images)
        return self.context.random_view(batch, run.generator("augment", name))

    def _begin_epoch(self, run: StepContext) -> None:
        """Predicts all faces, makes the targets of the epoch, and draws what is replaced by what."""
        first = {name: tuple(run.pixels(name, torch.zeros(1, dtype=torch.int64)).shape[1:3]) for name in run.streams}
        if len(set(first.values())) > 1:
            raise DataError(f"the crops of the sources have different sizes, {first}; align them with one crop size")
        pool = run.predict("unlabelled", self.network)
        confident = torch.nonzero(pool.max(1).values > self.options.threshold).squeeze(1)
        random = np.random.default_rng(derive(run.seed, "replaced", run.step))
        waiting = confident[torch.from_numpy(random.permutation(len(confident)))]
        taken, wanted_in_all, set_right = [], 0, {}
        for name in self.names:
            labels = run.streams[name].set.labels
            targets, set_right[name] = kept_confident(run.predict(name, self.network), labels, alpha=self.options.alpha)
            wanted = round(self.options.replaced * len(labels))
            chosen, waiting = waiting[:wanted], waiting[wanted:]
            places = torch.from_numpy(random.permutation(len(labels))[: len(chosen)])
            guests = torch.full((len(labels),), -1)
            guests[places], targets[places] = chosen, pool[chosen]
            self._targets[name], self._guests[name] = targets, guests
            taken.append(chosen)
            wanted_in_all += wanted
        everything = torch.cat(taken)
        self.short += len(everything) < wanted_in_all
        self._found = {
            "confident": torch.tensor(len(confident) / len(pool)),
            "set_right": set_right["labelled"].float().mean(),
        }
        truth = run.streams["unlabelled"].set.truth
        if truth is not None and (known := everything[truth[everything] >= 0]).numel():
            self._found["right"] = (pool[known].argmax(1) == truth[known]).float().mean()
        self._found = {name: value.to(run.worker.device) for name, value in self._found.items()}

    def end_epoch(self, run: StepContext, validation: Mapping[str, float]) -> bool:
        """Ends a part by its rule; the first not where its length is set."""
        self.second.fill_(run.phase == "second")
        if run.epoch == 0:
            self.values.fill_(math.nan)
        if not validation:
            return False
        figure = validation[self.context.settings.monitor]
        self.values.copy_(self.values.roll(-1))
        self.values[-1] = -figure if self.context.settings.monitor == "loss" else figure
        return has_fallen(self.values) and (bool(self.second) or self.options.first_epochs is None)

    def chosen_by(self, validation: Mapping[str, float]) -> Mapping[str, float] | None:
        if not self.second:
            return validation
        if self.values[1:].isnan().any():
            return None
        mean = float(self.values[1:].mean())
        return {**validation, self.context.settings.monitor: abs(mean)}

    def notes(self) -> list[str]:
        notes = []
        if short := int(self.short):
            notes.append(
                f"in {short} epochs fewer pool faces than wanted were surer than {self.options.threshold:g}, and all "
                "of them were taken; lower the option threshold or replaced"
            )
        if self.values.isnan().all():
            notes.append("without validation faces no part ended by its rule; train_final.validation sets some aside")
        elif self.second and self.values[1:].isnan().any() and self.context.settings.select == "best":
            notes.append(
                f"the second part was shorter than the window of {self.options.window} epochs: its last was kept"
            )
        return notes


build = WeaklySupervised

"""Define the settings of a training that every strategy shares, refused where they contradict each other."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.settings import NetworkSettings, is_none
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.training.label_noise import LabelNoise

Share = Annotated[float, Field(ge=0, le=1)]


class Sgd(Settings):
    name: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(Settings):
    name: Literal["adam", "adamw"]
    learning_rate: PositiveFloat = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0


class Constant(Settings):
    """The learning rate as it is, after a linear warm-up."""

    name: Literal["constant"]
    warmup_epochs: NonNegativeFloat = 0.0


class Cosine(Settings):
    """Half a cosine from the learning rate down to `floor` times it, after a linear warm-up."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: NonNegativeFloat = 0.0
    floor: Share = 0.0


class Step(Settings):
    """The learning rate times `factor` every `every` epochs, `falls` times at most, after a linear warm-up."""

    name: Literal["step"]
    warmup_epochs: NonNegativeFloat = 0.0
    every: PositiveFloat = 10
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    falls: Annotated[int | None, Field(ge=1, exclude_if=is_none)] = None  # null: no limit


def _named(name: str) -> BeforeValidator:
    return BeforeValidator(lambda value: {"name": name, **value} if isinstance(value, dict) else value)


Optimizer = Annotated[Annotated[Sgd | Adam, Field(discriminator="name")], _named("sgd")]
Schedule = Annotated[Annotated[Cosine | Step | Constant, Field(discriminator="name")], _named("cosine")]


class AugmentSettings(Settings):
    """What happens to a training image; every amount is drawn anew for each image and step."""

    flip: Share = 0.5  # probability
    translate: Annotated[float, Field(ge=0, lt=0.5)] = 0.08  # largest shift as a share of the side, mirrored border
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0  # largest angle in degrees
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0  # scales between 1 - zoom and 1 + zoom
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0  # factors between 1 - x and 1 + x
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    grey: Share = 0.0  # probability
    erase: Share = 0.0  # probability
    erase_area: tuple[Share, Share] = (0.02, 0.2)  # of the image

    @model_validator(mode="after")
    def _area_rises(self) -> "AugmentSettings":
        if self.erase_area[0] > self.erase_area[1]:
            raise ValueError(f"erase_area must rise, found {list(self.erase_area)}")
        return self


class StrongViews(Settings):
    """Options of a strategy that looks at strong views of the pool; `strong_views.py` says what each does."""

    operations: Annotated[int, Field(ge=0, le=10)] = 2  # of RandAugment, one after the other
    magnitude: Annotated[int, Field(ge=0, le=30)] = 10  # of each operation
    erase: Share = 1.0  # probability that a random rectangle becomes the mean colour
    cover: Literal["none", "forehead", "keep_landmarks", "cover_landmarks"] = "none"
    cover_share: Share = 0.5  # probability that a face is covered

    @property
    def needs_landmarks(self) -> bool:
        return self.cover in ("keep_landmarks", "cover_landmarks")


class PoolOptions(StrongViews):
    """Options of a strategy that learns from labelled faces, from the pool and, where there are any, mined faces."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 7.0  # pool faces a step, as a multiple of the labelled
    mined_ratio: Annotated[float, Field(gt=0)] = 1.0  # mined faces a step
    mined_weight: NonNegativeFloat = 1.0  # of their loss, which is added to that of the labelled
    joint: bool = True  # one forward pass; false: the pool by itself, and batch norm records nothing of it

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        ratios = {"labelled": 1.0, "mined": self.mined_ratio, "unlabelled": self.unlabelled_ratio}
        return {name: max(1, round(batch * ratios[name])) for name in images}


class Until(Settings):
    """Train until the validation has stopped rising (`training.monitor`; a loss: falling). Lengths are in epochs.

    A check is the mean of the monitor over the epochs since the last one; it gains where it is better than every check
    before it by more than `smallest_gain`. After `patience` checks without a gain the training ends; with a cosine,
    which till then is constant, the learning rate first falls over `decay` times the epochs so far.
    """

    at_most: Annotated[int, Field(ge=1)]
    at_least: Annotated[int, Field(ge=1)] = 1  # what a strategy ramps up, it ramps over shares of these
    checks_every: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] = 5
    smallest_gain: NonNegativeFloat = 0.002
    decay: Annotated[float, Field(gt=0, le=1)] = 0.25

    @model_validator(mode="after")
    def _there_is_time_for_a_check(self) -> "Until":
        if max(self.at_least, self.checks_every) * (1 + self.decay) > self.at_most:
            raise ValueError(
                f"at_most {self.at_most} leaves no time for at_least {self.at_least} and checks_every "
                f"{self.checks_every} with a decay of {self.decay}"
            )
        return self


class TrainingSettings(Settings):
    """One training. An epoch is as many steps as it takes `batch` to cover the labelled images once."""

    epochs: Annotated[int, Field(ge=1)] | None = 10
    steps: Annotated[int, Field(ge=1)] | None = None  # in place of epochs: null there, a number here
    until: Until | None = None  # in place of both: each recipe as long as its own validation rises
    batch: Annotated[int, Field(ge=2)] = 64
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Cosine()
    augment: AugmentSettings = AugmentSettings()
    # rows: all images in random order, which wants them in memory; blocks: row groups of the shards in random order,
    # `buffer_rows` images at a time shuffled together, which reads shards in turn
    order: Literal["rows", "blocks"] = "rows"
    buffer_rows: Annotated[int, Field(ge=100)] = 16_384
    # against unequal classes: weights in the loss; every class drawn equally often into the batches; or a data set of
    # as many images of each class, drawn once a seed and then whole
    balance: Literal["none", "weights", "sampling", "dataset"] = "none"
    # of balance: dataset, images a class; null takes as many as the rarest class has
    balance_per_class: Annotated[int | None, Field(ge=1, exclude_if=is_none)] = None
    clip: PositiveFloat | None = None  # largest gradient norm
    average: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of an average of the weights, used in its place
    select: Literal["best", "last"] = "best"  # by the validation part of the training data
    monitor: Literal["accuracy", "mean_class_accuracy", "loss"] = "mean_class_accuracy"
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"  # auto: bf16 or 16 on a GPU that has it
    threads: Annotated[int, Field(ge=1)] = 1  # of one training on a CPU; sums, so bytes, depend on it
    # of networks that start from weights: the stages before this one are not trained, nor are their running statistics
    frozen_until: Annotated[str | None, Field(exclude_if=is_none)] = None
    # factor of the learning rate for what the weights filled; 0 leaves it as it is, running statistics too
    old_layers_rate: Annotated[NonNegativeFloat | None, Field(exclude_if=is_none)] = None

    @classmethod
    def without_steps(cls, threads: int) -> "TrainingSettings":
        """Returns what the settings amount to where nothing is learned by gradients: one step over plain images."""
        plain = AugmentSettings(flip=0, translate=0)
        return cls(epochs=None, steps=1, augment=plain, select="last", precision="32-true", threads=threads)

    @property
    def needs_validation(self) -> str:
        """Names the setting that nothing but a validation part can serve; empty where there is none."""
        return "until" if self.until else "select: best" if self.select == "best" else ""

    @model_validator(mode="after")
    def _a_size_needs_its_balance(self) -> "TrainingSettings":
        if self.balance_per_class is not None and self.balance != "dataset":
            raise ValueError(f"balance_per_class is of balance: dataset, found {self.balance}")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if [self.epochs, self.steps, self.until].count(None) != 2:
            found = f"{self.epochs}, {self.steps} and {'a rule' if self.until else None}"
            raise ValueError(f"set one of epochs, steps and until and the others to null, found {found}")
        return self


class ModelSettings(Settings):
    """What is trained, from which weights (null: drawn from the seed), and how."""

    network: NetworkSettings = NetworkSettings()
    weights: WeightSettings | None = None
    training: TrainingSettings = TrainingSettings()
    label_noise: Annotated[LabelNoise | None, Field(exclude_if=is_none)] = None  # for a study of wrong labels

    @model_validator(mode="after")
    def _old_layers_come_from_weights(self) -> "ModelSettings":
        for name in ("frozen_until", "old_layers_rate"):
            if self.weights is None and not self.network.members and getattr(self.training, name) is not None:
                raise ValueError(f"training.{name} is about layers that were loaded: set weights, or take it out")
        return self

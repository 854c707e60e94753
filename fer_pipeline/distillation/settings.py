"""Define the settings of one distillation, which are checked before any work."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fer_pipeline.core.settings import Settings

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class ProbeSettings(Settings):
    """The probe of figure 7: a small network that tells the saved images' classes."""

    moments: Annotated[int, Field(ge=2)] = 6  # the last share of them is tested: 6 moments are the paper's 5 : 1
    epochs: Count = 40
    seeds: Count = 3
    learning_rate: PositiveFloat = 2e-3


class AugmentSettings(Settings):
    """Differentiable augmentation; every amount is drawn anew for each use. All zero: images stay as they are."""

    flip: Annotated[float, Field(ge=0, le=1)] = 0.5  # probability
    translate: Annotated[float, Field(ge=0, lt=0.5)] = 0.08  # largest shift as a share of the side
    rotate: Annotated[float, Field(ge=0, le=180)] = 8.0  # largest angle in degrees
    zoom: Share = 0.12  # scales between 1 - zoom and 1 + zoom
    brightness: NonNegativeFloat = 0.3  # largest change, in the network's normalised input space
    contrast: Share = 0.3  # factors between 1 - x and 1 + x
    cutout: Share = 0.25  # side of a square of zeros, as a share of the image's


class ExpertSettings(Settings):
    """The real trainings whose trajectories a student follows (`method: trajectory_matching`): plain SGD."""

    count: Count = 5  # trainings, each from a fresh draw of theta_0
    epochs: Count = 20  # passes through the source
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 0.05
    augment: bool = True  # real images, as `augment` says
    # Wanted of a student: from the weights after t saved moments to those `ahead` moments later, t up to `latest`.
    saved_every: Count = 5  # steps between two saved moments
    ahead: Count = 4  # M
    latest: Annotated[int, Field(ge=0)] = 10


class ControlSettings(Settings):
    """What the distilled images are compared with: trainings on each set of images alone."""

    draws: Count = 3  # of noise, of random real images and of permuted labels, and of fresh initial weights
    steps: Count = 100  # of a plain training
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 3e-3  # of AdamW in a plain training, down to 0 by half a cosine
    bootstrap: Annotated[int, Field(ge=100)] = 1000  # replicates of persons and draws


class DistillSettings(Settings):
    """One distillation.

    Unrolled it costs outer_epochs x batches x draws x (steps x epochs synthetic batches + a real one); by distribution
    matching outer_epochs x batches x draws x (all images + a real batch); by trajectory matching, beside the experts,
    outer_epochs x batches x draws x steps x epochs synthetic batches.
    """

    method: Literal["unrolled", "distribution_matching", "trajectory_matching"] = "unrolled"
    # theta_0: `initial`, the weights that the final training of the first seed starts from; `random`, a fresh draw of
    # such weights at every outer step; `primitive`, the primitive learner
    theta_0: Literal["initial", "random", "primitive"] = "initial"
    draws: Count = 1  # of theta_0 per outer step; more than one only makes sense where they differ
    repeats: Count = (
        1  # distillations with seeds of their own; the first is used, the others say how much chance is in it
    )
    steps: Count = 1  # updates with images of their own
    per_class: Annotated[int, Field(ge=1, le=50)] = 1  # images per class and step
    epochs: Count = 3  # cycles through the steps
    start: Literal["noise", "real"] = "noise"  # of the images
    step_size: PositiveFloat = 0.02  # before it is learned
    # Images are free by default: they are trained on as they are, never shown to a camera, and a clamp would zero the
    # gradient of every pixel at its bound. With `clamp` they stay within what real pixels can be.
    clamp: bool = False
    heldout: Share = 0.2  # of the source, whole persons where they are known: stops the distillation, judges its images
    outer_epochs: Count = 60  # at most
    check_every: Count = 1  # outer epochs between two looks at the held-out images
    patience: PositiveInt | None = 10  # looks without a lower held-out loss before it stops; null: never
    batch_size: Count = 256
    batches: PositiveInt | None = None  # outer steps per epoch; null: once through the source
    balance: Literal["none", "batch"] = "batch"  # real batches as the source has its classes, or every class alike
    max_images: PositiveInt | None = None  # bound on the source's images, shared out evenly over the classes
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Share = 0.9  # of sgd
    learning_rate: PositiveFloat = 0.01
    decay_every: Count = 40  # outer epochs
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    augment: AugmentSettings | None = AugmentSettings()  # see the methods; null: none
    save_every: Count = 10
    weights_kept: Count = 8  # copies of the weights held while an unrolled training is played back; same result
    threads: Count = 1  # of a CPU; another number gives other rounding
    experts: ExpertSettings = ExpertSettings()
    controls: ControlSettings = ControlSettings()
    probe: ProbeSettings = ProbeSettings()

    @model_validator(mode="before")
    @classmethod
    def _is_no_old_form(cls, values: Any) -> Any:
        if isinstance(values, dict):
            if "initial" in values:
                raise ValueError("'initial' is of an old form; how images begin is start: noise or start: real")
            if values.get("start") in ("fixed", "random"):
                new = "primitive" if values["start"] == "fixed" else "random"
                raise ValueError(f"start: {values['start']} is of an old form; write theta_0: {new}")
        return values

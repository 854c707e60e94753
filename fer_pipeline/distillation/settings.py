"""Define the settings of one distillation, which are checked before any work."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fer_pipeline.core.settings import Settings

Count = Annotated[int, Field(ge=1)]


class ProbeSettings(Settings):
    """The probe of figure 7: a small network that tells the saved images' classes."""

    moments: Annotated[int, Field(ge=2)] = 6  # the last share of them is tested: 6 moments are the paper's 5 : 1
    epochs: Count = 40
    seeds: Count = 3
    learning_rate: PositiveFloat = 2e-3


class DistillSettings(Settings):
    """One distillation; it costs outer_epochs x batches x draws x (steps x epochs synthetic batches + a real one)."""

    steps: Count = 1  # updates with images of their own
    per_class: Count = 1  # images per class and step
    epochs: Count = 3  # cycles through the steps
    start: Literal["fixed", "random"] = "fixed"  # theta_0: the primitive learner, or fresh draws of its architecture
    draws: Count = 1  # starts per outer step; more than one only makes sense with random starts
    initial: Literal["noise", "real"] = "noise"
    step_size: PositiveFloat = 0.02  # before it is learned
    # Images are free by default: they are trained on as they are, never shown to a camera, and a clamp would zero the
    # gradient of every pixel at its bound. With `clamp` they stay within what real pixels can be.
    clamp: bool = False
    outer_epochs: Count = 60
    batch_size: Count = 256
    batches: PositiveInt | None = None  # outer steps per epoch; null: once through the source
    balance: Literal["none", "batch"] = "batch"  # real batches as the source has its classes, or every class alike
    max_images: PositiveInt | None = None  # bound on the source's images, shared out evenly over the classes
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFloat = 0.01
    decay_every: Count = 40  # outer epochs
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    save_every: Count = 10
    weights_kept: Count = 8  # copies of the weights held while an unrolled training is played back; same result
    threads: Count = 1  # of a CPU; another number gives other rounding
    probe: ProbeSettings = ProbeSettings()

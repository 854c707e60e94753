"""Define the settings that, with the number of classes, rebuild a network from a checkpoint's card."""

from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.preprocessing import Normalisation, Preprocessing


class NetworkSettings(Settings):
    """A backbone by name and what stands around it."""

    name: str = "small"  # small, resnet18/34/50, vgg16, ir_se50, iresnet50, timm/<name of timm>
    size: Annotated[int, Field(ge=8)] | None = None  # side of the input in pixels; null: that of the crops
    grey: bool = False
    width: Annotated[int, Field(ge=4)] = 16  # of `small` only: channels of its first layer
    norm: Literal["batch", "group"] = "batch"  # of `small` only: group has no running statistics
    feature_dim: Annotated[int, Field(ge=2)] | None = None  # null: the backbone's own; else one more layer of that size
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # on the features, before the head
    normalisation: Normalisation | None = None  # null: that of the weights, or mean = std = 0.5 without weights

    def sized(self, crop: int) -> "NetworkSettings":
        """Returns the same settings with the size of the input written out."""
        return self.model_copy(update={"size": self.size or crop})


def preprocessing_of(settings: NetworkSettings, weights: Normalisation | None) -> Preprocessing:
    """Returns the preprocessing of a sized network: the settings' own, else that of the weights, else the plain one."""
    assert settings.size is not None, "call sized() first"
    chosen = settings.normalisation or weights or Normalisation()
    return Preprocessing(size=settings.size, grey=settings.grey, **chosen.model_dump())

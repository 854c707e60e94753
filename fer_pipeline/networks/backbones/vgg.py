"""Build VGG-16 up to fc7 (4096 features), the network of VGG-Face.

Sources: Simonyan & Zisserman (arXiv:1409.1556); Parkhi et al., Deep Face Recognition (BMVC 2015), whose weights are
published under three namings. `vgg_face` (torchvision's `features.N` or Torch7's `conv_1_1`) sees BGR, 0 to 255 less
the mean face; `vgg_face_dag` (`conv1_1`, converted from MatConvNet) sees the same in RGB. A file with `features.N` may
as well be torchvision's ImageNet network, so there the layout must be named.
"""

import re
from collections import OrderedDict
from itertools import pairwise
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import vgg

from fer_pipeline.networks.backbones import IMAGENET, Layout, has, leaving_out, run_stages
from fer_pipeline.networks.preprocessing import Normalisation
from fer_pipeline.networks.settings import NetworkSettings

NAMES = ("vgg16",)
MEAN_FACE = (129.1863, 104.7624, 93.5940)  # red, green, blue
RGB = Normalisation(mean=MEAN_FACE, std=(1.0, 1.0, 1.0), scale=1.0)
BGR = Normalisation(mean=(93.5940, 104.7624, 129.1863), std=(1.0, 1.0, 1.0), scale=1.0, channels="bgr")

CONVOLUTIONS = {(1, 1): 0, (1, 2): 2, (2, 1): 5, (2, 2): 7, (3, 1): 10, (3, 2): 12, (3, 3): 14}
CONVOLUTIONS |= {(4, 1): 17, (4, 2): 19, (4, 3): 21, (5, 1): 24, (5, 2): 26, (5, 3): 28}
LAYERS = {"6": "classifier.0", "7": "classifier.3"}
POOLS = (4, 9, 16, 23, 30)  # places of the max-pools that end the five stages


def _rename(name: str) -> str | None:
    if match := re.fullmatch(r"conv_?(\d)_(\d)\.(weight|bias)", name):
        index = CONVOLUTIONS.get((int(match[1]), int(match[2])))
        return f"features.{index}.{match[3]}" if index is not None else name
    if match := re.fullmatch(r"fc([67])\.(weight|bias)", name):
        return f"{LAYERS[match[1]]}.{match[2]}"
    return leaving_out("fc8.", "classifier.6.")(name)


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    return {
        "torchvision": Layout(IMAGENET, has("features.0.weight", "classifier.0.weight"), leaving_out("classifier.6.")),
        "vgg_face": Layout(BGR, lambda keys: not {"conv_1_1.weight", "features.0.weight"}.isdisjoint(keys), _rename),
        "vgg_face_dag": Layout(RGB, has("conv1_1.weight"), _rename),
    }


class Vgg(nn.Sequential):
    """The parts of the network one after the other, by torchvision's names."""

    feature_dim = 4096
    stages = ("stage1", "stage2", "stage3", "stage4", "stage5")

    def feature_maps(self, x: Float[Tensor, "n 3 h w"], last: str | None = None) -> dict[str, Tensor]:
        layers = cast(nn.Sequential, self.features)
        parts = (layers[start + 1 : end + 1] for start, end in pairwise((-1, *POOLS)))
        return run_stages(x, zip(self.stages, parts, strict=True), last)


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the convolutions, fc6 and fc7 with their ReLU and the dropout between them: 4096 features.

    Any input size from 32 px on will do, since the last map is pooled to 7 x 7.
    """
    whole = cast(Any, vgg.vgg16(weights=None))
    parts = {"features": whole.features, "avgpool": whole.avgpool, "flatten": nn.Flatten()}
    return Vgg(OrderedDict(parts, classifier=whole.classifier[:5]))

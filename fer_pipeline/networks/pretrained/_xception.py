"""Build the small Xceptions of `face_classification`, whose batch norms are folded into their convolutions.

Source: Arriaga et al., arXiv:1710.07557, and the code of its first author; separable convolutions after Chollet,
arXiv:1610.02357. Modules of two separable convolutions and a pool, beside a convolution with stride 2, then a map for
each class, averaged.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.networks.pretrained._tensorflow import SameConv2d, SeparableConv2d, pad_same


class Module(nn.Module):
    """Two separable convolutions and a pool of stride 2, plus a 1 x 1 convolution of stride 2; ours begins with a
    rectifier where `rectified`.
    """

    def __init__(self, inner: int, outer: int, *, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.shortcut = nn.Conv2d(inner, outer, 1, 2)
        self.conv1 = SeparableConv2d(inner, outer)
        self.conv2 = SeparableConv2d(outer, outer)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o y x"]:
        y = functional.relu(self.conv1(functional.relu(x) if self.rectified else x))
        y = functional.max_pool2d(pad_same(self.conv2(y), 3, 2, float("-inf")), 3, 2)
        return y + self.shortcut(x)


class Xception(nn.Module):
    """Logits of seven expressions from grey pixels (the first of three equal channels)."""

    def __init__(self, stem: tuple[int, int], channels: tuple[int, ...], *, stride: int, rectified: bool) -> None:
        super().__init__()
        first, second = stem
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, stride), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU())
        pairs = enumerate(pairwise((second, *channels)))
        self.modules_ = nn.Sequential(*(Module(*pair, rectified=rectified and number > 0) for number, pair in pairs))
        self.head = SameConv2d(channels[-1], 7, 3)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 7"]:
        return self.head(self.modules_(self.stem(x[:, :1]))).mean((2, 3))


# FER2013's order, in which all of them were trained.
CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")

"""Read the expression network of face-api, four densely added blocks of separable convolutions for 112 px.

Source: Mühler's face-api.js (MIT), as @vladmandic/face-api packs it. Pixels minus a mean, over 255, in RGB. Its makers
speak of public data sets and pictures from the web, without their names. The template was chosen on the train split of
the sample photographs (`docs/pretrained.md`).
"""

from itertools import product

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import FACE_BOX, Contents, File, Pretrained, Source
from fer_pipeline.networks.pretrained._tensorflow import SameConv2d, SeparableConv2d, fill, read_manifest

WEIGHTS = File(
    "model/face_expression_model.bin",
    329_468,
    "9a9840f2cf1f4c7eab95f197512569345c00d2426754d4608b92af30e0300f3d",
)
MANIFEST = File(
    "model/face_expression_model-weights_manifest.json",
    6_980,
    "5b349c17c7836da506e03422cd6461c74085d8bb2713ad4114647dc5d28174c8",
)
CHANNELS = (32, 64, 128, 256)


class DenseBlock(nn.Module):
    """Four convolutions; each but the first takes the rectified sum of what all before it gave."""

    def __init__(self, first: nn.Module, channels: int) -> None:
        super().__init__()
        self.first = first
        self.others = nn.ModuleList(SeparableConv2d(channels, channels) for _ in range(3))

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o y x"]:
        total = activated = functional.relu(self.first(x))
        for conv in self.others:
            total = total + conv(activated)
            activated = functional.relu(total)
        return activated


class DenseExpressions(nn.Module):
    """Logits of seven expressions from RGB pixels."""

    def __init__(self) -> None:
        super().__init__()
        firsts = [SameConv2d(3, 32, 3, 2)]
        firsts += [SeparableConv2d(inner, 2 * inner, stride=2) for inner in CHANNELS[:-1]]
        self.blocks = nn.Sequential(*map(DenseBlock, firsts, CHANNELS))
        self.fc = nn.Linear(CHANNELS[-1], 7)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 7"]:
        return self.fc(self.blocks(x).mean((2, 3)))


def load(contents: Contents) -> DenseExpressions:
    """Builds the network with the tensors of the manifest."""
    network, tensors = DenseExpressions(), read_manifest(contents, MANIFEST.name)
    names = [f"dense{block}/conv{conv}" for block, conv in product(range(4), range(4))]
    parts = ["filters", "depthwise_filter", "pointwise_filter", "bias"]
    order = [f"{name}/{part}" for name in names for part in parts if f"{name}/{part}" in tensors]
    fill(network, [tensors[name] for name in (*order, "fc/weights", "fc/bias")])
    return network


PRETRAINED = Pretrained(
    network="dense separable convolutions",
    source=Source("npm", "@vladmandic/face-api", "1.7.15", 12.7),
    files=(WEIGHTS, MANIFEST),
    licence="MIT",
    data_licence="not stated",
    trained_on="public data sets and pictures from the web, for expressions",
    seen=(),
    knows_all_seen=False,
    preprocessing=Preprocessing(
        size=112, mean=(122.782, 117.001, 104.298), std=(255.0, 255.0, 255.0), scale=1.0, template=FACE_BOX
    ),
    load=load,
    build=DenseExpressions,
    reference=(-14.8107, -16.3056, -0.0000, -22.7093, -19.1645, -22.4527, -29.7259),
    classes=("neutral", "happiness", "sadness", "anger", "fear", "disgust", "surprise"),
)

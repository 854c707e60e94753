"""Half-precision features and float64 centroids in, float32 cosines out, by whichever engine the machine has.

`numpy` is the reference in float64. `simsimd` makes one pass over the features in half precision; `faiss` asks a flat
inner-product index over the centroids, on the GPU where there is one. All agree with the reference to
`cosine.TOLERANCE`. Every engine walks in slices, so memory does not grow with the number of features.

SimSIMD multiplies half precision with half precision, which would cost the centroids their lower digits (cosines off by
4e-5). So each centroid goes in as two halves, c = high + low / 2048, and the two products are added in float64.
Products and lengths are used, not its cosine kernel, whose inverse square root is off by 1e-4 where there is no AVX2.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import simsimd
from jaxtyping import Float16, Float32, Float64

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.mining.cosine import cosine_reference, unit_rows

EngineName = Literal["auto", "simsimd", "faiss", "numpy"]
Engine = Callable[[Float16[np.ndarray, "n d"]], Float32[np.ndarray, "n c"]]

SLICE = 2048  # rows: the slice and its products stay in the processor's cache
LOW_SCALE = 2048.0  # 2**11: the digits that half precision cuts off, moved up out of its subnormal range


def make_engine(name: EngineName, centroids: Float64[np.ndarray, "c d"], *, device: str = "auto") -> tuple[str, Engine]:
    """The engine of this name and the name of what was chosen; `auto` takes FAISS where a GPU is there and allowed."""
    gpu = device != "cpu" and name in ("auto", "faiss") and num_gpus() > 0
    if gpu or name == "faiss":
        return "faiss", faiss_engine(centroids, gpu=gpu)
    if name == "numpy":
        return "numpy", sliced(lambda x: cosine_reference(x, centroids), num_classes=len(centroids))
    return "simsimd", simsimd_engine(centroids)


def sliced(kernel: Callable[[np.ndarray], np.ndarray], *, num_classes: int, rows: int = SLICE) -> Engine:
    """A kernel applied slice by slice into one float32 result."""

    def run(features: np.ndarray) -> np.ndarray:
        found = np.empty((len(features), num_classes), np.float32)
        for start in range(0, len(features), rows):
            found[start : start + rows] = kernel(features[start : start + rows])
        return found

    return run


def over_lengths(
    products: Float64[np.ndarray, "n c"], squares: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n c"]:
    """Inner products with unit centroids over the lengths of the features; 0 where a feature is zero."""
    lengths = np.sqrt(squares)[:, None]
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def simsimd_engine(centroids: Float64[np.ndarray, "c d"]) -> Engine:
    """One pass over the features as they lie on disk."""
    # Unit rows have elements near 1 / sqrt(d); scaled to about 1 they keep all digits of half precision.
    scale = np.sqrt(centroids.shape[1])
    scaled = unit_rows(centroids) * scale
    high = scaled.astype(np.float16)
    low = ((scaled - high.astype(np.float64)) * LOW_SCALE).astype(np.float16)
    halves = np.ascontiguousarray(np.concatenate([high, low]))
    num_classes = len(centroids)

    def kernel(features: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(features)
        products = np.asarray(simsimd.cdist(rows, halves, metric="dot")).reshape(len(rows), -1)
        squares = np.atleast_1d(np.asarray(simsimd.dot(rows, rows)))
        joined = (products[:, :num_classes] + products[:, num_classes:] / LOW_SCALE) / scale
        return over_lengths(joined, squares)

    return sliced(kernel, num_classes=num_classes)


def faiss_engine(centroids: Float64[np.ndarray, "c d"], *, gpu: bool, rows: int = 65536) -> Engine:
    """A flat inner-product index over the unit centroids; the index gives all classes, which are put back in order."""
    faiss = load_faiss()
    index = faiss.IndexFlatIP(centroids.shape[1])
    if gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(np.ascontiguousarray(unit_rows(centroids), np.float32))
    num_classes = len(centroids)

    def kernel(features: np.ndarray) -> np.ndarray:
        wide = features.astype(np.float32)
        found, order = index.search(wide, num_classes)
        assert (order >= 0).all(), "FAISS gave fewer neighbours than there are classes"
        products = np.empty((len(wide), num_classes), np.float64)
        np.put_along_axis(products, order, found.astype(np.float64), axis=1)
        return over_lengths(products, np.einsum("ij,ij->i", wide, wide, dtype=np.float64))

    return sliced(kernel, num_classes=num_classes, rows=rows)


def load_faiss() -> Any:
    """FAISS, which not every machine has; importing it takes a second, so it waits until it is asked for."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"score.engine is faiss, which cannot be imported here ({error}); use auto, simsimd or numpy"
        ) from None
    return faiss


def num_gpus() -> int:
    """How many GPUs FAISS sees; none where it is not installed or was built without them."""
    try:
        import faiss

        return int(faiss.get_num_gpus())
    except (ImportError, AttributeError):
        return 0

"""Score half-precision features: cosines to class centroids, nearest class, margin and logits, by one of three engines.

Source: arXiv:2005.08551, eq. 5. The paper calls the cosine *similarity* a distance and then selects small ones; here d
= 1 - cos throughout. The logits are the head's: W f + b, whose soft-max is what `Classifier.predict` gives but for the
half precision of the features. A zero feature has no direction: its cosines are 0, and the caller counts it.

`numpy` is the reference in float64. `llvm` makes one pass over the features in half precision, by code compiled for the
processor (see `kernel`). `faiss` asks a flat inner-product index over the centroids: on the GPU, where there is one,
with reading, copying and searching at the same time (see `gpu`). All agree with the reference to `TOLERANCE`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Float64, Int64

from fer_pipeline.core.errors import ConfigError

EngineName = Literal["auto", "llvm", "faiss", "numpy"]
Rows = Float16[np.ndarray, "_ d"]
Parts = Sequence[Rows]  # features that lie in several places, one after the other
T = TypeVar("T")

# An engine may differ from the reference by this much; two classes closer than twice this may change places.
TOLERANCE = 2e-6


def unit_rows(vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Scales rows to length 1 in float64; zero rows stay zero, rows that are not finite become NaN somewhere."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms != 0)


def cosine_reference(
    features: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "c d"]
) -> Float64[np.ndarray, "n c"]:
    """Computes eq. 5 in float64, as it stands: the reference of every engine."""
    return unit_rows(features) @ unit_rows(centroids).T


def rank_classes(cosine: Float32[np.ndarray, "n c"]) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Finds the nearest class and the margin, best minus second best; ties go to the lowest class with margin 0.

    Both are computed from the stored float32 cosines, so that a reader finds the same numbers in the files. With a
    single class the margin is infinite. Walks class by class: fastest where a class lies together (Fortran order).
    """
    best = cosine[:, 0].copy()
    second = np.full(len(cosine), -np.inf, np.float32)
    nearest = np.zeros(len(cosine), np.int64)
    for k in range(1, cosine.shape[1]):
        column = cosine[:, k]
        np.maximum(second, np.minimum(best, column), out=second)
        np.putmask(nearest, column > best, k)
        np.maximum(best, column, out=best)
    return nearest, best - second


def without_direction(cosine: Float32[np.ndarray, "n c"]) -> Bool[np.ndarray, " n"]:
    """Tells which rows belong to a zero feature."""
    return np.logical_not(np.any(cosine, axis=1))


@dataclass(frozen=True)
class ClassScores:
    """All cosines of every feature, the nearest class, best minus second best cosine, and logits if there is a head.

    A zero feature has cosines of 0; one that is not finite has a margin of NaN.
    """

    cosine: Float32[np.ndarray, "n c"]
    nearest: Int64[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]
    logit: Float32[np.ndarray, "n c"] | None = None


@dataclass(frozen=True)
class Head:
    """The last layer of a network: what turns features into the logits of the classes."""

    weight: Float32[np.ndarray, "c d"]
    bias: Float32[np.ndarray, " c"]

    def logits(self, rows: Rows) -> Float32[np.ndarray, "_ c"]:
        return rows.astype(np.float32) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Engine:
    """A way to score features, under its name in the summary."""

    name: str
    score: Callable[[Parts], ClassScores]
    parallel: bool = False  # whether threads may share it, and gain by it

    def stream(self, batches: Iterable[tuple[T, Parts]]) -> Iterator[tuple[T, ClassScores]]:
        """Yields the scores of batch after batch, each with what came beside it."""
        for item, parts in batches:
            yield item, self.score(parts)


def score_in_slices(
    cosines: Callable[[Rows], Float[np.ndarray, "n c"]],
    centroids: Float64[np.ndarray, "c d"],
    *,
    size: int,
    logits: Callable[[Rows], Float[np.ndarray, "n c"]] | None = None,
) -> Callable[[Parts], ClassScores]:
    """Makes a scoring function of those that compute cosines and logits of at most `size` features."""

    def score(parts: Parts) -> ClassScores:
        empty = np.empty((0, centroids.shape[1]), np.float16)
        rows = parts[0] if len(parts) == 1 else np.concatenate([empty, *parts])
        cosine = np.empty((len(rows), len(centroids)), np.float32)
        logit = np.empty_like(cosine) if logits is not None else None
        with np.errstate(invalid="ignore"):  # of a feature that is not finite
            for start in range(0, len(rows), size):
                cosine[start : start + size] = cosines(rows[start : start + size])
                if logits is not None and logit is not None:
                    logit[start : start + size] = logits(rows[start : start + size])
            return ClassScores(cosine, *rank_classes(cosine), logit)

    return score


def make_engine(
    name: EngineName, centroids: Float64[np.ndarray, "c d"], head: Head | None = None, *, device: str = "auto"
) -> Engine:
    """Returns the engine of this name; `auto` takes FAISS where a GPU may be used, else the fastest on this CPU.

    It computes logits where it is given the head of the network whose features it scores.
    """
    # LLVM takes a tenth of a second to load, which the commands that score nothing are spared.
    from fer_pipeline.scoring.kernel import is_supported

    if device != "cpu" and name in ("auto", "faiss") and num_gpus() > 0:
        from fer_pipeline.scoring.gpu import gpu_engine

        return gpu_engine(centroids, head, device=device)
    if name == "faiss":
        return faiss_engine(centroids, head)
    if name == "numpy" or (name == "auto" and not is_supported()):
        reference = partial(cosine_reference, centroids=centroids)
        logits = head.logits if head else None
        return Engine("numpy", score_in_slices(reference, centroids, size=2048, logits=logits))
    if not is_supported():
        raise ConfigError(
            "score.engine is llvm, but this processor lacks F16C or FMA, which it needs; use auto, faiss or numpy"
        )
    return llvm_engine(centroids, head)


def llvm_engine(
    centroids: Float64[np.ndarray, "c d"], head: Head | None = None, *, at_once: int | None = None
) -> Engine:
    """Makes one pass over the features as they lie on disk; `at_once` is the kernel's own and changes no bit."""
    from fer_pipeline.scoring.kernel import Kernel

    kernel = Kernel(unit_rows(centroids), head.weight if head else None, at_once=at_once)

    def score(parts: Parts) -> ClassScores:
        total = sum(len(part) for part in parts)
        cosine, nearest = np.empty((total, len(centroids)), np.float32), np.empty(total, np.int64)
        margin = np.empty(total, np.float32)
        logit = np.empty((total, len(head.bias)), np.float32) if head else None
        kernel.fill(parts, cosine, nearest, margin, logit)
        if head and logit is not None:
            logit += head.bias
        return ClassScores(cosine, nearest, margin, logit)

    return Engine("llvm", score, parallel=True)


def faiss_engine(centroids: Float64[np.ndarray, "c d"], head: Head | None = None) -> Engine:
    """Searches a flat inner-product index of the unit centroids for all classes, and puts them back in order."""
    index = load_faiss().IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(unit_rows(centroids), np.float32))

    def cosines(rows: np.ndarray) -> np.ndarray:
        wide = rows.astype(np.float32)
        products, order = index.search(wide, len(centroids))
        by_class = np.full((len(wide), len(centroids)), np.nan, np.float32)
        np.put_along_axis(by_class, np.maximum(order, 0), products, axis=1)  # -1: not finite, so there is no product
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        lengths[lengths == 0] = 1
        lengths[np.isinf(lengths)] = np.nan
        return by_class / lengths[:, None]

    logits = head.logits if head else None
    return Engine("faiss", score_in_slices(cosines, centroids, size=65536, logits=logits))


def load_faiss() -> Any:
    """Imports FAISS, which not every machine has; it takes a second, so it waits until it is asked for."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"score.engine is faiss, which cannot be imported here ({error}); use auto, llvm or numpy"
        ) from None
    return faiss


def num_gpus() -> int:
    """Returns how many GPUs FAISS sees; none where it is not installed or was built without them."""
    try:
        import faiss

        return int(faiss.get_num_gpus())
    except (ImportError, AttributeError):
        return 0

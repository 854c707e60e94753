"""Half-precision features and float64 centroids in, cosines, nearest classes and margins out, by the machine's means.

`numpy` is the reference in float64. `llvm` makes one pass over the features in half precision, by code compiled for the
processor (see `kernel`). `faiss` asks a flat inner-product index over the centroids: on the GPU, where there is one,
with reading, copying and searching at the same time (see `gpu`). All agree with the reference to `cosine.TOLERANCE`.
Every engine walks in slices, so memory does not grow with the number of features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int64

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.scoring.cosine import cosine_reference, rank_classes, unit_rows

EngineName = Literal["auto", "llvm", "faiss", "numpy"]
Rows = Float16[np.ndarray, "_ d"]
Parts = Sequence[Rows]  # rows that lie in several places, one after the other
T = TypeVar("T")


@dataclass(frozen=True)
class Scored:
    """What is known of every feature: all its cosines, the nearest class, best minus second best cosine."""

    cosine: Float32[np.ndarray, "n c"]
    nearest: Int64[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]


def scored_of(cosine: Float32[np.ndarray, "n c"]) -> Scored:
    """Cosines with what follows of them."""
    return Scored(cosine, *rank_classes(cosine))


@dataclass(frozen=True)
class Engine:
    """What scores features, and what it is called in the summary."""

    name: str
    num_classes: int
    fill: Callable[[Parts, Scored], None]
    parallel: bool = False  # whether threads may share it, and gain by it

    def __call__(self, parts: Parts) -> Scored:
        """The scores of any number of features; one that is not finite has a margin of NaN."""
        total = sum(len(part) for part in parts)
        found = Scored(
            cosine=np.empty((total, self.num_classes), np.float32),
            nearest=np.empty(total, np.int64),
            margin=np.empty(total, np.float32),
        )
        self.fill(parts, found)
        return found

    def stream(self, batches: Iterable[tuple[T, Parts]]) -> Iterator[tuple[T, Scored]]:
        """The scores of batch after batch, each with what came beside it."""
        for beside, parts in batches:
            yield beside, self(parts)


def sliced(kernel: Callable[[Rows], Float32[np.ndarray, "n c"]], *, rows: int) -> Callable[[Parts, Scored], None]:
    """A kernel that gives the cosines of a slice, applied slice by slice."""

    def fill(parts: Parts, found: Scored) -> None:
        end = 0
        for piece in slices(parts, rows=rows):
            with np.errstate(invalid="ignore"):  # of a feature that is not finite
                part = scored_of(kernel(np.concatenate(piece)))
            start, end = end, end + len(part.nearest)
            found.cosine[start:end] = part.cosine
            found.nearest[start:end], found.margin[start:end] = part.nearest, part.margin

    return fill


def slices(parts: Parts, *, rows: int) -> Iterator[list[Rows]]:
    """The same rows in the same order, `rows` at a time."""
    piece: list[np.ndarray] = []
    room = rows
    for part in parts:
        start = 0
        while start < len(part):
            taken = part if len(part) <= room and not start else part[start : start + room]
            piece.append(taken)
            start, room = start + len(taken), room - len(taken)
            if not room:
                yield piece
                piece, room = [], rows
    if piece:
        yield piece


def make_engine(name: EngineName, centroids: Float64[np.ndarray, "c d"], *, device: str = "auto") -> Engine:
    """The engine of this name; `auto` takes FAISS where a GPU is there and allowed, else the fastest on this CPU."""
    if device != "cpu" and name in ("auto", "faiss") and num_gpus() > 0:
        from fer_pipeline.scoring.gpu import gpu_engine

        return gpu_engine(centroids, device=device)
    if name == "faiss":
        return faiss_engine(centroids)
    if name == "numpy" or (name == "auto" and not kernel_supported()):
        kernel = lambda rows: cosine_reference(rows, centroids).astype(np.float32)  # noqa: E731
        return Engine("numpy", len(centroids), sliced(kernel, rows=2048))
    if not kernel_supported():
        raise ConfigError(
            "score.engine is llvm, but this processor lacks F16C or FMA, which it needs; use auto, faiss or numpy"
        )
    return llvm_engine(centroids)


def kernel_supported() -> bool:
    """Whether `llvm` runs on this processor."""
    from fer_pipeline.scoring.kernel import supported

    return supported()


def llvm_engine(centroids: Float64[np.ndarray, "c d"], *, at_once: int | None = None) -> Engine:
    """One pass over the features as they lie on disk; `at_once` is the kernel's own and changes no bit."""
    # LLVM takes a tenth of a second to load, which the commands that score nothing are spared.
    from fer_pipeline.scoring.kernel import Kernel

    kernel = Kernel(unit_rows(centroids), at_once=at_once)

    def fill(parts: Parts, found: Scored) -> None:
        kernel.fill(parts, found.cosine, found.nearest, found.margin)

    return Engine("llvm", len(centroids), fill, parallel=True)


def faiss_engine(centroids: Float64[np.ndarray, "c d"]) -> Engine:
    """A flat inner-product index over the unit centroids; the index gives all classes, which are put back in order."""
    index = load_faiss().IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(unit_rows(centroids), np.float32))
    num_classes = len(centroids)

    def kernel(rows: np.ndarray) -> np.ndarray:
        wide = rows.astype(np.float32)
        found, order = index.search(wide, num_classes)
        products = np.full((len(wide), num_classes), np.nan, np.float32)
        np.put_along_axis(products, np.maximum(order, 0), found, axis=1)  # -1: not finite, so nothing was found
        return over_lengths(products, np.einsum("ij,ij->i", wide, wide))

    return Engine("faiss", num_classes, sliced(kernel, rows=65536))


def over_lengths(
    products: Float32[np.ndarray, "n c"], squares: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n c"]:
    """Products with unit centroids over the lengths of the features: 0 for a zero one, NaN for one not finite."""
    lengths = np.sqrt(squares)
    lengths[lengths == 0] = 1
    lengths[np.isinf(lengths)] = np.nan
    return products / lengths[:, None]


def load_faiss() -> Any:
    """FAISS, which not every machine has; importing it takes a second, so it waits until it is asked for."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"score.engine is faiss, which cannot be imported here ({error}); use auto, llvm or numpy"
        ) from None
    return faiss


def num_gpus() -> int:
    """How many GPUs FAISS sees; none where it is not installed or was built without them."""
    try:
        import faiss

        return int(faiss.get_num_gpus())
    except (ImportError, AttributeError):
        return 0

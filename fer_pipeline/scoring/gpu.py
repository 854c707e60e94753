"""Score batches of half-precision features with FAISS on a GPU.

Three things happen at the same time: a thread reads the next batch into page-locked memory and starts its copy to the
GPU on a stream of its own, the GPU searches the batch before, and the processor ranks and writes the one before that.
What crosses to the GPU is half precision; it is widened there.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from fer_pipeline.core.prefetch import prefetch
from fer_pipeline.scoring import engines
from fer_pipeline.scoring.engines import ClassScores, Engine, Head, Parts, T

READ_AHEAD = 2  # batches: one is being copied, one is being searched
ROWS = 65536


@dataclass(frozen=True)
class Upload:
    """Features on their way to the GPU, and the event after which they are there; None: they are there."""

    features: Tensor
    arrived: torch.cuda.Event | None


class Search:
    """An index of FAISS over the unit centroids, and the head if there is one, on one GPU."""

    def __init__(self, units: Float32[np.ndarray, "c d"], device: torch.device, head: Head | None = None) -> None:
        faiss = engines.load_faiss()
        import_module("faiss.contrib.torch_utils")  # FAISS then takes tensors where they are, on torch's stream

        self.device, self.num_classes = device, len(units)
        config = faiss.GpuIndexFlatConfig()
        config.device = device.index
        self.resources = faiss.StandardGpuResources()  # must outlive the index
        self.index = faiss.GpuIndexFlatIP(self.resources, units.shape[1], config)
        self.index.add(torch.from_numpy(units).to(device))
        self.head = torch.from_numpy(np.column_stack([head.weight, head.bias])).to(device) if head else None
        self.copies = torch.cuda.Stream(device)

    def upload(self, parts: Parts) -> Upload:
        """Starts the copy; the parts may be given back as soon as this returns."""
        rows = sum(len(part) for part in parts)
        locked = torch.empty((rows, parts[0].shape[1]), dtype=torch.float16, pin_memory=True)
        np.concatenate(parts, out=locked.numpy())
        with torch.cuda.stream(self.copies):
            features = locked.to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self.copies)
        return Upload(features, arrived)

    def score(self, upload: Upload) -> ClassScores:
        """Waits for the upload, computes its cosines and logits, and ranks the classes."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if upload.arrived is not None:
                stream.wait_event(upload.arrived)
            upload.features.record_stream(stream)
            wide = upload.features.float()
            products, order = self.index.search(wide, self.num_classes)
            cosine = cosines_of(products, order, wide).cpu().numpy()
            logit = logits_of(wide, self.head).cpu().numpy() if self.head is not None else None
        return ClassScores(cosine, *engines.rank_classes(cosine), logit)


def logits_of(wide: Float[Tensor, "n d"], head: Float[Tensor, "c e"]) -> Float[Tensor, "n c"]:
    """Computes the head's logits; its last column is the bias."""
    return torch.addmm(head[:, -1], wide, head[:, :-1].T)


def cosines_of(
    products: Float[Tensor, "n c"], order: Int[Tensor, "n c"], wide: Float[Tensor, "n d"]
) -> Float[Tensor, "n c"]:
    """Puts what FAISS returned, best first, in the order of the classes and divides it by the features' lengths.

    0 for a zero feature; NaN for one that is not finite, for which FAISS has classes of -1.
    """
    by_class = torch.full_like(products, torch.nan).scatter_(1, order.clamp(min=0), products)
    lengths = wide.square().sum(dim=1, keepdim=True).sqrt()
    return by_class / lengths.masked_fill(lengths == 0, 1.0).masked_fill(lengths.isinf(), torch.nan)


@dataclass(frozen=True)
class GpuEngine(Engine):
    """FAISS on a GPU; its `stream` overlaps what a plain engine does in turn."""

    search: Search | None = None

    def stream(self, batches: Iterable[tuple[T, Parts]]) -> Iterator[tuple[T, ClassScores]]:
        """Yields the scores of batch after batch, copied ahead by a thread."""
        remaining, search = iter(batches), self.search
        assert search is not None

        def load(_: None) -> tuple[T, Upload] | None:
            # In the thread, after the last copy: asking for the next part of a file gives back the pages of the last.
            batch = next(remaining, None)
            return None if batch is None else (batch[0], search.upload(batch[1]))

        with closing(prefetch(load, repeat(None), threads=1, ahead=READ_AHEAD)) as uploads:
            while (uploaded := next(uploads)) is not None:
                yield uploaded[0], search.score(uploaded[1])


def gpu_engine(centroids: Float64[np.ndarray, "c d"], head: Head | None = None, *, device: str) -> GpuEngine:
    """Puts the centroids and the head on the GPU that `device` names: `cuda:1`, or the first for `auto` and `cuda`."""
    index = 0 if device == "auto" else torch.device(device).index or 0
    search = Search(engines.unit_rows(centroids).astype(np.float32), torch.device("cuda", index), head)
    cosines, logits = lambda rows: search.score(search.upload([rows])).cosine, head.logits if head else None
    score = engines.score_in_slices(cosines, centroids, size=ROWS, logits=logits)
    return GpuEngine("faiss", score, search=search)

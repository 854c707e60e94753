"""Draw batches from image sets: the batch of any step is a function of seed and step, without a state.

Several processes may train together on one stream: each takes its part of the batch that one alone would take.
"""

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from fer_pipeline.artifacts.faces import ROWS_PER_GROUP
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.prefetch import prefetch
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.preprocessing import Crops, Inputs
from fer_pipeline.training.images import ShardImages
from fer_pipeline.training.orders import Balanced, Blocked, Order, Permuted
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.worker import Worker


@dataclass(frozen=True)
class Batch:
    """Some rows of one stream, on the device of the training.

    Soft targets that a strategy makes itself are found by `rows`: it keeps a tensor with a row for each of the set's.
    """

    images: Crops | Inputs  # crops, or network inputs where `prepared`
    labels: Int64[Tensor, " n"]  # -1 for none
    rows: Int64[Tensor, " n"]  # their numbers in the stream's set, on the CPU
    prepared: bool
    landmarks: Float32[Tensor, "n 10"] | None = None  # in crop pixels, where the source asks for them

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Batch":
        tensors = {"images": self.images, "labels": self.labels, "landmarks": self.landmarks}
        return replace(
            self, **{name: t if t is None else t.to(device, non_blocking=True) for name, t in tensors.items()}
        )


@dataclass
class Stream:
    """One named source of batches. `size` rows a step; 0 takes the whole set in every step."""

    set: ImageSet
    size: int
    seed: int
    balanced: bool = False
    num_classes: int = 0
    order: str = "rows"
    buffer_rows: int = 16_384  # of the order by blocks
    rank: int = 0  # of this process among the `world_size` that train together
    world_size: int = 1
    _order: Order = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.set), "a stream needs at least one image"
        if not self.balanced:
            self._order = self._order_of(np.arange(len(self.set)), self.seed, 1)
            return
        labels = self.set.labels.numpy()
        members = {index: np.flatnonzero(labels == index) for index in range(self.num_classes)}
        present = {index: rows for index, rows in members.items() if len(rows)}
        own = [self._order_of(rows, derive(self.seed, "class", index), len(present)) for index, rows in present.items()]
        self._order = Balanced(self.seed, list(present.values()), own)

    def _order_of(self, rows: Int64[np.ndarray, " m"], seed: int, classes: int) -> Order:
        if self.order == "rows":
            return Permuted(seed, len(rows))
        # Classes share the buffer: it is its row groups that are held in memory.
        together = max(1, self.buffer_rows // ROWS_PER_GROUP // classes)
        if isinstance(self.set.images, ShardImages):
            self.set.images.keep_at_least(2 * max(self.buffer_rows, classes * ROWS_PER_GROUP))
        return Blocked(seed, self.set.blocks[rows], together=together)

    def for_worker(self, worker: Worker) -> "Stream":
        """One process's part of the stream; a set that is taken whole in every step goes to its device at once."""
        if self.size == 0:
            return replace(self, set=self.set.with_pixels(self.set.all_pixels().to(worker.device)))
        if self.size < worker.world_size:
            raise ConfigError(
                f"{self.size} images of a step cannot be divided among {worker.world_size} processes; "
                "set a larger training.batch or a smaller resources.gpus"
            )
        return replace(self, rank=worker.rank, world_size=worker.world_size)

    def rows(self, step: int) -> Int64[np.ndarray, " k"]:
        return self._order.rows(step * self.size, self.size) if self.size else np.arange(len(self.set))

    def batch(self, step: int, *, pinned: bool = False) -> Batch:
        """This process's part of the batch of a step (a set taken whole has no parts), where the images lie."""
        rows = self.rows(step)
        if self.size:
            rows = np.array_split(rows, self.world_size)[self.rank]
        index = torch.from_numpy(rows)
        return Batch(
            self.set.pixels(rows, pinned=pinned),
            self.set.labels.index_select(0, index),
            index,
            self.set.images.prepared,
            None if self.set.landmarks is None else self.set.landmarks.index_select(0, index),
        )


class Loader:
    """Makes the batches of coming steps ahead, in threads; `waited` are the seconds in which the loop had none.

    Reading and decoding release Python's lock, so that they go on while the step runs. Batches are functions of their
    step, so what a thread does and when changes nothing. Where images lie on the device of the training, nothing is
    made ahead.
    """

    def __init__(self, streams: Mapping[str, Stream], device: torch.device) -> None:
        self.waited = 0.0
        self._streams, self._device = streams, device
        self._threads = max(stream.set.images.threads(device) for stream in streams.values())

    def batches(self, steps: Iterable[int]) -> Generator[dict[str, Batch], None, None]:
        """The batches of every stream for each step; to be closed when it is left early."""
        on_gpu = self._device.type == "cuda"

        def make(step: int) -> dict[str, Batch]:
            return {name: stream.batch(step, pinned=on_gpu) for name, stream in self._streams.items()}

        # Without its device set, a thread that pins memory would open the first GPU in every process.
        begin = partial(torch.cuda.set_device, self._device) if on_gpu else None
        with closing(prefetch(make, steps, threads=self._threads, initializer=begin)) as batches_ahead:
            started = time.perf_counter()
            for on_host in batches_ahead:
                batches = {name: batch.to(self._device) for name, batch in on_host.items()}
                self.waited += time.perf_counter() - started
                yield batches
                started = time.perf_counter()

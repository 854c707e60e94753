"""Draw batches from image sets: the batch of any step is a function of seed and step, without a state.

Several processes may train together on one stream: each takes its part of the batch that one alone would take.

A batch's rows are those at some positions of an endless order. Step t of a resumed training thus gets the very rows
that it would have got, and an epoch's border may fall inside a batch. Every turn of an order holds each row once:

- `Permuted`: one permutation of all `count` rows after the other, each from a child seed;
- `Blocked`: blocks (row groups of the shards) in random order, `together` at a time shuffled row by row. What is
  read from disk is read in turn, and the order is a function of seed and blocks, never of where the images lie;
- `Balanced`: rounds of all classes, in which each gives the next of its `members` by an order of its own.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from fer_pipeline.artifacts.faces import ROWS_PER_GROUP
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.prefetch import prefetch
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.preprocessing import Crops, Inputs
from fer_pipeline.training.images import Rows, ShardImages
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.worker import Worker


class Permuted:
    def __init__(self, seed: int, count: int) -> None:
        self.count = count
        self._turn = lru_cache(2)(lambda turn: np.random.default_rng(derive(seed, turn)).permutation(count))

    def rows(self, start: int, number: int) -> Rows:
        turns, within = np.divmod(np.arange(start, start + number), self.count)
        pieces = [self._turn(turn)[within[turns == turn]] for turn in np.unique(turns).tolist()]
        return np.concatenate([np.zeros(0, np.int64), *pieces])


class Blocked:
    def __init__(self, seed: int, blocks: Int64[np.ndarray, " n"], *, together: int) -> None:
        self.count, self.together = len(blocks), together
        self._rows = np.argsort(blocks, kind="stable")
        firsts = np.unique(blocks[self._rows], return_index=True)[1]
        self._first, self._size = firsts, np.diff([*firsts.tolist(), self.count])
        self._parts = -(-len(firsts) // together)  # of one turn
        self._seed = seed
        self._turn, self._part = lru_cache(2)(self._make_turn), lru_cache(3)(self._make_part)

    def _make_turn(self, turn: int) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " p"]]:
        """The order of the blocks, and where each part begins and the last one ends."""
        order = np.random.default_rng(derive(self._seed, turn)).permutation(len(self._first))
        ends = np.cumsum(self._size[order])
        return order, np.array([0, *ends[self.together - 1 :: self.together], self.count])[: self._parts + 1]

    def _make_part(self, number: int) -> Rows:
        turn, part = divmod(number, self._parts)
        chosen = self._turn(turn)[0][part * self.together : (part + 1) * self.together]
        rows = np.concatenate([self._rows[self._first[b] : self._first[b] + self._size[b]] for b in chosen])
        return np.random.default_rng(derive(self._seed, turn, "part", part)).permutation(rows)

    def rows(self, start: int, number: int) -> Rows:
        pieces: list[np.ndarray] = [np.zeros(0, np.int64)]
        while number > 0:
            turn, within = divmod(start, self.count)
            begins = self._turn(turn)[1]
            part = int(np.searchsorted(begins, within, side="right")) - 1
            rows = self._part(turn * self._parts + part)[within - begins[part] :][:number]
            pieces.append(rows)
            start, number = start + len(rows), number - len(rows)
        return np.concatenate(pieces)


class Balanced:
    def __init__(self, seed: int, members: Sequence[np.ndarray], own: Sequence["Order"]) -> None:
        self._classes = Permuted(derive(seed, "classes"), len(members))
        self._members, self._own = members, own

    def rows(self, start: int, number: int) -> Rows:
        order = self._classes.rows(start, number)
        rounds = np.arange(start, start + number) // len(self._members)
        rows = np.empty(number, np.int64)
        for index, (members, own) in enumerate(zip(self._members, self._own, strict=True)):
            here = order == index
            if here.any():
                first, last = int(rounds[here][0]), int(rounds[here][-1])
                rows[here] = members[own.rows(first, last - first + 1)[rounds[here] - first]]
        return rows


Order = Permuted | Blocked | Balanced  # `rows(start, number)` gives positions `start` to `start + number`


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
    truth: Int64[Tensor, " n"] | None = None  # of an unlabelled source, to measure by: -1 where it is not known

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, number: int, parts: int) -> "Batch":
        """The rows of one order, of a stream that has so many `parts`."""
        size = len(self) // parts
        columns = {name: getattr(self, name) for name in ("images", "labels", "rows", "landmarks", "truth")}
        rows = slice(number * size, (number + 1) * size)
        return replace(self, **{name: column[rows] for name, column in columns.items() if column is not None})

    def to(self, device: torch.device) -> "Batch":
        names = ("images", "labels", "landmarks", "truth")
        tensors = {name: getattr(self, name) for name in names}
        moved = {name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None}
        return replace(self, **moved)


LABELLED = ("labelled", "mined")  # the usual streams of faces with labels


def divide_batch(
    batch: int, images: Mapping[str, int], names: tuple[str, str], share: float | None = None
) -> dict[str, int]:
    """Divides a batch between two sets: a share for the first, or, by default, as their sizes say.

    Each gets a row at least; the first alone gets all.
    """
    first, second = names
    if second not in images:
        return {first: batch}
    own = min(max(1, round(batch * (share or images[first] / (images[first] + images[second])))), batch - 1)
    return {first: own, second: batch - own}


@dataclass
class Stream:
    """One named source of batches. `size` rows a step; 0 takes the whole set in every step, None never any.

    With several `orders` of the same images, each from a seed of its own, a batch has `size` rows of every one.
    """

    set: ImageSet
    size: int | None
    seed: int
    balanced: bool = False
    num_classes: int = 0
    order: str = "rows"
    buffer_rows: int = 16_384  # of the order by blocks
    orders: int = 1
    rank: int = 0  # of this process among the `world_size` that train together
    world_size: int = 1
    _orders: list[Order] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.set), "a stream needs at least one image"
        seeds = [self.seed, *(derive(self.seed, "order", number) for number in range(1, self.orders))]
        self._orders = [self._make_order(seed) for seed in seeds]

    def _make_order(self, seed: int) -> Order:
        if not self.balanced:
            return self._order_of(np.arange(len(self.set)), seed, 1)
        labels = self.set.labels.numpy()
        present = {index: rows for index in range(self.num_classes) if len(rows := np.flatnonzero(labels == index))}
        own = [self._order_of(rows, derive(seed, "class", index), len(present)) for index, rows in present.items()]
        return Balanced(seed, list(present.values()), own)

    def _order_of(self, rows: Rows, seed: int, classes: int) -> Order:
        if self.order == "rows":
            return Permuted(seed, len(rows))
        # Classes share the buffer: it is its row groups that are held in memory.
        together = max(1, self.buffer_rows // ROWS_PER_GROUP // classes)
        if isinstance(self.set.images, ShardImages):
            self.set.images.keep_at_least(2 * self.orders * max(self.buffer_rows, classes * ROWS_PER_GROUP))
        return Blocked(seed, self.set.blocks[rows], together=together)

    def for_worker(self, worker: Worker) -> "Stream":
        """One process's part of the stream; a set that is taken whole in every step goes to its device at once."""
        if self.size is None:
            return self
        if self.size == 0:
            return replace(self, set=self.set.with_pixels(self.set.all_pixels().to(worker.device)))
        if self.size < worker.world_size:
            raise ConfigError(
                f"{self.size} images of a step cannot be divided among {worker.world_size} processes; "
                "set a larger training.batch or a smaller resources.gpus"
            )
        return replace(self, rank=worker.rank, world_size=worker.world_size)

    def rows(self, step: int) -> Rows:
        if not self.size:
            return np.arange(len(self.set))
        return np.concatenate([order.rows(step * self.size, self.size) for order in self._orders])

    def batch(self, step: int, *, pinned: bool = False) -> Batch:
        """This process's part of the batch of a step (a set taken whole has no parts), where the images lie."""
        rows = self.rows(step)
        if self.size:
            own = [np.array_split(part, self.world_size)[self.rank] for part in np.split(rows, self.orders)]
            rows = np.concatenate(own)
        index = torch.from_numpy(rows)
        return Batch(
            self.set.pixels(rows, pinned=pinned),
            self.set.labels.index_select(0, index),
            index,
            self.set.images.prepared,
            None if self.set.landmarks is None else self.set.landmarks.index_select(0, index),
            None if self.set.truth is None else self.set.truth.index_select(0, index),
        )


class Loader:
    """Makes the batches of coming steps ahead, in threads; `waited` are the seconds in which the loop had none.

    Reading and decoding release Python's lock, so that they go on while the step runs. Batches are functions of their
    step, so what a thread does and when changes nothing. Where images lie on the device of the training, nothing is
    made ahead.
    """

    def __init__(self, streams: Mapping[str, Stream], device: torch.device) -> None:
        self.waited, self._device = 0.0, device
        self._streams = {name: stream for name, stream in streams.items() if stream.size is not None}
        self._threads = max(stream.set.images.threads(device) for stream in self._streams.values())

    def batches(
        self, steps: Iterable[int], wanted: Callable[[str], bool] = lambda stream: True
    ) -> Generator[dict[str, Batch], None, None]:
        """The batches of the wanted streams for each step; to be closed when it is left early."""
        on_gpu = self._device.type == "cuda"
        streams = {name: stream for name, stream in self._streams.items() if wanted(name)}

        def make(step: int) -> dict[str, Batch]:
            return {name: stream.batch(step, pinned=on_gpu) for name, stream in streams.items()}

        # Without its device set, a thread that pins memory would open the first GPU in every process.
        begin = partial(torch.cuda.set_device, self._device) if on_gpu else None
        with closing(prefetch(make, steps, threads=self._threads, initializer=begin)) as batches_ahead:
            started = time.perf_counter()
            for on_host in batches_ahead:
                batches = {name: batch.to(self._device) for name, batch in on_host.items()}
                self.waited += time.perf_counter() - started
                yield batches
                started = time.perf_counter()

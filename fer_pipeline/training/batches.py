"""Streams of batches: a set of images and a seed in, the batch of any step out, without a state.

The order is endless: one permutation of the set after the other, each from its own child seed, so that step t of a
resumed training gets the very rows that it would have got, and an epoch's border may fall inside a batch. Balanced
order goes in rounds of all classes, each class in its own endless order.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fer_pipeline.core.seeds import derive
from fer_pipeline.training.sets import ImageSet


@lru_cache(maxsize=64)
def _permutation(seed: int, count: int, turn: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng(derive(seed, turn)).permutation(count)


def endless_rows(seed: int, count: int, *, start: int, number: int) -> Int64[np.ndarray, " k"]:
    """Positions `start` to `start + number` of the endless sequence of permutations of `count` rows."""
    positions = np.arange(start, start + number)
    turns = positions // count
    rows = np.empty(number, np.int64)
    for turn in np.unique(turns):
        here = turns == turn
        rows[here] = _permutation(seed, count, int(turn))[positions[here] % count]
    return rows


def balanced_rows(seed: int, members: tuple[np.ndarray, ...], *, start: int, number: int) -> Int64[np.ndarray, " k"]:
    """The same with every class equally often: rounds of all classes, in which class k gives its next member."""
    present = [index for index, rows in enumerate(members) if len(rows)]
    order = endless_rows(derive(seed, "classes"), len(present), start=start, number=number)
    rounds = np.arange(start, start + number) // len(present)
    rows = np.empty(number, np.int64)
    for position, index in enumerate(present):
        here = order == position
        if here.any():
            first, last = int(rounds[here][0]), int(rounds[here][-1])
            own = endless_rows(derive(seed, "class", index), len(members[index]), start=first, number=last - first + 1)
            rows[here] = members[index][own[rounds[here] - first]]
    return rows


@dataclass(frozen=True)
class Batch:
    """Some rows of one stream, on the device of the training."""

    images: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"]  # crops, or network inputs where `prepared`
    labels: Int64[Tensor, " n"]
    rows: Int64[Tensor, " n"]  # their numbers in the stream's set
    prepared: bool

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Stream:
    """One named source of batches. `size` rows a step; 0 takes the whole set in every step."""

    set: ImageSet
    size: int
    seed: int
    balanced: bool = False
    num_classes: int = 0
    _members: tuple[np.ndarray, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        assert len(self.set), "a stream needs at least one image"
        if self.balanced:
            labels = self.set.labels.numpy()
            self._members = tuple(np.flatnonzero(labels == index) for index in range(self.num_classes))

    def rows(self, step: int) -> Int64[np.ndarray, " k"]:
        """The rows of a step."""
        if self.size == 0:
            return np.arange(len(self.set))
        if self.balanced:
            return balanced_rows(self.seed, self._members, start=step * self.size, number=self.size)
        return endless_rows(self.seed, len(self.set), start=step * self.size, number=self.size)

    def batch(self, step: int, device: torch.device) -> Batch:
        """The batch of a step."""
        rows = torch.from_numpy(self.rows(step))
        return Batch(
            images=self.set.images.index_select(0, rows).to(device, non_blocking=True),
            labels=self.set.labels.index_select(0, rows).to(device, non_blocking=True),
            rows=rows,
            prepared=self.set.prepared,
        )

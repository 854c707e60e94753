"""Order rows without end: the rows at any positions of the sequence are a function of a seed, without a state.

Step t of a resumed training thus gets the very rows that it would have got, and an epoch's border may fall inside a
batch. Every turn holds each row once:

- `Permuted`: one permutation of all `count` rows after the other, each from a child seed;
- `Blocked`: blocks (row groups of the shards) in random order, `together` at a time shuffled row by row. What is
  read from disk is read in turn, and the order is a function of seed and blocks, never of where the images lie;
- `Balanced`: rounds of all classes, in which each gives the next of its `members` by an order of its own.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from fer_pipeline.core.seeds import derive


class Permuted:
    def __init__(self, seed: int, count: int) -> None:
        self.count = count
        self._turn = lru_cache(2)(lambda turn: np.random.default_rng(derive(seed, turn)).permutation(count))

    def rows(self, start: int, number: int) -> Int64[np.ndarray, " k"]:
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

    def _make_part(self, number: int) -> Int64[np.ndarray, " k"]:
        turn, part = divmod(number, self._parts)
        chosen = self._turn(turn)[0][part * self.together : (part + 1) * self.together]
        rows = np.concatenate([self._rows[self._first[b] : self._first[b] + self._size[b]] for b in chosen])
        return np.random.default_rng(derive(self._seed, turn, "part", part)).permutation(rows)

    def rows(self, start: int, number: int) -> Int64[np.ndarray, " k"]:
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

    def rows(self, start: int, number: int) -> Int64[np.ndarray, " k"]:
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

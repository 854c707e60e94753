"""Find the faces of the pools that equal or look like a measured or learned face, or each other.

Read from `data/contents`, without pictures and labels. Equal faces are found by their bytes, whatever the settings;
those that look alike by perceptual hashes (`align.hashes`), in three searches, each exact for what it asks:

- test faces of the targets, the anchor and the training set: a pool face is near one if the first words of their
  hashes differ in at most `COARSE` bits, mirrored or not, and its hash differs in at most `test` bits from that of one
  of the test face's poses, mirrored or not. The first comparison is cheap and leaves half a percent for the second;
- faces that are learned from (the train splits of the anchor and the training set), at most `train` bits, and
- faces of the pools among each other, at most `pool` bits, both mirrored or not: by buckets (`close_pairs`).

Source of the buckets: multi-index hashing (Norouzi, Punjani and Fleet, Fast Search in Hamming Space with Multi-Index
Hashing, CVPR 2012); ours sorts instead of hashing, so that memory is that of the hashes and of a few indices of them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt16
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fer_pipeline.artifacts.arrow import positions_in
from fer_pipeline.artifacts.contents import (
    HASH_BYTES,
    MIRROR,
    TEST,
    TRAIN,
    Hashes,
    contents_path,
    iter_hashes,
    iter_repeated,
)
from fer_pipeline.artifacts.mined import (
    EQUAL_COPIES,
    LIKENESS,
    NEAR_TEST,
    NEAR_TRAIN,
    PAIRS,
    TRAIN_FACES,
    WITHIN_POOLS,
)
from fer_pipeline.artifacts.scores import Scores
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import ProjectSettings, Rule, Settings
from fer_pipeline.mining.candidates import Candidates, collect_candidates
from fer_pipeline.mining.leaks import find_test_faces, find_train_faces

COARSE = 14  # bits of 63; measured together with `test` in docs/decisions/0029
BANDS = 16
ROWS_AT_A_TIME = 2**20
PAIRS_AT_A_TIME = 2**21
MOST_PAIRS = 2**23  # that are held before they become groups
Bits = Annotated[int, Field(ge=0, le=2 * BANDS - 1)]


class DuplicateSettings(Settings):
    """In how many of 255 bits a pool face may differ from another face and counts as its picture; null: it is mined.

    `exact` drops byte-equal faces alone, which needs no hashes; a number drops them too. Equal test faces are governed
    by `mine.test_faces`. The detector finds a picture of another size elsewhere; only of test faces it is known how
    their hashes then change.
    """

    test: Annotated[int, Field(ge=0, le=64)] | None = 48
    train: Bits | Literal["exact"] | None = 24
    # of faces of the pools that are alike, the one with the largest value is mined alone
    pool: Bits | Literal["exact"] | None = None


class Pairs(NamedTuple):
    """Pool faces by their rows, the most similar other face of each by its number, and in how many bits they differ."""

    row: Int64[np.ndarray, " p"]
    other: Int64[np.ndarray, " p"]
    bits: Int64[np.ndarray, " p"]


@dataclass(frozen=True)
class PoolFaces:
    """The faces of all pools, one after another; `starts` has where each pool begins, and the end."""

    names: Mapping[str, pa.ChunkedArray]
    starts: Int64[np.ndarray, " p"]
    hashes: Hashes

    def by_pool(self, rows: Int64[np.ndarray, " k"]) -> dict[str, pa.Array]:
        """Returns the `face_id`s of rising rows, by pool."""
        cuts = np.searchsorted(rows, self.starts)
        return {
            pool: names.take(pa.array(rows[cuts[k] : cuts[k + 1]] - self.starts[k])).combine_chunks()
            for k, (pool, names) in enumerate(self.names.items())
        }

    def places(self, rows: Int64[np.ndarray, " k"]) -> tuple[pa.Array, pa.Array]:
        """Returns pool and `face_id` of some rows, in any order."""
        pools = pa.array([*self.names], pa.string()).take(pa.array(np.searchsorted(self.starts, rows, "right") - 1))
        chunks = [chunk for names in self.names.values() for chunk in names.chunks]
        return pools, pa.chunked_array(chunks, pa.string()).take(pa.array(rows)).combine_chunks()

    def table(self, pairs: Pairs, reason: str, other_set: pa.Array, other: pa.Array) -> pa.Table:
        """Returns the rows of `artifacts.mined` about some pairs."""
        pools, names = self.places(pairs.row)
        reasons = pa.array([reason] * len(names), pa.string())
        return pa.table([names, pools, reasons, other, other_set, pa.array(pairs.bits)], schema=LIKENESS)


@dataclass(frozen=True)
class Lookalikes:
    """Pool faces that are or look like test and train faces; the number of the group of those in one; all pairs.

    `group` has an entry for each face of `grouped`, pool after pool.
    """

    near: Mapping[str, Mapping[str, pa.Array]]  # by reason and pool
    grouped: Mapping[str, pa.Array]
    group: Int64[np.ndarray, " g"]
    pairs: pa.Table


def find_lookalikes(folder: Path | None, project: ProjectSettings, settings: DuplicateSettings) -> Lookalikes:
    """Finds them by the files of contents in a folder; sets without a file are left out."""
    if folder is None:
        raise ConfigError("mine.duplicates compares data/contents; run mine with --contents data/contents")
    learned = [*dict.fromkeys([project.anchor, project.train])]
    measured = [*dict.fromkeys([*project.targets, *learned])]
    compared = [bits for bits in dict(settings).values() if isinstance(bits, int)]
    faces = read_pools(folder, [pool for pool in project.pools if compared and contents_path(folder, pool).exists()])
    near, tables = {}, [LIKENESS.empty_table()]
    for reason, sets, bits, find in (
        (NEAR_TEST, measured, settings.test, find_near_test),
        (NEAR_TRAIN, learned, settings.train, find_near_train),
    ):
        if not isinstance(bits, int):
            continue
        rows = [np.empty(0, np.int64)]
        for name in (name for name in sets if contents_path(folder, name).exists()):
            pairs, names = find(faces.hashes, contents_path(folder, name), bits)
            rows.append(pairs.row)
            others = names.take(pa.array(pairs.other))
            tables.append(faces.table(pairs, reason, pa.array([name] * len(others), pa.string()), others))
        near[reason] = faces.by_pool(np.unique(np.concatenate(rows)))
    members, group = np.empty(0, np.int64), np.empty(0, np.int64)
    if isinstance(settings.pool, int):
        members, group = group_faces(faces.hashes, settings.pool)
        _, first, which = np.unique(group, return_index=True, return_inverse=True)
        other = members[first[which]]
        rows, other = members[members != other], other[members != other]
        bits = count_bits(faces.hashes[rows], faces.hashes[other])
        tables.append(faces.table(Pairs(rows, other, bits), WITHIN_POOLS, *faces.places(other)))
    return Lookalikes(near, faces.by_pool(members), group, pa.concat_tables(tables))


def find_equal(folder: Path | None, project: ProjectSettings) -> Lookalikes:
    """Finds the pool faces that equal a face that is learned from, or one of the pools; its table has no pairs."""
    near, names, group = {}, {}, [np.empty(0, np.int64)]
    if folder is not None:
        if found := find_train_faces(folder, project):
            near[TRAIN_FACES] = found
        paths = {pool: path for pool in project.pools if (path := contents_path(folder, pool)).exists()}
        for pool, face_id, number in iter_repeated(paths, TRAIN):
            names.setdefault(pool, []).append(face_id)
            group.append(number)
    grouped = {pool: pa.chunked_array(parts, pa.string()).combine_chunks() for pool, parts in names.items()}
    return Lookalikes(near, grouped, np.concatenate(group), LIKENESS.empty_table())


def worse_copies(candidates: Candidates, alike: Lookalikes) -> dict[str, pa.Array]:
    """Returns the candidates, by pool, that look like another one with a larger value, or an equal one before it."""
    group, start = np.full(len(candidates), -1), 0
    pools = [*candidates.identifiers]
    for pool, faces in alike.grouped.items():
        inside = np.flatnonzero(candidates.pool == pools.index(pool))
        place = positions_in(candidates.identifiers[pool], faces)[candidates.row[inside]]
        numbers = np.append(alike.group[start : start + len(faces)], -1)  # the last is place -1
        group[inside], start = numbers[place], start + len(faces)
    rows = np.flatnonzero(group >= 0)
    rows = rows[np.lexsort((rows, -candidates.best[rows], -candidates.value[rows], group[rows]))]
    worse = np.sort(rows[1:][group[rows[1:]] == group[rows[:-1]]])
    return {
        pool: pa.array(candidates.face_ids(worse[candidates.pool[worse] == k]), pa.string())
        for k, pool in enumerate(pools)
    }


def prepare_candidates(
    pools: Mapping[str, Scores],
    exclude: pa.Array,
    contents: Path | None,
    project: ProjectSettings,
    settings: DuplicateSettings | None,
    *,
    rule: Rule,
    kept: Collection[str],
) -> tuple[Callable[..., Candidates], Lookalikes | None, list[str]]:
    """Returns a way to collect candidates without excluded faces and those that equal or look like others.

    Those of a reason that is `kept` are counted alone. Copies in the pools are chosen by `rule`. The last value names
    the sets whose test faces are not known.
    """
    test_faces, unknown = find_test_faces(contents, project)
    collect = partial(collect_candidates, pools, exclude=exclude, test_faces=test_faces, kept=kept)
    equal = find_equal(contents, project)
    alike = None if settings is None else find_lookalikes(contents, project, settings)
    near, groups = dict(equal.near), {EQUAL_COPIES: equal} if len(equal.group) else {}
    if settings is not None and alike is not None:
        near |= alike.near
        groups |= {WITHIN_POOLS: alike} if isinstance(settings.pool, int) else {}
    if groups:
        every = collect(ranked_by=rule, alike=near)
        near |= {reason: worse_copies(every, copies) for reason, copies in groups.items()}
    return partial(collect, alike=near), alike, unknown


def describe_lookalikes(pools: Mapping[str, Mapping[str, int]], kept: Mapping[str, str]) -> Iterator[str]:
    """Yields what was left out of the pools, by their counts, and what was not since it is `kept`."""
    for pool, counts in pools.items():
        for reason, what in (
            (TRAIN_FACES, "a train picture of the anchor or the training set"),
            (EQUAL_COPIES, "a better one of the pools"),
        ):
            if number := counts.get(reason):
                which = f"{number:,} face{'s' * (number > 1)} equal to {what}"
                effect = f"mined like the others, since {kept[reason]}" if reason in kept else "not mined"
                yield f"{pool}: {which}; {effect} (`mined duplicates` lists the pairs)"
        alike = {
            NEAR_TEST: "like a test picture",
            NEAR_TRAIN: "like a train picture",
            WITHIN_POOLS: "a copy in the pools",
        }
        found = [f"{counts[reason]:,} {what}" for reason, what in alike.items() if counts.get(reason)]
        if found:
            but = ""
            if counts.get(NEAR_TEST) and NEAR_TEST in kept:
                but = f", but those like test pictures, since {kept[NEAR_TEST]}"
            yield f"{pool}: not mined are faces that look alike ({', '.join(found)}){but}; {PAIRS} lists them"


def read_pools(folder: Path, pools: Sequence[str]) -> PoolFaces:
    """Reads the first hash of the train faces of each pool."""
    names, hashes, starts = {}, [np.empty((0, 4), np.uint64)], [0]
    for pool in pools:
        parts = [
            (ids, np.array([one[0] for one in found])) for ids, found in iter_hashes(contents_path(folder, pool), TRAIN)
        ]
        names[pool] = pa.chunked_array([ids for ids, _ in parts], pa.string())
        hashes += [part for _, part in parts if len(part)]
        starts.append(starts[-1] + len(names[pool]))
    return PoolFaces(names, np.array(starts), np.concatenate(hashes))


def count_bits(first: Hashes, second: Hashes) -> Int64[np.ndarray, " n"]:
    """Returns in how many bits hashes differ from others, row by row, or from those mirrored, whichever is less."""
    both = (np.bitwise_count(first ^ other).sum(axis=1, dtype=np.int64) for other in (second, second ^ MIRROR))
    return np.minimum(*both)


def find_near_test(hashes: Hashes, path: Path, bits: int) -> tuple[Pairs, pa.Array]:
    """Returns which hashes are near a test face of a file of contents, and the `face_id`s of its test faces."""
    nearest, number, names = _nobody(hashes), 0, []
    low = np.ascontiguousarray(hashes[:, 0])
    for ids, found in iter_hashes(path, TEST):
        names.append(ids)
        for poses in found:
            coarse = [np.bitwise_count(low ^ one) for one in (poses[0, 0], poses[0, 0] ^ MIRROR[0])]
            rows = np.flatnonzero(np.minimum(*coarse) <= COARSE)
            index = faiss.IndexBinaryFlat(8 * HASH_BYTES)
            index.add(np.concatenate([poses, poses ^ MIRROR]).view(np.uint8))  # pyright: ignore[reportCallIssue]
            differing = index.search(hashes[rows].view(np.uint8), 1)[0][:, 0]  # pyright: ignore[reportCallIssue]
            _note(nearest, rows, differing, number, bits)
            number += 1
    return _pairs(nearest), pa.chunked_array(names, pa.string()).combine_chunks()


def find_near_train(hashes: Hashes, path: Path, bits: int) -> tuple[Pairs, pa.Array]:
    """Returns which hashes are near a train face of a file of contents, and the `face_id`s of its train faces."""
    nearest, others = _nobody(hashes), read_pools(path.parent, [path.stem])
    for second in (others.hashes, others.hashes ^ MIRROR):
        for rows, other, differing in close_pairs(hashes, second, bits):
            _note(nearest, rows, differing, other, bits)
    return _pairs(nearest), others.names[path.stem].combine_chunks()


def _nobody(hashes: Hashes) -> Int64[np.ndarray, " n"]:
    """The bits and the number of the most similar other face, in one integer so that the least of two is a minimum."""
    return np.full(len(hashes), np.iinfo(np.int64).max)


def _note(nearest: np.ndarray, rows: np.ndarray, differing: np.ndarray, other: int | np.ndarray, bits: int) -> None:
    keys = differing.astype(np.int64) << 40 | other
    np.minimum.at(nearest, rows[differing <= bits], keys[differing <= bits])


def _pairs(nearest: Int64[np.ndarray, " n"]) -> Pairs:
    rows = np.flatnonzero(nearest < np.iinfo(np.int64).max)
    return Pairs(rows, nearest[rows] & 2**40 - 1, nearest[rows] >> 40)


def group_faces(hashes: Hashes, bits: int) -> tuple[Int64[np.ndarray, " g"], Int64[np.ndarray, " g"]]:
    """Returns the rows that are like another one, rising, and the number of the group of each.

    A group is a chain: each of its faces is within `bits` of another one, mirrored or not.
    """
    order = np.lexsort(hashes.T)
    new = np.ones(len(hashes), bool)  # equal hashes are joined before: of many, every pair would be met
    for column in hashes.T if len(hashes) else ():
        values = column[order]
        new[1:] &= values[1:] == values[:-1]
    new[1:] = ~new[1:]
    distinct = hashes[order[new]]
    edges, held = [np.empty((2, 0), np.int64)], 0
    for second in (distinct, distinct ^ MIRROR):
        for rows, other, _ in close_pairs(distinct, second, bits):
            edges.append(np.stack([rows, other])[:, rows != other])
            held += len(rows)
            if held > MOST_PAIRS:
                label = _components(edges, len(distinct))
                first = np.unique(label, return_index=True)[1]
                joined = np.flatnonzero(np.arange(len(label)) != first[label])
                edges, held = [np.stack([joined, first[label[joined]]])], len(joined)
    label = np.empty(len(hashes), np.int64)
    label[order] = _components(edges, len(distinct))[np.cumsum(new) - 1]
    members = np.flatnonzero(np.bincount(label, minlength=1)[label] > 1)
    return members, label[members]


def _components(edges: Sequence[np.ndarray], nodes: int) -> Int64[np.ndarray, " n"]:
    both = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(both.shape[1], bool), both), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1].astype(np.int64) if nodes else np.empty(0, np.int64)


def close_pairs(first: Hashes, second: Hashes, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields rows of both that differ in at most `bits` bits, and in how many; a pair may come several times.

    Of one array with itself each pair comes one way round only, and no row with itself.

    Bit p belongs to band p mod 16. Two hashes that differ in less than 16 bits agree in a band, two that differ in less
    than 32 differ by at most one bit in one.
    """
    assert 0 <= bits < 2 * BANDS
    low = [np.ascontiguousarray(one[:, 0]) for one in (first, second)]
    for band in range(BANDS):
        keys = _band(first, band)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys, others, other_order = keys[order], keys[order], order
        if first is not second:
            others = _band(second, band)
            other_order = np.argsort(others, kind="stable").astype(np.int32)
            others = others[other_order]
        starts = np.searchsorted(others, np.arange(2**16 + 1)).astype(np.int32)
        for flip in (0, *(1 << k for k in range(16)))[: 1 if bits < BANDS else None]:
            wanted = keys ^ np.uint16(flip)
            begins, ends = starts[:-1][wanted], starts[1:][wanted]
            if first is second:
                begins = np.maximum(begins, np.arange(1, len(keys) + 1, dtype=np.int32))
            for left, right in _expand(begins, np.maximum(ends - begins, 0)):
                rows, other = order[left], other_order[right]
                near = np.bitwise_count(low[0][rows] ^ low[1][other]) <= bits
                rows, other = rows[near], other[near]
                differing = np.bitwise_count(first[rows] ^ second[other]).sum(axis=1, dtype=np.int64)
                near = differing <= bits
                yield rows[near], other[near], differing[near]


def _band(hashes: Hashes, band: int) -> UInt16[np.ndarray, " n"]:
    keys = np.empty(len(hashes), np.uint16)
    for start in range(0, len(hashes), ROWS_AT_A_TIME):
        part = hashes[start : start + ROWS_AT_A_TIME]
        key = keys[start : start + ROWS_AT_A_TIME]
        key[:] = 0
        for place in range(band, 8 * HASH_BYTES, BANDS):
            word, bit = divmod(place, 64)
            key[:] = key << np.uint16(1) | (part[:, word] >> np.uint64(bit) & np.uint64(1)).astype(np.uint16)
    return keys


def _expand(begins: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the pairs of each place with the `counts` places from its beginning, some at a time."""
    ends, start = np.cumsum(counts, dtype=np.int64), 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + PAIRS_AT_A_TIME, "right")), start + 1)
        some = counts[start:stop]
        left = np.repeat(np.arange(start, stop), some)
        shift = np.repeat(begins[start:stop] - (ends[start:stop] - some - done), some)
        yield left, np.arange(len(left)) + shift
        start = stop

"""Sides of `duplicates`. In: sizes. A round groups the same random perceptual hashes, of which some are near others."""

from collections.abc import Callable
from typing import Any

import numpy as np

Round = Callable[[], dict[str, Any]]


def ours(number: int, alike: int, bits: int, seed: int) -> Round:
    """The groups that `mine.duplicates.pool` asks for."""
    from fer_pipeline.mining.duplicates import group_faces

    hashes = draw(number, alike, bits, seed)
    group_faces(hashes[: number // 100], bits)

    def once() -> dict[str, Any]:
        members, group = group_faces(hashes, bits)
        return {"faces": len(members), "groups": len(np.unique(group))}

    return once


def with_faiss(number: int, alike: int, bits: int, seed: int) -> Round:
    """The same groups by faiss: 16 tables of 16 bits, which find all pairs below 16 bits too; SciPy joins them."""
    import faiss
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    from fer_pipeline.artifacts.contents import MIRROR

    assert bits < 16
    hashes = draw(number, alike, bits, seed)

    def once() -> dict[str, Any]:
        index = faiss.IndexBinaryMultiHash(256, 16, 16)
        index.add(hashes.view(np.uint8))  # pyright: ignore[reportCallIssue]
        edges = []
        for queries in (hashes, hashes ^ MIRROR):
            starts, _, found = index.range_search(queries.view(np.uint8), bits + 1)  # pyright: ignore[reportCallIssue]
            edges.append(np.stack([np.repeat(np.arange(number), np.diff(starts.astype(np.int64))), found]))
        both = np.concatenate(edges, axis=1)
        graph = coo_array((np.ones(both.shape[1], bool), both), shape=(number, number))
        label = connected_components(graph, directed=False)[1]
        sizes = np.bincount(label)
        return {"faces": int(sizes[sizes > 1].sum()), "groups": int((sizes > 1).sum())}

    return once


def draw(number: int, alike: int, bits: int, seed: int) -> np.ndarray:
    """Draws hashes; the last `alike` ones are the first ones with at most `bits` other bits, every second mirrored."""
    from fer_pipeline.artifacts.contents import MIRROR

    random = np.random.default_rng(seed)
    plain = random.integers(0, 2**64, (number - alike, 4), np.uint64)
    copies = plain[:alike].copy()
    copies[::2] ^= MIRROR
    place = random.integers(0, 256, (alike, bits))  # a bit that is drawn twice is flipped back: fewer differ
    for word, bit in zip(*np.divmod(place.T, 64), strict=True):
        copies[np.arange(alike), word] ^= np.uint64(1) << bit.astype(np.uint64)
    return np.concatenate([plain, copies])[random.permutation(number)]

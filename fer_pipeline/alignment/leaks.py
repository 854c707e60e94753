"""Hash the crops of the finished shards of one set, and count what its splits share.

The hashes of a shard are kept in the store under the shard's key, so that faces are read once and not at every run. A
new version of them needs a higher `VERSION`; the shards stay as they are.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa

from fer_pipeline.alignment import perceptual
from fer_pipeline.alignment.shards import FACES
from fer_pipeline.artifacts.contents import (
    CONTENTS,
    HASHED,
    TEST,
    TRAIN,
    Look,
    SharedCounts,
    SplitContents,
    count_shared,
    hash_faces,
    write_contents,
)
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.progress import progress

VERSION = 1


def contents_key(shard: str, *, hashes: bool = False) -> str:
    """Returns the key of a shard's hashes by the key of the shard, without or with perceptual ones."""
    return fingerprint("contents", VERSION, shard, *(("perceptual", perceptual.VERSION) if hashes else ()))


def hash_shards(store: Store, shards: Mapping[str, str], *, name: str, hashes: bool = False) -> list[SplitContents]:
    """Hashes the faces of finished shards where the store does not have them yet, and returns them by split.

    Args:
        store: Where the shards are, and their hashes are put.
        shards: The shards' keys, in order, by the file's name in the set (`<split>/part-*.parquet`).
        name: The data set, for who waits.
        hashes: Whether there are perceptual hashes too, of the test split in all poses.
    """
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    with progress(f"contents {name}", len(shards), "shards") as advance:
        for file, shard in shards.items():
            key, faces, split = contents_key(shard, hashes=hashes), store.shard(shard) / FACES, file.partition("/")[0]
            look = partial(perceptual.hash_encoded, poses=split == TEST, where=f"{name}/{file}") if hashes else None

            def make(path: Path, faces: Path = faces, look: Look | None = look) -> None:
                schema = HASHED if look else CONTENTS
                write_contents(path, [pa.Table.from_batches(hash_faces(faces, look), schema)], schema)

            was_there = store.make(key, make)
            advance(1, earlier=was_there)
            paths[split].append(store.shard(key))
    return [SplitContents(paths[split], split) for split in sorted(paths)]


def shared_with_train(splits: list[SplitContents]) -> dict[str, SharedCounts]:
    """Counts what each other split of a set has in common with `train`, by its name."""
    first = next((one for one in splits if one.split == TRAIN), None)
    return {one.split: count_shared(first, one) for one in splits if first and one is not first}

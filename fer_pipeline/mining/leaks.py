"""Find the faces of the pools that are pictures of what is measured on or learned from, and who the held-out ones show.

A model that was trained on a test picture is not measured by it. Equal crops alone are found (see
`artifacts.contents`); no test label is opened.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from fer_pipeline.artifacts.arrow import positions_in
from fer_pipeline.artifacts.contents import TEST, TRAIN, contents_path, faces_with, read_contents, read_split_contents
from fer_pipeline.core.settings import ProjectSettings


def find_test_faces(folder: Path | None, project: ProjectSettings) -> tuple[dict[str, pa.Array], list[str]]:
    """Returns the `face_id`s by pool that are test faces of a target, the anchor or the training set.

    The second value names the sets of which nothing is known, because `align` left no file of them in the folder.
    """
    measured = list(dict.fromkeys([*project.targets, project.anchor, project.train]))
    names = list(dict.fromkeys([*measured, *project.pools]))
    if folder is None:
        return {}, names
    unknown = [name for name in names if not contents_path(folder, name).exists()]
    return _equal_to(folder, read_split_contents(folder, measured, TEST), project.pools), unknown


def find_train_faces(folder: Path, project: ProjectSettings) -> dict[str, pa.Array]:
    """Returns the `face_id`s by pool that are train faces of the anchor or the training set; {} where none is."""
    found = _equal_to(folder, read_split_contents(folder, {project.anchor, project.train}, TRAIN), project.pools)
    return found if any(map(len, found.values())) else {}


def _equal_to(folder: Path, contents: pa.Array, pools: Sequence[str]) -> dict[str, pa.Array]:
    paths = {pool: path for pool in pools if (path := contents_path(folder, pool)).exists()}
    return {pool: faces_with(path, contents) for pool, path in paths.items()}


def number_persons(folder: Path | None, anchor: str, face_id: pa.ChunkedArray) -> Int64[np.ndarray, " n"] | None:
    """Numbers the persons of some anchor faces, each face without a name its own; None where no name is known."""
    if folder is None or not contents_path(folder, anchor).exists():
        return None
    contents = read_contents(contents_path(folder, anchor))
    place = positions_in(face_id, contents.column("face_id").combine_chunks())
    subjects = [*contents.column("subject").to_pylist(), None]  # the last is place -1
    names = [subjects[index] for index in place.tolist()]
    if not any(names):
        return None
    alone = [name or f"\0{number}" for number, name in enumerate(names)]
    return np.unique(np.array(alone), return_inverse=True)[1].astype(np.int64)


def describe_test_faces(pools: Mapping[str, Mapping[str, Any]], unknown: Sequence[str], *, drop: bool) -> Iterator[str]:
    """Yields what was found in the pools, by their counts, and where nothing could be looked for."""
    for pool, counts in pools.items():
        if number := counts["test_faces"]:
            which = "1 face is a test picture" if number == 1 else f"{number:,} faces are test pictures"
            effect = "not mined" if drop else "mined like the others, since mine.test_faces is keep"
            yield f"{pool}: {which} of a target, the anchor or the training set; {effect}"
    if unknown:
        yield (
            f"test pictures in the pools are not found: nothing says which pictures the faces of {', '.join(unknown)} "
            f"are; run align again and give mine --contents data/contents (dvc repro does both)"
        )

"""Embeddings of the anchor and of one pool in, class centroids and all cosines out.

In: `data/embeddings` of both and the primitive learner's split. Out: `data/scores/<pool>` (see `artifacts.scores`). The
centroids are those of the anchor's fit part; held-out anchor faces are scored like the pool, in `heldout.arrow`.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from fer_pipeline.artifacts.embeddings import embedding_paths, iter_embeddings, model_of
from fer_pipeline.artifacts.scores import HELDOUT, Centroids, score_batch, score_schema, write_centroids, write_scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, replacing_folder, write_json
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources, Settings
from fer_pipeline.core.summaries import Summary
from fer_pipeline.mining.anchor import FIT, HELD_OUT, VALIDATION, check_complete, labelled, read_split
from fer_pipeline.mining.centroids import class_centroids
from fer_pipeline.mining.cosine import rank_classes, without_direction
from fer_pipeline.mining.engines import Engine, EngineName, make_engine
from fer_pipeline.networks.cards import read_card
from fer_pipeline.networks.checkpoints import WEIGHTS

ROWS = 65536  # in memory at a time


class Config(Settings):
    """What computes the cosines, and which anchor faces make the centroids."""

    engine: EngineName = "auto"
    centroids: Literal["fit", "fit+validation"] = "fit"


def run(
    config: Config,
    *,
    pool: str,
    anchor_embeddings: Path,
    pool_embeddings: Path,
    model: Path,
    classes: Sequence[str],
    out: Path,
    resources: Resources,
) -> Summary:
    """Scores one pool and the held-out anchor faces."""
    check_classes(model, classes)
    anchor, shards = embedding_paths(anchor_embeddings), embedding_paths(pool_embeddings)
    check_models(model, {anchor_embeddings: anchor, pool_embeddings: shards})
    split = read_split(model, classes=classes)
    unlisted = check_complete(anchor, split, folder=anchor_embeddings)
    parts = (FIT, VALIDATION) if config.centroids == "fit+validation" else (FIT,)
    members = ((batch.vector, labels) for batch, labels in labelled(anchor, split, parts))
    vectors, counts = class_centroids(members, classes=classes)
    name, engine = make_engine(config.engine, vectors, device=resources.device)

    tally = {"faces": 0, "no_direction": 0, "heldout": 0, "heldout_no_direction": 0, "anchor_unlisted": unlisted}
    with replacing_folder(out) as folder, progress(f"score {pool}", None, "faces") as advance:
        write_centroids(folder, Centroids(vectors, counts, tuple(classes)))
        heldout = ((batch, labels) for batch, labels in labelled(anchor, split, (HELD_OUT,)))
        schema = score_schema(classes, labelled=True)
        rows = scored(heldout, engine, schema, partial(count, tally, "heldout", "heldout_no_direction"))
        write_scores(folder / HELDOUT, schema, rows)
        schema = score_schema(classes)
        for path in shards:
            batches = ((batch, None) for batch in iter_embeddings(path, batch_size=ROWS))
            rows = scored(batches, engine, schema, partial(count, tally, "faces", "no_direction"))
            advance(write_scores(folder / path.name, schema, rows))
        by_class = {label: int(number) for label, number in zip(classes, counts, strict=True)}
        write_json(folder / "summary.json", {"engine": name, "centroids": by_class, **tally})
    return Summary("score", headline(pool, name, tally), dict(tally), tuple(warnings_of(pool, tally)))


def scored(batches: Iterable, engine: Engine, schema: pa.Schema, tell) -> Iterator[pa.RecordBatch]:
    """Record batches of scores for batches of embeddings and their labels, if any."""
    for batch, labels in batches:
        cosine = engine(batch.vector)
        nearest, margin = rank_classes(cosine)
        tell(cosine)
        yield score_batch(schema, face_id=batch.face_id, cosine=cosine, nearest=nearest, margin=margin, label=labels)


def count(tally: dict[str, int], faces: str, undirected: str, cosine: np.ndarray) -> None:
    """Adds a batch to the tally."""
    tally[faces] += len(cosine)
    tally[undirected] += int(without_direction(cosine).sum())


def check_classes(model: Path, classes: Sequence[str]) -> None:
    """The checkpoint's classes must be ours, in our order: its split stores numbers."""
    found = read_card(model).classes
    if found != tuple(classes):
        raise DataError(
            f"{model} was trained with the classes {', '.join(found)}, expected {', '.join(classes)} in this order; "
            "rerun train_primitive"
        )


def check_models(model: Path, sets: dict[Path, list[Path]]) -> None:
    """All features must come from this very checkpoint."""
    expected = file_sha256(model / WEIGHTS)
    for folder, paths in sets.items():
        if model_of(paths[0])[0] != expected:
            raise DataError(f"{folder} holds features of another checkpoint than {model}; rerun embed")


def headline(pool: str, engine: str, tally: dict[str, int]) -> str:
    """What was scored."""
    return f"{pool}: {tally['faces']:,} faces and {tally['heldout']:,} held-out anchor faces scored by {engine}"


def warnings_of(pool: str, tally: dict[str, int]) -> Iterator[str]:
    """What a person should look at."""
    if tally["no_direction"]:
        yield f"{tally['no_direction']:,} faces of {pool} have a zero feature and cannot be mined"
    if not tally["heldout"]:
        yield "no anchor face was held out: mine cannot estimate its precision; hold some out in train_primitive"

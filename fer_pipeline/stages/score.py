"""Embeddings of the anchor and of one pool in, class centroids and all cosines out.

In: `data/embeddings` of both and the primitive learner's split. Out: `data/scores/<pool>` (see `artifacts.scores`). The
centroids are those of the anchor's fit part; held-out anchor faces are scored like the pool, in `heldout.arrow`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from fer_pipeline.artifacts.embeddings import Block, embedding_paths, model_of
from fer_pipeline.artifacts.scores import HELDOUT, Centroids, score_schema, write_centroids
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, replacing_folder, write_json
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import ProjectSettings, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.cards import read_card
from fer_pipeline.networks.checkpoints import WEIGHTS
from fer_pipeline.scoring.anchor import FIT, HELD_OUT, VALIDATION, check_complete, labelled, read_split
from fer_pipeline.scoring.centroids import class_centroids
from fer_pipeline.scoring.engines import EngineName, make_engine
from fer_pipeline.scoring.shards import Tally, score_shards, write_scored


class Config(Settings):
    """What computes the cosines, and which anchor faces make the centroids."""

    engine: EngineName = "auto"
    centroids: Literal["fit", "fit+validation"] = "fit"


def run(
    config: Config,
    project: ProjectSettings,
    *,
    pool: str,
    anchor_embeddings: Path,
    pool_embeddings: Path,
    model: Path,
    out: Path,
) -> Summary:
    """Compare one pool and the held-out anchor faces with every class centroid.

    Args:
        config: The section `score`.
        project: What all stages share.
        pool: The pool's name in the settings.
        anchor_embeddings: The anchor's features.
        pool_embeddings: The pool's features.
        model: The folder of the primitive learner.
        out: Where centroids, cosines and a summary are written.
    """
    classes = project.classes
    check_classes(model, classes)
    anchor, shards = embedding_paths(anchor_embeddings), embedding_paths(pool_embeddings)
    check_models(model, {anchor_embeddings: anchor, pool_embeddings: shards})
    split = read_split(model, classes=classes)
    unlisted = check_complete(anchor, split, folder=anchor_embeddings)
    parts = (FIT, VALIDATION) if config.centroids == "fit+validation" else (FIT,)
    members = ((batch.vector, labels) for batch, labels in labelled(anchor, split, parts))
    vectors, counts = class_centroids(members, classes=classes)
    engine = make_engine(config.engine, vectors, device=project.resources.device)

    with replacing_folder(out) as folder, progress(f"score {pool}", None, "faces") as advance:
        write_centroids(folder, Centroids(vectors, counts, classes))
        heldout = (
            (Block(pa.chunked_array([batch.face_id]), (batch.vector,)), labels)
            for batch, labels in labelled(anchor, split, (HELD_OUT,))
        )
        schema = score_schema(classes, labelled=True)
        held = write_scored(folder / HELDOUT, schema, heldout, engine=engine, source=anchor_embeddings)
        found = Tally()
        for tally in score_shards(
            shards,
            out=folder,
            schema=score_schema(classes),
            engine=engine,
            dimensions=vectors.shape[1],
            workers=project.resources.workers,
        ):
            found += tally
            advance(tally.faces)
        by_class = {label: int(number) for label, number in zip(classes, counts, strict=True)}
        tallies = counts_of(found, held, unlisted=unlisted)
        write_json(folder / "summary.json", {"engine": engine.name, "centroids": by_class, **tallies})
    return Summary("score", headline(pool, engine.name, tallies), dict(tallies), tuple(warnings_of(pool, tallies)))


def counts_of(pool: Tally, heldout: Tally, *, unlisted: int) -> dict[str, int]:
    """The counts of the summary."""
    return {
        "faces": pool.faces,
        "no_direction": pool.no_direction,
        "heldout": heldout.faces,
        "heldout_no_direction": heldout.no_direction,
        "anchor_unlisted": unlisted,
    }


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

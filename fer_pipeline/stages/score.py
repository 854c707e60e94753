"""Score one pool and the held-out anchor faces: their cosines to all class centroids, and the primitive's logits.

Reads `data/embeddings` of the anchor and of the pool and the primitive learner's split; writes `data/scores/<pool>`
(see `artifacts.scores`). Logits are there where the features are those that the head takes. The centroids are those of
the anchor's fit part; held-out anchor faces are scored like the pool, in `heldout.arrow`.

Where the labeller was refitted on the held-out faces, they are scored by the calibration model, its head, and centroids
of what it was fitted on, all in the folder `calibration`; the pool by the labeller, with centroids of all faces that it
was fitted on. `train_primitive` says what is assumed then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from fer_pipeline.artifacts.embeddings import Block, embedding_paths, read_model_and_width
from fer_pipeline.artifacts.scores import HELDOUT, Centroids, score_schema, write_centroids
from fer_pipeline.artifacts.seed_folders import each_seed
from fer_pipeline.artifacts.split import CALIBRATION, Split, of_calibration, read_split
from fer_pipeline.artifacts.split import HELDOUT as HELDOUT_PART
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder, write_json
from fer_pipeline.core.progress import Progress, progress
from fer_pipeline.core.settings import ProjectSettings, Settings, Summary, pass_on
from fer_pipeline.networks.checkpoints import features_id, read_head
from fer_pipeline.networks.pretrained import seen_by
from fer_pipeline.networks.settings import read_card
from fer_pipeline.scoring.centroids import check_complete, class_centroids, iter_labelled
from fer_pipeline.scoring.engines import Engine, EngineName, Head, make_engine
from fer_pipeline.scoring.shards import FaceCounts, score_blocks, score_shards


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
        pool: The pool's name in the settings.
        anchor_embeddings: The anchor's features.
        pool_embeddings: The pool's features.
        model: The folder of the primitive learner.
        out: Where centroids, cosines and a summary are written.
    """
    paths = {"anchor_embeddings": anchor_embeddings, "pool_embeddings": pool_embeddings, "model": model, "out": out}
    with progress(f"score {pool}", None, "faces") as advance:  # of all seeds
        return score_pool(config, project, pool=pool, **paths, advance=advance)


@each_seed("model", "anchor_embeddings", "pool_embeddings")
def score_pool(
    config: Config,
    project: ProjectSettings,
    *,
    pool: str,
    anchor_embeddings: Path,
    pool_embeddings: Path,
    model: Path,
    out: Path,
    advance: Progress,
) -> Summary:
    """Compares one pool and the held-out anchor faces with the centroids of one primitive learner."""
    classes = project.classes
    shards = embedding_paths(pool_embeddings)
    check_model(model, classes=classes, shards=shards[:1])
    labeller = calibration = read_scorer(config, project, model, anchor_embeddings)
    if refitted := of_calibration(model) != model:
        calibration = read_scorer(config, project, model / CALIBRATION, anchor_embeddings / CALIBRATION)
    engine, logits = labeller.engine, labeller.logits

    with replacing_folder(out) as folder:
        write_centroids(folder, labeller.centroids)
        held_out = folder / CALIBRATION if refitted else folder
        if refitted:
            held_out.mkdir()
            write_centroids(held_out, calibration.centroids)
        heldout = calibration.score_heldout(held_out / HELDOUT)
        total, schema, width = FaceCounts(), score_schema(classes, logits=logits), labeller.centroids.vectors.shape[1]
        for shard in score_shards(
            shards, out=folder, schema=schema, engine=engine, dimensions=width, workers=project.resources.workers
        ):
            total += shard
            advance(shard.faces)
        numbers: dict[str, int | float] = {
            "faces": total.faces,
            "no_direction": total.no_direction,
            "heldout": heldout.faces,
            "heldout_no_direction": heldout.no_direction,
            "anchor_unlisted": labeller.unlisted,
        }
        by_class = dict(zip(classes, labeller.centroids.counts.tolist(), strict=True))
        about = {"engine": engine.name, "logits": logits, "centroids": by_class}
        write_json(folder / "summary.json", {**about, **numbers})
    warnings = []
    if not logits:
        line = f"the features of {pool} are not those that the head of {model} takes: mine has no rule by probability"
        warnings.append(line)
    if total.no_direction:
        warnings.append(f"{total.no_direction:,} faces of {pool} have a zero feature and cannot be mined")
    if not heldout.faces:
        line = "no anchor face was held out: mine cannot estimate its precision; hold some out in train_primitive"
        warnings.append(line)
    line = f"{pool}: {total.faces:,} faces and {heldout.faces:,} held-out anchor faces scored by {engine.name}"
    line += ", the latter with the calibration model" if refitted else ""
    return Summary("score", line, numbers, tuple(warnings))


@dataclass(frozen=True)
class Scorer:
    """A checkpoint with its embeddings of the anchor: the centroids of what it was fitted on, and what scores faces."""

    anchor: Path
    split: Split
    unlisted: int  # embeddings that the split lacks
    centroids: Centroids
    engine: Engine
    logits: bool

    def score_heldout(self, path: Path) -> FaceCounts:
        """Writes the scores of the anchor faces that the checkpoint held out."""
        blocks = (
            (Block(pa.chunked_array([batch.face_id]), (batch.vector,)), labels)
            for batch, labels in iter_labelled(embedding_paths(self.anchor), self.split, (HELDOUT_PART,))
        )
        schema = score_schema(self.centroids.classes, labelled=True, logits=self.logits)
        return score_blocks(path, schema, blocks, engine=self.engine, source=self.anchor)


def read_scorer(config: Config, project: ProjectSettings, model: Path, anchor: Path) -> Scorer:
    """Reads what of a checkpoint scores faces; `anchor` has the anchor's features by this checkpoint."""
    classes, paths = project.classes, embedding_paths(anchor)
    check_model(model, classes=classes, shards=paths[:1])
    split = read_split(model, num_classes=len(classes))
    unlisted = check_complete(paths, split, folder=anchor)
    members = iter_labelled(paths, split, config.centroids.split("+"))
    vectors, counts = class_centroids(((batch.vector, labels) for batch, labels in members), classes=classes)
    head = find_head(model, width=vectors.shape[1], num_classes=len(classes))
    engine = make_engine(config.engine, vectors, head, device=project.resources.device)
    seen = pass_on(seen_by(read_card(model)), "the labeller")
    return Scorer(anchor, split, unlisted, Centroids(vectors, counts, classes, seen), engine, head is not None)


def find_head(model: Path, *, width: int, num_classes: int) -> Head | None:
    """Reads the head of a checkpoint; None where it takes other features than those of this width."""
    card = read_card(model)
    if card.mining_features not in (None, card.network.features):
        return None
    weight, bias = read_head(model)
    if len(bias) != num_classes:
        raise DataError(f"{model} has a head of {len(bias)} classes, expected {num_classes}; rerun train_primitive")
    return Head(weight, bias) if weight.shape[1] == width else None


def check_model(model: Path, *, classes: Sequence[str], shards: Sequence[Path]) -> None:
    """Refuses a checkpoint of other classes or another order, since its split stores numbers, and others' features."""
    trained = read_card(model).classes
    if trained != tuple(classes):
        raise DataError(
            f"{model} was trained with the classes {', '.join(trained)}, expected {', '.join(classes)} in this order; "
            "rerun train_primitive"
        )
    features = features_id(model)
    for shard in shards:
        if read_model_and_width(shard)[0] != features:
            raise DataError(f"{shard.parent} holds features of another checkpoint than {model}; rerun embed")

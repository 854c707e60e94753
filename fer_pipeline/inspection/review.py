"""List faces that people are to judge: a random sample of the mined ones, or pool faces whose judging may help most.

Lists are review files without verdicts (`artifacts.review`): `label` is the class that the face was, or would be, mined
as. A face of a sample that was judged already stands there with its verdicts, which then belong to the draw too.

How `suggest` orders the candidates of all pools that nobody has judged:

- `uncertainty`: least difference between the two largest probabilities of the primitive learner first, or between the
  two largest cosines where there are no logits (margin sampling: Scheffer, Decomain & Wrobel, IDA 2001).
- `rare`: each face is meant for the class that has the fewest labelled and mined faces, those that it was meant for
  counted in; of each class, the nearest to its centroid first. Mined faces are left out.
- `disagreement`: those that get the most labels beside the most frequent one, from the class centroids and the head of
  each seed's learner (vote by committee: Dagan & Engelson, ICML 1995, by the largest share instead of the entropy); of
  equal ones the most uncertain first. Faces that all agree on are left out.
- `random`: in an order that the seed says, for comparison.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int64

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.mined import MINED, counted_alone, read_chosen, read_rows
from fer_pipeline.artifacts.review import Judgement, merge_reviews, read_review
from fer_pipeline.artifacts.scores import Scores, read_centroids, read_heldout, read_scores
from fer_pipeline.artifacts.seed_folders import in_set, of_seed, seeds_in
from fer_pipeline.artifacts.split import of_calibration
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.mining.candidates import Candidates, random_order, read_exclusions
from fer_pipeline.mining.duplicates import prepare_candidates
from fer_pipeline.mining.review import Face, draw_sample, find_pictures, read_opinions
from fer_pipeline.stages.mine import Config

By = Literal["uncertainty", "rare", "disagreement", "random"]
REVIEW = Path("review.csv")  # in the folder of data


def sample(data: Path, project: ProjectSettings, *, number: int, per_class: bool, seed: int) -> list[Judgement]:
    """Draws mined faces at random, as the rule chose them before any verdict; of several seeds' those of the first."""
    classes = project.classes
    chosen = read_chosen(of_seed(data / "mined", project.seeds[0]), classes=classes)
    rows = draw_sample(chosen, number=number, per_class=per_class, seed=seed, num_classes=len(classes))
    drawn = chosen.take(pa.array(rows)).select(["pool", "face_id", "label"]).to_pylist()
    known: dict[tuple[str, str, str], list[Judgement]] = defaultdict(list)
    for row in read_review(data / REVIEW, classes=classes):
        known[row.picture].append(row)
    listed = _list_faces(data, project, [(row["pool"], row["face_id"], classes[row["label"]]) for row in drawn])
    return [
        row._replace(sample=" ".join(dict.fromkeys([*row.sample.split(), str(seed)])))
        for face in listed
        for row in merge_reviews(known[face.picture]) or [face]
    ]


def suggest(data: Path, project: ProjectSettings, config: Config, *, number: int, by: By, seed: int) -> list[Judgement]:
    """Chooses candidates that nobody has judged, the most helpful first, at most `number`."""
    folder, classes, chosen_by = data / "scores", project.classes, config.ranked_by
    seeds = seeds_in(folder) or project.seeds[:1]
    learners = [_read_pools(of_seed(folder, one), project) for one in seeds]
    rule = chosen_by if all(chosen_by in one.rankings for one in learners[0].values()) else "margin"
    exclude = read_exclusions(config.exclude, sha256=config.exclude_sha256)
    settings, kept = config.duplicates, counted_alone(config.model_dump())
    collect, _, _ = prepare_candidates(learners[0], exclude, data / "contents", project, settings, rule=rule, kept=kept)
    candidates = collect(ranked_by=rule)
    judged = read_opinions(data / REVIEW, data / "contents", project.pools, classes).opinions
    free = np.flatnonzero(~_are_among(candidates, judged))
    if by == "rare":
        mined = read_rows(of_seed(data / "mined", seeds[0]), MINED, classes=classes).to_pydict()
        free = np.setdiff1d(
            free, np.flatnonzero(_are_among(candidates, zip(mined["pool"], mined["face_id"], strict=True)))
        )
        held_out = of_calibration(in_set(of_seed(folder, seeds[0]), project.pools[0]))
        label = read_heldout(held_out, classes=classes).label
        assert label is not None
        labels = np.concatenate([label, np.array(mined["label"], np.int64)])
        counts = read_centroids(held_out).counts + np.bincount(labels, minlength=len(classes))
        rows = nearest_to_rare(_cosines(learners[0], candidates)[free], counts, number=number)
    elif by == "random":
        rows = np.argsort(random_order(candidates, derive(seed, "suggest"))[free], kind="stable")
    else:
        least = candidates.rankings.get("probability_margin", candidates.rankings["margin"]).value[free]
        others = count_others(_labels(learners, candidates)[:, free]) if by == "disagreement" else np.zeros(len(free))
        rows = np.lexsort((least, -others))
        rows = rows[others[rows] > 0] if by == "disagreement" else rows
    chosen = np.sort(free[rows[:number]])
    ids = dict(zip(chosen.tolist(), candidates.face_ids(chosen), strict=True))
    pools = list(candidates.counts)
    faces = [
        (pools[int(candidates.pool[row])], ids[row], classes[int(candidates.label[row])])
        for row in free[rows[:number]].tolist()
    ]
    return _list_faces(data, project, faces)


def nearest_to_rare(
    cosine: Float[np.ndarray, "n c"], counts: Int64[np.ndarray, " c"], *, number: int
) -> Int64[np.ndarray, " k"]:
    """Chooses faces by their cosines to the classes as the module says; `counts` are the faces that each class has."""
    counts, meant = counts.copy(), np.zeros_like(counts)
    for _ in range(min(number, len(cosine))):
        k = int(counts.argmin())
        counts[k] += 1
        meant[k] += 1
    taken: list[int] = []
    for k in np.argsort(counts - meant, kind="stable").tolist():
        order = np.argsort(-cosine[:, k], kind="stable")
        taken += order[~np.isin(order, taken)][: meant[k]].tolist()
    return np.array(taken, np.int64)


def count_others(votes: Int64[np.ndarray, "v n"]) -> Int64[np.ndarray, " n"]:
    """Counts the labels of each face beside its most frequent one."""
    most = np.max([(votes == one).sum(axis=0) for one in votes], axis=0)
    return len(votes) - most


def _read_pools(folder: Path, project: ProjectSettings) -> dict[str, Scores]:
    return {pool: read_scores(in_set(folder, pool), classes=project.classes) for pool in project.pools}


def _of_candidates(candidates: Candidates, parts: Iterable[np.ndarray]) -> np.ndarray:
    """The entries of the candidates, from those of all faces of each pool."""
    own = [part[candidates.row[candidates.pool == number]] for number, part in enumerate(parts)]
    return np.concatenate(own)


def _cosines(learner: Mapping[str, Scores], candidates: Candidates) -> Float[np.ndarray, "n c"]:
    return _of_candidates(candidates, (np.concatenate([*one.by_class(logits=False)]) for one in learner.values()))


def _labels(learners: Sequence[Mapping[str, Scores]], candidates: Candidates) -> Int64[np.ndarray, "v n"]:
    """The labels that the centroids and, where there are logits, the head of each learner give."""
    votes = []
    for learner in learners:
        for pool, scores in learner.items():
            if not scores.face_id.equals(learners[0][pool].face_id):
                raise DataError(f"the seeds' scores of {pool} are of other faces, or in another order; rerun score")
        for rule in ("margin", "probability"):
            if all(rule in one.rankings for one in learner.values()):
                votes.append(_of_candidates(candidates, (one.rankings[rule].label for one in learner.values())))
    if len(votes) < 2:
        raise ConfigError(
            "one learner without logits agrees with itself; choose --by uncertainty, or rerun score with the features "
            "that the primitive learner's head takes"
        )
    return np.stack(votes)


def _are_among(candidates: Candidates, faces: Iterable[Face]) -> Bool[np.ndarray, " n"]:
    """Says which candidates are among some faces."""
    by_pool: dict[str, list[str]] = {pool: [] for pool in candidates.counts}
    for pool, face_id in faces:
        if pool in by_pool:
            by_pool[pool].append(face_id)
    columns = candidates.identifiers.items()
    return _of_candidates(
        candidates, (is_among(column, pa.array(by_pool[pool], pa.string())) for pool, column in columns)
    )


def _list_faces(data: Path, project: ProjectSettings, faces: Sequence[tuple[str, str, str]]) -> list[Judgement]:
    """The rows of some faces, given as pool, face_id and label, that are still to be judged."""
    pictures = find_pictures([face[:2] for face in faces], data / "contents", project.pools)
    if missing := [face for face in faces if face[:2] not in pictures]:
        raise DataError(
            f"{data / 'contents'} does not have the face {missing[0][1]} of {missing[0][0]}; run: dvc repro"
        )
    return [Judgement(face_id, pool, pictures[pool, face_id], label=label) for pool, face_id, label in faces]

"""Apply people's verdicts to the faces that a rule chose, and measure by them how many of its labels are right.

The rule chooses first, caps counted in, whatever was judged; then verdicts take out what does not show its label, and
give what shows another class that one, with cosine and value as they are. So a verdict changes its own face alone.

`measure` says which share of the labels that the rule gives is right, before any verdict, for the class k of N faces:

- A draw with the seed s orders all faces by a keyed hash of their identifiers (`hash_names`); its sample are the first
  n of each class. So a larger draw holds a smaller one, and whatever is chosen later has an order with the same faces
  in it (permanent random numbers: Ohlsson, in Business Survey Methods, 1995, chapter 9).
- The faces up to the last one of the draw that was judged are a random sample of what is chosen *now*, whichever rule
  chose when it was drawn. Those among them that nobody judged, or that persons disagree on, are counted, and are wrong
  at the low end of the interval and right at its high one, of all classes together too. So a looser margin widens the
  interval and cannot bias it.
- Faces that were judged for another reason (`mined suggest`) tell nothing unless the draw has them too.
- The interval is Wilson's (see `calibration`); of all classes together, weighted by N, it is MOVER's.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt64

from fer_pipeline.artifacts.arrow import is_among, positions_in
from fer_pipeline.artifacts.contents import contents_of, contents_path
from fer_pipeline.artifacts.mined import mined_schema
from fer_pipeline.artifacts.review import OTHER, RIGHT, WRONG, Judgement, merge_reviews, read_review
from fer_pipeline.artifacts.scores import Ranking
from fer_pipeline.core.documents import brief
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.mining.calibration import Estimate, wilson
from fer_pipeline.mining.candidates import Candidates, hash_names, rank_faces
from fer_pipeline.mining.margin import NO_CAP, divide_total

Face = tuple[str, str]  # set and face_id


class Opinion(NamedTuple):
    """What all who judged a picture say of it together."""

    shows: str | None  # a class; empty: none of them; None: not known
    denied: frozenset[str]  # classes that it does not show
    samples: frozenset[int]  # seeds of the draws that it was in

    def right(self, label: str) -> bool | None:
        """Says whether the picture shows a class; None where that is not known."""
        if self.shows is not None:
            return self.shows == label
        return False if label in self.denied else None


@dataclass(frozen=True)
class Review:
    """Opinions by set and face, how many faces have one, or none that is used and why, and a line for each such why."""

    opinions: dict[Face, Opinion]
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(self.counts.values())


def read_opinions(path: Path | None, contents: Path | None, pools: Sequence[str], classes: Sequence[str]) -> Review:
    """Reads a review file and binds it to the faces of the pools; nothing where no file is named."""
    rows = merge_reviews(read_review(path, classes=classes)) if path else []
    by_face: dict[Face, dict[str, list[Judgement]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_face[row.set, row.face_id][row.content].append(row)
    now = find_pictures(by_face, contents, pools)
    opinions: dict[Face, Opinion] = {}
    unused: dict[str, list[str]] = {"changed": [], "gone": [], "contradicted": []}
    for face, pictures in by_face.items():
        name = f"{brief(face[1])} of {brief(face[0])}"
        own = pictures.get(now.get(face, ""))
        if own is None:
            unused["changed" if face in now else "gone"].append(name)
        elif (opinion := combine(own)) is None:
            said = (f"{brief(row.who)} {row.verdict} {row.label}".strip() for row in own)
            unused["contradicted"].append(f"{name}: {', '.join(said)}")
        else:
            opinions[face] = opinion
    reasons = {"changed": "show another picture now", "gone": "are gone", "contradicted": "are judged in contradiction"}
    warnings = [
        f"{len(unused[key]):,} judged faces {reason}, and their verdicts are not used; the first is {unused[key][0]}"
        for key, reason in reasons.items()
        if unused[key]
    ]
    counts = {"judged": len(by_face), **{key: len(names) for key, names in unused.items()}}
    return Review(opinions, counts, tuple(warnings))


def find_pictures(faces: Collection[Face], contents: Path | None, pools: Iterable[str]) -> dict[Face, str]:
    """Says which pictures some faces are, in hex; faces that are in no pool are left out."""
    found: dict[Face, str] = {}
    for pool in pools:
        if not (own := [face_id for name, face_id in faces if name == pool]):
            continue
        if contents is None or not contents_path(contents, pool).exists():
            raise DataError(
                f"verdicts are bound to pictures, and nothing says which pictures the faces of {pool} are; run align "
                "again, with data/contents as --contents (dvc repro does both)"
            )
        pictures = contents_of(contents_path(contents, pool), pa.array(own, pa.string()))
        found |= {(pool, face_id): content.hex() for face_id, content in pictures.items()}
    return found


def combine(rows: Iterable[Judgement]) -> Opinion | None:
    """Combines what several persons say of one picture; None where they contradict each other."""
    rows = list(rows)
    shown = {row.label for row in rows if row.verdict in (RIGHT, OTHER)}
    denied = frozenset(row.label for row in rows if row.verdict == WRONG)
    if len(shown) > 1 or shown & denied:
        return None
    samples = frozenset(int(seed) for row in rows for seed in row.sample.split())
    return Opinion(next(iter(shown), None), denied, samples)


class Reviewed(NamedTuple):
    """What verdicts make of the chosen faces."""

    mined: pa.Table
    faces: pa.Table  # `reviewed.parquet`
    pools: dict[str, dict[str, int]]  # of each, how many were left out and how many have another label now


def apply_opinions(
    candidates: Candidates,
    passed: Int64[np.ndarray, " k"],
    chosen: pa.Table,
    opinions: Mapping[Face, Opinion],
    classes: Sequence[str],
) -> Reviewed:
    """Leaves out of the `chosen` faces, which are some of the `passed` candidates, what is judged wrong, and relabels.

    DataError where that leaves none.
    """
    judged = _find_judged(candidates, opinions)
    ids = pa.array(candidates.face_ids(passed), pa.string())
    rows = passed[positions_in(chosen.column("face_id"), ids)]
    label, left_out = candidates.label.copy(), []
    changes = {pool: {"judged_wrong": 0, "relabelled": 0} for pool in candidates.counts}
    pools = list(changes)
    for row in rows.tolist():
        if row not in judged or judged[row].right(classes[int(label[row])]) is not False:
            continue
        shows, counts = judged[row].shows, changes[pools[int(candidates.pool[row])]]
        if shows:
            label[row] = classes.index(shows)
        else:
            left_out.append(row)
        counts["relabelled" if shows else "judged_wrong"] += 1
    kept = np.sort(rows[~np.isin(rows, left_out)])
    if not len(kept):
        raise DataError(f"verdicts leave none of {len(rows):,} faces that the rule chose; change mine.value")
    edited = Ranking(label, candidates.value)
    relabelled = replace(candidates, rankings={**candidates.rankings, candidates.ranked_by: edited})
    mined = rank_faces(relabelled, kept, caps=np.full(len(classes), NO_CAP), classes=classes)
    numbers = np.array(list(judged), np.int64)
    ranks = np.zeros(len(candidates), np.int64)
    ranks[rows] = chosen.column("rank").to_numpy()
    shown = [classes.index(opinion.shows) if opinion.shows else -1 for opinion in judged.values()]
    columns = [
        pa.array(candidates.face_ids(numbers), pa.string()),
        pa.array(pools, pa.string()).take(pa.array(candidates.pool[numbers])),
        pa.array(candidates.label[numbers]),
        pa.array(candidates.cosine[numbers]),
        pa.array(candidates.value[numbers].astype(np.float32)),
        pa.array(ranks[numbers]),
        pa.array(shown, pa.int64()),
    ]
    faces = pa.Table.from_arrays(columns, schema=mined_schema(classes, reviewed=True))
    return Reviewed(mined, faces.sort_by([("pool", "ascending"), ("face_id", "ascending")]), changes)


def _find_judged(candidates: Candidates, opinions: Mapping[Face, Opinion]) -> dict[int, Opinion]:
    """Returns the opinions by the number of the candidate, in rising order; faces that are no candidates have none."""
    found: dict[int, Opinion] = {}
    for number, (pool, column) in enumerate(candidates.identifiers.items()):
        ids = pa.array([face_id for name, face_id in opinions if name == pool], pa.string())
        own = np.flatnonzero(candidates.pool == number)
        rows = own[is_among(column, ids)[candidates.row[own]]]
        names = candidates.face_ids(rows)
        found |= {row: opinions[pool, name] for row, name in zip(rows.tolist(), names, strict=True)}
    return found


def draw_order(faces: pa.Table, seed: int) -> UInt64[np.ndarray, " n"]:
    """Returns a number for each row; a draw of this seed takes the smallest of a class first."""
    return hash_names(faces.column("face_id"), derive(seed, "mine", "sample"))


def draw_sample(
    chosen: pa.Table, *, number: int, per_class: bool, seed: int, num_classes: int
) -> Int64[np.ndarray, " k"]:
    """Draws chosen faces at random from each class, and returns their rows by class, in the order of the draw.

    The number is divided as the classes are, or equally where it is `per_class`; a class with fewer faces gives all.
    """
    label, order = chosen.column("label").to_numpy(), draw_order(chosen, seed)
    counts = np.bincount(label, minlength=num_classes)
    number = min(number, len(label))
    shares = divide_total(number, counts.astype(np.float64)).astype(np.int64) if number else np.zeros_like(counts)
    if per_class:
        for place, k in enumerate(np.argsort(counts, kind="stable").tolist()):
            shares[k] = min(int(counts[k]), number // (num_classes - place))
            number -= int(shares[k])
    parts = [np.flatnonzero(label == k) for k in range(num_classes)]
    return np.concatenate([rows[np.argsort(order[rows])][: shares[k]] for k, rows in enumerate(parts)])


def measure(
    chosen: pa.Table, opinions: Mapping[Face, Opinion], classes: Sequence[str], *, level: float
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]] | None:
    """Measures the precision of the chosen faces by class, and of all; None where no face of a draw was judged.

    Of each: `drawn` faces, how many of them are `judged`, `precision` of those, `low` and `high` (None: not known). Of
    several draws the one that is judged most and with the fewest gaps tells; the second value names its `seed`.
    """
    pools, ids = (chosen.column(name).to_pylist() for name in ("pool", "face_id"))
    label = chosen.column("label").to_numpy()
    known = {row: opinions[face] for row, face in enumerate(zip(pools, ids, strict=True)) if face in opinions}
    right = np.full(len(ids), -1)  # not known
    for row, opinion in known.items():
        answer = opinion.right(classes[int(label[row])])
        right[row] = -1 if answer is None else answer
    measured = []
    for seed in sorted({seed for opinion in known.values() for seed in opinion.samples}):
        order = draw_order(chosen, seed)
        marked = np.zeros(len(ids), bool)
        marked[[row for row, opinion in known.items() if seed in opinion.samples]] = True
        counts = np.zeros((3, len(classes)), np.int64)  # drawn, judged, right
        for k in np.unique(label[marked & (right >= 0)]).tolist():
            last = order[marked & (right >= 0) & (label == k)].max()
            drawn = right[(label == k) & (order <= last)]
            counts[:, k] = len(drawn), (drawn >= 0).sum(), (drawn == 1).sum()
        if counts[1].any():
            measured.append(_with_intervals(counts, np.bincount(label, minlength=len(classes)), seed, classes, level))
    return min(measured, key=lambda pair: _lack(pair[1]), default=None)


def _lack(whole: Mapping[str, Any]) -> float:
    """Says how little a draw tells, whatever it says: among the narrowest intervals those near 1 would be too many."""
    return (whole["drawn"] - whole["judged"]) / whole["drawn"] + 1 / math.sqrt(whole["judged"])


def _with_intervals(
    counts: Int64[np.ndarray, "3 c"], sizes: Int64[np.ndarray, " c"], seed: int, classes: Sequence[str], level: float
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    drawn, judged, right = counts
    with np.errstate(divide="ignore", invalid="ignore"):  # a class of which nothing was drawn: NaN
        share = right / judged
        least, most = right / drawn, (right + drawn - judged) / drawn
        low, high = wilson(least, drawn, level=level)[0], wilson(most, drawn, level=level)[1]
    # By what is known alone at either end: what nobody judged is no error of chance, which would shrink over classes.
    whole = [
        Estimate(mean[None], below[None], above[None], judged[None]).combined(sizes[None])[end]
        for end, (mean, below, above) in enumerate(((share, low, high), (least, low, least), (most, most, high)))
    ]
    columns = [column.tolist() for column in (drawn, judged, share, low, high)]
    by_class = {name: _as_counts(*values) for name, *values in zip(classes, *columns, strict=True)}
    shares = (float(bound[0]) for bound in whole)
    return by_class, {"seed": seed, **_as_counts(int(drawn.sum()), int(judged.sum()), *shares)}


def add_review(
    summary: dict[str, Any],
    review: Review,
    reviewed: Reviewed,
    measured: tuple[dict[str, dict[str, Any]], dict[str, Any]] | None,
) -> None:
    """Adds to the summary of `mine` what verdicts changed, what became of them, and the precision that they measure."""
    for pool, counts in reviewed.pools.items():
        summary["pools"][pool]["over_cap"] -= counts["judged_wrong"]  # it was counted as not kept
        summary["pools"][pool] |= counts
    used = len(reviewed.faces)
    summary["review"] = {**review.counts, "no_candidates": len(review.opinions) - used, "used": used}
    if measured:
        by_class, whole = measured
        for name, one in by_class.items():
            summary["by_class"][name]["measured"] = one
        summary["precision"]["measured"] = whole


def _as_counts(drawn: int, judged: int, *shares: float) -> dict[str, Any]:
    bounds = (share if math.isfinite(share) else None for share in shares)
    return {"drawn": drawn, "judged": judged, **dict(zip(("precision", "low", "high"), bounds, strict=True))}

"""Estimate how right the pseudo-labels are, draw counts and margin sweep, and load the faces that the page shows.

The estimate of a pool is the mean of the classes' estimates on held-out anchor faces, weighted by what that pool gave
to each class; its interval combines theirs (see `evaluation.intervals`). The true share has Wilson's. The faces of a
second rule and the random control are treated alike; the estimate of the latter is the sweep's at the lowest threshold,
where every face passes.

The true curve of the sweep takes the pool's scores and its truth: at a threshold m of a rule it is the share of right
labels among the faces whose value is at least m, each pool with a known truth by itself. Rules are compared where they
keep equally many faces.

Figure 3 of Liu et al., arXiv:2005.08551: each row is a class and its confidence falls from left to right. The faces
stand at even steps from the first rank to the last, over all pools, so that the row shows the whole class and not its
best corner only. Where the truth of a pool is known (a drawn world), a wrong face is marked. Figure 6: the paper groups
its failures by eye (pose, light, occlusion); ours come ordered by true class and by how confident the models were.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from fer_pipeline.artifacts.faces import decode_crop, encoded_images, open_shard
from fer_pipeline.artifacts.metrics import read_failures
from fer_pipeline.artifacts.mined import ALL_CLASSES, MINED, RANDOM, SECOND_RULE, read_rows, read_summary, read_sweep
from fer_pipeline.artifacts.scores import Ranking, Scores, read_scores
from fer_pipeline.artifacts.seed_folders import of_seed, seeds_in
from fer_pipeline.artifacts.truth import Truth
from fer_pipeline.core.settings import RULES, ProjectSettings, Rule
from fer_pipeline.evaluation.intervals import weighted_interval
from fer_pipeline.evaluation.statistics import Interval, share_interval
from fer_pipeline.reporting import charts
from fer_pipeline.reporting.charts import BLUE, GREY, INK, VERMILION, Charts, Line, Look, Mark
from fer_pipeline.reporting.formatting import count, crop_uri, data_uri, percent, span_of

Thresholds = Float64[np.ndarray, " t"]
Kind = Literal["mined", "second rule", "random"]
Face = dict[str, Any]
Sweep: TypeAlias = pa.Table  # `artifacts.mined`'s, with the true precision of each known pool beside it
ALL_POOLS = "*"
TRUE = "true_"  # begins the names of these columns, and the name of the pool follows


@dataclass(frozen=True)
class Precision:
    """The precision of one class of one pool (`ALL_CLASSES` for the pool as a whole)."""

    kind: Kind
    pool: str
    name: str
    faces: int
    estimated: Interval | None
    true: Interval | None
    unknown: int  # faces of a pool with truth that the truth does not name

    seed: int | None = None  # where each has a mined set of its own and this is of one of them

    @property
    def gap(self) -> float | None:
        """Estimated minus true."""
        return None if self.estimated is None or self.true is None else self.estimated.mean - self.true.mean


def load_sweep(data: Path, *, classes: Sequence[str], truth: Truth, seed: int) -> Sweep | None:
    """Read the sweep under `data/mined` and add the true curves to the rows of all classes; None if there is none."""
    table = read_sweep(of_seed(data / "mined", seed))
    if table is None:
        return None
    thresholds = table["threshold"].fill_null(np.inf).to_numpy()
    whole, rules = np.array(table["class"].to_pylist()) == ALL_CLASSES, np.array(table["rule"].to_pylist())
    for pool in truth.pools:
        if (data / "scores" / pool).is_dir():
            scores = read_scores(of_seed(data / "scores" / pool, seed), classes=classes)
            curve = np.full(len(table), np.nan)
            for rule, ranking in scores.rankings.items():
                rows = whole & (rules == rule)
                curve[rows] = _true_curve(pool, scores, ranking, thresholds[rows], classes, truth)
            table = table.append_column(f"{TRUE}{pool}", pa.array(curve))
    return table


def _true_curve(
    pool: str, scores: Scores, ranking: Ranking, thresholds: Thresholds, classes: Sequence[str], truth: Truth
) -> Thresholds:
    """Compute the share of right labels among the faces with at least each value; unknown faces are left out."""
    faces = zip(scores.face_id.to_pylist(), ranking.label, strict=True)
    right = np.array([truth.right(pool, face, classes[int(k)]) for face, k in faces], np.float64)  # None: NaN
    known = np.isfinite(right) & scores.directed
    right, value = right[known], ranking.value[known].astype(np.float64)
    hits = np.concatenate([[0], np.cumsum(right[np.argsort(-value, kind="stable")])])
    passed = len(value) - np.searchsorted(np.sort(value), thresholds, side="left")
    return np.divide(hits[passed], passed, out=np.full(len(thresholds), np.nan), where=passed > 0)


def compute_precisions(
    mined: Path, summary: Mapping[str, Any], sweep: Sweep | None, project: ProjectSettings, truth: Truth
) -> list[Precision]:
    """Compute the precision of mined faces, by either rule, and of random ones.

    Every pool as a whole, and by class where it has faces. `mined` is the folder `data/mined`, `summary` what
    it says of itself.
    """
    sets: list[tuple[Kind, str, Mapping[str, Any]]] = [("mined", MINED, summary["by_class"])]
    if second := summary.get("second_rule"):
        sets.append(("second rule", SECOND_RULE, second["by_class"]))
    if sweep is not None and (mined / RANDOM).exists():
        first = sweep.filter((pc.field("rule") == rule_of(summary)) & (pc.field("step") == 0))  # where all faces pass
        sets.append(("random", RANDOM, {row["class"]: row for row in first.to_pylist()}))
    precisions, classes = [], project.classes
    for kind, file, by_class in sets:
        answers: dict[tuple[str, str], list[bool | None]] = defaultdict(list)
        for row in read_rows(mined, file, classes=classes).to_pylist():
            name = classes[row["label"]]
            answers[row["pool"], name].append(truth.right(row["pool"], row["face_id"], name))
        for pool in project.pools:
            single = {name: {name: answers[pool, name]} for name in classes if answers[pool, name]}
            whole = {name: group for groups in single.values() for name, group in groups.items()}
            for name, groups in {ALL_CLASSES: whole, **single}.items():
                group = [answer for part in groups.values() for answer in part]
                known = [answer for answer in group if answer is not None]
                estimated = combine_estimates(by_class, {name: len(part) for name, part in groups.items()})
                true = share_interval(sum(known), len(known)) if known else None
                unknown = len(group) - len(known) if pool in truth.pools else 0
                precisions.append(Precision(kind, pool, name, len(group), estimated, true, unknown))
    return precisions


def load_seeds(mined: Path, project: ProjectSettings, truth: Truth) -> list[Precision]:
    """Load what each seed mined, by pool and class, with `ALL_POOLS` first; nothing where the seeds share a set."""
    rows = []
    for seed in seeds_in(mined):
        own = mined / str(seed)
        summary = read_summary(own)
        whole = {ALL_CLASSES: {**summary["precision"], "precision": summary["precision"]["estimate"]}}
        whole[ALL_CLASSES]["kept"] = summary["kept"]
        for name, counts in {**whole, **summary["by_class"]}.items():
            estimated = None
            if counts["precision"] is not None:
                estimated = Interval(counts["precision"], counts["low"], counts["high"], counts["kept"])
            rows.append(Precision("mined", ALL_POOLS, name, counts["kept"], estimated, None, 0, seed))
        of_pools = compute_precisions(own, summary, None, project, truth)
        rows += [replace(row, seed=seed) for row in of_pools if row.kind == "mined"]
    return rows


class SeedRange(NamedTuple):
    """The lowest and the highest of what the seeds mined of one class of one pool, as text."""

    pool: str
    name: str
    faces: str
    estimated: str
    true: str


def describe_seeds(rows: Sequence[Precision]) -> list[SeedRange]:
    """Describe the range over the seeds, first of all pools and classes together."""
    groups: dict[tuple[str, str], list[Precision]] = defaultdict(list)
    for row in rows:
        groups[row.pool, row.name].append(row)
    seeds = {row.seed for row in rows}
    ranges = []
    for (pool, name), group in groups.items():
        faces = [row.faces for row in group] + [0] * (len(seeds) - len(group))  # a pool of which a seed mined nothing
        shares = [
            [interval.mean for interval in column if interval is not None]
            for column in zip(*((row.estimated, row.true) for row in group), strict=True)
        ]
        estimated, true = (span_of([percent(share) for share in sorted(column)]) for column in shares)
        ranges.append(SeedRange(pool, name, span_of([count(number) for number in sorted(faces)]), estimated, true))
    return ranges


def rule_of(summary: Mapping[str, Any]) -> Rule:
    """Return the rule that chose the mined faces."""
    return summary.get("ranked_by", "margin")


def combine_estimates(by_class: Mapping[str, Any], faces: Mapping[str, int]) -> Interval | None:
    """Compute the mean precision of a set with these counts per class; its interval is `weighted_interval`'s."""
    ends = ("precision", "low", "high")
    columns = np.array([[[by_class[name][end] for name in faces]] for end in ends], np.float64)  # NaN for None
    counts = np.array([[*faces.values()]], np.int64)
    mean, low, high = (float(end[0]) for end in weighted_interval(columns[0], columns[1], columns[2], counts))
    total = int(counts[np.isfinite(columns[0])].sum())
    return Interval(mean, low, high, total) if total else None


def draw_mining(summary: Mapping[str, Any], precisions: Sequence[Precision], sweep: Sweep | None) -> Charts:
    """Draw faces mined by class, precision by pool, and the sweep."""
    pools, colours = summary["pools"], charts.series_colours(summary["pools"])
    counts = [
        (name if len(pools) == 1 else f"{name} · {pool}", float(mined), colours[pool], count(mined))
        for name in summary["classes"]
        for pool, mined in ((pool, counts["by_class"][name]) for pool, counts in pools.items())
    ]
    drawn: Charts = {
        "mined_counts": charts.bars(counts, xlabel="faces mined"),
        "precision": charts.dots([*_precision_rows(precisions)], xlabel="right pseudo-labels"),
    }
    if sweep is None:
        return drawn
    chosen, values = rule_of(summary), {value for value in summary["margins"].values() if value is not None}
    what = chosen.replace("_", " ")
    used = (values.pop(), f"{what} used") if len(values) == 1 else None
    whole = sweep.filter(pc.field("class") == ALL_CLASSES)
    rows = whole.filter(pc.field("rule") == chosen).sort_by("step")
    threshold, passed = rows["threshold"].to_pylist(), _faces_kept(rows)
    faces = [Line("kept, all pools", threshold, passed, INK)]
    mean, low, high = (
        rows[name].to_numpy(zero_copy_only=False).astype(float).tolist() for name in ("precision", "low", "high")
    )
    curves = [Line("estimated", threshold, mean, GREY, "--", low=low, high=high)]
    names = [name for name in rows.column_names if name.startswith(TRUE)]
    for name, colour in charts.series_colours(names).items():
        curves.append(Line(f"true, {name.removeprefix(TRUE)}", threshold, rows[name].to_pylist(), colour))
    drawn |= {
        "sweep_kept": charts.lines(faces, xlabel=what, ylabel="faces kept", logarithmic=True, mark=used, height=2.5),
        "sweep_precision": charts.lines(curves, xlabel=what, ylabel="right labels", percent=True, mark=used),
    }
    rules = [rule for rule in RULES if rule in summary.get("rules", {})]
    if len(rules) < 2:
        return drawn
    compared = []
    for rule, colour in charts.series_colours(rules).items():
        rows = whole.filter(pc.field("rule") == rule).sort_by("step")
        mean = rows["precision"].to_numpy(zero_copy_only=False).astype(float).tolist()
        compared.append(Line(rule.replace("_", " "), _faces_kept(rows), mean, colour))
    number = (float(summary["passed"]), "faces used") if summary.get("passed") else None
    return drawn | {
        "sweep_rules": charts.lines(
            compared,
            xlabel="faces kept, all pools",
            ylabel="right labels, estimated",
            percent=True,
            logarithmic_x=True,
            mark=number,
        )
    }


def _faces_kept(rows: pa.Table) -> list[float]:
    kept = rows["kept"].to_numpy().astype(float)
    kept[kept == 0] = np.nan  # a logarithm has no zero
    return kept.tolist()


def _precision_rows(precisions: Sequence[Precision]) -> Iterator[tuple[str, list[Mark]]]:
    for row in precisions:
        true = Look(BLUE if row.kind == "mined" else VERMILION, "o")
        marks = [(row.estimated, Look(GREY, "D"), "estimated on the anchor"), (row.true, true, f"true, {row.kind}")]
        known = [(interval, look, name) for interval, look, name in marks if interval]
        if known and row.name == ALL_CLASSES:
            yield f"{row.pool}\n{row.kind}", known


def load_mined_faces(
    data: Path, *, classes: Sequence[str], truth: Truth, per_class: int, seed: int
) -> dict[str, list[Face]]:
    """Load at most `per_class` faces of every class of the mined set, with their pictures.

    A face has the columns of `mined.parquet`, `picture` (a data URI), `true_label` ("" where no truth is known) and
    `right` (None there).
    """
    rows, gallery = read_rows(of_seed(data / "mined", seed), MINED, classes=classes), {}
    for label, name in enumerate(classes):
        members = rows.filter(pc.field("label") == label).sort_by("rank")
        steps = np.unique(np.linspace(0, len(members) - 1, min(per_class, len(members))).round().astype(int))
        chosen = members.take(pa.array(steps, pa.int64())).to_pylist() if len(members) else []
        pictures: dict[str, str] = {}
        for pool in sorted({row["pool"] for row in chosen}):
            pictures |= load_crops(
                of_seed(data / "auxiliary" / pool, seed) / name,
                {row["face_id"] for row in chosen if row["pool"] == pool},
            )
        faces = [
            {
                **row,
                "picture": pictures[row["face_id"]],
                "right": truth.right(row["pool"], row["face_id"], name),
                "true_label": truth.label(row["pool"], row["face_id"]),
            }
            for row in chosen
            if row["face_id"] in pictures
        ]
        if faces:
            gallery[name] = faces
    return gallery


def load_crops(folder: Path, face_ids: set[str]) -> dict[str, str]:
    """Load data URIs of some faces of one folder of shards; only the row groups that hold one are decoded."""
    crops: dict[str, str] = {}
    for path in sorted(folder.glob("part-*.parquet")) if face_ids else ():
        shard = open_shard(path)
        for group in range(shard.num_row_groups):
            names = shard.read_row_group(group, ["face_id"])["face_id"].to_pylist()
            if face_ids.isdisjoint(names):
                continue
            images = encoded_images(shard.read_row_group(group, ["image.bytes"]).combine_chunks().to_batches()[0])
            wanted = ((name, image) for name, image in zip(names, images, strict=True) if name in face_ids)
            crops |= {name: crop_uri(decode_crop(image, f"{path}, {name}")) for name, image in wanted}
    return crops


def load_failures(metrics: Path, *, recipe: str, targets: Sequence[str], per_class: int) -> dict[str, list[Face]]:
    """Load the mistakes by target, where the recipe made one: the fields of `Failure`, and `picture` (a data URI)."""
    failures = {target: read_failures(metrics / recipe / target / "failures") for target in targets}
    galleries = {
        target: [{**vars(one), "picture": data_uri(png)} for one, png in pairs if one.rank <= per_class]
        for target, pairs in failures.items()
    }
    return {target: faces for target, faces in galleries.items() if faces}

"""Collect the faces of all pools that may be mined, draw random ones for comparison, and report what was selected.

A face on the exclusion list, one that is or looks like a picture of the measurements, of what is learned from or of the
pools (where it is not kept), and a face without a direction are no candidates; all are counted.
"""

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float, Float32, Float64, Int64, UInt64

from fer_pipeline.artifacts.arrow import ParquetFile, is_among, required
from fer_pipeline.artifacts.mined import NEAR_TEST, TEST_FACES, mined_schema
from fer_pipeline.artifacts.scores import Ranking, Scores
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, read_lines
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import RULES, Rule
from fer_pipeline.mining.calibration import Calibration
from fer_pipeline.mining.margin import first_of_class

NOBODY = pa.array([], pa.string())
NAMES: Mapping[Rule, str] = {
    "margin": "margin",
    "probability": "probability",
    "probability_margin": "probability margin",
}


@dataclass(frozen=True)
class Candidates:
    """Every face that may be mined, pool after pool; `row` is its place in the pool's scores, which rises in a pool.

    `rankings` has an entry for each rule, `ranked_by` is the one that chooses: `label` and `value` are its own.
    """

    identifiers: Mapping[str, pa.ChunkedArray]  # of all faces of a pool, by its name
    counts: Mapping[str, dict[str, int]]  # of all faces of a pool, and of those that are none, by reason
    pool: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    rankings: Mapping[Rule, Ranking]
    ranked_by: Rule
    cosine: Float32[np.ndarray, " n"]  # to the centroid of the label
    scores: Callable[[], Iterator[Float[np.ndarray, "_ c"]]]  # walks over one score for each class, in order

    def __len__(self) -> int:
        return len(self.row)

    @property
    def label(self) -> Int64[np.ndarray, " n"]:
        return self.rankings[self.ranked_by].label

    @property
    def value(self) -> Float[np.ndarray, " n"]:
        return self.rankings[self.ranked_by].value

    @property
    def best(self) -> Float[np.ndarray, " n"]:
        """What ranks follow: the nearest to its centroid first by the margin rule, else the largest value."""
        return self.cosine if self.ranked_by == "margin" else self.value

    def face_ids(self, chosen: Int64[np.ndarray, " k"]) -> list[str]:
        """Returns the identifiers of some candidates, given in rising order, without loading a whole pool."""
        names: list[str] = []
        for pool, column in enumerate(self.identifiers.values()):
            mask = np.zeros(len(column), bool)
            mask[self.row[chosen[self.pool[chosen] == pool]]] = True
            names += column.filter(pa.array(mask)).to_pylist()
        return names


def collect_candidates(
    pools: Mapping[str, Scores],
    *,
    exclude: pa.Array,
    test_faces: Mapping[str, pa.Array],
    kept: Container[str] = (),
    alike: Mapping[str, Mapping[str, pa.Array]] | None = None,
    ranked_by: Rule = "margin",
) -> Candidates:
    """Collects the candidates of all pools, in the order of the pools and their shards.

    `test_faces` names, by pool, the faces that are pictures of the measurements, and `alike` by reason and pool those
    that are or look like others; those of a reason that is `kept` are counted alone. Each counts by its first reason.
    """
    counts, rows = {}, []
    for name, scores in pools.items():
        excluded = is_among(scores.face_id, exclude)
        measured = is_among(scores.face_id, test_faces.get(name, NOBODY)) & ~excluded
        left = ~excluded if TEST_FACES in kept else ~excluded & ~measured
        counted, similar = excluded | measured, {}
        for reason, faces in (alike or {}).items():
            found = is_among(scores.face_id, faces.get(name, NOBODY))
            similar[reason], counted = int((found & ~counted).sum()), counted | found
            if reason not in kept:
                left &= ~found
        rows.append(np.flatnonzero(scores.directed & left))
        counts[name] = {
            "faces": len(scores),
            "excluded": int(excluded.sum()),
            "test_faces": int(measured.sum()),
            **similar,
            "no_direction": int((~scores.directed & left).sum()),
        }
    everyone = [*zip(pools.values(), rows, strict=True)]
    common: list[Rule] = [rule for rule in RULES if all(rule in scores.rankings for scores in pools.values())]
    rankings: dict[Rule, Ranking] = {
        rule: _join([scores.rankings[rule][part] for scores, part in everyone]) for rule in common
    }
    cosines = [scores.cosine_to(scores.rankings[ranked_by].label)[part] for scores, part in everyone]

    def walk() -> Iterator[Float[np.ndarray, "_ c"]]:
        for scores, part in everyone:
            candidate, start = np.zeros(len(scores), bool), 0
            candidate[part] = True
            for chunk in scores.by_class(logits="probability" in common):
                yield chunk[candidate[start : start + len(chunk)]]
                start += len(chunk)

    return Candidates(
        identifiers={name: scores.face_id for name, scores in pools.items()},
        counts=counts,
        pool=np.repeat(np.arange(len(rows)), [len(part) for part in rows]),
        row=np.concatenate(rows),
        rankings=rankings,
        ranked_by=ranked_by,
        cosine=np.concatenate(cosines),
        scores=walk,
    )


def _join(rankings: Sequence[Ranking]) -> Ranking:
    label, value = ([getattr(one, name) for one in rankings] for name in ("label", "value"))
    return Ranking(np.concatenate(label), np.concatenate(value))


def read_exclusions(path: Path | None, *, sha256: str | None = None) -> pa.Array:
    """Reads the distinct `face_id`s of a Parquet or CSV file; none where no file is named.

    The file must have the hash `sha256` where one is given.
    """
    if path is None:
        return NOBODY
    if sha256 is not None and path.is_file() and (digest := file_sha256(path)) != sha256.lower():
        raise DataError(
            f"mine.exclude: {path} has sha256 {digest}, but mine.exclude_sha256 is {sha256}; set it to what you mean"
        )
    try:
        if path.suffix == ".parquet":
            table = ParquetFile(path, required({}, remedy="name a Parquet or CSV file in mine.exclude")).read()
        else:
            _require_utf8_names(path)
            as_text = pyarrow.csv.ConvertOptions(column_types={"face_id": pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=as_text)
        if (count := table.column_names.count("face_id")) != 1:
            what, names = f"{count} columns" if count else "no column", one_line(", ".join(table.column_names), 160)
            raise DataError(f"mine.exclude: {path} has {what} face_id, it has {names}; name a file with one")
        return table.column("face_id").cast(pa.string()).drop_null().unique()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"mine.exclude: {path} cannot be read ({one_line(error, 200)}); name a Parquet or CSV file"
        ) from None


def _require_utf8_names(path: Path) -> None:
    """Refuses a CSV file whose names of columns are no UTF-8; of those pyarrow raises what it does for nothing else."""
    with path.open("rb") as stream:
        names = next((line for line in read_lines(stream.readline, path) if line.strip()), b"")
    try:
        names.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"mine.exclude: {path} is no text in UTF-8; save it so, or name a Parquet file") from None


def random_faces(candidates: Candidates, *, number: int, seed: int) -> Int64[np.ndarray, " k"]:
    """Draws `number` candidates uniformly, by rising keyed hash of their identifier, and returns them in their order.

    The draw depends on the seed and on who is there, not on the order of the shards, and a pool that grows by a tenth
    keeps about nine tenths of it.
    """
    return np.sort(np.argsort(random_order(candidates, derive(seed, "mine", "random")), kind="stable")[:number])


def random_order(candidates: Candidates, key: int) -> UInt64[np.ndarray, " n"]:
    """Returns `hash_names` of every candidate."""
    numbers = [np.empty(0, np.uint64)]
    for pool, column in enumerate(candidates.identifiers.values()):
        numbers.append(hash_names(column, key)[candidates.row[candidates.pool == pool]])
    return np.concatenate(numbers)


def hash_names(names: pa.ChunkedArray, key: int) -> UInt64[np.ndarray, " n"]:
    """Returns a number for each name, as if drawn at random, which depends on the name and the key alone."""
    secret, parts = key.to_bytes(8, "big"), [np.empty(0, np.uint64)]
    for chunk in names.chunks:
        digests = (hashlib.blake2b(name.encode(), digest_size=8, key=secret).digest() for name in chunk.to_pylist())
        parts.append(np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64))
    return np.concatenate(parts)


def rank_faces(
    candidates: Candidates, chosen: Int64[np.ndarray, " k"], *, caps: Int64[np.ndarray, " c"], classes: Sequence[str]
) -> pa.Table:
    """Makes the rows of mined.parquet for some candidates: by class and rank, cut off at the caps."""
    face_ids = candidates.face_ids(chosen)
    if len(set(face_ids)) < len(face_ids):
        raise DataError(
            f"the pools {', '.join(candidates.counts)} share face_ids; name each data set differently and rerun align"
        )
    order, ranks = first_of_class(candidates.label[chosen], candidates.best[chosen], face_ids, caps=caps)
    rows = chosen[order]
    columns = [
        pa.array(face_ids, pa.string()).take(pa.array(order)),
        pa.array(list(candidates.counts), pa.string()).take(pa.array(candidates.pool[rows])),
        pa.array(candidates.label[rows]),
        pa.array(candidates.cosine[rows]),
        pa.array(candidates.value[rows].astype(np.float32)),
        pa.array(ranks),
    ]
    return pa.Table.from_arrays(columns, schema=mined_schema(classes))


def check_any_passed(
    candidates: Candidates, thresholds: Float64[np.ndarray, " c"], passed: Int64[np.ndarray, " k"]
) -> None:
    """Refuses a rule that selects nothing and says what would select something."""
    if len(passed):
        return
    if not len(candidates):
        names = ", ".join(candidates.counts)
        found = sum(counts["test_faces"] + counts.get(NEAR_TEST, 0) for counts in candidates.counts.values())
        pictures = f" ({found:,} are test pictures, which mine.test_faces drops)" if found else ""
        raise DataError(f"no face of {names} is left to mine{pictures}; check mine.exclude and the summary of score")
    values = candidates.value.astype(np.float64)
    finite, what = thresholds[np.isfinite(thresholds)], NAMES[candidates.ranked_by]
    rule = f"a {what} of {finite.min():g}" if len(finite) else "the rule"
    offers = [float(f"{values.max() * share:.2g}") for share in (0.75, 0.5, 0.25)]
    would = ", ".join(f"{offer:g} would keep {int((values >= offer).sum()):,}" for offer in offers)
    raise DataError(
        f"{rule} keeps none of {len(values):,} faces; the largest {what} present is {values.max():.4g} "
        f"({would}); change mine.value"
    )


def describe_empty_classes(
    labels: Int64[np.ndarray, " k"],
    thresholds: Float64[np.ndarray, " c"],
    calibration: Calibration,
    classes: Sequence[str],
    what: str,
) -> str:
    """Returns one line about the classes without a mined face, empty where there are none."""
    reasons = []
    for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist():
        values = calibration.pool[k]
        largest = f"largest {what} {values[-1]:.4g}" if len(values) else "never predicted"
        wanted = f"asked {thresholds[k]:.4g}" if np.isfinite(thresholds[k]) else f"no {what} meets the rule"
        reasons.append(f"{classes[k]} ({largest}, {wanted})")
    if not reasons:
        return ""
    return f"no face was mined for {', '.join(reasons)}; lower mine.value or give the class its own {what}"


def summarise(
    candidates: Candidates,
    passed: Int64[np.ndarray, " k"],
    mined: pa.Table,
    thresholds: Float64[np.ndarray, " c"],
    calibration: Calibration,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Says with which thresholds what was mined, where every face of every pool went, and which precision to expect."""
    pools, labels = np.array(mined.column("pool").to_pylist(), dtype=object), mined.column("label").to_numpy()
    by_pool = {}
    for i, (name, before) in enumerate(candidates.counts.items()):
        num_passed = int((candidates.pool[passed] == i).sum())
        kept = np.bincount(labels[pools == name], minlength=len(classes)).tolist()
        by_pool[name] = {
            **before,
            "below_margin": int((candidates.pool == i).sum()) - num_passed,
            "over_cap": num_passed - sum(kept),
            "kept": sum(kept),
            "by_class": dict(zip(classes, kept, strict=True)),
        }
    num_mined, estimate = np.bincount(labels, minlength=len(classes)), calibration.estimate(thresholds[None])
    mean, low, high = (_json_number(value[0]) for value in estimate.combined(num_mined[None]))
    passing, reasons, shares = calibration.count_passing(thresholds[None])[0], calibration.reasons(), calibration.shares
    by_class = {
        name: {
            "kept": int(num_mined[k]),
            "passed": int(passing[k]),
            "heldout": int(estimate.heldout[0, k]),
            **{key: _json_number(getattr(estimate, key)[0, k]) for key in ("precision", "low", "high")},
            "reason": reasons[k],
            "pool_share": None
            if shares is None
            else {key: _json_number(getattr(shares, key)[k]) for key in ("share", "low", "high")},
        }
        for k, name in enumerate(classes)
    }
    return {
        "ranked_by": candidates.ranked_by,
        "margins": {name: _json_number(value) for name, value in zip(classes, thresholds, strict=True)},
        "pools": by_pool,
        "kept": len(mined),
        "passed": len(passed),
        "by_class": by_class,
        "precision": {"estimate": mean, "low": low, "high": high, "level": calibration.settings.level},
    }


def compare_rules(
    calibrations: Mapping[Rule, Calibration], *, passed: int, classes: Sequence[str]
) -> dict[Rule, dict[str, Any]]:
    """Says what each rule would keep at the same number of faces, with one threshold for all classes, before caps."""
    compared: dict[Rule, dict[str, Any]] = {}
    for rule, calibration in calibrations.items():
        sweep = calibration.sweep(calibration.thresholds_for(np.array([passed])))
        kept, names = sweep.kept[0], ("precision", "low", "high")
        compared[rule] = {
            "threshold": _json_number(sweep.threshold[0]),
            "kept": int(kept.sum()),
            **dict(zip(names, map(_json_number, sweep.overall[0]), strict=True)),
            "by_class": {
                name: {"kept": int(kept[k]), **dict(zip(names, map(_json_number, sweep.interval[0, k]), strict=True))}
                for k, name in enumerate(classes)
            },
        }
    return compared


def _json_number(value: float) -> float | None:
    """Returns a float for JSON, where neither NaN nor infinity exists."""
    return float(value) if np.isfinite(value) else None


def headline(summary: Mapping[str, Any]) -> str:
    """Says how much was mined of what, each number with the precision to expect of it."""
    faces = sum(pool["faces"] for pool in summary["pools"].values())
    classes = ", ".join(
        f"{name} {counts['kept']:,}{' at ' + _expected(counts) if counts['kept'] else ''}"
        for name, counts in summary["by_class"].items()
    )
    expected = summary["precision"]
    precision = "no held-out face to estimate the precision with"
    if expected["estimate"] is not None:
        precision = f"expected precision {_expected({**expected, 'precision': expected['estimate']})}"
        precision += ", by the calibration model" if summary["heldout"].get("model") else ""
    if measured := expected.get("measured"):
        precision += f", measured {_expected(measured)} on {measured['judged']:,} judged faces"
    line = f"{summary['kept']:,} of {faces:,} faces mined ({classes}); {precision}"
    if "review" in summary:
        left_out, changed = (sum(p[key] for p in summary["pools"].values()) for key in ("judged_wrong", "relabelled"))
        line += f"; {left_out:,} left out and {changed:,} relabelled by verdicts"
    return line


def _expected(counts: Mapping[str, Any]) -> str:
    """`0.71 (0.62 to 0.80)`; "?" where nothing is known."""
    if counts["precision"] is None:
        return "?"
    low = "?" if counts["low"] is None else f"{counts['low']:.2f}"
    return f"{counts['precision']:.2f} ({low} to {counts['high']:.2f})"

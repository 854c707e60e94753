"""Collect the faces of all pools that may be mined, draw random ones for comparison, and report what was selected.

A face on the exclusion list, a face that is a picture of the measurements (where it is not kept) and a face without a
direction are no candidates; all are counted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float32, Float64, Int64, UInt64

from fer_pipeline.artifacts.arrow import ParquetFile, is_among, required
from fer_pipeline.artifacts.mined import mined_schema
from fer_pipeline.artifacts.scores import Scores
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, read_lines
from fer_pipeline.core.seeds import derive
from fer_pipeline.mining.calibration import Calibration
from fer_pipeline.mining.margin import first_of_class

NOBODY = pa.array([], pa.string())


@dataclass(frozen=True)
class Candidates:
    """Every face that may be mined, pool after pool; `row` is its place in the pool's scores, which rises in a pool."""

    identifiers: Mapping[str, pa.ChunkedArray]  # of all faces of a pool, by its name
    counts: Mapping[str, dict[str, int]]  # of all faces of a pool, and of those that are none, by reason
    pool: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]
    best: Float32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.label)

    def face_ids(self, chosen: Int64[np.ndarray, " k"]) -> list[str]:
        """Returns the identifiers of some candidates, given in rising order, without loading a whole pool."""
        names: list[str] = []
        for pool, column in enumerate(self.identifiers.values()):
            mask = np.zeros(len(column), bool)
            mask[self.row[chosen[self.pool[chosen] == pool]]] = True
            names += column.filter(pa.array(mask)).to_pylist()
        return names


def collect_candidates(
    pools: Mapping[str, Scores], *, exclude: pa.Array, test_faces: Mapping[str, pa.Array], drop: bool = True
) -> Candidates:
    """Collects the candidates of all pools, in the order of the pools and their shards.

    `test_faces` names, by pool, the faces that are pictures of the measurements; unless `drop` they are counted alone.
    """
    counts, rows = {}, []
    for name, scores in pools.items():
        excluded = is_among(scores.face_id, exclude)
        measured = is_among(scores.face_id, test_faces.get(name, NOBODY)) & ~excluded
        left = ~excluded & ~measured if drop else ~excluded
        rows.append(np.flatnonzero(scores.directed & left))
        counts[name] = {
            "faces": len(scores),
            "excluded": int(excluded.sum()),
            "test_faces": int(measured.sum()),
            "no_direction": int((~scores.directed & left).sum()),
        }
    columns = [
        (scores.nearest[part], scores.margin[part], scores.best[part])
        for scores, part in zip(pools.values(), rows, strict=True)
    ]
    pool = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    identifiers = {name: scores.face_id for name, scores in pools.items()}
    label, margin, best = map(np.concatenate, zip(*columns, strict=True))
    return Candidates(identifiers, counts, pool, np.concatenate(rows), label, margin, best)


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
    key = derive(seed, "mine", "random").to_bytes(8, "big")

    def hash_names(names: pa.StringArray) -> UInt64[np.ndarray, " _"]:
        digests = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names.to_pylist())
        return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)

    hashes = [np.empty(0, np.uint64)]
    for pool, column in enumerate(candidates.identifiers.values()):
        all_hashes = np.concatenate([np.empty(0, np.uint64), *map(hash_names, column.chunks)])
        hashes.append(all_hashes[candidates.row[candidates.pool == pool]])
    return np.sort(np.argsort(np.concatenate(hashes), kind="stable")[:number])


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
        *(pa.array(values[rows]) for values in (candidates.label, candidates.best, candidates.margin)),
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
        found = sum(counts["test_faces"] for counts in candidates.counts.values())
        pictures = f" ({found:,} are test pictures, which mine.test_faces drops)" if found else ""
        raise DataError(f"no face of {names} is left to mine{pictures}; check mine.exclude and the summary of score")
    margins = candidates.margin.astype(np.float64)
    finite = thresholds[np.isfinite(thresholds)]
    rule = f"a margin of {finite.min():g}" if len(finite) else "the margin rule"
    offers = [float(f"{margins.max() * share:.2g}") for share in (0.75, 0.5, 0.25)]
    would = ", ".join(f"{offer:g} would keep {int((margins >= offer).sum()):,}" for offer in offers)
    raise DataError(
        f"{rule} keeps none of {len(margins):,} faces; the largest margin present is {margins.max():.4g} "
        f"({would}); change mine.value"
    )


def describe_empty_classes(
    labels: Int64[np.ndarray, " k"],
    thresholds: Float64[np.ndarray, " c"],
    calibration: Calibration,
    classes: Sequence[str],
) -> str:
    """Returns one line about the classes without a mined face, empty where there are none."""
    reasons = []
    for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist():
        margins = calibration.pool[k]
        largest = f"largest margin {margins[-1]:.4g}" if len(margins) else "never predicted"
        wanted = f"asked {thresholds[k]:.4g}" if np.isfinite(thresholds[k]) else "no margin meets the rule"
        reasons.append(f"{classes[k]} ({largest}, {wanted})")
    if not reasons:
        return ""
    return f"no face was mined for {', '.join(reasons)}; lower mine.value or give the class its own margin"


def summarise(
    candidates: Candidates,
    passed: Int64[np.ndarray, " k"],
    mined: pa.Table,
    thresholds: Float64[np.ndarray, " c"],
    calibration: Calibration,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Says with which margins what was mined, where every face of every pool went, and which precision to expect."""
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
    passing = calibration.count_passing(thresholds[None])[0]
    by_class = {
        name: {
            "kept": int(num_mined[k]),
            "passed": int(passing[k]),
            "heldout": int(estimate.heldout[0, k]),
            **{key: _json_number(getattr(estimate, key)[0, k]) for key in ("precision", "low", "high")},
        }
        for k, name in enumerate(classes)
    }
    return {
        "margins": {name: _json_number(value) for name, value in zip(classes, thresholds, strict=True)},
        "pools": by_pool,
        "kept": len(mined),
        "passed": len(passed),
        "by_class": by_class,
        "precision": {"estimate": mean, "low": low, "high": high, "level": calibration.settings.level},
    }


def _json_number(value: float) -> float | None:
    """Returns a float for JSON, where neither NaN nor infinity exists."""
    return float(value) if np.isfinite(value) else None


def headline(summary: Mapping[str, Any]) -> str:
    """Says how much was mined of what, and with which expected precision."""
    faces = sum(pool["faces"] for pool in summary["pools"].values())
    shares = ", ".join(f"{name} {counts['kept']:,}" for name, counts in summary["by_class"].items())
    expected = summary["precision"]
    precision = "no held-out face to estimate the precision with"
    if expected["estimate"] is not None:
        precision = f"expected precision {expected['estimate']:.3f} ({expected['low']:.3f} to {expected['high']:.3f})"
    return f"{summary['kept']:,} of {faces:,} faces mined ({shares}); {precision}"

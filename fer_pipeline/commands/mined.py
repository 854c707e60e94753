"""Look into mined subsets of any revision, show their faces, and judge them.

`mined show`, `query`, `diff`, `log`, `duplicates` and `export` are here; `gallery.py` and `review.py` have the others.

Each command prints what the function of that name in `fer_pipeline.inspection` returns as Arrow tables. A revision is
what `git rev-parse` takes, the name of a DVC experiment, or `workspace`.
"""

import io
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from json import JSONEncoder, dumps
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from fer_pipeline.artifacts.mined import ALL_CLASSES, LIKE_OTHERS, SUMMARY, counted_alone
from fer_pipeline.commands.results import BY_CALIBRATION, format_table
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import Summary
from fer_pipeline.inspection import compare, tables
from fer_pipeline.inspection import duplicates as lookalikes
from fer_pipeline.inspection import export as exports
from fer_pipeline.inspection import log as history
from fer_pipeline.inspection import sql as database
from fer_pipeline.inspection.revisions import Revision, open_revision, read_lock

# counts of a pool
LEFT_OUT = ("excluded", "test_faces", *LIKE_OTHERS, "no_direction", "below_margin", "over_cap", "judged_wrong")
NOT_RECORDED = "data/mined here is not what dvc.lock records; run: dvc repro mine"
SAME = "both runs had the same settings, code, weights and data"
MADE_OF_MINED = "(?!synthesize|align|embed|score|evaluate|report)"  # stages between `mine` and the final models
WIDEST_CELL = 60  # characters of a name in a table; JSON and CSV have all
MARKDOWN = str.maketrans(
    {mark: f"\\{mark}" for mark in "\\`*_{}[]()#+-.!|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def show(
    *, rev: str = "workspace", format: Literal["table", "json", "csv"] = "table", seed: int | None = None
) -> Summary:
    """Print what was mined by class: counts, thresholds, estimated precision, and the true one where it is known.

    Args:
        rev: A commit, tag, branch or DVC experiment; else what lies here.
        format: How it is printed.
        seed: Which one is read where each seed has mined faces of its own; the first without it.
    """
    with open_revision(Path.cwd(), rev, seed=seed) as revision:
        rows, summary = tables.show(revision)
        title, warnings = name_seed(revision)
        warnings += () if revision.is_recorded(tables.SUBSET) else (NOT_RECORDED,)
    if format != "table":
        return Summary("", _print(rows, format), warnings=warnings)
    lines = [
        [
            "all" if row["class"] == ALL_CLASSES else row["class"],
            _number(row["margin"]),
            *(_count(row[name]) for name in ("kept", "passed", "heldout")),
            _share(row, "precision", "low", "high"),
            *[_measured(row)] * ("review" in summary),
            _share(row, "true_precision", "true_low", "true_high"),
            row["reason"] or "",
        ]
        for row in rows.to_pylist()
    ]
    rule = str(summary.get("ranked_by", "margin")).replace("_", " ")
    judged = ["measured precision"] * ("review" in summary)
    header = ["class", rule, "kept", "passed", "held out", "estimated precision", *judged, "true precision", ""]
    by = f", precision estimated {BY_CALIBRATION}" if summary.get("heldout", {}).get("model") else ""
    text = [
        f"{title}: {summary['kept']:,} faces{by}",
        *format_table(_clipped([header, *lines]), num_names=1, rule=True),
    ]
    alone = counted_alone(summary.get("rule", {}))
    names = {key: key.replace("_", " ") + " not left out" * (key in alone) for key in LEFT_OUT}
    for name, pool in summary["pools"].items():
        out = "".join(f", {pool[key]:,} {names[key]}" for key in LEFT_OUT if pool.get(key))
        out += f", {pool['relabelled']:,} of the kept ones relabelled" if pool.get("relabelled") else ""
        text.append(f"{name}: {pool['kept']:,} of {pool['faces']:,} faces{out}")
    return Summary("", "\n".join(text), warnings=warnings)


def query(
    sql: str,
    *,
    rev: str = "workspace",
    format: Literal["table", "json", "csv"] = "table",
    rows: int = 100,
    seed: int | None = None,
) -> Summary:
    """Answer a SELECT over the tables mined, scores, faces and rejected of a revision, with DuckDB.

    Args:
        sql: One SELECT; `DESCRIBE mined` says which columns there are.
        rev: A commit, tag, branch or DVC experiment; else what lies here.
        format: How it is printed.
        rows: The most rows of a table; JSON and CSV have all.
        seed: Which one is read where each seed has mined faces and scores of its own; the first without it.
    """
    with open_revision(Path.cwd(), rev, seed=seed) as revision:
        answer = database.query(revision, sql)
        _, warnings = name_seed(revision)
    text = _print(answer, format) if format != "table" else "\n".join(_lines(answer, rows))
    return Summary("", text, warnings=warnings)


def diff(
    rev_a: str,
    rev_b: str,
    *,
    format: Literal["table", "json", "markdown"] = "table",
    faces: int = 20,
    seed: int | None = None,
) -> Summary:
    """Compare the mined faces of two revisions: added, removed, relabelled, moved in rank; and what made them differ.

    Args:
        rev_a: A commit, tag, branch, DVC experiment or `workspace`.
        rev_b: What it is compared with.
        format: How it is printed.
        faces: How many single faces a table names; JSON has all.
        seed: Which one is read where each seed has mined faces of its own; the first without it.
    """
    if faces < 0:
        raise ConfigError(f"--faces must be at least 0, found {faces}")
    root = Path.cwd()
    with open_revision(root, rev_a, seed=seed) as before, open_revision(root, rev_b, seed=seed) as after:
        found, sides = compare.diff(before, after), (before, after)
        names, told = zip(*(name_seed(one, refuse=not (before.nested or after.nested)) for one in sides), strict=True)
        warnings = tuple(dict.fromkeys(line for lines in told for line in lines))
        warnings += tuple(NOT_RECORDED for one in sides if not one.is_recorded(tables.SUBSET))
    if format == "json":
        named = [f'"{name}": {dumps(value)}' for name, value in zip(("before", "after"), names, strict=True)]
        parts = [*named, *(f'"{part}": {_rows_as_json(table)}' for part, table in found._asdict().items())]
        return Summary("", "{" + ",\n".join(parts) + "}", warnings=warnings)
    totals = ", ".join(f"{found.faces['change'].to_pylist().count(change):,} {change}" for change in compare.CHANGES)
    sections: list[tuple[str, pa.Table]] = [(f"{names[0]} → {names[1]}: {totals}", found.classes)]
    sections.append(("what differs between the two runs" if len(found.causes) else SAME, found.causes))
    if faces and len(found.faces):
        shown = min(faces, len(found.faces))
        sections.append(
            (f"the first {shown:,} of {len(found.faces):,} faces that changed", found.faces.slice(0, faces))
        )
    return Summary(
        "",
        "\n\n".join(_section(title, table, markdown=format == "markdown") for title, table in sections),
        warnings=warnings,
    )


def log(*, rev: str = "HEAD", format: Literal["table", "json", "csv"] = "table", seed: int | None = None) -> Summary:
    """List how the mined faces changed over commits and DVC experiments: precision by estimate, by review, accuracy.

    Of the recipes that learn from them the mean class accuracy is shown, over all targets.

    Args:
        rev: The newest commit of the list; experiments are listed all.
        format: How it is printed.
        seed: Which one is read where each seed has mined faces of its own; the first without it.
    """
    rows = history.log(Path.cwd(), rev, seed=seed)
    entries: list[dict[str, Any]] = rows.to_pylist()
    if seed is not None and not any(row["seeds"] or row["missing"] for row in entries):
        raise ConfigError(f"up to {rev} all mined faces are for all seeds; leave --seed out")
    several = [(row["revision"], row["seeds"].split(", ")) for row in entries if row["seeds"] and seed is None]
    partly = tuple(_others(name, seeds) for name, seeds in several if len(seeds) > 1)
    if format != "table":
        return Summary("", _print(rows, format), warnings=partly)
    for row in entries:
        row |= {name: dict(row[name] or ()) for name in ("margins", "kept_by_class", "accuracies")}
    classes = list(dict.fromkeys(name for row in entries for name in row["kept_by_class"]))
    recipes: dict[str, None] = {}  # of all entries: one that trained no final models names none
    for row in entries:
        if {name.rpartition(" on ")[0] for name in row["accuracies"]} - recipes.keys():
            with suppress(DataError):  # of a broken lock its own row says so
                stages = read_lock(Path.cwd(), row["commit"], only=MADE_OF_MINED)
                recipes |= dict.fromkeys(history.list_recipes(stages))
    judged = any(row["judged"] for row in entries)
    lines = [
        [
            row["date"][:16].replace("T", " "), row["revision"], row["subject"],
            _span([value for value in row["margins"].values() if value is not None]), _count(row["kept"]),
            *(_count(row["kept_by_class"].get(name)) for name in classes),
            _share(row, "precision", "low", "high") + (" by calibration model" if row["model"] else ""),
            *[_measured(row)] * judged, *_accuracies(row, [*recipes]),
        ]
        for row in entries
    ]  # fmt: skip
    measured = ["measured precision"] * judged
    header = ["date", "revision", "", "margin", "kept", *classes, "estimated precision", *measured, *recipes]
    missing = [f"{row['revision']}: {row['missing']}" for row in entries if row["missing"]]
    return Summary(
        "", "\n".join(format_table(_clipped([header, *lines]), num_names=3, rule=True)), warnings=(*partly, *missing)
    )


def duplicates(
    *,
    rev: str = "workspace",
    format: Literal["table", "json", "csv"] = "table",
    sheet: Path | None = None,
    rows: int = 100,
    seed: int | None = None,
) -> Summary:
    """List the pool faces that equal or look like a test, train or other pool face, and whether they were left out.

    Args:
        rev: A commit, tag, branch or DVC experiment; else what lies here.
        format: How it is printed.
        sheet: An HTML page to write with the pictures of each pair side by side.
        rows: The most pairs of a table and of the page; JSON and CSV have all.
        seed: Which one is read where each seed has mined faces of its own; the first without it.
    """
    with open_revision(Path.cwd(), rev, seed=seed) as revision:
        pairs, notes = lookalikes.list_duplicates(revision)
        name, warnings = name_seed(revision)
        kinds = pairs["kind"].to_pylist()
        told = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in (lookalikes.EXACT, lookalikes.PERCEPTUAL))
        title = f"{name}: {len(pairs):,} pairs of faces, {told}"
        lines = [title, *_lines(pairs, rows)]
        if sheet is not None:
            lookalikes.write_sheet(revision, sheet, pairs.slice(0, rows), title)
            lines.append(f"the first {min(rows, len(pairs)):,} are shown by {sheet}")
    return Summary("", "\n".join(lines) if format == "table" else _print(pairs, format), warnings=(*warnings, *notes))


def export(
    *,
    out: Path,
    rev: str = "workspace",
    format: Literal["images", "csv", "parquet", "atlas"] = "parquet",
    images: bool = True,
    neighbours: int = 15,
    seed: int | None = None,
) -> Summary:
    """Write the mined faces of a revision for other programs.

    Args:
        out: The file or folder to make; it must not be there yet.
        rev: A commit, tag, branch or DVC experiment; else what lies here.
        format: A folder of pictures with a metadata.csv, CSV, Parquet with pictures, or that with a map and the nearest
            faces of each face for embedding-atlas.
        images: Put the pictures into Parquet.
        neighbours: How many nearest faces the map names of each face.
        seed: Which one is read where each seed has mined faces of its own; the first without it.
    """
    with open_revision(Path.cwd(), rev, seed=seed) as revision:
        revision.path(tables.SUBSET, f"*{SUMMARY}")
        title, warnings = name_seed(revision)
        rows = exports.export(revision, out, format=format, images=images, neighbours=neighbours)
        line = f"{title}: {len(rows):,} faces in {out}"
    if format == "atlas":
        image = " --image image" if images else ""
        line += f"\nopen it with: embedding-atlas {out} --x projection_x --y projection_y --neighbors neighbors{image}"
    return Summary("", line, warnings=warnings)


def name_seed(revision: Revision, *, refuse: bool = True) -> tuple[str, tuple[str, ...]]:
    """Returns the title of a revision with the seed that was read, and a warning where nobody chose that among several.

    A seed that was asked for where nothing is by seed is a ConfigError; without `refuse` it is not.
    """
    seeds = next(iter(revision.nested.values()), ())
    if not seeds:
        if revision.seed is not None and refuse:
            raise ConfigError(f"{revision.title}: what was read is for all seeds; leave --seed out")
        return revision.title, ()
    chosen = seeds[0] if revision.seed is None else revision.seed
    told = (_others(revision.title, seeds),) if revision.seed is None and len(seeds) > 1 else ()
    return f"{revision.title}, seed {chosen} of {', '.join(map(str, seeds))}", told


def _others(title: str, seeds: Sequence[object]) -> str:
    rest = ", ".join(map(str, seeds[1:]))
    return f"{title}: this is of the seed {seeds[0]} alone; --seed reads another ({rest})"


def _print(rows: pa.Table, format: str) -> str:
    """The rows as JSON, whose escapes keep every character, or as CSV."""
    if format == "json":
        return _rows_as_json(rows)
    stream = io.StringIO()
    exports.write_csv_rows(stream, rows)
    return stream.getvalue().removesuffix("\n")


def _rows_as_json(rows: pa.Table) -> str:
    """A list with one row a line; what is no number of JSON is null, what it does not know a text."""
    names = (dumps(name).replace("%", "%%") for name in rows.column_names)
    form, columns = ", ".join(f"{name}: %s" for name in names), map(_cells_as_json, rows.columns)
    return "[" + ",\n ".join(f"{{{form}}}" % cells for cells in zip(*columns, strict=True)) + "]"


def _cells_as_json(column: pa.ChunkedArray) -> list[str]:
    """Column by column it takes a third of the time that a dictionary for each row does."""
    values, kind = column.to_pylist(), column.type
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return ["null" if value is None or not math.isfinite(value) else repr(value) for value in values]
    if pa.types.is_integer(kind):
        return ["null" if value is None else str(value) for value in values]
    if pa.types.is_map(kind):
        values = [None if value is None else dict(value) for value in values]
    encode = JSONEncoder(default=_plain).encode
    return [encode(value if isinstance(value, str) else _finite(value)) for value in values]


def _plain(value: Any) -> int | float | str:
    """A number of a type that JSON does not have (DuckDB sums whole ones in 128 bits) as one, all else as a text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(rows: pa.Table, most: int) -> list[str]:
    """The rows as an aligned table, numbers to the right."""
    if most < 1:
        raise ConfigError(f"--rows must be at least 1, found {most}")
    columns = [list(map(_text, column.to_pylist())) for column in rows.slice(0, most).columns]
    shown = [list(row) for row in zip(*columns, strict=True)]
    more = [f"… and {len(rows) - most:,} more rows; --rows, --format json or csv list them"] if len(rows) > most else []
    return [*format_table(_clipped([rows.column_names, *shown]), rule=True), *more]


def _section(title: str, rows: pa.Table, *, markdown: bool) -> str:
    """A title and the rows below it, in Markdown or aligned; the title alone where there are none."""
    body = [[_text(value) for value in row.values()] for row in rows.to_pylist()]
    header = [name.replace("_", " ") for name in rows.column_names]
    if not markdown:
        return "\n".join([one_line(title), *(format_table(_clipped([header, *body]), rule=True) if body else [])])
    rule = ["---" if pa.types.is_string(field.type) else "---:" for field in rows.schema]
    escaped = [[one_line(cell).translate(MARKDOWN) for cell in row] for row in [header, *body]]
    table = ["| " + " | ".join(row) + " |" for row in [escaped[0], rule, *escaped[1:]]] if body else []
    return "\n".join([f"### {one_line(title).translate(MARKDOWN)}", "", *table])


def _clipped(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[one_line(cell, WIDEST_CELL) for cell in row] for row in rows]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _accuracies(row: dict[str, Any], recipes: Sequence[str]) -> list[str]:
    return [_number(history.mean_accuracy(row["accuracies"], recipe)) for recipe in recipes]


def _measured(row: dict[str, Any]) -> str:
    """The cell of the measured precision."""
    drawn = f" of {row['drawn']:,} drawn" if row["drawn"] != row["judged"] else ""
    behind = "" if row["measured_precision"] is None else f", {row['judged']:,}{drawn}"
    return _share(row, "measured_precision", "measured_low", "measured_high") + behind


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _span(values: Sequence[float]) -> str:
    return (
        "" if not values else _number(values[0]) if len({*values}) == 1 else f"{min(values):.3f} to {max(values):.3f}"
    )


def _share(row: dict[str, Any], key: str, *ends: str) -> str:
    if row[key] is None:
        return "not known"
    low, high = ("?" if row[end] is None else f"{row[end]:.3f}" for end in ends)
    return f"{row[key]:.3f} [{low}, {high}]"

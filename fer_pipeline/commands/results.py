"""Print the results of `reports/tables`: a table, the gains over the baseline, what was mined, the report's path."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.files import read_lines, refuse_damage
from fer_pipeline.reporting.formatting import plural

TIMINGS = "timings.csv"
SEEDS = "mined_seeds.csv"  # written where each has a mined set of its own
BY_CALIBRATION = "by the calibration model, which did not see the held-out faces; the labeller did"
DECISION = {"p_corrected": "p", "claim": "claim", "seeds_for_a_point": "seeds for a point"}
FIGURES = {"mean_class_accuracy": "mean class accuracy", "accuracy": "accuracy", "macro_f1": "macro-F1"}


def run(*, reports: Path = Path("reports")) -> str:
    """Print the results table and where the report lies.

    Args:
        reports: What `report` wrote.
    """
    timings = _read_timings(reports / "tables" / TIMINGS)
    with _reading(reports / "tables" / "results.csv") as results:
        rows = [
            [
                *(row[key] for key in ("recipe", "target", "faces", "seeds")),
                *(_with_interval(row, key, f"{key}_seeds_") for key in FIGURES),
                _with_interval(row, "class_accuracy_sd", "class_accuracy_sd_both_"),
                *_describe_cost(timings.get(row["recipe"])),
            ]
            for row in results
        ]
        most_seeds = max((int(row[3]) for row in rows), default=0)
    header = ["recipe", "target", "faces", "seeds", *FIGURES.values(), "sd over classes", "s/epoch", "MB"]
    lines = [_describe_size(timings, rows, most_seeds), "", *format_table([header, *rows], rule=True)]
    if (reports / "tables" / SEEDS).exists():
        lines = ["the stages before the final training ran anew for each seed", "", *lines]
    gains = []
    with _reading(reports / "tables" / "differences.csv") as differences:
        for row in differences:
            if row["metric"] == "mean_class_accuracy":
                gain = _with_interval(row, "difference", sign="+")
                names = [row[key] for key in ("recipe", "against", "target")]
                gains.append([*names, gain, *(row[key] or "" for key in DECISION)])
    if gains:
        lines += ["", "mean class accuracy of a recipe minus another's, with intervals over seeds and persons"]
        lines += ["a row with p decides: its interval and p are corrected for the number of such rows"]
        lines += format_table([["recipe", "minus", "target", "difference", *DECISION.values()], *gains], rule=True)
    lines += ["", "other intervals: 95 %, over seeds; that of the sd over seeds and persons"]
    if any(row[3] == "0" for row in rows):
        lines.append("0 seeds: a published network as it comes, nothing trained here")
    lines += [*_describe_mining(reports / "tables")]
    return "\n".join([*lines, f"report: {reports}/index.html"])


def _read_timings(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the timings by recipe; nothing where none were recorded."""
    if not path.exists():
        return {}
    with _reading(path) as timings:
        return {row["recipe"]: row for row in timings}


def _describe_cost(timing: dict[str, str] | None) -> tuple[str, str]:
    """The seconds of an epoch and the peak memory in MB."""
    if timing is None:
        return "", ""
    memory = timing["peak_memory_bytes"]
    return f"{float(timing['seconds_per_epoch']):.2f}", f"{int(memory) / 1e6:,.0f}" if memory else ""


def _describe_size(timings: dict[str, dict[str, str]], rows: Sequence[Sequence[str]], most_seeds: int) -> str:
    """How much stands behind the table: its recipes, their seeds, how long each was trained."""
    text = f"{', '.join(dict.fromkeys(row[0] for row in rows))}; {plural(most_seeds, 'seed')}"
    steps = [int(number) for row in timings.values() for number in row["steps"].split() if int(number)]
    if not steps:
        return text
    length = f"{steps[0]:,}" if min(steps) == max(steps) else f"{min(steps):,} to {max(steps):,}"
    return f"{text}; {length} steps a model"


def _describe_mining(tables: Path) -> list[str]:
    """The mined faces by class, and the rules at equal counts; nothing of what this run does not have."""
    lines: list[str] = []
    by_calibration = False
    if (tables / SEEDS).exists():
        with _reading(tables / SEEDS) as seeds:
            rows = [row for row in seeds if (row["pool"], row["class"]) == ("*", "*")]
            table = [[f"seed {row['seed']}", row["faces"], _estimate(row, ends="precision_")] for row in rows]
            first = rows[0]["seed"]
        header = ["mined by", "faces", "estimated precision"]
        lines += ["", *format_table([header, *table], rule=True), "", f"of the seed {first} alone:"]
    if (tables / "mined_classes.csv").exists():
        rows = []
        with _reading(tables / "mined_classes.csv") as classes:
            for row in classes:
                share = _estimate(row, "pool_share", "pool_")
                rows.append([row["class"], row["kept"], _estimate(row), row["heldout"], share, row["reason"]])
                by_calibration |= bool(row.get("model"))
        header = ["mined as", "faces", "estimated precision", "held out", "share of the pools", ""]
        lines += ["", *format_table([header, *rows], rule=True)]
    if (tables / "rules.csv").exists():
        with _reading(tables / "rules.csv") as rules:
            rows = [[row["rule"], row["kept"], _estimate(row)] for row in rules if row["class"] == "*"]
        lines += ["", "rules at equal counts, before caps"]
        lines += format_table([["rule", "faces", "estimated precision"], *rows], rule=True)
    return [*lines, "", f"precision is estimated {BY_CALIBRATION}"] if by_calibration else lines


def _estimate(row: dict[str, str], key: str = "precision", ends: str = "") -> str:
    if not row[key]:
        return "not known"
    low, high = (f"{float(row[f'{ends}{end}']):.3f}" if row[f"{ends}{end}"] else "?" for end in ("low", "high"))
    return f"{float(row[key]):.3f} [{low}, {high}]"


def format_table(rows: Sequence[Sequence[str]], *, num_names: int | None = None, rule: bool = False) -> list[str]:
    """Formats rows, the header first, as aligned lines: `num_names` columns to the left, the others to the right."""
    rows = [[cell if cell.isprintable() else one_line(cell) for cell in row] for row in rows]  # names of files
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    names = len(widths) if num_names is None else num_names
    layout = "  ".join(f"{{:{'<' if place < names else '>'}{width}}}" for place, width in enumerate(widths))
    lines = [layout.format(*row).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]] if rule else lines


@contextmanager
def _reading(path: Path) -> Iterator[Iterator[dict[str, str]]]:
    with (
        refuse_damage(
            path, "is no table of results", "run: dvc repro report", missing="run: dvc repro", kind=csv.Error
        ),
        path.open(encoding="utf-8", newline="") as stream,
    ):
        yield csv.DictReader(read_lines(stream.readline, path))


def _with_interval(row: dict[str, str], key: str, ends: str = "", *, sign: str = "") -> str:
    low, high = row[f"{ends}low"], row[f"{ends}high"]
    value = f"{float(row[key]):{sign}.3f}"
    return f"{value} [{float(low):{sign}.3f}, {float(high):{sign}.3f}]" if low and high else value

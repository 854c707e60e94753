"""The result of a run as words. In: rows, or the kept report. Out: the cells of a table, a page of Markdown."""

from typing import Any

from benchmarks.harness.rounds import Rounds
from benchmarks.harness.rows import Row

COLUMNS = ("work", "figure", "ours", "peer", "ratio", "target", "", "note")


def cells(row: Row) -> tuple[str, ...]:
    """A row as words."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
    return (row.work, row.figure, number(row.ours), number(row.peer), ratio, row.target, row.verdict, row.note)


def number(value: float | None) -> str:
    """Three significant digits at least, thousands apart."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def page(date: str, report: dict[str, Any], order: list[str]) -> str:
    """The dated result as Markdown."""
    machine, works = report["machine"], report["works"]
    names = [name for name in order if name in works] + sorted(set(works) - set(order))
    rows = [Row(**row) for name in names for row in works[name]["rows"]]
    lines = [f"# Benchmarks, {date}", ""]
    if report["quick"]:
        lines += ["**Small sizes: a test of the harness, no result.**", ""]
    lines += [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"{machine['gpu'] or 'no GPU'}. Python {machine['python']}; {_versions([works[name] for name in names])}.",
        "",
        "Figures come from the least of the rounds; one thread a side, sides in turn in one run. The ratio is ours / "
        "peer, and peer / ours where the target is one of `× less`.",
        "",
        *table(rows),
        "",
        f"Targets: {sum(row.met is True for row in rows)} met, {sum(row.met is False for row in rows)} missed.",
        "",
        "## Rounds",
        "",
        "CPU seconds of every side: least, median, spread ((most - least) / median), rounds; megabytes above the "
        "start: resident peak, anonymous.",
        "",
        "| work | side | settings | least | median | spread | rounds | peak MB | anonymous MB |",
        "|" + "---|" * 9,
    ]
    for name in names:
        lines += [_side(name, Rounds(**side)) for side in works[name]["sides"]]
    lines += ["", "## When", "", "| work | measured | commit | load before | minutes |", "|---|---|---|---|---|"]
    for name in names:
        work = works[name]
        commit = work["commit"] + (" with changes" if work["changed"] else "")
        lines.append(f"| {name} | {work['measured']} | {commit} | {work['load']} | {work['seconds'] / 60:.1f} |")
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> list[str]:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return lines + ["| " + " | ".join(_escaped(cell) for cell in cells(row)) + " |" for row in rows]


def _side(work: str, rounds: Rounds) -> str:
    if rounds.fault is not None or not rounds.cpu:
        return f"| {work} | {_escaped(rounds.side)} | {_escaped(rounds.fault or 'no rounds')} | | | | | | |"
    settings = ", ".join(f"{key} {value}" for key, value in rounds.options.items())
    figures = (
        work,
        rounds.side,
        settings,
        number(rounds.best),
        number(rounds.median),
        f"{rounds.spread:.0%}",
        str(len(rounds.cpu)),
        number(max(rounds.peak_mb)),
        number(max(rounds.anon_mb)),
    )
    return "| " + " | ".join(map(_escaped, figures)) + " |"


def _versions(works: list[dict[str, Any]]) -> str:
    """The versions of packages and peers; several of one where works were measured with different ones."""
    found: dict[str, set[str]] = {}
    for work in works:
        for name, version in work["packages"].items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' or '.join(sorted(found[name]))}" for name in sorted(found))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

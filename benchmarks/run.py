"""`python -m benchmarks.run [WORK ...]`: measures, prints the table and keeps the dated result.

In: the measures of `benchmarks/measures/`. Out: `benchmarks/results/bench-<date>.md` and `.json`. Exit code 1 where a
work could not be measured; a missed target is a result and no fault.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.machine import machine
from benchmarks.harness.process import ROOT
from benchmarks.harness.records import keep
from benchmarks.harness.report import COLUMNS, cells
from benchmarks.harness.rows import Row
from benchmarks.harness.works import ORDER, available, chosen, run
from fer_pipeline.terminal import report_errors

RESULTS = ROOT / "benchmarks" / "results"


def main(
    works: Annotated[list[str] | None, typer.Argument(help="What to measure; everything by default.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: tries the harness, is kept only with --out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the result files.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for large temporary files.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only tells what can be measured.")] = False,
) -> None:
    """Measures ours against the peers, in CPU seconds and in turn, and prints the ratios."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    with report_errors():
        if show:
            console.print("\n".join(available()))
            return
        names, folder = chosen(works or []), out or (None if quick else RESULTS)
        rows: list[Row] = []
        kept: Path | None = None

        def tell(row: Row) -> None:
            rows.append(row)
            console.print(" · ".join(cell for cell in cells(row) if cell), highlight=False)

        here, date = machine(), time.strftime("%Y-%m-%d", time.gmtime())
        for name in names:
            console.rule(name, align="left")
            record = run(name, quick=quick, folder=scratch, tell=tell)
            if folder is not None:
                kept = keep(folder, date, here, quick, {name: record}, list(ORDER))  # now: the next may be interrupted
        console.print(_table(rows))
        if kept is not None:
            console.print(f"kept in {kept} and its .json", highlight=False, soft_wrap=True)
        if any(row.figure == "not measured" for row in rows):
            raise typer.Exit(1)


def _table(rows: list[Row]) -> Table:
    table = Table(*COLUMNS, title="ours / peer: least CPU seconds, one thread, sides in turn")
    colours = {True: "green", False: "red", None: None}
    for row in rows:
        table.add_row(*cells(row), style=colours[row.met])
    return table


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that sides end and scratch folders go
    typer.run(main)

"""What is kept of a run. In: rows and rounds of each work. Out: plain data, and the files of the day.

A file keeps one record a work, with its own time, commit and load, so that a work measured again replaces its record
and leaves the others.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.report import page
from benchmarks.harness.rounds import Rounds
from benchmarks.harness.rows import Row
from fer_pipeline.core.files import write_json, write_text

LONGEST = 100  # entries of a list that is kept as it is


def record(
    rows: list[Row], rounds: list[Rounds], circumstances: dict[str, Any], hide: dict[str, str]
) -> dict[str, Any]:
    """What is kept of one work: its rows, every round of every side, and under which circumstances.

    `hide` names places that belong to one machine: path → the word that stands for it. Other absolute paths keep their
    last part alone.
    """
    kept = {"rows": [asdict(row) for row in rows], "sides": [asdict(each) for each in rounds]}
    return {**circumstances, **_plain(kept, hide)}


def keep(
    folder: Path, date: str, machine: dict[str, Any], quick: bool, works: dict[str, Any], order: list[str]
) -> Path:
    """Writes the day's .json and .md with the new works in them and gives the .md.

    Records of another machine or of other sizes do not stand beside them: a further pair of files begins then.
    """
    number, circumstances = 1, {"machine": machine, "quick": quick}
    while True:
        path = folder / f"bench-{date}{f'-{number}' if number > 1 else ''}.json"
        report = {**circumstances, "works": {}}
        if path.exists():
            report = json.loads(path.read_text(encoding="utf-8"))
        if {key: report[key] for key in circumstances} == circumstances:
            break
        number += 1
    report["works"] |= works
    write_json(path, report)
    write_text(path.with_suffix(".md"), page(date, report, order))
    return path.with_suffix(".md")


def _digest(value: Sequence[Any]) -> str:
    """What stands for a long list: the boxes of a thousand pictures are for a measure to compare, not for a file."""
    return f"{len(value)} entries, SHA-256 {hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]}"


def _plain(value: Any, hide: dict[str, str]) -> Any:
    """What JSON can hold: numbers of other libraries become Python's, what is no number becomes null."""
    if isinstance(value, dict):
        return {key: _plain(each, hide) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, hide) for each in value] if len(value) <= LONGEST else _digest(value)
    if isinstance(value, str):
        for place, word in hide.items():
            value = value.replace(place, word)
        return f"…/{Path(value).name}" if value.startswith("/") else value
    if value is None or isinstance(value, bool | int):
        return value
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None

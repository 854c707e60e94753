"""List mined faces and pool faces that are to be judged, and merge what people said of them into `data/review.csv`."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fer_pipeline.artifacts.review import (
    SAMPLE,
    WITHDRAWN,
    Judgement,
    changing_review,
    merge_reviews,
    read_review,
    write_review,
)
from fer_pipeline.core.documents import brief
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import PARAMS, ProjectSettings, Summary, load_params, read_project, validate
from fer_pipeline.inspection import review as lists
from fer_pipeline.mining.review import find_pictures, read_opinions
from fer_pipeline.stages.mine import Config

DATA = Path("data")


def sample(
    *,
    n: int = 200,
    per_class: bool = False,
    seed: int = 0,
    out: Path = Path("reports/sample.csv"),
    params: Path = PARAMS,
) -> Summary:
    """List a random sample of the mined faces; judged, it measures how many of their labels are right.

    Args:
        n: How many faces in all.
        per_class: As many of each class, instead of as the classes are mined.
        seed: Of the draw; a larger draw of the same seed holds a smaller one.
        out: The review file to make; it must not be there yet.
        params: The file of settings.
    """
    project = _prepare(n, out, params)
    if not SAMPLE.fullmatch(str(seed)):
        raise ConfigError(f"--seed must be a number of at most 18 digits, found {seed}")
    rows = lists.sample(DATA, project, number=n, per_class=per_class, seed=seed)
    return _write(out, rows, f"drawn from the mined ones with the seed {seed}")


def suggest(
    *,
    n: int = 200,
    by: Literal["uncertainty", "rare", "disagreement", "random"] = "uncertainty",
    seed: int = 0,
    out: Path = Path("reports/suggested.csv"),
    params: Path = PARAMS,
) -> Summary:
    """List the pool faces that nobody has judged and whose judging is likely to help.

    Args:
        n: How many faces in all.
        by: The least certain ones, those nearest to the rarest classes, those that labellers disagree on, or any.
        seed: Of the random order.
        out: The review file to make; it must not be there yet.
        params: The file of settings.
    """
    project = _prepare(n, out, params)
    config = validate(Config, load_params(params).get("mine"), where=f"{params}, mine")
    rows = lists.suggest(DATA, project, config, number=n, by=by, seed=seed)
    return _write(out, rows, f"by {by}", *([f"only {len(rows):,} faces, not {n:,}"] if len(rows) < n else []))


def review(file: Path, *, who: str = "", drop_unknown: bool = False, params: Path = PARAMS) -> Summary:
    """Merge a judged review file into data/review.csv.

    Args:
        file: The list with verdicts, from the gallery or filled in by hand.
        who: Who gave the verdicts that name nobody; those without a time were given when the file was changed last.
        drop_unknown: Leave out verdicts on faces that no pool has, or that show another picture now; they are counted.
        params: The file of settings.
    """
    project = read_project(params)
    classes, kept = project.classes, DATA / lists.REVIEW
    when = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat() if file.is_file() else ""
    rows = read_review(file, classes=classes, who=who, when=when)
    remedy = None if drop_unknown else "correct the row, or add --drop-unknown"
    old, merged, unknown = merge_into(kept, rows, project, name=str(file), remedy=remedy)
    judged = [row for row in rows if row.verdict]
    before, after = ({(*row.picture, row.who): row for row in part} for part in (old, merged))
    changes = Counter("new" if key not in before else "changed" for key in after if before.get(key) != after[key])
    changes["withdrawn"] = len(before.keys() - after.keys())
    found = read_opinions(kept, DATA / "contents", project.pools, classes)
    counts: dict[str, int | float] = {"rows": len(rows), "judged": len(judged), "unknown": unknown, **changes}
    parts = [f"{len(judged):,} of {len(rows):,} rows are judged", f"{changes['new']:,} verdicts are new"]
    parts += [f"{changes['changed']:,} changed"] + [f"{changes['withdrawn']:,} taken back"] * bool(changes["withdrawn"])
    parts += [f"{unknown:,} left out: unknown faces"] * bool(unknown)
    held = f"{kept} holds {len(merged):,} verdicts on {found.counts['judged']:,} faces, {len(found.opinions):,} in use"
    line = f"{', '.join(parts)}; {held}; now run: dvc repro"
    return Summary("review", line, counts, found.warnings)


def merge_into(
    kept: Path, rows: list[Judgement], project: ProjectSettings, *, name: str, remedy: str | None
) -> tuple[list[Judgement], list[Judgement], int]:
    """Merges judged rows into a review file; returns what it held, what it holds then, and how many it does not.

    A verdict on a face that no pool has, or that shows another picture now, is a DataError, which calls the rows `name`
    and ends with the `remedy`; without one it is left out and counted. It may always be taken back.
    """
    judged = [(number, row) for number, row in enumerate(rows, 2) if row.verdict]
    now = find_pictures({row.picture[:2] for _, row in judged}, DATA / "contents", project.pools)
    strange = [(n, row) for n, row in judged if row.verdict != WITHDRAWN and now.get(row.picture[:2]) != row.content]
    for number, row in strange[:1] if remedy else ():
        fault = "shows another picture now" if row.picture[:2] in now else f"is in no pool ({', '.join(project.pools)})"
        raise DataError(
            f"{name}, row {number}, judges the face {brief(row.face_id)} of {brief(row.set)}, which {fault}, as "
            f"{len(strange):,} of {len(judged):,} do; nothing was merged; {remedy}"
        )
    left_out = {number for number, _ in strange}
    with changing_review(kept):
        old = read_review(kept, classes=project.classes) if kept.exists() else []
        merged = merge_reviews(old, [row for number, row in judged if number not in left_out])
        if merged != old:
            write_review(kept, merged)
    return old, merged, len(strange)


def _prepare(n: int, out: Path, params: Path) -> ProjectSettings:
    if n < 1:
        raise ConfigError(f"--n must be at least 1, found {n}")
    if out.exists():  # somebody may have judged half of it
        raise DataError(
            f"{out} is there already; merge it by `mined review {out}` and remove it, or name another --out"
        )
    return read_project(params)


def _write(out: Path, rows: list[Judgement], how: str, *warnings: str) -> Summary:
    write_review(out, rows)
    done = sum(bool(row.verdict) for row in rows)
    known = f", {done:,} of them judged already" if done else ""
    command = "python -m fer_pipeline mined"
    line = f"{len(rows):,} faces {how}{known}, in {out}; judge them in the gallery ({command} gallery --faces {out}, "
    line += f"then {command} view), or fill in its columns verdict, label and who, and run: {command} review {out}"
    return Summary("", line, {}, warnings)

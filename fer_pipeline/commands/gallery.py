"""Look at mined faces in a browser and judge them: `mined gallery` writes a static site, `mined view` serves it.

What is judged there stays in the browser until it is downloaded, or saved by `mined view` to `data/review.csv`.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa

from fer_pipeline.artifacts.review import WITHDRAWN, Judgement, parse_review, read_review
from fer_pipeline.commands.mined import NOT_RECORDED, name_seed
from fer_pipeline.commands.review import merge_into
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import PARAMS, Summary, read_project
from fer_pipeline.inspection import tables
from fer_pipeline.inspection.gallery import hash_lineage, read_lineage, write_gallery
from fer_pipeline.inspection.revisions import open_revision, read_lock
from fer_pipeline.inspection.sheets import script
from fer_pipeline.inspection.view import serve

BY_FILE = (
    "take it back, or download the verdicts and run: python -m fer_pipeline mined review review.csv --drop-unknown"
)


def gallery(
    *,
    out: Path = Path("reports/gallery"),
    rev: str = "workspace",
    compare: str | None = None,
    faces: Path | None = None,
    review: Path = Path("data/review.csv"),
    seed: int | None = None,
) -> Summary:
    """Write a site with every mined face: by class, filtered, compared with another revision; opens from the disk.

    Args:
        out: Its folder; a gallery there is replaced.
        rev: A commit, tag, branch or DVC experiment; else what lies here.
        compare: A revision of before that: its faces that went, those that came and those of another class.
        faces: A CSV of `mined sample` or `mined suggest` whose faces have a page of their own.
        review: The verdicts so far; nothing where there is no such file.
        seed: Which one is read where each seed has mined faces of its own; the first without it.
    """
    root, warnings = Path.cwd(), tuple[str, ...]()
    verdicts = _read(review)
    if faces is not None and not faces.is_file():
        raise ConfigError(f"there is no file {faces}; run: python -m fer_pipeline mined sample --out {faces}")
    chosen = None if faces is None else read_review(faces, classes=read_project(PARAMS).classes)
    with ExitStack() as stack:
        names: list[str] = []
        revs = [rev] if compare is None else [rev, compare]
        revisions = [stack.enter_context(open_revision(root, one, seed=seed)) for one in revs]
        for one in revisions:
            one.path(tables.SUBSET, "*summary.json")
            name, told = name_seed(one)
            names.append(name)
            warnings += told if one.is_recorded(tables.SUBSET) else (*told, NOT_RECORDED)
        before = None if compare is None else revisions[1]
        counts, notes = write_gallery(
            revisions[0],
            out,
            title=names[0],
            project=hashlib.blake2b(bytes(root), digest_size=8).hexdigest(),  # all may serve at one port
            before=before,
            before_title=names[-1],
            chosen=None if chosen is None else _as_rows(chosen),
            chosen_title=faces.name if faces else "",
            verdicts=verdicts,
        )
    text = ", ".join(f"{number:,} {kind}" for kind, number in counts.items() if number)
    line = f"{names[0]}: {text} faces in {out}; open {out / 'index.html'}, or run: python -m fer_pipeline mined view"
    return Summary("", line, warnings=(*warnings, *notes))


def view(
    *, folder: Path = Path("reports/gallery"), port: int = 8010, review: Path = Path("data/review.csv")
) -> Iterator[Summary]:
    """Serve the gallery to this machine alone until Ctrl-C, and merge the verdicts that its pages save.

    Args:
        folder: What `mined gallery` wrote.
        port: The port; 0 takes any free one.
        review: The file of verdicts.
    """
    again = f"python -m fer_pipeline mined gallery --out {folder}"
    if (lineage := read_lineage(folder)) is None:
        raise ConfigError(f"{folder} is no gallery; run: {again}")
    now = hash_lineage(read_lock(Path.cwd(), ""))
    other = f"{folder} does not show what dvc.lock has of the mined faces now; to make it anew run: {again}"
    warnings = (other,) if now and now != lineage else ()

    _read(review)  # what is wrong with it is said before anybody judges

    def merge(data: bytes) -> str:
        project, name = read_project(PARAMS), "what was posted"
        posted = parse_review(data, name, classes=project.classes)
        _, merged, _ = merge_into(review, posted, project, name=name, remedy=BY_FILE)
        back = sum(row.verdict == WITHDRAWN for row in posted)
        told = f", {back:,} taken back" if back else ""
        return f"{len(posted) - back:,} verdicts saved{told}; {review} has {len(merged):,}"

    def judged() -> bytes:
        return script("verdicts", _read(review)) + script("labels", read_project(PARAMS).classes)

    with serve(folder, port, merge=merge, verdicts=judged) as (server, address):
        yield Summary("", f"gallery of {folder} at {address} (Ctrl-C ends it)", warnings=warnings)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _read(review: Path) -> list[Judgement]:
    return read_review(review, classes=read_project(PARAMS).classes) if review.exists() else []


def _as_rows(chosen: list[Judgement]) -> pa.Table:
    """The faces of a list, each once, in its order."""
    faces = {(row.set, row.face_id): row for row in chosen}
    columns = {"face_id": "face_id", "pool": "set", "content": "content", "sample": "sample", "listed": "label"}
    rows = {name: [getattr(row, key) for row in faces.values()] for name, key in columns.items()}
    return pa.table(rows, schema=pa.schema([(name, pa.string()) for name in rows]))

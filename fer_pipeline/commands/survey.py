"""Look at the data sets that a user names (`csv:PATH`, `recordio:PATH`, …): their settings and counts.

Labels are mapped to classes by name alone; every label that is no class is listed with its count, and dropped only
where the user said so. No picture is opened but the first of a `.rec`, to see whether it holds aligned crops.

The settings of the `csv` adapter are guessed where one answer is obvious: a column by its name, the image root by where
the pictures of the first rows are. No answer, or more than one, is one line that lists the candidates and names the
option that decides.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.settings import DatasetSettings, PlainName, Settings, Split, validate
from fer_pipeline.datasets import csv, image_folder, recordio
from fer_pipeline.datasets._files import SPLITS, PictureRoot, report_left_out
from fer_pipeline.datasets.csv import Table, open_table
from fer_pipeline.datasets.recordio import RecordFile

# Names of files and folders that do not name the set; the folder above is asked then.
GENERIC = frozenset(
    "all annotation annotations csv data dataset faces image images img index info labels label list lists main meta "
    "metadata raw rec recordio test train val".split()
)
USUAL_NAMES = {
    "image": "image images img imgs file files filename filepath path imagepath imagename imagefile imageid "
    "picture pic photo subdirectoryfilepath",
    "label": "label labels emotion emotions expression class category emotionlabel expressionlabel",
    "subject": "subject subjectid identity identityid person personid participant participantid actor",
    "split": "split usage set subset partition",
}
ROWS_TRIED = 50
CHOICE = r"(?:([A-Za-z0-9][A-Za-z0-9_.-]*)=(?=.))?(.+)"


class Named(Settings):
    """A name that can be a folder's and a key's."""

    name: PlainName


class Source(NamedTuple):
    """What the user wrote: `[name=]adapter:path`."""

    adapter: str
    path: Path
    name: str | None


Choices = Mapping[
    str, Sequence[str | Path]
]  # by the option, `image_root` or `<kind>_column`, in the order in which they are tried


def split_choices(choices: Choices) -> list[tuple[str, str, str]]:
    """Returns option, set (empty where none is named) and value of each choice, written `value` or `set=value`."""
    matches = [(key, re.fullmatch(CHOICE, str(value))) for key, values in choices.items() for value in values]
    return [(key, match[1] or "", match[2]) for key, match in matches if match]


def choices_for_set(choices: Choices, name: str) -> Choices:
    """Returns the choices for one set: first those that name it, then those that name none."""
    parts = sorted((part for part in split_choices(choices) if part[1] in (name, "")), key=lambda part: not part[1])
    return {key: [value for option, _, value in parts if option == key] for key in choices}


class SurveySettings(NamedTuple):
    """What all sets are looked at with: the classes, how labels are mapped to them, and choices of columns."""

    classes: tuple[str, ...]
    renamed: Mapping[str, str]  # label of a source -> class
    drop_outside: bool  # labels that are no class
    choices: Choices
    reject_missing: bool  # rows without a picture
    project: Path


class DatasetSurvey(NamedTuple):
    """A set's settings, and the number of pictures per split and class (None: no label or no class)."""

    settings: DatasetSettings
    counts: Mapping[tuple[str, str | None], int]
    notes: tuple[str, ...]
    prealigned: bool = False

    def class_counts(self, split: str) -> dict[str, int]:
        return {label: count for (name, label), count in self.counts.items() if name == split and label is not None}


def parse_source(text: str, *, option: str) -> Source:
    match = re.fullmatch(r"(?:([^=:/]*)=)?([^:=/]+):(.+)", text)
    choices = available("fer_pipeline.datasets")
    if match is None or match[2] not in choices:
        raise ConfigError(
            f"{option} {text!r} is no source; write adapter:PATH or name=adapter:PATH with one of {', '.join(choices)}"
        )
    if match[1] is not None:
        validate(Named, {"name": match[1]}, where=f"{option} {text!r}")
    if not (path := Path(match[3])).exists():
        raise DataError(f"{option}: {path} does not exist; correct the path")
    return Source(match[2], path, match[1])


def name_source(source: Source) -> str:
    """Returns the given name, or that of the file or of the nearest folder with a telling one."""
    if source.name is not None:
        return source.name
    path = source.path.absolute()
    for candidate in (path.stem if path.is_file() else path.name, *(folder.name for folder in path.parents)):
        # No dots: in a graph's templates `datasets.a.b` is another place.
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", candidate).strip("_-")
        if plain and plain.lower() not in GENERIC:
            return plain
    return source.adapter


def survey_set(source: Source, name: str, survey: SurveySettings, *, default_split: Split | None) -> DatasetSurvey:
    """Surveys a set; `default_split` is that of rows whose source names none, and None for a pool.

    Labels of a pool, if it has any, are not read, and all of it is its train split.
    """
    path, labelled = source.path, default_split is not None
    options: dict[str, Any] = {}
    if source.adapter == "csv":
        table = Path(csv.find_table(path, csv.Options()))
        path, guess = guess_csv(table, choices_for_set(survey.choices, name), labelled=labelled, project=survey.project)
        if survey.reject_missing:
            guess = guess.model_copy(update={"missing": "reject"})
        options = guess.model_dump(mode="json", exclude_defaults=True)
    elif source.adapter == "image_folder":
        options = {"levels": list(image_folder.guess_levels(path)) if labelled else []}
        if labelled and "class" not in options["levels"]:
            raise DataError(f"{path} holds no folders of classes; a labelled set needs {path}/[split/]class/picture")
    elif source.adapter == "recordio" and labelled:
        raise DataError(f"{path}: a .rec names its labels by numbers only, so it can be a pool; name another set here")
    settings = DatasetSettings(adapter=source.adapter, path=path, options=options)
    adapter = load("fer_pipeline.datasets", source.adapter)
    checked = adapter.Options.model_validate(options)
    left_out = report_left_out(adapter, path, checked)
    if default_split is None:
        count, prealigned = _count_pool(settings)
        notes = ("its pictures are taken as aligned crops (align.sets)",) if prealigned else ()
        settings = settings.model_copy(update={"split": "train"})
        return DatasetSurvey(settings, {("train", None): count}, (*left_out, *notes), prealigned)
    samples = adapter.samples(path, checked)
    rows = Counter((sample.split, sample.label) for sample in samples)
    labels: Counter[str] = Counter()
    for label, count in ((label, count) for (_, label), count in rows.items() if label is not None):
        labels[label] += count
    by_name = {canonical(name): name for name in survey.classes}
    mapping = {label: survey.renamed.get(label) or by_name.get(canonical(label)) for label in labels}
    outside = {label: labels[label] for label, target in mapping.items() if target is None}
    if outside and not survey.drop_outside:
        raise DataError(
            f"{source.path} has labels outside the classes {', '.join(survey.classes)}: {format_counts(outside)}; add "
            f"them to --classes, name them by --rename LABEL=CLASS, or say --drop-outside"
        )
    counts: Counter[tuple[str, str | None]] = Counter()
    for (split, label), count in rows.items():
        if label is None or mapping[label] is not None:
            counts[split or default_split, None if label is None else mapping[label]] += count
    without_split = sum(count for (split, _), count in rows.items() if split is None)
    notes = [
        *left_out,
        *([f"{without_split:,} pictures name no split: they are {default_split}"] * bool(without_split)),
    ]
    if outside:
        notes.append(f"dropped, outside the classes: {format_counts(outside)}")
    if unlabelled := sum(count for (_, label), count in counts.items() if label is None):
        notes.append(f"{unlabelled:,} pictures have no label")
    classes = {label: target for label, target in sorted(mapping.items()) if label != target}
    split = default_split if without_split else None
    return DatasetSurvey(settings.model_copy(update={"split": split, "classes": classes}), dict(counts), tuple(notes))


def format_counts(counts: Mapping[str, int]) -> str:
    """Formats `fear 6, disgust 69`, most frequent first; a long list ends in the number of the others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - 20:,} more" if len(ordered) > 20 else ""
    return ", ".join(f"{label} {count:,}" for label, count in ordered[:20]) + more


def _count_pool(settings: DatasetSettings) -> tuple[int, bool]:
    """The number of pictures, and whether they are taken as aligned crops.

    A .rec with a header is counted by it, since millions of records take minutes. Published .rec files hold crops of
    the ArcFace template; a picture that is not square is no such crop.
    """
    adapter = load("fer_pipeline.datasets", settings.adapter)
    options = adapter.Options.model_validate(settings.options)
    samples = adapter.samples(settings.path, options)
    if settings.adapter != "recordio":
        return sum(1 for _ in samples), False
    first = next(samples)
    with RecordFile(recordio.find_records(settings.path)) as records:
        limit = recordio.header_limit(records.record(0, 0))
    count = 1 + sum(1 for _ in samples) if limit is None else limit - 1
    try:
        with Image.open(io.BytesIO(adapter.read(first, options))) as picture:
            return count, picture.width == picture.height
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return count, True  # one bad picture decides nothing: align rejects it


def guess_csv(file: Path, choices: Choices, *, labelled: bool, project: Path) -> tuple[Path, csv.Options]:
    """Returns the folder that holds table and pictures, which DVC is to track, and the options relative to it."""
    table = open_table(file)
    image, root = _find_pictures(table, choices)
    folder = _common_folder(file, root, project)
    kinds = ("label", "subject", "split") if labelled else ("subject",)
    columns = {kind: _find_column(table, kind, choices) for kind in kinds}
    if (split := columns.get("split")) and not choices.get("split_column"):
        words = (cells[table.position(split)].strip().lower() for _, cells in table.rows())
        if not any(word in SPLITS for word in words):  # one called `set` without names of splits is none
            columns["split"] = None
    paths = {"csv": os.path.relpath(file, folder), "images": os.path.relpath(root, folder)}
    return folder, csv.Options.model_validate({**paths, "image": image, **columns})


def _no_column(table: Table, kind: str) -> DataError:
    columns = ", ".join(map(repr, table.columns))
    return DataError(f"no column of {table.file} looks like the {kind}'s; found {columns}; name it by --{kind}-column")


def _candidates(table: Table, kind: str, choices: Choices) -> list[str]:
    if chosen := list(map(str, choices.get(f"{kind}_column", ()))):
        present = [name for name in chosen if name in table.columns]
        return present[:1] or [table.columns[table.position(chosen[0])]]
    usual = USUAL_NAMES[kind].split()
    return [name for name in table.columns if "".join(filter(str.isalnum, name.lower())) in usual]


def _find_column(table: Table, kind: str, choices: Choices) -> str | None:
    columns = _candidates(table, kind, choices)
    if kind == "label" and not columns:
        raise _no_column(table, kind)
    if len(columns) > 1:
        fault = f"{table.file} has several columns that may be the {kind}'s"
        raise _several(fault, map(repr, columns), f"{kind}-column")
    return columns[0] if columns else None


def _several(fault: str, names: Iterable[object], option: str) -> DataError:
    return DataError(f"{fault}: {', '.join(map(str, names))}; name one by --{option}")


def _find_pictures(table: Table, choices: Choices) -> tuple[str, Path]:
    """Column and root together: of several columns the one whose files exist."""
    columns = _candidates(table, "image", choices)
    if not columns:
        raise _no_column(table, "image")
    rows = [cells for _, cells in islice(table.rows(), ROWS_TRIED)]
    names = {column: [cells[table.position(column)].strip().replace("\\", "/") for cells in rows] for column in columns}
    tried: dict[Path, PictureRoot | None] = {}
    for find in (_stands_there, _stands_there_in_another_form):
        for roots in _roots(table.file, choices):
            for root in roots:
                tried.setdefault(root, PictureRoot(root, follow_links=True) if root.is_dir() else None)
            counts = {
                (column, root): sum(bool(name) and find(folder, name) for name in names[column])
                for column in columns
                for root in roots
                if (folder := tried[root]) is not None
            }
            if best := _choose_pictures(table, counts):
                return best
    first = names[columns[0]][0] if rows else "(no row)"
    near = next((near for folder in tried.values() if folder and (near := folder.suggest(first))), "")
    fault = f"none of the first pictures that {table.file} lists (first: {first}{near})"
    raise DataError(f"{fault} is in {', '.join(map(str, [*tried][:8]))}; name their folder by --image-root")


def _stands_there(root: PictureRoot, name: str) -> bool:
    return (root.folder / name).is_file()


def _stands_there_in_another_form(root: PictureRoot, name: str) -> bool:
    """Such as without its suffix; asked only where no picture is there by its name, since it lists the folders."""
    return (file := root.match(name)) is not None and file.is_file()


def _choose_pictures(table: Table, counts: Mapping[tuple[str, Path], int]) -> tuple[str, Path] | None:
    most, best = max(counts.values(), default=0), list[tuple[str, Path]]()
    for (column, root), count in counts.items():  # a folder under two names counts once
        if count == most > 0 and not any(c == column and os.path.samefile(r, root) for c, r in best):
            best.append((column, root))
    if len({column for column, _ in best}) > 1:
        fault = f"{table.file} has several columns that name pictures"
        raise _several(fault, (repr(column) for column, _ in best), "image-column")
    if len(best) > 1:
        fault = f"the pictures that {table.file} lists are in several folders"
        raise _several(fault, (root for _, root in best), "image-root")
    return best[0] if best else None


def _roots(file: Path, choices: Choices) -> Iterator[list[Path]]:
    """Where pictures may be, tried in turn: what the user named; else beside and below the table, then above it."""
    if roots := choices.get("image_root"):
        for root in map(Path, roots):
            yield [root if root.is_dir() else file.parent / root]
        return
    yield [file.parent, *(folder for folder in sorted(file.parent.iterdir()) if folder.is_dir())]
    # abspath, since the parent of `..` is not `.`
    parent = Path(os.path.abspath(file)).parent.parent
    above = parent if file.is_absolute() else Path(os.path.relpath(parent))
    yield [above, *(above / name for name in ("images", "faces", "pictures") if (above / name).is_dir())]


def _common_folder(file: Path, root: Path, project: Path) -> Path:
    """The deepest folder that holds both, relative where both were given so."""
    folder = Path(os.path.commonpath([os.path.abspath(file.parent), os.path.abspath(root)]))
    here = Path(os.path.abspath(project))
    if {folder, folder.resolve()} & {Path("/"), Path.home(), here, *here.parents}:
        raise DataError(
            f"the folder that holds both {file} and the pictures in {root} is {folder}, which DVC would have to hash "
            f"whole; put the table and the pictures into a folder of their own"
        )
    return folder if file.is_absolute() or root.is_absolute() else Path(os.path.relpath(folder))

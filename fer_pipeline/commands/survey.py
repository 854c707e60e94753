"""Look at the data sets that a user names (`csv:PATH`, `recordio:PATH`, …): their settings and counts.

Labels are mapped to classes by name alone; every label that is no class is listed with its count, and dropped only
where the user said so. No picture is opened but the first of a `.rec`, to see whether it holds aligned crops.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fer_pipeline.commands.csv_columns import ColumnChoices, guess_csv
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.settings import DatasetSettings, PlainName, Settings, Split, validate
from fer_pipeline.datasets import csv, image_folder, recordio
from fer_pipeline.datasets.recordio import RecordFile

# Names of files and folders that do not name the set; the folder above is asked then.
GENERIC = frozenset(
    "all annotation annotations csv data dataset faces image images img index info labels label list lists main meta "
    "metadata raw rec recordio test train val".split()
)


class Named(Settings):
    """A name that can be a folder's and a key's."""

    name: PlainName


@dataclass(frozen=True)
class Source:
    """What the user wrote: `[name=]adapter:path`."""

    adapter: str
    path: Path
    name: str | None

    @property
    def real_path(self) -> str:
        """The same for every way to write it: that of the table of a CSV source, else that of its path."""
        return os.path.realpath(csv.find_table(self.path, csv.Options()) if self.adapter == "csv" else self.path)


@dataclass(frozen=True)
class SurveySettings:
    """What all sets are looked at with: the classes, how labels are mapped to them, and choices of columns."""

    classes: tuple[str, ...]
    renamed: Mapping[str, str]  # label of a source -> class
    drop_outside: bool  # labels that are no class
    columns: ColumnChoices
    project: Path

    def map_labels(self, labels: Mapping[str, int], path: Path) -> dict[str, str | None]:
        """Returns the class of every label, None for those to drop; `labels` are counts, for the error's line."""
        by_name = {canonical(name): name for name in self.classes}
        mapping = {label: self.renamed.get(label) or by_name.get(canonical(label)) for label in labels}
        outside = {label: labels[label] for label, target in mapping.items() if target is None}
        if outside and not self.drop_outside:
            raise DataError(
                f"{path} has labels outside the classes {', '.join(self.classes)}: {format_counts(outside)}; add them "
                f"to --classes, name them by --rename LABEL=CLASS, or say --drop-outside"
            )
        return mapping


@dataclass(frozen=True)
class DatasetSurvey:
    """A set's settings, and the number of pictures per split and class (None: no label or no class)."""

    settings: DatasetSettings
    counts: Mapping[tuple[str, str | None], int]
    notes: tuple[str, ...]
    prealigned: bool = False

    def class_counts(self, split: str) -> dict[str, int]:
        """Returns the number of labelled pictures of a split per class."""
        return {label: count for (name, label), count in self.counts.items() if name == split and label is not None}


def parse_source(text: str, *, option: str) -> Source:
    """Parses `csv:PATH` or `name=csv:PATH`."""
    match = re.fullmatch(r"(?:([^=:/]*)=)?([^:=/]+):(.+)", text)
    choices = available("fer_pipeline.datasets")
    if match is None or match[2] not in choices:
        raise ConfigError(
            f"{option} {text!r} is no source; write adapter:PATH or name=adapter:PATH with one of {', '.join(choices)}"
        )
    if match[1] is not None:
        validate(Named, {"name": match[1]}, where=f"{option} {text!r}")
    path = Path(match[3])
    if not path.exists():
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


def survey_pool(source: Source, columns: ColumnChoices, *, project: Path) -> DatasetSurvey:
    """Surveys a pool: its labels, if it has any, are not read, and all of it is its train split."""
    path, options = source.path, {}
    if source.adapter == "csv":
        path, options = _csv_options(source, columns, labelled=False, project=project)
    elif source.adapter == "image_folder":
        options = {"levels": []}
    settings = DatasetSettings(adapter=source.adapter, path=path, split="train", options=options)
    count, prealigned = _count_pool(settings)
    notes = ("its pictures are taken as aligned crops (align.sets)",) if prealigned else ()
    return DatasetSurvey(settings, {("train", None): count}, notes, prealigned)


def survey_labelled(
    source: Source, columns: ColumnChoices, survey: SurveySettings, *, default_split: Split
) -> DatasetSurvey:
    """Surveys an anchor or a target; `default_split` is that of rows whose source names none."""
    path, options = source.path, {}
    if source.adapter == "csv":
        path, options = _csv_options(source, columns, labelled=True, project=survey.project)
    elif source.adapter == "image_folder":
        options = {"levels": list(image_folder.guess_levels(path))}
        if "class" not in options["levels"]:
            raise DataError(f"{path} holds no folders of classes; a labelled set needs {path}/[split/]class/picture")
    elif source.adapter == "recordio":
        raise DataError(f"{path}: a .rec names its labels by numbers only, so it can be a pool; name another set here")
    adapter = load("fer_pipeline.datasets", source.adapter)
    samples = adapter.samples(path, adapter.Options.model_validate(options))
    rows = Counter((sample.split, sample.label) for sample in samples)
    labels: Counter[str] = Counter()
    for (_, label), count in rows.items():
        if label is not None:
            labels[label] += count
    mapping = survey.map_labels(labels, source.path)
    counts: Counter[tuple[str, str | None]] = Counter()
    for (split, label), count in rows.items():
        if label is None or mapping[label] is not None:
            counts[split or default_split, None if label is None else mapping[label]] += count
    without_split = sum(count for (split, _), count in rows.items() if split is None)
    notes = [f"{without_split:,} pictures name no split: they are {default_split}"] if without_split else []
    if dropped := {label: labels[label] for label, target in mapping.items() if target is None}:
        notes.append(f"dropped, outside the classes: {format_counts(dropped)}")
    if unlabelled := sum(count for (_, label), count in counts.items() if label is None):
        notes.append(f"{unlabelled:,} pictures have no label")
    settings = DatasetSettings(
        adapter=source.adapter,
        path=path,
        split=default_split if without_split else None,
        classes={label: target for label, target in sorted(mapping.items()) if label != target},
        options=options,
    )
    return DatasetSurvey(settings, dict(counts), tuple(notes))


def format_counts(counts: Mapping[str, int]) -> str:
    """Formats `fear 6, disgust 69`, most frequent first; a long list ends in the number of the others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - 20:,} more" if len(ordered) > 20 else ""
    return ", ".join(f"{label} {count:,}" for label, count in ordered[:20]) + more


def _csv_options(
    source: Source, columns: ColumnChoices, *, labelled: bool, project: Path
) -> tuple[Path, dict[str, Any]]:
    path, options = guess_csv(
        Path(csv.find_table(source.path, csv.Options())), columns, labelled=labelled, project=project
    )
    return path, options.model_dump(mode="json", exclude_defaults=True)


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

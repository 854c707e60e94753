"""A source as the user names it (`csv:PATH`, `recordio:PATH`, …) in, its settings and what it holds, counted, out.

Labels are mapped to classes by name alone; every label that is no class is listed with its count, and dropped only
where the user said so. Pictures are `align`'s: only the first of a `.rec` is opened, to see whether it holds crops.
"""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fer_pipeline.commands.guess import Wishes, guess_csv
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.settings import DatasetSettings, PlainName, Settings, Split, validate
from fer_pipeline.datasets import csv, image_folder, recordio
from fer_pipeline.datasets._records import RecordFile

# Names of files and folders that say nothing of the set; the folder above is asked then.
GENERIC = frozenset(
    "all annotation annotations csv data dataset faces image images img index info labels label list lists main meta "
    "metadata raw rec recordio test train val".split()
)


@dataclass(frozen=True)
class Source:
    """What the user wrote: `[name=]adapter:path`."""

    adapter: str
    path: Path
    name: str | None


@dataclass(frozen=True)
class Survey:
    """A source's settings, and the number of pictures per split and class (None: no label; not a class: dropped)."""

    settings: DatasetSettings
    counts: Mapping[tuple[str, str | None], int]
    notes: tuple[str, ...]
    prealigned: bool = False

    def classes_in(self, split: Split) -> dict[str, int]:
        """How many labelled pictures of a split fall into each class."""
        found: Counter[str] = Counter()
        for (where, label), count in self.counts.items():
            if where == split and label is not None:
                found[label] += count
        return dict(found)


@dataclass(frozen=True)
class Found:
    """The sets by name in the order of the settings, and the parts they play."""

    sets: Mapping[str, Survey]
    anchor: str
    train: str
    pools: tuple[str, ...]
    targets: tuple[str, ...]


class Named(Settings):
    """A name that can be a folder's and a key's."""

    name: PlainName


def parse(text: str, *, option: str) -> Source:
    """`csv:PATH` or `name=csv:PATH`."""
    found = re.fullmatch(r"(?:([^=:/]*)=)?([^:=/]+):(.+)", text)
    choices = available("fer_pipeline.datasets")
    if found is None or found[2] not in choices:
        raise ConfigError(
            f"{option} {text!r} is no source; write adapter:PATH or name=adapter:PATH with one of {', '.join(choices)}"
        )
    if found[1] is not None:
        validate(Named, {"name": found[1]}, where=f"{option} {text!r}")
    path = Path(found[3])
    if not path.exists():
        raise DataError(f"{option}: {path} does not exist; correct the path")
    return Source(found[2], path, found[1])


def name_of(source: Source) -> str:
    """A name that tells the set: the given one, that of the file, or of the nearest folder that is called something."""
    if source.name is not None:
        return source.name
    path = source.path.absolute()
    for candidate in (path.stem if path.is_file() else path.name, *(folder.name for folder in path.parents)):
        # No dots: in a graph's templates `datasets.a.b` is another place.
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", candidate).strip("_-")
        if plain and plain.lower() not in GENERIC:
            return plain
    return source.adapter


def survey_pool(source: Source, wishes: Wishes, *, project: Path) -> Survey:
    """A pool: its labels, if it has any, are not read, and all of it is its train split."""
    path, options = source.path, {}
    if source.adapter == "csv":
        path, chosen = guess_csv(csv.find_table(path, csv.Options()), wishes, labelled=False, project=project)
        options = plain_options(chosen)
    elif source.adapter == "image_folder":
        options = {"levels": []}
    settings = DatasetSettings(adapter=source.adapter, path=path, split="train", options=options)
    prealigned = source.adapter == "recordio" and _first_is_square(settings)
    notes = ("its pictures are taken as aligned crops (align.sets)",) if prealigned else ()
    return Survey(settings, {("train", None): _count(settings)}, notes, prealigned)


def survey_labelled(
    source: Source,
    wishes: Wishes,
    *,
    split: Split,
    classes: Sequence[str],
    renamed: Mapping[str, str],
    drop_outside: bool,
    project: Path,
) -> Survey:
    """An anchor or a target; `split` is that of rows whose source names none."""
    path, options = source.path, {}
    if source.adapter == "csv":
        path, chosen = guess_csv(csv.find_table(path, csv.Options()), wishes, labelled=True, project=project)
        options = plain_options(chosen)
    elif source.adapter == "image_folder":
        options = {"levels": list(image_folder.guess_levels(path))}
        if "class" not in options["levels"]:
            raise DataError(f"{path} holds no folders of classes; a labelled set needs {path}/[split/]class/picture")
    elif source.adapter == "recordio":
        raise DataError(f"{path}: a .rec names its labels by numbers only, so it can be a pool; name another set here")
    rows: Counter[tuple[str | None, str | None]] = Counter()
    adapter = load("fer_pipeline.datasets", source.adapter)
    for sample in adapter.samples(path, adapter.Options.model_validate(options)):
        rows[sample.split, sample.label] += 1
    mapping = _mapping(Counter(_by_label(rows)), source, classes, renamed, drop_outside=drop_outside)
    counts: Counter[tuple[str, str | None]] = Counter()
    dropped: Counter[str] = Counter()
    for (where, label), count in rows.items():
        if label is not None and mapping[label] is None:
            dropped[label] += count
        else:
            counts[where or split, None if label is None else mapping[label]] += count
    without = sum(count for (where, _), count in rows.items() if where is None)
    notes = [f"{without:,} pictures name no split: they are {split}"] if without else []
    if dropped:
        notes.append(f"dropped, outside the classes: {listing(dropped)}")
    if unlabelled := sum(count for (_, label), count in counts.items() if label is None):
        notes.append(f"{unlabelled:,} pictures have no label")
    settings = DatasetSettings(
        adapter=source.adapter,
        path=path,
        split=split if without else None,
        classes={label: target for label, target in sorted(mapping.items()) if label != target},
        options=options,
    )
    return Survey(settings, dict(counts), tuple(notes))


def listing(counts: Mapping[str, int]) -> str:
    """`fear 6, disgust 69`, most frequent first; a long list ends in the number of the others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - 20:,} more" if len(ordered) > 20 else ""
    return ", ".join(f"{label} {count:,}" for label, count in ordered[:20]) + more


def plain_options(options: Settings) -> dict[str, Any]:
    """What differs from the defaults, as YAML holds it."""
    return options.model_dump(mode="json", exclude_defaults=True)


def _by_label(rows: Mapping[tuple[str | None, str | None], int]) -> dict[str, int]:
    labels: Counter[str] = Counter()
    for (_, label), count in rows.items():
        if label is not None:
            labels[label] += count
    return dict(labels)


def _mapping(
    labels: Mapping[str, int],
    source: Source,
    classes: Sequence[str],
    renamed: Mapping[str, str],
    *,
    drop_outside: bool,
) -> dict[str, str | None]:
    by_name = {canonical(name): name for name in classes}
    mapping = {label: renamed.get(label) or by_name.get(canonical(label)) for label in labels}
    outside = {label: labels[label] for label, target in mapping.items() if target is None}
    if outside and not drop_outside:
        raise DataError(
            f"{source.path} has labels outside the classes {', '.join(classes)}: {listing(outside)}; add them to "
            f"--classes, name them by --rename LABEL=CLASS, or say --drop-outside"
        )
    return mapping


def _first_is_square(settings: DatasetSettings) -> bool:
    """Published .rec files hold crops of the ArcFace template; a picture that is not square is no such crop."""
    adapter = load("fer_pipeline.datasets", settings.adapter)
    options = adapter.Options.model_validate(settings.options)
    first = next(adapter.samples(settings.path, options))
    try:
        with Image.open(io.BytesIO(adapter.read(first, options))) as picture:
            return picture.width == picture.height
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return True  # one bad picture decides nothing: align rejects it


def _count(settings: DatasetSettings) -> int:
    """The number of pictures; of a .rec with a header by the header, since millions of records take minutes."""
    adapter = load("fer_pipeline.datasets", settings.adapter)
    options = adapter.Options.model_validate(settings.options)
    found = adapter.samples(settings.path, options)
    if settings.adapter == "recordio":
        next(found)
        with RecordFile(recordio.find_records(settings.path)) as records:
            limit = recordio.header_limit(records.record(0, 0))
        if limit is not None:
            return limit - 1
        return 1 + sum(1 for _ in found)
    return sum(1 for _ in found)

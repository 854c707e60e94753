"""Look at the data sets that a user names (`csv:PATH`, `recordio:PATH`, …): their settings, labels and counts.

No picture is opened but the first of a `.rec`, to see whether it holds aligned crops. What the adapters say of their
options is said here in those of `init`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from fer_pipeline.alignment.pictures import Rejection, read_size
from fer_pipeline.commands.labels import EMPTY, MappedLabel, describe_mapping
from fer_pipeline.commands.tables import (
    Choices,
    choices_for_set,
    first_choice,
    guess_csv,
    sets_marked,
    split_choices,
    split_names,
)
from fer_pipeline.core.errors import ConfigError, DataError, OptionError
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.settings import DatasetSettings, PlainName, Settings, Split, validate
from fer_pipeline.datasets import csv, image_folder, recordio
from fer_pipeline.datasets._files import report_left_out
from fer_pipeline.datasets.recordio import RecordFile

# Names of files and folders that do not name the set; the folder above is asked then.
GENERIC = frozenset(
    "all annotation annotations csv data dataset emolabel faces image images img index info labels label list "
    "list_patition_label lists main meta metadata raw rec recordio test train val".split()
)
# How `init` is told an adapter's option, for a set and a value.
OPTIONS = {
    "csv": "write csv:FILE",
    "file": "write fer2013:{value}",
    "images": "say --image-root {name}={value}",
    "prefixes": "say --image-prefix {name}={value}",
    "ending": "say --image-ending {name}={value}",
    "image": "say --image-column {name}={value}",
    "label": "say --label-column {name}={value}",
    "subject": "say --subject-column {name}={value}",
    "split": "say --split-column {name}={value}",
    "splits": "say --split-word {name}:{value}",
    "columns": "say --columns {name}={value}",
    "delimiter": "say --delimiter {name}={value}",
    "encoding": "say --encoding {name}={value}",
    "follow_links": "say --follow-links {name}={value}",
    "levels": "say --levels {name}={value}",
    "missing": "say --reject-missing",
}
USED_BY = {"image_folder": {"follow_links", "levels"}, "csv": {*OPTIONS} - {"levels"}}  # an adapter's, else none


class Named(Settings):
    """A name that can be a folder's and a key's."""

    name: PlainName


class Source(NamedTuple):
    """What the user wrote: `[name=]adapter:path`."""

    adapter: str
    path: Path
    name: str | None


class SurveySettings(NamedTuple):
    """What all sets are looked at with: choices of columns, and what becomes of rows without a picture."""

    choices: Choices
    split_words: Sequence[str]  # [SET:]WORD=SPLIT
    reject_missing: bool  # rows without a picture
    project: Path


class DatasetSurvey(NamedTuple):
    """A set's settings, and the number of pictures by the split and the label of the source (None where none is given).

    `split` is that of rows whose source names none; `labels` are what the set's labels mean, None for a pool.
    """

    settings: DatasetSettings
    rows: Mapping[tuple[str | None, str | None], int]
    split: Split
    labels: tuple[MappedLabel, ...] | None = None
    prealigned: bool = False
    left_out: tuple[str, ...] = ()  # what is said of files that are no pictures
    split_words: frozenset[str] = frozenset()  # of the user's own words for splits, those that make a difference

    def counts(self) -> Counter[tuple[str, str | None]]:
        """Returns the number of pictures by split and class (None without a label); dropped ones are not counted."""
        classes = {one.label: one.target for one in self.labels or ()}
        counts: Counter[tuple[str, str | None]] = Counter()
        for (split, label), count in self.rows.items():
            target = classes.get(EMPTY) if label is None else classes[label]
            if label is None or target is not None:
                counts[split or self.split, target] += count
        return counts

    def label_counts(self) -> Counter[str]:
        """Returns the number of pictures by the label of the source."""
        counts: Counter[str] = Counter()
        for (_, label), count in self.rows.items():
            counts[EMPTY if label is None else label] += count
        return counts

    def class_counts(self, split: str) -> dict[str, int]:
        return {label: count for (name, label), count in self.counts().items() if name == split and label is not None}

    def with_labels(self, labels: Sequence[MappedLabel]) -> "DatasetSurvey":
        """Returns the survey of the same set with what its labels mean, in its settings too."""
        # A picture whose empty label is dropped keeps its place, without a label.
        classes = {one.label: one.target for one in labels if one.target != (one.label or None)}
        return self._replace(settings=self.settings.model_copy(update={"classes": classes}), labels=tuple(labels))

    def notes(self) -> list[str]:
        """Returns a line for each decision that was made, and each peculiarity."""
        notes = list(self.left_out)
        if self.prealigned:
            notes.append("its pictures are taken as aligned crops (align.sets)")
        options = self.settings.options
        for prefix in options.get("prefixes", ()):
            notes.append(f"{prefix} is cut off the names of pictures that the table gives")
        if ending := options.get("ending"):
            notes.append(f"pictures are the names that the table gives with {ending} in the place of their suffix")
        if options.get("split_by_name"):
            notes.append("the names of the pictures say in which split they are")
        if self.labels is None:
            return notes
        if without_split := sum(count for (split, _), count in self.rows.items() if split is None):
            notes.append(f"{without_split:,} pictures name no split: they are {self.split}")
        named = any(one.label == EMPTY and one.target for one in self.labels)
        if unlabelled := 0 if named else sum(count for (_, label), count in self.rows.items() if label is None):
            notes.append(f"{unlabelled:,} pictures have no label")
        return notes + describe_mapping(self.labels)


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


def check_choices(choices: Choices, adapters: Mapping[str, str]) -> None:
    """Refuses a choice for a set that is none, or whose adapter has no such option."""
    for option, name, value in split_choices(choices):
        flag = f"--{option.replace('_', '-')}"
        if name and name not in adapters:
            raise ConfigError(f"{flag} {name}={value}: no set is called {name!r}; name one of {', '.join(adapters)}")
        own = {one for one, words in OPTIONS.items() if f"{flag} " in words}
        if name and not own & USED_BY.get(adapters[name], set()):
            users = [one for one, used in USED_BY.items() if own & used]
            fault = f"{flag} {name}={value}: {name} is read by {adapters[name]}"
            raise ConfigError(f"{fault}, and this is an option of {' and '.join(users)} alone; leave it out")


def word_option(name: str, option: str, value: str) -> str:
    """Words a remedy for a set in options of `init`; the value is written as in settings."""
    plain = re.sub(r"[\[{](.*?)[\]}]", lambda match: match[1].replace(": ", "=").replace(", ", ",") or "flat", value)
    return OPTIONS[option].format(name=name, value=plain)


def survey_set(
    source: Source, name: str, survey: SurveySettings, *, default_split: Split | None, names: Sequence[str]
) -> DatasetSurvey:
    """Surveys a set; `default_split` is that of rows whose source names none, and None for a pool.

    Labels of a pool, if it has any, are not read, and all of it is its train split. `names` are those of all sets.
    """
    try:
        return _survey_set(source, name, survey, default_split=default_split, names=names)
    except OptionError as error:
        raise error.reworded(partial(word_option, name)) from None


def _survey_set(
    source: Source, name: str, survey: SurveySettings, *, default_split: Split | None, names: Sequence[str]
) -> DatasetSurvey:
    path, labelled = source.path, default_split is not None
    choices = choices_for_set(survey.choices, name)
    options: dict[str, Any] = {}
    splits = _split_words(survey.split_words, name, names) if source.adapter in USED_BY else {}
    if source.adapter == "csv":
        table = Path(csv.find_table(path, csv.Options()))
        path, guess = guess_csv(table, choices, labelled=labelled, project=survey.project, splits=splits)
        if survey.reject_missing:
            guess = guess.model_copy(update={"missing": "reject"})
        options = guess.model_dump(mode="json", exclude_defaults=True)
    elif source.adapter == "image_folder":
        levels = first_choice(choices, "levels")
        if levels is None:
            options = {"levels": list(image_folder.guess_levels(path)) if labelled else []}
        else:
            options = {"levels": [] if levels == "flat" else list(split_names(levels))}
        validate(image_folder.Options, options, where=f"--levels {name}={levels}")
        if labelled and "class" not in options["levels"]:
            raise DataError(f"{path} holds no folders of classes; a labelled set needs {path}/[split/]class/picture")
    elif source.adapter == "recordio" and labelled:
        raise DataError(f"{path}: a .rec names its labels by numbers only, so it can be a pool; name another set here")
    if source.adapter in USED_BY:
        if (follow := first_choice(choices, "follow_links")) not in (None, "true", "false"):
            raise ConfigError(f"--follow-links {name}={follow} is neither true nor false")
        if follow == "true":
            options["follow_links"] = True
        if splits:
            options["splits"] = splits
    settings = DatasetSettings(adapter=source.adapter, path=path, options=options)
    adapter = load("fer_pipeline.datasets", source.adapter)
    checked = adapter.Options.model_validate(options)
    left_out = report_left_out(adapter, path, checked)
    used = _used_split_words(settings)
    if default_split is None:
        count, prealigned = _count_pool(settings)
        settings = settings.model_copy(update={"split": "train"})
        return DatasetSurvey(settings, {(None, None): count}, "train", None, prealigned, left_out, used)
    rows = Counter((sample.split, sample.label) for sample in adapter.samples(path, checked))
    split = default_split if any(split is None for split, _ in rows) else None
    settings = settings.model_copy(update={"split": split})
    return DatasetSurvey(settings, rows, default_split, (), left_out=left_out, split_words=used)


def check_split_words(pairs: Sequence[str], sets: Mapping[str, DatasetSurvey]) -> None:
    """Refuses a word that makes no difference in any set: most are misspelt."""
    for pair in pairs:
        words = {
            word for name, one in sets.items() for word in one.split_words & {*_split_words([pair], name, [*sets])}
        }
        if not words:
            raise ConfigError(
                f"--split-word {pair!r} changes nothing: no set that it is for has that word for a split, or the word "
                f"means that already; correct it or leave it out"
            )


def _used_split_words(settings: DatasetSettings) -> frozenset[str]:
    """Returns the user's own words for splits without which the set is read otherwise, or not at all."""
    adapter, words = load("fer_pipeline.datasets", settings.adapter), settings.options.get("splits", {})

    def read(words: Mapping[str, str]) -> Counter[str | None] | None:
        options = adapter.Options.model_validate({**settings.options, "splits": words})
        try:
            return Counter(sample.split for sample in adapter.samples(settings.path, options))
        except OptionError:
            return None

    if not words:
        return frozenset()
    splits = read(words)
    return frozenset(word for word in words if read({key: words[key] for key in words if key != word}) != splits)


def _split_words(pairs: Sequence[str], name: str, names: Sequence[str]) -> dict[str, Split]:
    """Returns the user's own words for splits that hold for one set."""
    words: dict[str, Split] = {}
    for pair in pairs:
        left, _, split = pair.rpartition("=")
        owner, word = (sets_marked(left, names) or [("", left)])[0]
        if not word or split not in get_args(Split):
            raise ConfigError(
                f"--split-word {pair!r} is no [SET:]WORD=SPLIT with a split of {', '.join(get_args(Split))}"
            )
        if owner == name or (not owner and word not in words):
            words[word] = cast(Split, split)
    return words


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
        width, height = read_size(adapter.read(first, options))
    except (Rejection, DataError):
        return count, True  # one bad picture decides nothing: align rejects it
    return count, width == height

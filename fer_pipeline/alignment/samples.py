"""Read the samples of a data set with their splits, and map its labels to classes.

Labels are mapped by name, the settings' own mapping first. Splits are those of the source or of the settings, unless a
protocol divides the set.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from fer_pipeline.artifacts.census import SourceLabel
from fer_pipeline.core.errors import ConfigError, DataError, OptionError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.folds import Published
from fer_pipeline.core.plugins import load
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings, validate
from fer_pipeline.evaluation.protocols import Divided, is_tested

DROPPED = "label_dropped"
OUTSIDE = "label_outside_classes"


class LabelMap:
    """Maps one data set's labels to class numbers, or to the reason for which a picture is dropped."""

    def __init__(self, dataset: DatasetSettings, classes: Sequence[str], *, name: str) -> None:
        self._classes = tuple(classes)
        self._by_class: dict[str, int | str] = {canonical(known): number for number, known in enumerate(classes)}
        self._by_word: dict[str, int | str] = {}
        for word, wanted in dataset.classes.items():
            number = DROPPED if wanted is None else self._by_class.get(canonical(wanted))
            if number is None:
                raise ConfigError(
                    f"datasets.{name}.classes maps {word!r} to {wanted!r}, which is none of the classes "
                    f"{', '.join(classes)}; map it to one of them or to null"
                )
            self._by_word[word.strip()] = number

    def look_up(self, word: str | None) -> int | str | None:
        """Returns the class number of a source's word (None for none), or the reason for dropping the picture."""
        if word is None:  # as the settings say of an empty one
            return self._by_word.get("")
        return self._by_word.get(word.strip(), self._by_class.get(canonical(word), OUTSIDE))

    def describe(self, counts: Mapping[str, int]) -> dict[str, SourceLabel]:
        """Returns what each word of the source means, with the number of its samples."""
        meanings = {word: self.look_up(word) for word in counts}
        return {
            word: SourceLabel(counts[word], self._classes[one] if isinstance(one, int) else str(one))
            for word, one in meanings.items()
        }


def load_adapter(dataset: DatasetSettings, *, name: str) -> tuple[ModuleType, Any]:
    """Returns the module of a data set's adapter and its checked options."""
    module = load("fer_pipeline.datasets", dataset.adapter)
    if isinstance(dataset.protocol, Published):
        own = getattr(module, "FOLDS", None)
        if own is None:
            fault = f"the adapter {dataset.adapter} has no published folds"
            raise ConfigError(f"datasets.{name}.protocol: {fault}; divide the set by another protocol")
        if own != dataset.protocol.folds:
            fault = f"{dataset.protocol.folds}, but {dataset.adapter} has {own}"
            raise ConfigError(f"datasets.{name}.protocol.folds is {fault}; correct it")
    return module, validate(module.Options, dataset.adapter_options(), where=f"datasets.{name}.options")


def read_samples(dataset: DatasetSettings, classes: Sequence[str], *, name: str) -> Iterator[Sample]:
    """Yields the samples of a data set, each with its split; DataError where a split is not known.

    A protocol other than the published one divides all that have a class, whatever splits the set comes with.
    """
    protocol, samples = dataset.protocol, read_undivided(dataset, name=name)
    if protocol is not None and not isinstance(protocol, Published):
        labels = LabelMap(dataset, classes, name=name)
        yield from divide(list(samples), protocol, labels, name=name, persons=read_divided(dataset, name=name))
        return
    for sample in samples:
        if sample.split is None and dataset.split is None:
            raise DataError(
                f"data set {name!r}: the sample {sample.id!r} has no split; set datasets.{name}.split or "
                f"datasets.{name}.protocol, or say by datasets.{name}.options where the splits stand"
            )
        yield sample if sample.split is not None else replace(sample, split=dataset.split)


def divide(
    samples: Sequence[Sample],
    protocol: Divided,
    labels: LabelMap,
    *,
    name: str,
    persons: Sequence[Sample] | None = None,
) -> Iterator[Sample]:
    """Yields the samples of a set with the splits of a protocol's fold; DataError where they cannot be divided so.

    With `persons`, the labelled samples of the same source, these are divided, and each sample goes with its person:
    to `test` where any picture of that person is tested.
    """
    divided = samples if persons is None else persons
    meanings = (labels.look_up(sample.label) for sample in divided)
    numbers = np.asarray([one if isinstance(one, int) else -1 for one in meanings], dtype=np.int64)
    try:
        tested = is_tested(protocol, [sample.subject or "" for sample in divided], numbers)
    except DataError as error:
        raise DataError(f"data set {name!r}: {error}") from None
    if persons is not None:
        known = {sample.subject for sample, in_test in zip(persons, tested, strict=True) if in_test}
        tested = np.asarray([sample.subject in known for sample in samples], dtype=bool)
    for sample, in_test in zip(samples, tested, strict=True):
        yield replace(sample, split="test" if in_test else "train")


def read_divided(dataset: DatasetSettings, *, name: str) -> list[Sample] | None:
    """Returns the labelled samples whose persons divide a set that is another part of their source; None: its own."""
    module, options = load_adapter(dataset, name=name)
    labelled = module.divided_as(options) if hasattr(module, "divided_as") else options
    return None if labelled == options else list(module.samples(dataset.path, labelled))


def read_undivided(dataset: DatasetSettings, *, name: str) -> Iterator[Sample]:
    """Yields the samples of a data set with the splits of its source, where it has some."""
    module, options = load_adapter(dataset, name=name)
    try:
        yield from module.samples(dataset.path, options)
    except OptionError as error:
        raise error.reworded(lambda option, value: f"set datasets.{name}.options.{option}: {value}") from None

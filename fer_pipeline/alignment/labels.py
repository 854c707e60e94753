"""A source's word for an expression in, the number of its class or the reason for dropping the picture out. By name.

The settings' own mapping comes first, then the known spellings. A label that leads to none of the classes is no label.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.settings import DatasetSettings

DROPPED = "label_dropped"
OUTSIDE = "label_outside_classes"


class Label(NamedTuple):
    """The class number, None without a label; or the reason for which the picture is dropped."""

    number: int | None
    reason: str | None = None


class LabelMap:
    """How one data set's labels are read."""

    def __init__(self, dataset: DatasetSettings, classes: Sequence[str], *, name: str) -> None:
        self._numbers = {canonical(known): number for number, known in enumerate(classes)}
        self._known: dict[str, Label] = {}
        for word, wanted in dataset.classes.items():
            if wanted is None:
                self._known[word.strip()] = Label(None, DROPPED)
            elif canonical(wanted) in self._numbers:
                self._known[word.strip()] = Label(self._numbers[canonical(wanted)])
            else:
                raise ConfigError(
                    f"datasets.{name}.classes maps {word!r} to {wanted!r}, which is none of the classes "
                    f"{', '.join(classes)}; map it to one of them or to null"
                )

    def read(self, word: str | None) -> Label:
        """The class of a source's word."""
        if word is None:
            return Label(None)
        found = self._known.get(word.strip())
        if found is None:
            number = self._numbers.get(canonical(word))
            found = Label(number) if number is not None else Label(None, OUTSIDE)
        return found

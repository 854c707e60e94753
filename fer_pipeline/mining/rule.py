"""The settings of the margin rule, and what they say for each class."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import Field, model_validator

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Settings

NO_CAP = np.iinfo(np.int64).max
LARGEST_MARGIN = 2.0  # cosines lie between -1 and 1

Amount = Annotated[float, Field(ge=0)]
Cap = Annotated[int, Field(ge=1)]


class MarginRule(Settings):
    """How the margin is found, and how many faces a class may have.

    `by: margin` takes `value` as the margin m itself, `by: count` as a wanted number of faces, `by: precision` as a
    wanted precision on held-out anchor faces. A mapping of class to value, or `per_class: true`, gives every class a
    margin of its own (`by: count` with `per_class: true` is a balanced subset); otherwise one margin serves all.
    """

    by: Literal["margin", "count", "precision"] = "margin"
    value: Amount | dict[str, Amount] = 0.1
    per_class: bool = False
    cap: Cap | dict[str, Cap] | None = None  # faces a class may have, nearest first; a class not named has no cap
    bound: Literal["estimate", "lower"] = "estimate"  # of `by: precision`: what must reach the value

    @model_validator(mode="after")
    def _values_make_sense(self) -> "MarginRule":
        for value in self.value.values() if isinstance(self.value, dict) else [self.value]:
            if self.by == "margin" and value > LARGEST_MARGIN:
                raise ValueError(f"value is a margin between cosines and cannot exceed 2, found {value}")
            if self.by == "count" and (value < 1 or value != int(value)):
                raise ValueError(
                    f"value is a number of faces with by: count and must be whole and at least 1, found {value}"
                )
            if self.by == "precision" and not 0 < value <= 1:
                raise ValueError(f"value is a precision with by: precision and must lie in (0, 1], found {value}")
        return self

    @property
    def split_by_class(self) -> bool:
        """Whether each class has a margin of its own."""
        return self.per_class or isinstance(self.value, dict)

    def values(self, classes: Sequence[str]) -> Float64[np.ndarray, " c"]:
        """The value of every class; a mapping must name them all."""
        if not isinstance(self.value, dict):
            return np.full(len(classes), float(self.value))
        missing, unknown = sorted(set(classes) - set(self.value)), sorted(set(self.value) - set(classes))
        if missing or unknown:
            raise ConfigError(
                f"mine.value must name every class once: missing {missing or 'none'}, unknown {unknown or 'none'}; "
                f"the classes are {', '.join(classes)}"
            )
        return np.array([self.value[name] for name in classes], np.float64)

    def caps(self, classes: Sequence[str]) -> Int64[np.ndarray, " c"]:
        """The cap of every class, `NO_CAP` where there is none."""
        if not isinstance(self.cap, dict):
            return np.full(len(classes), self.cap or NO_CAP, np.int64)
        unknown = sorted(set(self.cap) - set(classes))
        if unknown:
            raise ConfigError(f"mine.cap names {', '.join(unknown)}; the classes are {', '.join(classes)}")
        return np.array([self.cap.get(name, NO_CAP) for name in classes], np.int64)

"""Describe how a labelled set is divided into folds: the setting `datasets.<set>.protocol`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Fold(BaseModel):
    """How a labelled set is divided into `train` and `test`, and which of the `folds` divisions is in use, from 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    folds: Annotated[int, Field(ge=2)] = 10
    fold: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> "Fold":
        if self.fold > self.folds:
            raise ValueError(f"there is no fold {self.fold} of {self.folds}; name one from 1 to {self.folds}")
        return self


class KFold(Fold):
    """Groups of persons by ascending name, each tested once: consecutive persons, or every `folds`-th one."""

    name: Literal["k_fold"]
    groups: Literal["blocks", "steps"] = "blocks"


class LeaveOneOut(Fold):
    """A fold a person, by ascending name; `folds` is the number of persons and has to be right."""

    name: Literal["leave_one_out"]


class HoldOut(Fold):
    """A share of the set is drawn anew for each fold, with about that share of every class."""

    name: Literal["hold_out"]
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: int = 0
    by: Literal["subject", "picture"] = "subject"


class Published(Fold):
    """The folds that the set comes with: its adapter has an option `fold`."""

    name: Literal["published"]


Protocol = Annotated[KFold | LeaveOneOut | HoldOut | Published, Field(discriminator="name")]

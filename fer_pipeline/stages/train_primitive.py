"""Train the primitive learner on the anchor's train split, and say which faces it was trained on.

Source: OS-FER (arXiv:2005.08551), section 3.1, eq. 1. Difference: two parts are set aside by seed, whole subjects at a
time. `validation` chooses the epoch; `heldout` is neither trained on nor in the centroids, so that the precision of
mining can be estimated on it. Which face is in which part stands in `split.parquet` beside the checkpoint.

Our reading of what the final models may see: `validation` is theirs too, face by face, so that none of their
validation faces taught the labeller whose pseudo-labels they learn from; they train on `heldout`, by which mining was
measured and nothing was taught. The seed of the weights is derived for this stage, never one of the final trainings'.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fer_pipeline.artifacts.faces import read_table
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.split import FIT, HELDOUT, VALIDATION, read_split
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import STORE, ProjectSettings, Settings, Summary
from fer_pipeline.networks.settings import read_card
from fer_pipeline.strategies import linear, supervised
from fer_pipeline.training.fit import describe_waiting
from fer_pipeline.training.label_noise import summarise_noise
from fer_pipeline.training.seeds import SeedTraining
from fer_pipeline.training.sets import folder_sha256
from fer_pipeline.training.settings import ModelSettings
from fer_pipeline.training.strategy import settle_settings

STAGE = "train_primitive"
INSTEAD = "training.select: last and a number of epochs or steps"
STRATEGIES = {"supervised": supervised, "linear": linear}


class SplitSettings(Settings):
    """Shares of the anchor's train split that are not trained on."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    by_subject: bool = True  # false: pictures of one person may be in two parts

    @model_validator(mode="after")
    def _something_is_left(self) -> "SplitSettings":
        if self.validation + self.heldout >= 1:
            raise ValueError(f"validation and heldout leave nothing to train on ({self.validation} + {self.heldout})")
        return self


class Config(ModelSettings):
    """The section `train_primitive` of params.yaml."""

    strategy: Annotated[Literal["supervised", "linear"], Field(exclude_if=lambda value: value == "supervised")] = (
        "supervised"  # linear: a head alone, on features of loaded weights
    )
    split: SplitSettings = SplitSettings()
    options: supervised.Options | linear.Options = supervised.Options()  # of the strategy

    @field_validator("options", mode="wrap")
    @classmethod
    def _are_of_the_strategy(cls, values: Any, handler: Any, info: Any) -> Any:
        own = STRATEGIES[info.data.get("strategy", "supervised")].Options
        return values if isinstance(values, own) else own.model_validate({} if isinstance(values, Settings) else values)

    @model_validator(mode="after")
    def _best_needs_validation(self) -> "Config":
        try:
            used = self.used
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.split.validation == 0 and (needs := used.training.needs_validation):
            raise ValueError(f"training.{needs} needs split.validation above 0; or set {INSTEAD}")
        return self

    @property
    def used(self) -> "Config":
        """What of the settings the strategy uses."""
        given = {"network": self.network.model_fields_set, "training": self.training.model_fields_set}
        return settle_settings(STRATEGIES[self.strategy], self, given)


def run(config: Config, project: ProjectSettings, *, faces: Path, out: Path, store: Path = STORE) -> Summary:
    """Train the primitive learner on the anchor.

    Args:
        faces: The anchor's train split of aligned faces.
        out: Where checkpoint, history and `split.parquet` are written.
        store: Where finished trainings and the state of an unfinished one are kept.
    """
    classes, seed = project.classes, derive(project.seeds[0], STAGE)
    if config.label_noise:
        config.label_noise.check(classes, where=STAGE)
    training = SeedTraining(
        owner=STAGE,
        config=config.used,
        strategy=config.strategy,
        options=config.options,
        folders={"labelled": faces},
        shares={VALIDATION: config.split.validation, HELDOUT: config.split.heldout},
        by_subject=config.split.by_subject,
        split_seed=project.seeds[0],
        classes=classes,
        data={"faces": folder_sha256(faces)},
        store=store,
        resources=project.resources,
    )
    trained, timings = training.make({seed: ""}, out, usual="data")
    return _summary(faces, classes, out, timings[seed] if trained else None)


def _summary(faces: Path, classes: tuple[str, ...], out: Path, timing: dict[str, Any] | None) -> Summary:
    split = read_split(out)
    parts, labels = split.part, split.label
    unlabelled = read_table(faces, ["label"]).column("label").null_count
    training, history = read_card(out).training, read_history(out)
    chosen = history[training["chosen_epoch"] - 1]
    counts: dict[str, int | float] = {part: int((parts == part).sum()) for part in (FIT, VALIDATION, HELDOUT)}
    counts |= {"unlabelled": unlabelled, "steps": training["steps"], "chosen_epoch": training["chosen_epoch"]}
    counts |= {name: value for name, value in chosen.items() if name.startswith("validation_")}
    warnings = list(training["notes"])
    for part in (VALIDATION, HELDOUT):
        missing = sorted(set(range(len(classes))) - set(labels[parts == part].tolist()))
        if missing and counts[part]:
            names = ", ".join(classes[index] for index in missing)
            warnings.append(f"the {part} part has no face of {names}; its figures say nothing of them")
    if unlabelled:
        warnings.append(f"{unlabelled:,} faces in {faces} have no label and are not used")
    line = (
        f"{counts[FIT]:,} faces trained on, {counts[VALIDATION]:,} to validate, {counts[HELDOUT]:,} held out; "
        f"epoch {counts['chosen_epoch']} of {len(history)}"
    )
    if "validation_mean_class_accuracy" in counts:
        line += f", validation mean class accuracy {counts['validation_mean_class_accuracy']:.3f}"
    line += f"; weights: {training['weights']}" if training["weights"] else ""
    line += f"; strength {training['found']['strength']:g}" if "strength" in training.get("found", {}) else ""
    if table := training.get("found", {}).get("mining_precision"):
        counts["mining_precision"] = best = max(precision for _, precision in table)
        sets = ", ".join(f"{_describe(grids)}: {precision:.3f}" for grids, precision in table)
        line += f"; mines by {_describe(read_card(out).mining_features)} (precision by centroids {best:.3f}; {sets})"
    noise, changed = summarise_noise(training)
    line, counts = line + noise, counts | changed
    if timing is None:
        return Summary(STAGE, f"{line} (from the store)", counts, tuple(warnings))
    line += f"; {describe_waiting(timing['seconds_waited_for_images'], timing['seconds'])}"
    return Summary(STAGE, line, counts, (*warnings, *timing["advice"]))


def _describe(grids: Mapping[str, int] | None) -> str:
    return " + ".join(f"{stage} {grid} x {grid}" for stage, grid in grids.items()) if grids else "the head's features"

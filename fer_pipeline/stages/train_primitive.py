"""Train the primitive learner on the anchor's train split, and say which faces it was trained on.

Source: OS-FER (arXiv:2005.08551), section 3.1, eq. 1. Difference: two parts are set aside by seed, whole subjects at a
time. `validation` chooses the epoch; `heldout` is neither trained on nor in the centroids, so that the precision of
mining can be estimated on it. Which face is in which part stands in `split.parquet` beside the checkpoint.

Our reading of what the final models may see: `validation` is theirs too, face by face, so that none of their
validation faces taught the labeller whose pseudo-labels they learn from; they train on `heldout`, by which mining was
measured and nothing was taught. The seed of the weights is derived for this stage, never one of the final trainings'.

With `refit` there are two models of one seed. The calibration model, in the folder `calibration`, is trained as without
it, and what is measured on held-out faces is measured with it. The labeller, in its place, is trained on them too, as
with `heldout: 0`; it labels the pools. That a precision measured with the first holds for the second is an assumption:
the labeller, which saw all that the first did and more, is at least as right where it gives a rule as high a value.

With `seeds_upstream: all` each seed has a learner, in the folder of its name; all of them divide the anchor alike.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fer_pipeline.artifacts.faces import read_table
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.seed_folders import join_summaries
from fer_pipeline.artifacts.split import CALIBRATION, FIT, HELDOUT, VALIDATION, of_calibration, read_split
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import STORE, ProjectSettings, Settings, Summary
from fer_pipeline.networks.settings import is_none, read_card
from fer_pipeline.strategies import linear, supervised
from fer_pipeline.training.fit import describe_waiting
from fer_pipeline.training.label_noise import summarise_noise
from fer_pipeline.training.seeds import SeedTraining, make_models
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
    # true: train the labeller on the held-out faces too, and measure mining with a model that did not see them
    refit: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    # all: a learner for each seed, and of what it embeds, scores and mines; else one of the first seed for all
    seeds_upstream: Annotated[Literal["all"] | None, Field(exclude_if=is_none)] = None
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
        if self.refit and not self.split.heldout:
            raise ValueError("refit trains on faces that were held out: set split.heldout above 0, or take refit out")
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
        out: Where checkpoint, history and `split.parquet` are written, by seed with `seeds_upstream`; with `refit`, the
            calibration model's too.
        store: Where finished trainings and the state of an unfinished one are kept.
    """
    classes = project.classes
    if config.label_noise:
        config.label_noise.check(classes, where=STAGE)
    held_out = SeedTraining(
        owner=STAGE,
        config=config.used.model_copy(update={"refit": False, "seeds_upstream": None}),  # neither changes a model
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
    split = config.split.model_copy(update={"heldout": 0.0})
    whole = replace(
        held_out,
        config=held_out.config.model_copy(update={"split": split}),
        shares={**held_out.shares, HELDOUT: 0.0},
    )
    trainings = {"": whole, CALIBRATION: held_out} if config.refit else {"": held_out}
    upstream = project.seeds if config.seeds_upstream else ()
    folders = {seed: str(seed) if upstream else "" for seed in upstream or project.seeds[:1]}
    models = {
        str(Path(folder, name)) if folder else name: (training, derive(seed, STAGE))
        for seed, folder in folders.items()
        for name, training in trainings.items()
    }
    trained, timings = make_models(models, out, usual="data", seeds=upstream)
    summaries: dict[int, Summary] = {}
    for seed, folder in folders.items():
        _require_same_features(out / folder)
        timing = timings[folder] if folder in trained else None
        summaries[seed] = _summary(faces, classes, out / folder, timing)
    return join_summaries(summaries) if upstream else next(iter(summaries.values()))


def _require_same_features(out: Path) -> None:
    """Refuses a calibration model that chose other features to mine by: a margin of one is not one of the other."""
    labeller, held_out = (read_card(folder).mining_features for folder in (out, of_calibration(out)))
    if labeller != held_out:
        raise DataError(
            f"the labeller mines by {_describe(labeller)} and its calibration model by {_describe(held_out)}, whose "
            "values cannot be compared; name one set in train_primitive.options.mining_features, or take refit out"
        )


def _summary(faces: Path, classes: tuple[str, ...], out: Path, timing: dict[str, Any] | None) -> Summary:
    held = of_calibration(out)
    split, calibration, refitted = read_split(held), read_card(held).training, held != out
    parts, labels = split.part, split.label
    unlabelled = read_table(faces, ["label"]).column("label").null_count
    training, history = read_card(out).training, read_history(out)
    chosen = history[training["chosen_epoch"] - 1]
    counts: dict[str, int | float] = {part: int((parts == part).sum()) for part in (FIT, VALIDATION, HELDOUT)}
    counts |= {"unlabelled": unlabelled, "steps": training["steps"], "chosen_epoch": training["chosen_epoch"]}
    counts |= {name: value for name, value in chosen.items() if name.startswith("validation_")}
    warnings = list(dict.fromkeys([*training["notes"], *calibration["notes"]]))
    for part in (VALIDATION, HELDOUT):
        missing = sorted(set(range(len(classes))) - set(labels[parts == part].tolist()))
        if missing and counts[part]:
            names = ", ".join(classes[index] for index in missing)
            warnings.append(f"the {part} part has no face of {names}; its figures say nothing of them")
    if unlabelled:
        warnings.append(f"{unlabelled:,} faces in {faces} have no label and are not used")
    line = f"{training['images']['labelled']:,} faces trained on, {counts[VALIDATION]:,} to validate, "
    line += f"{counts[HELDOUT]:,} held out{f' from a calibration model of {counts[FIT]:,}' if refitted else ''}; "
    line += f"epoch {counts['chosen_epoch']} of {len(history)}"
    if (figure := "validation_mean_class_accuracy") in counts:
        line += f", validation mean class accuracy {counts[figure]:.3f}"
        if refitted:
            counts[f"calibration_{figure}"] = before = read_history(held)[calibration["chosen_epoch"] - 1][figure]
            line += f" (calibration model {before:.3f})"
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

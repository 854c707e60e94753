"""Train the primitive learner on the anchor's train split, and say which faces it was trained on.

Source: OS-FER (arXiv:2005.08551), section 3.1, eq. 1. Difference: two parts are set aside by seed, whole subjects at a
time. `validation` chooses the epoch; `heldout` is neither trained on nor in the centroids, so that the precision of
mining can be estimated on it. Which face is in which part stands in `split.parquet` beside the checkpoint.

Our reading of what the final models may see: `validation` is theirs too, face by face, so that none of their
validation faces taught the labeller whose pseudo-labels they learn from; they train on `heldout`, by which mining was
measured and nothing was taught. The seed of the weights is derived for this stage, never one of the final trainings'.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from fer_pipeline.artifacts.faces import read_table
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.split import FIT, HELDOUT, VALIDATION, read_split
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import STORE, ProjectSettings, Settings, Summary
from fer_pipeline.networks.settings import read_card
from fer_pipeline.strategies import supervised
from fer_pipeline.training.fit import describe_waiting
from fer_pipeline.training.seeds import ModelSettings, SeedTraining
from fer_pipeline.training.sets import folder_sha256

STAGE = "train_primitive"
INSTEAD = "training.select: last and a number of epochs or steps"


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

    split: SplitSettings = SplitSettings()
    options: supervised.Options = supervised.Options()

    @model_validator(mode="after")
    def _best_needs_validation(self) -> "Config":
        if self.split.validation == 0 and (needs := self.training.needs_validation):
            raise ValueError(f"training.{needs} needs split.validation above 0; or set {INSTEAD}")
        return self


def run(config: Config, project: ProjectSettings, *, faces: Path, out: Path, store: Path = STORE) -> Summary:
    """Train the primitive learner on the anchor.

    Args:
        faces: The anchor's train split of aligned faces.
        out: Where checkpoint, history and `split.parquet` are written.
        store: Where finished trainings and the state of an unfinished one are kept.
    """
    classes, seed = project.classes, derive(project.seeds[0], STAGE)
    training = SeedTraining(
        owner=STAGE,
        config=config,
        strategy="supervised",
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
    if timing is None:
        return Summary(STAGE, f"{line} (from the store)", counts, tuple(warnings))
    line += f"; {describe_waiting(timing['seconds_waited_for_images'], timing['seconds'])}"
    return Summary(STAGE, line, counts, (*warnings, *timing["advice"]))

"""Distil the auxiliary set or the anchor to a handful of synthetic images (the DAS), and judge them by their controls.

Source: OS-FER (arXiv:2005.08551), section 3.4, eq. 8, and figures 4 and 7. Differences: theta_0 is by default what the
final training starts from, a share of the source is held out and stops the distillation, and the images are trained on
alone beside noise, random real images and permuted labels. Where the labeller was refitted, the calibration model is
the primitive learner here: faces that were set apart are neither distilled nor known to `theta_0: primitive`. It
resumes from its last epoch; finished, it lies in the store under the hash of its source, start and settings, so equal
work is never done twice.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional

from fer_pipeline.artifacts.distilled import (
    CONTROLS,
    DistilledSet,
    read_controls,
    read_distilled_card,
    read_probe,
    read_saved,
    saved_name,
    write_distilled,
)
from fer_pipeline.artifacts.faces import read_metadata, read_seen
from fer_pipeline.artifacts.history import read_history, write_history
from fer_pipeline.artifacts.seed_folders import common_seeds, join_summaries, of_seed, seed_folders
from fer_pipeline.artifacts.split import FIT, SPLIT, of_calibration, read_split
from fer_pipeline.artifacts.store import Store, link_file
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import file_sha256, write_json
from fer_pipeline.core.fingerprints import MODEL_CODE, code_fingerprint, fingerprint
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import (
    STORE,
    PlainName,
    PlainPath,
    ProjectSettings,
    Seen,
    Settings,
    Summary,
    dump_seen,
    merge_settings,
    pass_on,
    validate,
)
from fer_pipeline.distillation.controls import compare_with_controls
from fer_pipeline.distillation.loop import METHODS, DistillationProgress, distill
from fer_pipeline.distillation.method import Problem
from fer_pipeline.distillation.probe import probe
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source, read_source
from fer_pipeline.distillation.start import InitialWeights, final_weights, primitive_weights, write_previews
from fer_pipeline.networks.checkpoints import WEIGHTS, load_checkpoint
from fer_pipeline.networks.devices import deterministic, resolve_device
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import seen_by, seen_by_weights
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.networks.weights import WeightSettings, own_side

SOLVED = 0.99  # accuracy on the source before the first step, above which nothing is left to learn


TRAINING_CODE = ("training/sets.py", "training/images.py", "evaluation/metrics.py", "evaluation/statistics.py")


class FinalStart(Settings):
    """What the final models start from, as `train_final` has it: its checked part of params.yaml."""

    network: NetworkSettings = NetworkSettings()
    weights: WeightSettings | None = None


class Config(DistillSettings):
    """The section `distill` of params.yaml."""

    # name of a distilled set -> what is distilled; the graph has a stage for each
    sources: dict[PlainName, PlainPath] = Field(default_factory=dict)
    # name of a distilled set -> what differs there from the settings beside it
    overrides: Annotated[dict[PlainName, dict[str, Any]], Field(exclude_if=lambda value: not value)] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _overrides_fit(self) -> "Config":
        if strangers := sorted(set(self.overrides) - set(self.sources)):
            raise ValueError(f"overrides names {strangers[0]!r}, but sources has {sorted(self.sources)}")
        for name in self.overrides:
            try:
                self.of(name)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self

    def of(self, name: str) -> "Config":
        """Returns the settings of one distilled set, its overrides in their place."""
        over = self.overrides.get(name, {})
        if own := sorted({"sources", "overrides"} & set(over)):
            raise ConfigError(f"overrides.{name}: {own[0]!r} is not of one distilled set; take it out")
        common = self.model_dump(mode="json", exclude={"overrides"})
        return validate(Config, merge_settings(common, over), where=f"overrides.{name}")


def run(
    config: Config,
    project: ProjectSettings,
    *,
    name: str,
    source: Path,
    model: Path,
    out: Path,
    store: Path = STORE,
) -> Summary:
    """Distil a set of faces to a few synthetic ones.

    Args:
        name: The distilled set's name in the settings.
        source: The faces to distil: auxiliary shards or a split of aligned faces.
        model: The folder of the primitive learner: its weights for `theta_0: primitive`, and which faces it set apart.
        out: Where images, step sizes, previews and history are written.
        store: Where finished work and the state of unfinished work are kept.
    """
    config = config.of(name)
    # A refitted labeller has learned from the faces that were set apart: its calibration model has not.
    seeds, kept = common_seeds(model, source), Store(store, owner=f"distill@{name}")
    keys, summaries = dict[str, str](), dict[int, Summary]()
    for seed in seeds or project.seeds[:1]:
        own, learner = of_seed(source, seed), of_calibration(of_seed(model, seed))
        keys[str(seed) if seeds else ""], summaries[seed] = _make(config, project, kept, own, learner, seed=seed)
    with seed_folders(out, seeds) as folder:
        kept.deliver(folder, keys)
    return join_summaries(summaries) if seeds else next(iter(summaries.values()))


def _make(
    config: Config, project: ProjectSettings, kept: Store, source: Path, model: Path, *, seed: int
) -> tuple[str, Summary]:
    """Distils for one seed unless the store has it; returns its key there, and what is said of it."""
    classes = project.classes
    # The anchor's faces that the primitive learner set apart for validation and for estimating precision.
    held_out = read_split(model).faces_outside(FIT) if (model / SPLIT).exists() else frozenset()
    images = read_source(source, classes=classes, seed=seed, max_images=config.max_images, held_out=held_out)
    final = validate(FinalStart, project.train_final.model_dump(), where="train_final")
    side = own_side(final.weights) or int(read_metadata(source)["crop"])
    final = final.model_copy(update={"network": final.network.sized(side)})
    about = {
        "settings": config.model_dump(mode="json", exclude={"sources"}),
        "seed": seed,
        "source": images.kind,
        "source_sha256": images.sha256(),
        "source_images": len(images.labels),
        **_describe_start(config, final, model),
        **dump_seen(_seen(config, final, model) | read_seen(source)),
    }
    key = fingerprint(
        "distill",
        code_fingerprint("stages/distill.py", "distillation", *TRAINING_CODE, *MODEL_CODE),
        about,
        list(classes),
        final if config.theta_0 != "primitive" else None,
    )

    def make(folder: Path) -> None:
        with deterministic(config.threads):
            device = resolve_device(project.resources.device)
            initial, fresh, preprocessing = _weights(config, final, model, classes=classes, seed=seed, device=device)
            fitted, heldout = images.divide(config.heldout, seed)
            state = kept.state("distill", key)
            common = (config, fitted, heldout, initial, fresh, preprocessing)
            problems = [Problem(*common, seed, device, state)]
            for repeat in range(1, config.repeats):
                own = derive(seed, "distill", "repeat", repeat)
                problems.append(Problem(*common, own, device, state / f"repeat-{repeat}"))
            before = _before_the_first_step(problems[0]) if initial.is_fixed else {}
            results = [distill(problem) for problem in problems]
            (synthetic, progress), saved, labels = results[0], read_saved(state), results[0][0].labels.cpu().numpy()
            distilled = [images for images, _ in results]
            has_sizes = METHODS[config.method].has_step_sizes
            compared = compare_with_controls(problems[0], distilled, has_step_sizes=has_sizes)
            probed = probe(saved, labels, config.probe, num_classes=len(classes), seed=seed)
        made = DistilledSet(
            images=synthetic.images.detach().cpu().numpy(),
            labels=labels,
            step_sizes=synthetic.step_sizes.cpu().numpy(),
            classes=classes,
            preprocessing=preprocessing.model_dump(mode="json"),
        )
        for file in map(saved_name, saved):
            link_file(state / "saved" / file, folder / "saved" / file)
        write_previews(folder / "previews", made.images, classes=classes, preprocessing=preprocessing)
        write_json(folder / "probe.json", probed)
        write_json(folder / CONTROLS, compared)
        write_history(folder, progress.history)
        heldout_images = len(heldout.labels)
        write_distilled(
            folder, made, {**about, **before, **_ending(config, progress), "heldout_images": heldout_images}
        )

    reused = kept.make(key, make, folder=True)
    return key, _summary(images, config, kept.shard(key), reused=reused)


def _describe_start(config: Config, final: FinalStart, model: Path) -> dict[str, Any]:
    """The network of theta_0, where it is the final one, and hashes of the files that it is made of."""
    if config.theta_0 == "primitive":
        return {"model_sha256": file_sha256(model / WEIGHTS)}
    weights = final.weights.path if final.weights else None
    hashes = {"weights_sha256": file_sha256(weights)} if weights and weights.is_file() else {}
    return {"network": final.network.model_dump(mode="json"), **hashes}


def _seen(config: Config, final: FinalStart, model: Path) -> dict[str, Seen]:
    """Returns what registered weights behind theta_0 were trained on."""
    if config.theta_0 == "primitive":
        return pass_on(seen_by(read_card(model)), "the start of its distilled images")
    members = [seen_by_weights(member.name) for member in final.network.members]
    weights = seen_by_weights(final.weights.name, final.weights.path) if final.weights else {}
    found = {name: one for part in (weights, *members) for name, one in part.items()}
    return pass_on(found, "the start of its distilled images")


def _weights(
    config: Config, final: FinalStart, model: Path, *, classes: tuple[str, ...], seed: int, device: torch.device
) -> tuple[InitialWeights, InitialWeights, Preprocessing]:
    """Returns theta_0, fresh random weights for the same architecture, and the preprocessing of both."""
    about: dict[str, Any] = {"num_classes": len(classes), "seed": seed, "device": device}
    if config.theta_0 == "primitive":
        classifier = load_checkpoint(model, classes=classes, device=str(device))
        network = classifier.card.network
        fresh, _ = final_weights(network, None, first_seed=None, **about)
        return primitive_weights(classifier), fresh, classifier.card.preprocessing
    fresh, preprocessing = final_weights(final.network, final.weights, first_seed=None, **about)
    if config.theta_0 == "random":
        return fresh, fresh, preprocessing
    return final_weights(final.network, final.weights, first_seed=seed, **about)[0], fresh, preprocessing


def _before_the_first_step(problem: Problem) -> dict[str, float]:
    """Loss and accuracy of theta_0 on the source: where it is solved, nothing is left to learn."""
    weights, losses, right = problem.initial.draw("start", 0), [], []
    for rows in np.array_split(np.arange(len(problem.source.labels)), -(-len(problem.source.labels) // 256)):
        images, truth = problem.real(problem.source, rows)
        scores = problem.initial.logits(weights, images)
        losses += functional.cross_entropy(scores, truth, reduction="none").tolist()
        right += (scores.argmax(1) == truth).tolist()
    return {"theta_0_loss": round(float(np.mean(losses)), 6), "theta_0_accuracy": round(float(np.mean(right)), 6)}


def _ending(config: Config, done: DistillationProgress) -> dict[str, Any]:
    """Says when the distillation ended and why, and whose images it gave back."""
    epochs = len(done.history)
    if done.best is None:
        return {"epochs_run": epochs, "best_epoch": epochs, "stopped": "after its last epoch, with nothing held out"}
    stopped = f"after {done.looks_since} looks without a lower held-out loss"
    if not config.patience or done.looks_since < config.patience:
        stopped = "after its last epoch"
    return {"epochs_run": epochs, "best_epoch": done.best_epoch, "stopped": stopped}


def _summary(source: Source, config: Config, out: Path, *, reused: bool) -> Summary:
    history, card, controls = read_history(out), read_distilled_card(out), read_controls(out)
    best = history[(card.best_epoch or len(history)) - 1]
    sizes = [value for name, value in best.items() if name.startswith("step_size_")]
    made = config.steps * config.per_class * len(source.classes)
    warnings = [
        f"{name} has no image in the source: its distilled image only says what the other classes are not"
        for name, count in zip(source.classes, source.counts(), strict=True)
        if count == 0
    ]
    if card.theta_0_accuracy is not None and card.theta_0_accuracy >= SOLVED:
        warnings.append(
            f"the source is solved before the first step (theta_0: {config.theta_0} has loss {card.theta_0_loss:.4f} "
            f"and accuracy {card.theta_0_accuracy:.4f} on it), so that images stay what they began as; set "
            "distill.theta_0: initial"
        )
    if controls.reason:
        warnings.append(f"whether the images teach anything is not known: {controls.reason}")
    elif controls.unbeaten(controls.start):
        warnings.append(controls.sentence(controls.start))
    if reason := read_probe(out).reason:
        warnings.append(reason)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in source.left_out.items() if count)
    figures = [name for name in ("loss_before", "loss", "accuracy_before", "accuracy", "heldout_loss") if name in best]
    line = (
        f"{len(source.labels):,} {source.kind} images{f' (left out: {left_out})' if left_out else ''} -> "
        f"{made} images by {config.method} in {config.steps} step(s); epoch {card.best_epoch} of {card.epochs_run}: "
        f"{', '.join(f'{name} {best[name]:.4f}'.replace('_', ' ') for name in figures)}"
        f"{f', step sizes {min(sizes):.4g} to {max(sizes):.4g}' if sizes else ''}"
        f"{'' if controls.reason else f'; {controls.sentence(controls.start)}'}{' (from the store)' if reused else ''}"
    )
    counts: dict[str, int | float] = {
        "source_images": len(source.labels),
        "distilled_images": made,
        "epochs_run": len(history),
        **{name: best[name] for name in figures},
        **{f"left_out_{reason.replace(' ', '_')}": count for reason, count in source.left_out.items()},
    }
    if not controls.reason:
        for row in controls.differences:
            counts[f"gain_over_{row.against}_from_{row.start}"] = round(row.mean, 4)
    return Summary(stage="distill", line=line, counts=counts, warnings=tuple(warnings))

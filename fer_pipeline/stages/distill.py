"""Distil the auxiliary set or the anchor to a handful of synthetic images (the DAS).

Source: OS-FER (arXiv:2005.08551), section 3.4, eq. 8, and figures 4 and 7. It resumes from its last epoch; finished, it
lies in the store under the hash of its source, model and settings, so equal work is never done twice.
"""

from pathlib import Path

from pydantic import Field

from fer_pipeline.artifacts.distilled import DistilledSet, read_probe, read_saved, saved_name, write_distilled
from fer_pipeline.artifacts.history import read_history, write_history
from fer_pipeline.artifacts.split import FIT, SPLIT, read_split
from fer_pipeline.artifacts.store import Store, link_file
from fer_pipeline.core.files import file_sha256, write_json
from fer_pipeline.core.fingerprints import MODEL_CODE, code_fingerprint, fingerprint
from fer_pipeline.core.settings import STORE, PlainName, PlainPath, ProjectSettings, Summary
from fer_pipeline.distillation.loop import distill
from fer_pipeline.distillation.probe import probe
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source, read_source
from fer_pipeline.distillation.start import write_previews
from fer_pipeline.networks.checkpoints import WEIGHTS, load_checkpoint
from fer_pipeline.networks.devices import deterministic


class Config(DistillSettings):
    """The section `distill` of params.yaml."""

    # name of a distilled set -> what is distilled; the graph has a stage for each
    sources: dict[PlainName, PlainPath] = Field(default_factory=dict)


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
        model: The folder of the primitive learner.
        out: Where images, step sizes, previews and history are written.
        store: Where finished work and the state of unfinished work are kept.
    """
    classes, seed, resources = project.classes, project.seeds[0], project.resources
    classifier = load_checkpoint(model, classes=classes, device=resources.device)
    # The anchor's faces that the primitive learner set apart for validation and for estimating precision.
    held_out = read_split(model).faces_outside(FIT) if (model / SPLIT).exists() else frozenset()
    images = read_source(source, classes=classes, seed=seed, max_images=config.max_images, held_out=held_out)
    about = {
        "settings": config.model_dump(mode="json", exclude={"sources"}),
        "seed": seed,
        "source": images.kind,
        "source_sha256": images.sha256(),
        "source_images": len(images.labels),
        "model_sha256": file_sha256(model / WEIGHTS),
    }
    key = fingerprint(
        "distill",
        code_fingerprint("stages/distill.py", "distillation", *MODEL_CODE),
        about,
        list(classes),
        classifier.card,
    )
    kept = Store(store, owner=f"distill@{name}")

    def make(folder: Path) -> None:
        state, preprocessing = kept.state("distill", key), classifier.card.preprocessing
        with deterministic(config.threads):
            synthetic, history = distill(config, images, classifier, seed=seed, state=state)
            saved, labels = read_saved(state), synthetic.labels.cpu().numpy()
            probed = probe(saved, labels, config.probe, num_classes=len(classes), seed=seed)
        distilled = DistilledSet(
            images=synthetic.images.detach().cpu().numpy(),
            labels=labels,
            step_sizes=synthetic.step_sizes.cpu().numpy(),
            classes=classes,
            preprocessing=preprocessing.model_dump(mode="json"),
        )
        for file in map(saved_name, saved):
            link_file(state / "saved" / file, folder / "saved" / file)
        write_previews(folder / "previews", distilled.images, classes=classes, preprocessing=preprocessing)
        write_json(folder / "probe.json", probed)
        write_history(folder, history)
        write_distilled(folder, distilled, about)

    reused = kept.make(key, make, folder=True)
    kept.deliver(out, {"": key})
    return _summary(images, config, out, reused=reused)


def _summary(source: Source, config: Config, out: Path, *, reused: bool) -> Summary:
    last = read_history(out)[-1]
    sizes = [value for name, value in last.items() if name.startswith("step_size_")]
    made = config.steps * config.per_class * len(source.classes)
    warnings = [
        f"{name} has no image in the source: its distilled image only says what the other classes are not"
        for name, count in zip(source.classes, source.counts(), strict=True)
        if count == 0
    ]
    if reason := read_probe(out).reason:
        warnings.append(reason)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in source.left_out.items() if count)
    line = (
        f"{len(source.labels):,} {source.kind} images{f' (left out: {left_out})' if left_out else ''} -> "
        f"{made} images in {config.steps} step(s); after them loss {last['loss_before']:.4f} -> {last['loss']:.4f}, "
        f"accuracy {last['accuracy_before']:.4f} -> {last['accuracy']:.4f}, "
        f"step sizes {min(sizes):.4g} to {max(sizes):.4g}{' (from the store)' if reused else ''}"
    )
    counts: dict[str, int | float] = {
        "source_images": len(source.labels),
        "distilled_images": made,
        **{name: last[name] for name in ("loss_before", "loss", "accuracy_before", "accuracy")},
        **{f"left_out_{reason.replace(' ', '_')}": count for reason, count in source.left_out.items()},
    }
    return Summary(stage="distill", line=line, counts=counts, warnings=tuple(warnings))

"""Train on the distilled images alone, and on what they must beat, and judge all by faces that none of them came from.

A distilled set is real only where it teaches more than its controls: noise (as the images begin), as many random real
images of the source, and the distilled images under other labels. Each is trained on alone, `draws` times, from
theta_0 and from fresh random weights, in two ways: by the steps of the distillation with the learned step sizes (where
the method has such), and plainly, by AdamW with augmentation. A set counts with the better of its ways, which is the
same rule for all. The judges are the images of the source that were held out, with the source's labels.

Intervals are percentile bootstraps over persons (faces within classes where none is known) and draws together; a
difference is taken replicate by replicate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch.nn import functional

from fer_pipeline.core.progress import progress
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.augmentation import augment
from fer_pipeline.distillation.method import Problem
from fer_pipeline.distillation.start import InitialWeights, Parameters, Synthetic, logits_of, start_synthetic
from fer_pipeline.distillation.unrolled import cross_entropy_of, train
from fer_pipeline.evaluation.statistics import Interval, percentile_interval, replicate_weights

DISTILLED = "distilled"
CONTROLS = ("noise", "random_real", "permuted_labels")


def compare_with_controls(problem: Problem, distilled: Sequence[Synthetic], *, has_step_sizes: bool) -> dict[str, Any]:
    """Returns the content of `controls.json`; `distilled` are the images of each repeat of the distillation."""
    count = len(problem.heldout.labels)
    if not count:
        return {"reason": "no image of the source is held out; set distill.heldout or distil a larger source"}
    settings = problem.settings.controls
    starts = {"fresh": problem.fresh}
    if problem.initial.is_fixed:
        starts = {"theta_0": problem.initial, **starts}
    ways = ("steps", "plain") if has_step_sizes else ("plain",)
    names = (DISTILLED, *CONTROLS)
    images, truth = problem.real(problem.heldout, np.arange(count))
    labels = truth.cpu().numpy()
    right: dict[tuple[str, str, str], Bool[np.ndarray, "d n"]] = {}
    with progress("controls", len(starts) * len(ways) * len(names) * settings.draws, "trainings") as advance:
        for start, initial in starts.items():
            for way in ways:
                for name in names:
                    rows = []
                    for draw, synthetic in enumerate(_draws(problem, distilled, name)):
                        first = initial.draw("control", draw)
                        if way == "steps":
                            weights = train_by_steps(problem, initial, first, synthetic, distilled[0])
                        else:
                            seed = derive(problem.seed, "control", name, draw)
                            weights = train_plainly(problem, initial, first, synthetic, seed=seed)
                        rows.append(initial.logits(weights, images).argmax(1).cpu().numpy() == labels)
                        advance(1)
                    right[start, way, name] = np.stack(rows)
    subjects = list(problem.heldout.subjects) if any(problem.heldout.subjects) else None
    draws, seed = settings.bootstrap, problem.seed
    weights, unit = replicate_weights(labels, subjects=subjects, draws=draws, seed=seed)
    per_image = weights[:, unit].astype(np.float64)
    scores = {key: resample(rows, labels, per_image, seed=derive(seed, *key)) for key, rows in right.items()}
    rows = [
        {
            "start": start,
            "training": way,
            "images": name,
            "draws": len(right[start, way, name]),
            "accuracy": float(right[start, way, name].mean()),
            "mean_class_accuracy": _interval(estimate, replicates, count),
        }
        for (start, way, name), (estimate, replicates) in scores.items()
    ]
    differences = []
    for start in starts:
        best = {name: max((scores[start, way, name] for way in ways), key=lambda score: score[0]) for name in names}
        for name in CONTROLS:
            estimate = best[DISTILLED][0] - best[name][0]
            interval = _interval(estimate, best[DISTILLED][1] - best[name][1], count)
            differences.append({"start": start, "against": name, **interval})
    persons = len({one for one in problem.heldout.subjects if one})
    return {
        "reason": "",
        "heldout_images": count,
        "heldout_persons": persons,
        "chance": 1 / problem.num_classes,
        "repeats": len(distilled),
        "trainings": rows,
        "differences": differences,
    }


def _draws(problem: Problem, distilled: Sequence[Synthetic], name: str) -> Iterator[Synthetic]:
    """Yields the sets of images of one kind, as many as there are draws."""
    for draw in range(problem.settings.controls.draws):
        base = distilled[draw % len(distilled)]
        if name == DISTILLED:
            yield base
        elif name == "permuted_labels":  # no image keeps its class, and each class has as many images as before
            shift = 1 + draw % (problem.num_classes - 1)
            yield replace(base, labels=(base.labels + shift) % problem.num_classes)
        else:
            kind = "real" if name == "random_real" else "noise"
            settings = problem.settings.model_copy(update={"start": kind})
            seed = derive(problem.seed, "control", draw)
            source, preprocessing = problem.source, problem.preprocessing
            yield start_synthetic(settings, source, preprocessing, seed=seed, device=problem.device)


def train_by_steps(
    problem: Problem, initial: InitialWeights, start: Parameters, synthetic: Synthetic, learned: Synthetic
) -> Parameters:
    """Trains on images by the steps of the distillation, with the step sizes that were learned."""
    arguments = (synthetic.images.detach(), synthetic.labels, learned.step_sizes)
    return train(cross_entropy_of(initial.network), start, *arguments, epochs=problem.settings.epochs)


def train_plainly(
    problem: Problem, initial: InitialWeights, start: Parameters, synthetic: Synthetic, *, seed: int
) -> Parameters:
    """Trains on images by AdamW, its rate falling by half a cosine; every image of a batch is augmented on its own."""
    settings, compute = problem.settings.controls, logits_of(initial.network)
    images, labels = synthetic.images.detach().flatten(0, 1), synthetic.labels.flatten()
    weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        rows = torch.randperm(len(images), generator=generator)[: settings.batch_size].to(images.device)
        batch = images[rows]
        if problem.settings.augment:
            batch = augment(batch, torch.arange(len(rows)), problem.settings.augment, generator, len(rows))
        optimizer.zero_grad()
        functional.cross_entropy(compute(weights, batch), labels[rows]).backward()
        optimizer.step()
    return {name: value.detach() for name, value in weights.items()}


def resample(
    right: Bool[np.ndarray, "d n"],
    labels: Int64[np.ndarray, " n"],
    weights: Float[np.ndarray, "b n"],
    *,
    seed: int,
) -> tuple[float, Float[np.ndarray, " b"]]:
    """Returns the mean class accuracy over the draws, and its replicates over images (by `weights`) and draws."""
    classes = labels[:, None] == np.unique(labels)
    totals = weights @ classes
    with np.errstate(invalid="ignore"):  # a class that a replicate lacks is left out of its mean
        by_draw = np.stack([np.nanmean((weights * row) @ classes / totals, axis=1) for row in right])
    chosen = np.random.default_rng(seed).integers(len(right), size=(len(weights), len(right)))
    estimate = float(np.mean([np.mean([row[members].mean() for members in classes.T]) for row in right]))
    return estimate, by_draw[chosen, np.arange(len(weights))[:, None]].mean(1)


def _interval(estimate: float, replicates: Float[np.ndarray, " b"], count: int) -> dict[str, float | None]:
    interval: Interval = percentile_interval(replicates, estimate=estimate, count=count)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}

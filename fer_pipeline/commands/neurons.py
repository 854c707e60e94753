"""Show which expressions the neurons of a trained network respond to, and how that differs from another network.

The last three stages and the layer before the head are looked at, as in `evaluation.neurons`. Written are
`index.html`, `layers.csv` (entropies and low-entropy neurons of each layer), `neurons.csv` and the mean pictures of the
neurons of the last layer that are surest of each class.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64

from fer_pipeline.artifacts.faces import Faces, encode, iter_faces, read_classes
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, replacing_folder, write_bytes, write_text
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Summary
from fer_pipeline.evaluation.neurons import Strongest, low_threshold
from fer_pipeline.networks.checkpoints import Classifier, load_checkpoint
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.model import stages_of
from fer_pipeline.networks.weights import WeightSettings, initial_network
from fer_pipeline.reporting.charts import BLUE, VERMILION, Line, lines
from fer_pipeline.reporting.page import render
from fer_pipeline.reporting.tables import write_table

BATCH = 128
STAGES = 3
LAST = "features"  # the layer before the head
PER_CLASS = 3
BINS = 24

Layers = dict[str, Strongest]


def run(
    *,
    model: Path,
    faces: Path,
    out: Path = Path("reports/neurons"),
    before: str | None = None,
    top: int = 100,
    device: str = "auto",
) -> Summary:
    """Show which expressions the neurons of a trained network respond to.

    Args:
        model: A trained model's folder.
        faces: Labelled faces, a split in data/faces.
        out: The folder that is written.
        before: What it is compared with: a model's folder, or the file or registered name of the weights it began with.
        top: The faces that a neuron responds to most, whose classes say what it is for.
        device: cpu, cuda, cuda:1, … or auto.
    """
    refuse_link(out)
    networks = {"after" if before else "model": load_checkpoint(model, device=device)}
    if before:
        networks = {"before": load_before(before, networks["after"], device=device), **networks}
        first, second = (layers_of(one) for one in networks.values())
        if first != second:
            raise ConfigError(f"{before} has the layers {', '.join(first)}, {model} {', '.join(second)}; compare alike")
    classes = read_classes(faces)
    labels = np.concatenate([batch.labels for batch in iter_labelled(faces)] or [np.zeros(0, np.int64)])
    if not 1 <= top < len(labels):
        raise DataError(
            f"{faces} has {len(labels)} labelled faces, of which --top {top} cannot be the strongest; choose"
        )
    measured: dict[str, Layers] = {}
    with progress("neurons", len(labels) * len(networks), "faces") as advance:
        for name, network in networks.items():
            measured[name] = {layer: Strongest(top) for layer in layers_of(network)}
            for batch in iter_labelled(faces):
                for layer, responses in respond(network, batch.images).items():
                    measured[name][layer].add(responses)
                advance(len(batch))
    num_classes = len(classes)
    entropies = {
        name: {layer: one.entropies(labels, num_classes=num_classes) for layer, one in layers.items()}
        for name, layers in measured.items()
    }
    threshold = low_threshold(next(iter(entropies.values())))  # of the network before, where there is one
    rows = [
        _describe_layer(name, layer, own[layer], threshold)
        for layer in next(iter(entropies.values()))
        for name, own in entropies.items()
    ]
    name, layers = next(reversed(measured.items()))
    chosen = choose_neurons(entropies[name][LAST], layers[LAST].counts(labels, num_classes=num_classes))
    pictures = average_faces(faces, cast(Any, layers[LAST].faces)[[neuron for neuron, _ in chosen]])
    neurons = [
        {"class": classes[label], "neuron": neuron, "entropy": float(entropies[name][LAST][neuron])}
        for neuron, label in chosen
    ]
    shown = [{**row, "picture": encode(picture, format="png")} for row, picture in zip(neurons, pictures, strict=True)]
    charts = {layer: draw_entropies(entropies, layer, threshold) for layer in next(iter(entropies.values()))}
    context = {
        "title": f"Neurons of {model}",
        "before": before,
        "faces": len(labels),
        "top": top,
        "threshold": threshold,
        "rows": rows,
        "neurons": shown,
        "charts": {layer: picture for layer, picture in charts.items() if picture},
    }
    with replacing_folder(out) as folder:
        write_table(folder / "layers.csv", rows)
        write_table(folder / "neurons.csv", neurons)
        for layer, picture in context["charts"].items():
            write_bytes(folder / f"{layer}.svg", picture)
        for row in shown:
            write_bytes(folder / f"neuron_{row['neuron']}.png", row["picture"])
        write_text(folder / "index.html", render(context, "neurons.html.j2"))
    low = ", ".join(f"{row['layer']} {row['low']:,} of {row['neurons']:,}" for row in rows if row["network"] == name)
    return Summary("neurons", f"low entropy, of {model}: {low}; see {out / 'index.html'}", {"faces": len(labels)})


def load_before(before: str, after: Classifier, *, device: str) -> Classifier:
    """Loads the network of a model's folder, or that of another model filled from weights as its training began.

    Layers that the weights do not fill are those that the model's seed draws.
    """
    path, card = Path(before), after.card
    if path.is_dir():
        return load_checkpoint(path, device=device)
    weights = WeightSettings(path=path) if path.exists() else WeightSettings(name=before)
    seed = card.training.get("seed") or 0
    model, preprocessing, _ = initial_network(card.network, weights, num_classes=len(card.classes), seed=seed)
    return Classifier(model, card.model_copy(update={"preprocessing": preprocessing}), device=resolve_device(device))


def layers_of(network: Classifier) -> list[str]:
    """Returns the layers that are looked at: the last stages, where the backbone has some, and that before the head."""
    return [*stages_of(network.model.backbone)[-STAGES:], LAST]


def iter_labelled(faces: Path) -> Iterator[Faces]:
    """Yields the faces that have a label, in batches."""
    for batch in iter_faces(faces, BATCH):
        known = batch.labels >= 0
        if known.any():
            yield replace(
                batch,
                face_id=batch.face_id[known],
                images=batch.images[known],
                labels=batch.labels[known],
                subjects=batch.subjects[known],
            )


@torch.inference_mode()
def respond(network: Classifier, images: np.ndarray) -> dict[str, Float[np.ndarray, "n _"]]:
    """Computes every neuron's response to some crops, by layer."""
    inputs = network.card.preprocessing.apply(torch.from_numpy(images).to(network.device))
    layers = layers_of(network)
    found = {LAST: network.model.features(inputs)}
    if len(layers) > 1:
        found |= cast(Any, network.model.backbone).feature_maps(inputs, last=layers[-2])
    return {layer: found[layer].float().flatten(1).cpu().numpy() for layer in layers}


def choose_neurons(
    entropies: Float[np.ndarray, " u"], counts: Int64[np.ndarray, "u c"], *, per_class: int = PER_CLASS
) -> list[tuple[int, int]]:
    """Chooses for each class the neurons of the lowest entropy whose strongest faces are mostly of it, and says it."""
    most = counts.argmax(1)
    ranked = [neuron for neuron in np.argsort(entropies, kind="stable").tolist() if np.isfinite(entropies[neuron])]
    by_class = [[neuron for neuron in ranked if most[neuron] == label][:per_class] for label in range(counts.shape[1])]
    return [(neuron, label) for label, members in enumerate(by_class) for neuron in members]


def average_faces(faces: Path, strongest: np.ndarray) -> list[np.ndarray]:
    """Averages the crops of some faces for each row of their numbers, counted among those with a label."""
    sums, start = 0.0, 0
    for batch in iter_labelled(faces):
        hits = (strongest[:, :, None] == np.arange(start, start + len(batch))).sum(1)
        sums = sums + np.tensordot(hits.astype(np.float64), batch.images, 1)
        start += len(batch)
    return [*np.rint(np.asarray(sums) / strongest.shape[1]).astype(np.uint8)] if len(strongest) else []


def draw_entropies(entropies: dict[str, dict[str, np.ndarray]], layer: str, threshold: float) -> bytes | None:
    """Draws how many neurons of a layer have which entropy, a line for each network (figure 3 of the paper)."""
    values = {name: own[layer][np.isfinite(own[layer])] for name, own in entropies.items()}
    most = max((float(one.max()) for one in values.values() if len(one)), default=0.0)
    edges = np.linspace(0, max(most, threshold, 1e-6), BINS + 1)
    looks = ((VERMILION, "--"), (BLUE, "-"))[-len(values) :]
    series = [
        Line(name, ((edges[:-1] + edges[1:]) / 2).tolist(), np.histogram(one, edges)[0].tolist(), colour, dashes)
        for (name, one), (colour, dashes) in zip(values.items(), looks, strict=True)
    ]
    mark = (threshold, "low below")
    return lines(series, xlabel="entropy, nats", ylabel="neurons", mark=mark, height=2.4, legend_above=True)


def _describe_layer(network: str, layer: str, entropies: np.ndarray, threshold: float) -> dict[str, Any]:
    known = entropies[np.isfinite(entropies)]
    return {
        "network": network,
        "layer": layer,
        "neurons": len(entropies),
        "constant": len(entropies) - len(known),
        "mean_entropy": float(known.mean()) if len(known) else float("nan"),
        "low": int((known < threshold).sum()),
    }

"""Load and draw the distilled sets: their images, their probe and their course (figures 4 and 7, arXiv:2005.08551)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_pipeline.artifacts.distilled import CARD
from fer_pipeline.artifacts.history import HISTORY, read_history
from fer_pipeline.core.files import read_json
from fer_pipeline.reporting.charts import BLUE, GREY, VERMILION, Charts, Line, lines
from fer_pipeline.reporting.formatting import TIMES, data_uri, percent, plural

PROBES = {"saved_image": ("saved images left out", BLUE), "unseen_image": ("whole images left out", VERMILION)}


@dataclass(frozen=True)
class DistilledSet:
    """One distilled set, ready for the page; where the probe cannot be drawn, `probe_note` says why."""

    name: str
    previews: dict[str, str]  # class -> data URI
    summary: str
    probe_note: str
    charts: Charts
    probe_rows: list[dict[str, object]]


def load_distilled_sets(folder: Path) -> list[DistilledSet]:
    """Load every distilled set under `data/distilled`, by name."""
    return [_load(card.parent) for card in sorted(folder.glob(f"*/{CARD}"))]


def _load(folder: Path) -> DistilledSet:
    card, name = read_json(folder / CARD), folder.name
    previews = {label: folder / "previews" / f"{label}.png" for label in card["classes"]}
    probe: dict[str, Any] = (
        read_json(folder / "probe.json") if (folder / "probe.json").exists() else {"reason": "no probe was run"}
    )
    history = read_history(folder) if (folder / HISTORY).exists() else []
    curves = {kind: probe.get(kind) or [] for kind in PROBES}
    summary, note = _summarise(card, history), probe.get("reason") or _describe_probe(probe, curves["saved_image"])
    return DistilledSet(
        name=name,
        previews={label: data_uri(path.read_bytes()) for label, path in previews.items() if path.exists()},
        summary=summary,
        probe_note=note,
        charts={
            f"probe_{name}": _probe_chart(curves, probe.get("chance")),
            f"distillation_{name}": _history_chart(history),
        },
        probe_rows=[
            {"distilled": name, "left_out": kind, "run": run, **row}
            for kind, runs in curves.items()
            for run, curve in enumerate(runs)
            for row in curve
        ],
    )


def _summarise(card: Mapping[str, Any], history: list[dict[str, float]]) -> str:
    images = card["steps"] * card["images_per_step"]
    text = f"{plural(images, 'image')} in {plural(card['steps'], 'step')}, {card['height']} {TIMES} {card['width']} px"
    if "source_images" in card:
        text += f", distilled from {plural(card['source_images'], 'real face')}"
    if history and {"loss", "loss_before"} <= set(history[0]):
        last = history[-1]
        text += f"; the loss on real faces goes from {last['loss_before']:.3f} to {last['loss']:.3f}"
    return text


def _describe_probe(probe: Mapping[str, Any], runs: list[list[dict[str, float]]]) -> str:
    if not runs:
        return "no probe was run"
    mean = float(np.mean([curve[-1]["test"] for curve in runs]))
    return f"{percent(mean)} % at the end, mean of {plural(len(runs), 'run')}; chance is {percent(probe['chance'])} %"


def _probe_chart(curves: Mapping[str, list[list[dict[str, float]]]], chance: float | None) -> bytes | None:
    series = []
    for kind, (label, colour) in PROBES.items():
        if runs := curves[kind]:
            epochs = [row["epoch"] for row in runs[0]]
            values = np.array([[row["test"] for row in curve] for curve in runs])
            series.append(Line(label, epochs, values.mean(0).tolist(), colour))
            series += [Line(label, epochs, row.tolist(), colour, faint=True) for row in values if len(values) > 1]
    return lines(
        series,
        xlabel="epoch of the probe",
        ylabel="accuracy on left-out images",
        percent=True,
        level=None if chance is None else (chance, "chance"),
        height=2.7,
    )


def _history_chart(history: list[dict[str, float]]) -> bytes | None:
    if not history or not {"epoch", "loss", "loss_before"} <= set(history[0]):
        return None
    epochs, before, after = ([row[name] for row in history] for name in ("epoch", "loss_before", "loss"))
    series = [Line("before the steps", epochs, before, GREY, "--"), Line("after the steps", epochs, after, VERMILION)]
    return lines(series, xlabel="outer epoch", ylabel="loss on real faces", height=2.5)

"""Distilled sets in, their images, their probe and their course out (figures 4 and 7 of arXiv:2005.08551)."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_pipeline.artifacts.distilled import CARD
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.reporting.charts import Line, lines
from fer_pipeline.reporting.numbers import TIMES, percent, plural
from fer_pipeline.reporting.palette import BLUE, GREY, VERMILION
from fer_pipeline.reporting.pictures import data_uri


@dataclass(frozen=True)
class DistilledSet:
    """One distilled set, ready for the page; a chart that cannot be drawn is None and `probe_note` says why."""

    name: str
    previews: dict[str, str]  # class -> data URI
    summary: str
    probe_chart: bytes | None
    probe_note: str
    history_chart: bytes | None
    probe_rows: tuple[dict[str, object], ...]


def distilled_sets(folder: Path) -> list[DistilledSet]:
    """Every distilled set under `data/distilled`, by name."""
    return [_load(card.parent) for card in sorted(folder.glob(f"*/{CARD}"))] if folder.is_dir() else []


def _load(folder: Path) -> DistilledSet:
    card = read_json(folder / CARD)
    previews = {
        name: data_uri((folder / "previews" / f"{name}.png").read_bytes())
        for name in card["classes"]
        if (folder / "previews" / f"{name}.png").exists()
    }
    probe = read_json(folder / "probe.json") if (folder / "probe.json").exists() else {"reason": "no probe was run"}
    history = _history(folder / "history.csv")
    return DistilledSet(
        name=folder.name,
        previews=previews,
        summary=_summary(card, history),
        probe_chart=_probe_chart(probe),
        probe_note=probe.get("reason") or _probe_note(probe),
        history_chart=_history_chart(history),
        probe_rows=_probe_rows(folder.name, probe),
    )


def _summary(card: dict[str, Any], history: dict[str, list[float]]) -> str:
    images = card["steps"] * card["images_per_step"]
    text = f"{plural(images, 'image')} in {plural(card['steps'], 'step')}, {card['height']} {TIMES} {card['width']} px"
    if "source_images" in card:
        text += f", distilled from {plural(card['source_images'], 'real face')}"
    if {"loss", "loss_before"} <= set(history):
        text += f"; the loss on real faces goes from {history['loss_before'][-1]:.3f} to {history['loss'][-1]:.3f}"
    return text


def _history(path: Path) -> dict[str, list[float]]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no table of numbers ({error}); run: dvc repro distill") from None


def _history_chart(history: dict[str, list[float]]) -> bytes | None:
    if not {"epoch", "loss", "loss_before"} <= set(history):
        return None
    epochs = history["epoch"]
    series = [
        Line("before the steps", epochs, history["loss_before"], GREY, "--"),
        Line("after the steps", epochs, history["loss"], VERMILION),
    ]
    return lines(series, xlabel="outer epoch", ylabel="loss on real faces", height=2.5)


def _curves(probe: dict[str, Any], kind: str) -> tuple[list[float], np.ndarray]:
    curves = probe.get(kind) or []
    if not curves:
        return [], np.zeros((0, 0))
    return [row["epoch"] for row in curves[0]], np.array([[row["test"] for row in curve] for curve in curves])


def _probe_chart(probe: dict[str, Any]) -> bytes | None:
    series = []
    for kind, label, colour in (
        ("saved_image", "saved images left out", BLUE),
        ("unseen_image", "whole images left out", VERMILION),
    ):
        epochs, values = _curves(probe, kind)
        if len(values):
            series.append(Line(label, epochs, values.mean(0).tolist(), colour))
            series += [Line(label, epochs, row.tolist(), colour, faint=True) for row in values if len(values) > 1]
    if not series:
        return None
    return lines(
        series,
        xlabel="epoch of the probe",
        ylabel="accuracy on left-out images",
        percent=True,
        level=probe.get("chance"),
        level_name="chance",
        height=2.7,
    )


def _probe_note(probe: dict[str, Any]) -> str:
    _, values = _curves(probe, "saved_image")
    if not len(values):
        return "no probe was run"
    said = f"{percent(float(values[:, -1].mean()))} % at the end, mean of {plural(len(values), 'run')}"
    return f"{said}; chance is {percent(probe['chance'])} %"


def _probe_rows(name: str, probe: dict[str, Any]) -> tuple[dict[str, object], ...]:
    rows = []
    for kind in ("saved_image", "unseen_image"):
        for run, curve in enumerate(probe.get(kind) or []):
            rows += [{"distilled": name, "left_out": kind, "run": run, **row} for row in curve]
    return tuple(rows)

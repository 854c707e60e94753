"""Compare the settings that models, mined and distilled sets say they were made with with those of `dvc.lock`.

The lock holds what the settings were when DVC looked, which is after a stage has run; the card or summary in its output
holds what the stage used. They differ only where somebody edited the settings meanwhile.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fer_pipeline.core.documents import read_json
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import first_difference, merge_settings


class Contradiction(NamedTuple):
    """A setting that a file records with another value than `dvc.lock` has for the stage that made it."""

    stage: str
    path: Path
    key: str
    locked: Any
    recorded: Any


def find_contradictions(root: Path, stages: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Yields, for each file, the first setting that differs; `stages` are those of a `dvc.lock`."""
    for stage, entry in stages.items():
        params = (entry.get("params") or {}).get("params.yaml") or {}
        for out in entry.get("outs") or ():
            for path in sorted(path for name in FILES for path in (root / out["path"]).glob(name)):
                try:
                    pairs = list(_pairs(stage, params, read_json(path)))
                except (OSError, ValueError, AttributeError, TypeError):
                    continue  # damaged bytes are found by their hash
                for key, locked, found in pairs:
                    # The lock lacks defaults, and a file may not record everything.
                    if (difference := first_difference(locked, found, key, common=True)) is not None:
                        yield Contradiction(stage, path, *difference)
                        break


FILES = ("card.json", "*/card.json", "*/*/card.json", "summary.json", "*/summary.json")


def _pairs(stage: str, params: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the place of settings in `params.yaml`, what the lock has there, and what the file records of it."""
    name, _, item = stage.partition("@")
    section = params.get(name) or {}
    if "classes" in params and "classes" in recorded:
        yield "classes", params["classes"], recorded["classes"]
    if name == "mine":
        yield "mine", section, recorded.get("rule")
    elif name == "distill":
        section = merge_settings(section, (section.get("overrides") or {}).get(item) or {})
        yield "distill", section, recorded.get("settings")
        final = params.get("train_final") or {}
        yield "train_final.network", final.get("network"), recorded.get("network")
    elif name in ("train_primitive", "train_final"):
        training = recorded.get("training") or {}
        recipe = params.get(f"recipes.{item}") or {}
        options = section.get("options") or {}
        options = options.get(recipe.get("strategy"), {}) if name == "train_final" else options
        section = merge_settings({**section, "options": options}, recipe.get("overrides") or {})
        for key, found in (
            ("training", training.get("settings")),
            ("options", training.get("options")),
            ("label_noise", training.get("label_noise")),
            ("network", recorded.get("network")),
        ):
            yield f"{name}.{key}", section.get(key), found
    seed = recorded.get("training", recorded).get("seed")
    seeds = params.get("seeds") or [seed]
    if seed is not None and seed not in ([derive(one, name) for one in seeds] if name == "train_primitive" else seeds):
        yield "seeds", params["seeds"], [seed]

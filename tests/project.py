"""Make the settings that stages share, small and valid, for tests that call a stage's `run`."""

from pathlib import Path
from typing import Any

from fer_pipeline.core.settings import DatasetSettings, ProjectSettings, RecipeSettings, Resources


def project_settings(*, device: str = "cpu", workers: int = 1, **changes: Any) -> ProjectSettings:
    """Settings of three classes, one seed and one worker; `changes` replace whole keys, data sets are added."""
    values = {
        "classes": ("anger", "fear", "neutral"),
        "seeds": (0,),
        "anchor": "studio",
        "train": "studio",
        "pools": ("street",),
        "targets": ("studio",),
        "recipes": {"baseline": RecipeSettings(data=Path("data"))},
        "resources": Resources(device=device, workers=workers),
        **changes,
    }
    names = {values["anchor"], values["train"], *values["pools"], *values["targets"]}
    datasets = {name: DatasetSettings(adapter="csv", path=Path("raw") / name) for name in names}
    return ProjectSettings(**values | {"datasets": datasets | changes.get("datasets", {})})

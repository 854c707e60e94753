"""Make the settings that stages share, small and valid, for tests that call a stage's `run`."""

from pathlib import Path
from typing import Any

from fer_pipeline.core.settings import RECIPE_DEPS, DatasetSettings, ProjectSettings, RecipeSettings, Resources

QUICK_DISTILLATION: dict[str, Any] = {
    "outer_epochs": 2,
    "save_every": 1,
    "epochs": 1,
    "batch_size": 8,
    "controls": {"draws": 1, "steps": 1, "bootstrap": 100},
    "probe": {"moments": 2, "epochs": 1, "seeds": 1},
}


def recipe_settings(sources: dict[str, Path], *, strategy: str = "supervised", **rest: Any) -> RecipeSettings:
    """A recipe that reads these sources, with `deps` as dvc.yaml wants them."""
    paths = [*sources.values()]
    deps = tuple((paths + paths[-1:] * RECIPE_DEPS)[:RECIPE_DEPS])
    return RecipeSettings(strategy=strategy, sources=sources, deps=deps, **rest)


def project_settings(*, device: str = "cpu", workers: int = 1, **changes: Any) -> ProjectSettings:
    """Settings of three classes, one seed and one worker; `changes` replace whole keys, data sets are added."""
    values = {
        "classes": ("anger", "fear", "neutral"),
        "seeds": (0,),
        "anchor": "studio",
        "train": "studio",
        "pools": ("street",),
        "targets": ("studio",),
        "recipes": {"baseline": recipe_settings({"labelled": Path("faces")})},
        "resources": Resources(device=device, workers=workers),
        **changes,
    }
    names = {values["anchor"], values["train"], *values["pools"], *values["targets"]}
    datasets = {name: DatasetSettings(adapter="csv", path=Path("raw") / name) for name in names}
    return ProjectSettings(**values | {"datasets": datasets | changes.get("datasets", {})})

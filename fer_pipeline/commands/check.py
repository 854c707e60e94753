"""All settings at once: `params.yaml` in, every stage's checked `Config` out, or one line before any work is done.

Every stage calls this first, so that a fault in the settings of the last stage is told before the first one has run.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.settings import Settings, World, load_params, validate

WALK = (
    "synthesize",
    "align",
    "train_primitive",
    "embed",
    "score",
    "mine",
    "shard",
    "distill",
    "train_final",
    "evaluate",
    "report",
)


@dataclass(frozen=True)
class Checked:
    """What the settings say, checked: the shared part, and module and `Config` of every stage."""

    world: World
    configs: dict[str, Any]
    modules: dict[str, ModuleType]
    line: str


def check(params: Path) -> Checked:
    """Reads and checks the whole file of settings; ConfigError names the first fault."""
    values = load_params(params)
    assert set(available("fer_pipeline.stages")) == set(WALK), "a stage stands outside of the walk"
    known = {*World.model_fields, *WALK}
    if unknown := sorted(set(map(str, values)) - known):
        raise ConfigError(f"{params}: unknown section {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if missing := [stage for stage in WALK if stage not in values]:
        raise ConfigError(f"{params}: the section {missing[0]!r} is missing; `{missing[0]}: {{}}` takes the defaults")
    world = validate(World, values, where=str(params))
    modules = {stage: load("fer_pipeline.stages", stage) for stage in WALK}
    configs = {
        stage: validate(module.Config, values[stage], where=f"{params}, {stage}") for stage, module in modules.items()
    }
    _sets_agree(params, world, configs)
    _parts_exist(params, world, configs["train_final"])
    counts = f"{len(world.datasets)} data sets, {len(world.recipes)} recipes, {len(world.seeds)} seeds"
    line = f"{params}: {counts}, all settings hold"
    return Checked(world, configs, modules, line)


def _sets_agree(params: Path, world: World, configs: dict[str, Any]) -> None:
    wanted = {world.anchor, *world.pools}
    if set(configs["embed"].sets) != wanted:
        raise ConfigError(
            f"{params}, embed.sets: found {sorted(configs['embed'].sets)}, "
            f"but the anchor and the pools are {sorted(wanted)}; list just these"
        )
    if strangers := sorted(set(configs["evaluate"].recipes) - set(world.recipes)):
        raise ConfigError(
            f"{params}, evaluate.recipes: no recipe {strangers[0]!r}; choose from {sorted(world.recipes)}"
        )
    drawn = configs["synthesize"].sets
    for name, dataset in world.datasets.items():
        if dataset.adapter == "synthetic" and dataset.path == Path("data/raw") / name and name not in drawn:
            raise ConfigError(
                f"{params}, datasets.{name}: no set of that name in synthesize.sets, which draws {sorted(drawn)}"
            )


def _parts_exist(params: Path, world: World, final: Settings) -> None:
    for name, dataset in world.datasets.items():
        adapter = load("fer_pipeline.datasets", dataset.adapter)
        validate(adapter.Options, dataset.options, where=f"{params}, datasets.{name}.options")
        if strangers := sorted({mapped for mapped in dataset.classes.values() if mapped} - set(world.classes)):
            raise ConfigError(f"{params}, datasets.{name}.classes: {strangers[0]!r} is none of {list(world.classes)}")
    for name, recipe in world.recipes.items():
        load("fer_pipeline.strategies", recipe.strategy)
        validate(type(final), {**final.model_dump(), **recipe.overrides}, where=f"{params}, recipes.{name}.overrides")

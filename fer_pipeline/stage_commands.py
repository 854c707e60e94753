"""The stages as commands: paths and names in, a stage's `run` called with its checked settings."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import World
from fer_pipeline.core.summary import Summary
from fer_pipeline.terminal import faults, say

PARAMS = Path("params.yaml")
STORE = Path(".store")
SHARDWISE = ("align", "embed")  # they tell of their progress with counts of shards
ParamsOption = Annotated[Path, typer.Option(help="The file of settings.")]
StoreOption = Annotated[Path, typer.Option(help="Where finished shards and mid-run states are kept.")]
OutOption = Annotated[Path, typer.Option(help="What is written.")]
NameOption = Annotated[str, typer.Option(help="The data set's name in the settings.")]
PoolOption = Annotated[str, typer.Option(help="The pool's name in the settings.")]
FacesOption = Annotated[Path, typer.Option(help="A split of aligned faces.")]
VerifyOption = Annotated[bool, typer.Option(help="Hash inputs and finished shards again that look unchanged.")]
ModelOption = Annotated[Path, typer.Option(help="A trained model's folder.")]


def run_stage(
    stage: str, name: str, params: Path, act: Callable[[ModuleType, Any, World], Summary], *, store: Path = STORE
) -> None:
    """Checks all settings, runs one stage, and notes where and when it ran outside of what DVC tracks.

    A second run of the same stage and name on one store is refused while the first is at work.
    """
    with faults():
        from fer_pipeline.commands import check, provenance
        from fer_pipeline.sharding.locks import at_work
        from fer_pipeline.sharding.progress_file import Bulletin

        owner = f"{stage}@{name}" if name else stage
        ready = check.check_for(stage, params, remembered=store / "memory" / "checked")
        with at_work(store, owner), provenance.noted(store / "provenance" / f"{owner}.json", stage=stage):
            with nullcontext() if stage in SHARDWISE else Bulletin(store, stage, name).overhearing():
                summary = act(ready.module, ready.config, _within_cores(ready.world))
    say(summary)


def _within_cores(world: World) -> World:
    """No more workers than cores that this process may use: whoever runs several stages gives each its share.

    Where ranks divide the data of a training, their number is part of the result, and stays.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    resources = world.resources
    if resources.parallel == "data" or resources.workers <= there:
        return world
    return world.model_copy(update={"resources": resources.model_copy(update={"workers": there})})


def synthesize(
    name: NameOption,
    out: OutOption,
    truth: Annotated[Path, typer.Option(help="Where the truth about the portraits is written, apart from them.")],
    params: ParamsOption = PARAMS,
) -> None:
    """Draw one set of the demo world."""
    run_stage(
        "synthesize",
        name,
        params,
        lambda stage, config, world: stage.run(config, name=name, seed=world.seeds[0], out=out, truth=truth),
    )


def align(
    name: NameOption,
    out: OutOption,
    census: Annotated[Path | None, typer.Option(help="Where a copy of the set's account is written.")] = None,
    verify: VerifyOption = False,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Find and align the faces of one data set."""

    def act(stage: ModuleType, config: Any, world: World) -> Summary:
        if name not in world.datasets:
            raise PipelineError(f"no data set {name!r} in {params}; it has {', '.join(sorted(world.datasets))}")
        dataset, classes = world.datasets[name], world.classes
        return stage.run(
            config,
            name=name,
            dataset=dataset,
            classes=classes,
            out=out,
            store=store,
            resources=world.resources,
            census=census,
            verify=verify,
        )

    run_stage("align", name, params, act, store=store)


def train_primitive(
    faces: FacesOption, out: OutOption, params: ParamsOption = PARAMS, store: StoreOption = STORE
) -> None:
    """Train the primitive learner on the anchor."""
    run_stage(
        "train_primitive",
        "",
        params,
        lambda stage, config, world: stage.run(
            config,
            faces=faces,
            classes=world.classes,
            seed=world.seeds[0],
            out=out,
            store=store,
            resources=world.resources,
        ),
        store=store,
    )


def embed(
    name: NameOption,
    faces: FacesOption,
    model: ModelOption,
    out: OutOption,
    verify: VerifyOption = False,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Write the primitive learner's features of one set."""
    run_stage(
        "embed",
        name,
        params,
        lambda stage, config, world: stage.run(
            config, name=name, faces=faces, model=model, out=out, store=store, resources=world.resources, verify=verify
        ),
        store=store,
    )


def score(
    pool: PoolOption,
    anchor_embeddings: Annotated[Path, typer.Option(help="The anchor's features.")],
    pool_embeddings: Annotated[Path, typer.Option(help="The pool's features.")],
    model: ModelOption,
    out: OutOption,
    params: ParamsOption = PARAMS,
) -> None:
    """Compare one pool and the held-out anchor faces with every class centroid."""
    run_stage(
        "score",
        pool,
        params,
        lambda stage, config, world: stage.run(
            config,
            pool=pool,
            anchor_embeddings=anchor_embeddings,
            pool_embeddings=pool_embeddings,
            model=model,
            classes=world.classes,
            out=out,
            resources=world.resources,
        ),
    )


def mine(
    scores: Annotated[Path, typer.Option(help="The folder with a folder of scores per pool.")],
    out: OutOption,
    params: ParamsOption = PARAMS,
) -> None:
    """Apply the margin rule to the pools."""
    run_stage(
        "mine",
        "",
        params,
        lambda stage, config, world: stage.run(
            config, scores=scores, pools=world.pools, classes=world.classes, seed=world.seeds[0], out=out
        ),
    )


def shard(
    pool: PoolOption,
    mined: Annotated[Path, typer.Option(help="What `mine` wrote.")],
    faces: FacesOption,
    out: OutOption,
    control: Annotated[Path, typer.Option(help="Where the random control faces are written.")],
    params: ParamsOption = PARAMS,
) -> None:
    """Write the mined faces of one pool as image shards."""
    run_stage(
        "shard",
        pool,
        params,
        lambda stage, config, world: stage.run(
            config, pool=pool, mined=mined, faces=faces, classes=world.classes, out=out, control=control
        ),
    )


def distill(
    name: Annotated[str, typer.Option(help="The distillation's name in the settings.")],
    source: Annotated[Path, typer.Option(help="The faces to distil: auxiliary shards or a split of faces.")],
    model: ModelOption,
    out: OutOption,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Distil a set of faces to a few synthetic ones."""
    run_stage(
        "distill",
        name,
        params,
        lambda stage, config, world: stage.run(
            config,
            source=source,
            model=model,
            classes=world.classes,
            seed=world.seeds[0],
            out=out,
            store=store,
            resources=world.resources,
        ),
        store=store,
    )


def train_final(
    recipe: Annotated[str, typer.Option(help="The recipe's name in the settings.")],
    labelled: Annotated[Path, typer.Option(help="The train split of the labelled set.")],
    extra: Annotated[Path, typer.Option(help="The data that the recipe uses beside it.")],
    out: OutOption,
    timings: Annotated[Path, typer.Option(help="Where the seconds per epoch are written.")],
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Train the final models of one recipe, one for every seed."""

    def act(stage: ModuleType, config: Any, world: World) -> Summary:
        if recipe not in world.recipes:
            raise PipelineError(f"no recipe {recipe!r} in {params}; it has {', '.join(sorted(world.recipes))}")
        return stage.run(
            config,
            recipe=recipe,
            settings=world.recipes[recipe],
            labelled=labelled,
            extra=extra,
            classes=world.classes,
            seeds=world.seeds,
            out=out,
            timings=timings,
            store=store,
            resources=world.resources,
        )

    run_stage("train_final", recipe, params, act, store=store)


def evaluate(
    recipe: Annotated[str, typer.Option(help="The recipe's name in the settings.")],
    target: Annotated[str, typer.Option(help="The target set's name in the settings.")],
    models: Annotated[Path, typer.Option(help="The recipe's models, one folder a seed.")],
    faces: FacesOption,
    out: OutOption,
    metrics: Annotated[Path | None, typer.Option(help="Where the main figures alone are written.")] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Measure the models of one recipe on the test split of one target."""
    run_stage(
        "evaluate",
        f"{recipe}-{target}",
        params,
        lambda stage, config, world: stage.run(
            config,
            recipe=recipe,
            target=target,
            models=models,
            faces=faces,
            classes=world.classes,
            seeds=world.seeds,
            out=out,
            metrics=metrics,
            resources=world.resources,
        ),
    )


def report(out: OutOption, root: Path = Path("."), params: ParamsOption = PARAMS) -> None:
    """Write the tables, the figures and the page."""
    run_stage("report", "", params, lambda stage, config, world: stage.run(config, root=root, world=world, out=out))


COMMANDS = (
    synthesize,
    align,
    train_primitive,
    embed,
    score,
    mine,
    shard,
    distill,
    train_final,
    evaluate,
    report,
)

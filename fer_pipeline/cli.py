"""The command line: words in, stages and commands called, one line out. The only place that prints, parses or exits.

What is heavy (torch, DVC, the stages) is imported inside the commands, so that `--help` answers at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import World
from fer_pipeline.core.summaries import Summary

app = typer.Typer(
    name="fer_pipeline",
    help="From a small labelled face set and a large unlabelled pool to a better facial expression model. "
    "`dvc repro` runs the stages in order; each also runs alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
STAGES = "Stages, in walking order"
COMMANDS = "Commands"

ParamsOption = Annotated[Path, typer.Option(help="The file of settings.")]
StoreOption = Annotated[Path, typer.Option(help="Where finished shards and mid-run states are kept.")]
OutOption = Annotated[Path, typer.Option(help="What is written.")]
NameOption = Annotated[str, typer.Option(help="The data set's name in the settings.")]
FacesOption = Annotated[Path, typer.Option(help="A split of aligned faces.")]
ModelOption = Annotated[Path, typer.Option(help="A trained model's folder.")]
PARAMS = Path("params.yaml")
STORE = Path(".store")


def main() -> None:
    """Runs the command line; telemetry of every dependency is off unless the user turned it on."""
    for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    app()


@contextmanager
def _faults() -> Iterator[None]:
    """Turns a fault that a user can mend into one line and exit code 1."""
    try:
        yield
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror}; nothing finished is lost, mend it and run again", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; what was finished is kept, run again to go on", err=True)
        raise typer.Exit(130) from None


def _say(summary: Summary) -> None:
    for warning in summary.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    typer.echo(f"{summary.stage}: {summary.line}")
    if summary.failed:
        raise typer.Exit(1)


def _stage(stage: str, name: str, params: Path, act: Callable[[ModuleType, Any, World], Summary]) -> None:
    """Checks all settings, runs one stage, and notes where and when it ran outside of what DVC tracks."""
    with _faults():
        from fer_pipeline.commands import check, provenance

        checked = check.check(params)
        with provenance.noted(STORE / "provenance" / f"{stage}{'@' + name if name else ''}.json", stage=stage):
            summary = act(checked.modules[stage], checked.configs[stage], checked.world)
    _say(summary)


@app.command(rich_help_panel=STAGES)
def synthesize(
    name: NameOption,
    out: OutOption,
    truth: Annotated[Path, typer.Option(help="Where the truth about the portraits is written, apart from them.")],
    params: ParamsOption = PARAMS,
) -> None:
    """Draw one set of the demo world."""
    _stage(
        "synthesize",
        name,
        params,
        lambda stage, config, world: stage.run(config, name=name, seed=world.seeds[0], out=out, truth=truth),
    )


@app.command(rich_help_panel=STAGES)
def align(name: NameOption, out: OutOption, params: ParamsOption = PARAMS, store: StoreOption = STORE) -> None:
    """Find and align the faces of one data set."""

    def act(stage: ModuleType, config: Any, world: World) -> Summary:
        if name not in world.datasets:
            raise PipelineError(f"no data set {name!r} in {params}; it has {', '.join(sorted(world.datasets))}")
        dataset, classes = world.datasets[name], world.classes
        return stage.run(
            config, name=name, dataset=dataset, classes=classes, out=out, store=store, resources=world.resources
        )

    _stage("align", name, params, act)


@app.command(rich_help_panel=STAGES)
def train_primitive(
    faces: FacesOption, out: OutOption, params: ParamsOption = PARAMS, store: StoreOption = STORE
) -> None:
    """Train the primitive learner on the anchor."""
    _stage(
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
    )


@app.command(rich_help_panel=STAGES)
def embed(
    name: NameOption,
    faces: FacesOption,
    model: ModelOption,
    out: OutOption,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Write the primitive learner's features of one set."""
    _stage(
        "embed",
        name,
        params,
        lambda stage, config, world: stage.run(
            config, name=name, faces=faces, model=model, out=out, store=store, resources=world.resources
        ),
    )


@app.command(rich_help_panel=STAGES)
def score(
    pool: Annotated[str, typer.Option(help="The pool's name in the settings.")],
    anchor_embeddings: Annotated[Path, typer.Option(help="The anchor's features.")],
    pool_embeddings: Annotated[Path, typer.Option(help="The pool's features.")],
    model: ModelOption,
    out: OutOption,
    params: ParamsOption = PARAMS,
) -> None:
    """Compare one pool and the held-out anchor faces with every class centroid."""
    _stage(
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


@app.command(rich_help_panel=STAGES)
def mine(
    scores: Annotated[Path, typer.Option(help="The folder with a folder of scores per pool.")],
    out: OutOption,
    params: ParamsOption = PARAMS,
) -> None:
    """Apply the margin rule to the pools."""
    _stage(
        "mine",
        "",
        params,
        lambda stage, config, world: stage.run(
            config, scores=scores, pools=world.pools, classes=world.classes, seed=world.seeds[0], out=out
        ),
    )


@app.command(rich_help_panel=STAGES)
def shard(
    pool: Annotated[str, typer.Option(help="The pool's name in the settings.")],
    mined: Annotated[Path, typer.Option(help="What `mine` wrote.")],
    faces: FacesOption,
    out: OutOption,
    control: Annotated[Path, typer.Option(help="Where the random control faces are written.")],
    params: ParamsOption = PARAMS,
) -> None:
    """Write the mined faces of one pool as image shards."""
    _stage(
        "shard",
        pool,
        params,
        lambda stage, config, world: stage.run(
            config, pool=pool, mined=mined, faces=faces, classes=world.classes, out=out, control=control
        ),
    )


@app.command(rich_help_panel=STAGES)
def distill(
    name: Annotated[str, typer.Option(help="The distillation's name in the settings.")],
    source: Annotated[Path, typer.Option(help="The faces to distil: auxiliary shards or a split of faces.")],
    model: ModelOption,
    out: OutOption,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Distil a set of faces to a few synthetic ones."""
    _stage(
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
    )


@app.command(rich_help_panel=STAGES)
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

    _stage("train_final", recipe, params, act)


@app.command(rich_help_panel=STAGES)
def evaluate(
    recipe: Annotated[str, typer.Option(help="The recipe's name in the settings.")],
    target: Annotated[str, typer.Option(help="The target set's name in the settings.")],
    models: Annotated[Path, typer.Option(help="The recipe's models, one folder a seed.")],
    faces: FacesOption,
    out: OutOption,
    params: ParamsOption = PARAMS,
) -> None:
    """Measure the models of one recipe on the test split of one target."""
    _stage(
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
            resources=world.resources,
        ),
    )


@app.command(rich_help_panel=STAGES)
def report(out: OutOption, root: Path = Path("."), params: ParamsOption = PARAMS) -> None:
    """Write the tables, the figures and the page."""
    _stage("report", "", params, lambda stage, config, world: stage.run(config, root=root, world=world, out=out))


@app.command("check", rich_help_panel=COMMANDS)
def check_settings(params: ParamsOption = PARAMS) -> None:
    """Check every section of the settings without running anything."""
    with _faults():
        from fer_pipeline.commands import check

        typer.echo(check.check(params).line)


@app.command(rich_help_panel=COMMANDS)
def profile(
    name: Annotated[str | None, typer.Argument(help="The profile to put in place; without it, all are listed.")] = None,
    params: ParamsOption = PARAMS,
    force: Annotated[bool, typer.Option(help="Replace the settings that stand there.")] = False,
) -> None:
    """List the papers' settings, or put one of them in place of params.yaml."""
    with _faults():
        from fer_pipeline.commands import profile as profiles

        typer.echo(profiles.listing() if name is None else profiles.put(name, params, force=force))


@app.command(rich_help_panel=COMMANDS)
def results(reports: Annotated[Path, typer.Option(help="What `report` wrote.")] = Path("reports")) -> None:
    """Print the results table and where the report lies."""
    with _faults():
        from fer_pipeline.commands import results as printed

        typer.echo(printed.table(reports))

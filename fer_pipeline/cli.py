"""Build the command line from the signatures of the stages and print what they return.

`--help` answers at once, since what is heavy (torch, the stages) is imported on use.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fer_pipeline.commands.check import WALK
from fer_pipeline.core.settings import PARAMS, STORE
from fer_pipeline.options import read_command, read_other_options
from fer_pipeline.terminal import print_summary, report_errors

ParamsOption = Annotated[Path, typer.Option(help="The file of settings.")]
StoreOption = Annotated[Path, typer.Option(help="Where finished shards and the states of unfinished work are kept.")]
CONTEXT = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
PARAMS_OPTION = inspect.Parameter("params", inspect.Parameter.KEYWORD_ONLY, default=PARAMS, annotation=ParamsOption)

app = typer.Typer(
    name="fer_pipeline",
    help="From a small labelled face set and a large unlabelled pool to a better facial expression model. "
    "`dvc repro` runs the stages in order; each also runs alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = "Commands"


def _stage_command(stage: str) -> tuple[Callable[..., None], bool]:
    """A command that runs a stage with the options of its `run`, and whether it takes any others."""
    command = read_command(Path(__file__).parent / "stages" / f"{stage}.py")

    def run(context: typer.Context, *, params: Path, **options: Any) -> None:
        with report_errors():
            from fer_pipeline.stage_runner import run_stage

            if command.other_options:
                options[command.other_options] = read_other_options(context.args)
            summary = run_stage(stage, options, params=params)
        print_summary(summary)

    run.__doc__ = command.help
    run.__signature__ = inspect.Signature([CONTEXT, *command.parameters, PARAMS_OPTION])  # pyright: ignore[reportFunctionMemberAccess]
    return run, command.other_options is not None


for _stage in WALK:
    _run, _open = _stage_command(_stage)
    _context = {"allow_extra_args": _open, "ignore_unknown_options": _open}
    app.command(_stage, rich_help_panel="Stages, in walking order", context_settings=_context)(_run)


def main() -> None:
    """Runs the command line; telemetry of every dependency is off unless the user turned it on."""
    for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    app()


@app.command("init", rich_help_panel=COMMANDS)
def init_project(
    anchor: Annotated[str, typer.Option(help="The labelled set, FORMAT:PATH, for example csv:faces/labels.csv.")],
    pool: Annotated[list[str], typer.Option(help="An unlabelled set, FORMAT:PATH; may be said several times.")],
    classes: Annotated[str, typer.Option(help="The expressions, with commas between.")],
    target: Annotated[list[str] | None, typer.Option(help="A test set, FORMAT:PATH; several.")] = None,
    train: Annotated[
        str | None, typer.Option(help="The set that the final models train on, if not the anchor.")
    ] = None,
    image_root: Annotated[
        list[Path] | None, typer.Option(help="Where the pictures of a CSV lie, [SET=]FOLDER.")
    ] = None,
    image_column: Annotated[list[str] | None, typer.Option(help="The column of pictures, [SET=]NAME.")] = None,
    label_column: Annotated[list[str] | None, typer.Option(help="The column of labels, [SET=]NAME.")] = None,
    subject_column: Annotated[list[str] | None, typer.Option(help="The column of persons, [SET=]NAME.")] = None,
    split_column: Annotated[list[str] | None, typer.Option(help="The column of splits, [SET=]NAME.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="What a label of the source means, LABEL=CLASS.")] = None,
    drop_outside: Annotated[bool, typer.Option(help="Leave out labels that are no class; they are counted.")] = False,
    reject_missing: Annotated[bool, typer.Option(help="Leave out rows without a picture; they are counted.")] = False,
    params: ParamsOption = PARAMS,
    force: Annotated[bool, typer.Option(help="Replace the settings that stand there.")] = False,
) -> None:
    """Write a checked params.yaml for your own data."""
    with report_errors():
        from fer_pipeline.commands import init

        told = init.run(
            anchor=anchor,
            pools=pool,
            targets=target or [],
            classes=classes,
            train=train,
            image_root=image_root or (),
            image_column=image_column or (),
            label_column=label_column or (),
            subject_column=subject_column or (),
            split_column=split_column or (),
            renamed=rename or (),
            drop_outside=drop_outside,
            reject_missing=reject_missing,
            params=params,
            force=force,
        )
        typer.echo(told)


@app.command(rich_help_panel=COMMANDS)
def predict(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, or one picture.")],
    model: Annotated[Path, typer.Option(help="A trained model's folder.")],
    out: Annotated[Path, typer.Option(help="What is written.")],
    faces: Annotated[
        Literal["all", "largest", "most_central", "highest_score", "reject"],
        typer.Option(help="Which faces of a picture with several."),
    ] = "all",
    crops: Annotated[bool, typer.Option(help="The pictures are aligned crops already.")] = False,
    batch: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")] = "auto",
) -> None:
    """Find, align and classify every face of any pictures."""
    with report_errors():
        from fer_pipeline.commands import predict as prediction

        summary = prediction.run(folder, model=model, out=out, faces=faces, crops=crops, batch=batch, device=device)
    print_summary(summary)


@app.command("check", rich_help_panel=COMMANDS)
def check_settings(params: ParamsOption = PARAMS) -> None:
    """Check every section of the settings without running anything."""
    with report_errors():
        from fer_pipeline.commands import check

        typer.echo(check.check(params).line)


@app.command(rich_help_panel=COMMANDS)
def profile(
    name: Annotated[str | None, typer.Argument(help="The profile to put in place; without it, all are listed.")] = None,
    params: ParamsOption = PARAMS,
    force: Annotated[bool, typer.Option(help="Replace the settings that stand there.")] = False,
) -> None:
    """List the papers' settings, or put one of them in place of params.yaml."""
    with report_errors():
        from fer_pipeline.commands import profile as profiles

        typer.echo(profiles.listing() if name is None else profiles.put(name, params, force=force))


@app.command(rich_help_panel=COMMANDS)
def results(reports: Annotated[Path, typer.Option(help="What `report` wrote.")] = Path("reports")) -> None:
    """Print the results table and where the report lies."""
    with report_errors():
        from fer_pipeline.commands.results import format_results

        typer.echo(format_results(reports))


@app.command(rich_help_panel=COMMANDS)
def plan(
    stage: Annotated[list[str] | None, typer.Argument(help="align, embed; else both.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="A set; may be said several times. Else all.")] = None,
    faces: Annotated[
        Path | None, typer.Option(help="The faces to embed, if not data/faces/<set>/train.", show_default=False)
    ] = None,
    model: Annotated[Path, typer.Option(help="The model to embed with.")] = Path("models/primitive"),
    seconds: Annotated[float, typer.Option(help="How long a timed sample of a set may take.", min=1)] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON.")] = False,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Say before a long run how many shards are missing, how many hours and how much disk they take."""
    with report_errors():
        import json

        from fer_pipeline.commands import plan as planning

        found = planning.run(
            stage or (), name or (), params=params, store=store, faces=faces, model=model, seconds=seconds
        )
        told = json.dumps([one.content for one in found], indent=1) if as_json else "\n".join(one.line for one in found)
        typer.echo(told)


@app.command(rich_help_panel=COMMANDS)
def prune(
    store: StoreOption = STORE,
    dry_run: Annotated[bool, typer.Option(help="Tell what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove finished shards that no last run uses, and what dead runs left."""
    with report_errors():
        from fer_pipeline.commands import prune as pruning

        typer.echo(pruning.run(store, dry_run=dry_run))


@app.command(rich_help_panel=COMMANDS)
def fsck(
    remove: Annotated[bool, typer.Option(help="Take rotten bytes away, so that the printed command can heal.")] = False,
    remote: Annotated[
        str | None, typer.Option(help="Check this remote too; it must be a folder.", show_default=False)
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Files read at once.", min=1, show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON.")] = False,
    store: StoreOption = STORE,
) -> None:
    """Hash DVC's cache, the outputs and the finished shards again; say what is rotten and what heals it."""
    with report_errors():
        import json

        from fer_pipeline.commands import fsck as checking

        found = checking.run(store=store, remote=remote, remove=remove, jobs=jobs)
        typer.echo(json.dumps(found.content, indent=1) if as_json else found.text)
    if found.inspection.faults and not remove:  # what it prints goes on after a removal
        raise typer.Exit(1)


@app.command(rich_help_panel=COMMANDS)
def doctor(
    with_plan: Annotated[
        bool, typer.Option("--plan/--no-plan", help="Time samples of missing shards: hours and disk of the run.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON.")] = False,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Look at this machine, its versions, GPUs, disks, limits, remote and Prefect server; say what to mend."""
    with report_errors():
        import json

        from fer_pipeline.commands import doctor as checks

        found = checks.run(params, store=store, with_plan=with_plan)
        typer.echo(json.dumps(checks.content(found), indent=1) if as_json else checks.text(found))
    if any(one.level == "problem" for one in found):
        raise typer.Exit(1)

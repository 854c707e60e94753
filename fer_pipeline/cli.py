"""Build the command line from the signatures of stages and commands and print what they return.

`--help` answers at once, since what is heavy (torch, the stages) is imported on use.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fer_pipeline.commands.check import WALK
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import PARAMS, STORE
from fer_pipeline.core.summary import Summary
from fer_pipeline.options import read_command, read_other_options
from fer_pipeline.terminal import print_summary, report_errors

ParamsOption = Annotated[Path, typer.Option(help="The file of settings.")]
StoreOption = Annotated[Path, typer.Option(help="Where finished shards and the states of unfinished work are kept.")]
PARAMS_OPTION = inspect.Parameter("params", inspect.Parameter.KEYWORD_ONLY, default=PARAMS, annotation=ParamsOption)

app = typer.Typer(
    name="fer_pipeline",
    help="From a small labelled face set and a large unlabelled pool to a better facial expression model. "
    "`dvc repro` runs the stages in order; each also runs alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
PANELS = {"stages": "Stages, in walking order", "commands": "Commands"}


def _run_stage(stage: str, /, *, params: Path, **options: Any) -> Summary:
    from fer_pipeline.stage_runner import run_stage

    return run_stage(stage, options, params=params)


def _run_command(name: str, /, **options: Any) -> Summary | str:
    return load("fer_pipeline.commands", name).run(**options)


def _add_command(folder: str, name: str, run: Callable[..., Summary | str], *more: inspect.Parameter) -> None:
    """Adds a command with the parameters of the `run` in `folder/name.py`."""
    command = read_command(Path(__file__).parent / folder / f"{name}.py")

    def call(**options: Any) -> None:
        with report_errors():
            if others := command.other_options:
                options[others] = read_other_options(options[others])
            result = run(name, **options)
        print_summary(result) if isinstance(result, Summary) else typer.echo(result)

    call.__signature__ = inspect.Signature([*command.parameters, *more])  # pyright: ignore[reportFunctionMemberAccess]
    settings = {"ignore_unknown_options": command.other_options is not None}
    app.command(name, help=command.help, rich_help_panel=PANELS[folder], context_settings=settings)(call)


for _name in WALK:
    _add_command("stages", _name, _run_stage, PARAMS_OPTION)
for _name in ("init", "predict", "check", "profile", "plan"):
    _add_command("commands", _name, _run_command)


def main() -> None:
    """Runs the command line; telemetry of every dependency is off unless the user turned it on."""
    for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    app()


@app.command(rich_help_panel=PANELS["commands"])
def results(reports: Annotated[Path, typer.Option(help="What `report` wrote.")] = Path("reports")) -> None:
    """Print the results table and where the report lies."""
    with report_errors():
        from fer_pipeline.commands.results import format_results

        typer.echo(format_results(reports))


@app.command(rich_help_panel=PANELS["commands"])
def prune(
    store: StoreOption = STORE,
    dry_run: Annotated[bool, typer.Option(help="Tell what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove finished shards that no last run uses, and what dead runs left."""
    with report_errors():
        from fer_pipeline.commands import prune as pruning

        typer.echo(pruning.run(store, dry_run=dry_run))


@app.command(rich_help_panel=PANELS["commands"])
def fsck(
    remove: Annotated[bool, typer.Option(help="Remove damaged bytes, so that the printed command works.")] = False,
    remote: Annotated[
        str | None, typer.Option(help="Check this remote too; it must be a folder.", show_default=False)
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Files read at once.", min=1, show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON.")] = False,
    store: StoreOption = STORE,
) -> None:
    """Hash DVC's cache, the outputs and the finished shards again; report damage and the command that repairs it."""
    with report_errors():
        import json

        from fer_pipeline.commands import fsck as checking

        found = checking.run(store=store, remote=remote, remove=remove, jobs=jobs)
        typer.echo(json.dumps(found.content, indent=1) if as_json else found.text)
    if found.diagnosis.damages and not remove:  # what it prints goes on after a removal
        raise typer.Exit(1)


@app.command(rich_help_panel=PANELS["commands"])
def doctor(
    with_plan: Annotated[
        bool, typer.Option("--plan/--no-plan", help="Time samples of missing shards: hours and disk of the run.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON.")] = False,
    params: ParamsOption = PARAMS,
    store: StoreOption = STORE,
) -> None:
    """Look at this machine, its versions, GPUs, disks, limits, remote and Prefect server; say what to correct."""
    with report_errors():
        import json

        from fer_pipeline.commands import doctor as checks

        found = checks.run(params, store=store, with_plan=with_plan)
        typer.echo(json.dumps(checks.to_json(found), indent=1) if as_json else checks.format_text(found))
    if any(one.level == "problem" for one in found.values()):
        raise typer.Exit(1)

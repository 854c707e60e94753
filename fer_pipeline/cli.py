"""Build the command line from the signatures of stages and commands and print what they return.

`--help` answers at once, since what is heavy (torch, the stages) is imported on use.
"""

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fer_pipeline.commands.check import WALK
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import PARAMS
from fer_pipeline.options import read_command, read_other_options
from fer_pipeline.terminal import OneLineGroup, print_result

COMMANDS = ("init", "predict", "check", "profile", "plan", "results", "prune", "fsck", "doctor")

app = typer.Typer(
    name="fer_pipeline",
    cls=OneLineGroup,
    help="From a small labelled face set and a large unlabelled pool to a better facial expression model. "
    "`dvc repro` runs the stages in order; each also runs alone.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _add_command(folder: str, name: str, panel: str) -> None:
    """Adds a command with the parameters of the `run` in `folder/name.py`; a stage has `--params` besides."""
    command = read_command(Path(__file__).parent / folder / f"{name}.py")
    parameters = command.parameters
    if folder == "stages":
        option = Annotated[Path, typer.Option(help="The file of settings.")]
        parameters = [
            *parameters,
            inspect.Parameter("params", inspect.Parameter.KEYWORD_ONLY, default=PARAMS, annotation=option),
        ]

    def call(**options: Any) -> None:
        if others := command.other_options:
            options[others] = read_other_options(options[others])
        if folder == "stages":
            from fer_pipeline.stage_runner import run_stage

            print_result(run_stage(name, options, params=options.pop("params")))
        else:
            print_result(load("fer_pipeline.commands", name).run(**options))

    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    settings = {"ignore_unknown_options": command.other_options is not None}
    app.command(name, help=command.help, rich_help_panel=panel, context_settings=settings)(call)


for _name in WALK:
    _add_command("stages", _name, "Stages, in walking order")
for _name in COMMANDS:
    _add_command("commands", _name, "Commands")


def main() -> None:
    """Runs the command line; telemetry of every dependency is off unless the user turned it on."""
    for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    app(sys.argv[1:] or ["--help"])

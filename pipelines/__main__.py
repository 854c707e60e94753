"""Run the flows by hand, on a running server or one of their own: `python -m pipelines reproduce|refresh|sweep|serve`.

Each command is built from the function of its name: parameters, types, defaults and docstring are written there once.
It runs in a supervised tree, as a stage does, below a process that waits for it and takes the signals: however either
ends, no server, stage or helper of it is left.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the rest is imported, where Python would write a traceback

import importlib
import inspect
import os
import secrets
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines import LEASES_ON_DISK, TELEMETRY_OFF, FlowError
from pipelines.documents import one_line
from pipelines.process_tree import catch_signals, run_command

COMMANDS = ("reproduce", "refresh", "sweep", "serve")
GRID = "PATH=VALUE,VALUE..."
DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # its own 20 s are too few on a busy machine
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # with its own 180 s the automation for dead runs takes a run for one
}
PASSWORDS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")  # the server's, its clients'
SUPERVISED = "PIPELINES_SUPERVISED"  # set for the process that does the work
SECONDS_TO_END = 8.0  # for a command to end its stages, tell the server and end that; then it is killed
SECONDS_TO_KILL = 1.0


class LazyCommands(TyperGroup):
    """Commands that import Prefect only when they are called, so that `--help` answers at once."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the command's placeholder by the command itself."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, build_command(name) if name in COMMANDS else placeholder, rest


def run_flow(flow: Any, options: dict[str, Any]) -> Any:
    """Return the state in which a flow ends; FlowError where its Prefect server cannot be used."""
    import httpx
    from prefect.context import refresh_global_settings_context
    from prefect.exceptions import PrefectException
    from prefect.settings import get_current_settings

    from pipelines.cleanup import end_process

    signal.signal(signal.SIGHUP, end_process)  # with which the supervisor asks for the end
    address = get_current_settings().api.url
    if address is None:  # the server that starts and ends with the flow answers nobody else
        os.environ.update(dict.fromkeys(PASSWORDS, f"flow:{secrets.token_urlsafe(24)}"))
        refresh_global_settings_context()
    try:
        return flow(**options, return_state=True)
    except (httpx.HTTPError, PrefectException, RuntimeError) as error:  # those of the flow itself are its state
        reason, cure = str(error).partition(" - For more information")[0], "start it, or unset PREFECT_API_URL"
        if "401 Unauthorized" in reason:
            cure = "export its user and password, PREFECT_API_AUTH_STRING; make serve prints the line for it"
        server = address or "that starts with the flow"
        raise FlowError(f"the Prefect server {server} cannot be used: {' '.join(reason.split())}; {cure}") from None


def build_command(name: str) -> Any:
    """Return the command that calls `pipelines.NAME.NAME` with an option for each of its parameters."""
    function = getattr(importlib.import_module(f"pipelines.{name}"), name)
    from prefect.utilities.callables import parameter_docstrings

    from pipelines.cleanup import mute_console
    from pipelines.sweep import read_grid
    from pipelines.workspace import find_workspace

    def call(**options: Any) -> None:
        try:
            options["workspace"] = str(find_workspace(options["workspace"]))
            if name == "serve":
                return function(**options)
            if "grid" in options:
                options["grid"] = read_grid(options["grid"])
            state = run_flow(function, options)
        except FlowError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:  # what is to be said of it `supervise` says
            raise typer.Exit(1) from None
        mute_console()  # what would follow is the end of the flow's own server
        typer.echo(one_line(state.message))
        raise typer.Exit(0 if state.is_completed() else 1)

    signature, docstring = inspect.signature(function), inspect.getdoc(function) or ""
    # Keyword-only parameters are for callers in Python.
    parameters = [one for one in signature.parameters.values() if one.kind is not one.KEYWORD_ONLY]
    if "grid" in signature.parameters:  # a mapping, which a command line has no word for
        parameters[0] = parameters[0].replace(annotation=Annotated[list[str], typer.Argument(metavar=GRID)])
    call.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # pyright: ignore[reportFunctionMemberAccess]
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, help=docstring.partition("\n")[0])(call)
    command: Any = typer.main.get_command(single)
    texts = parameter_docstrings(docstring)
    for parameter in command.params:
        parameter.help = " ".join(texts.get(parameter.name, "").split()) or parameter.help
    return command


app = typer.Typer(
    name="pipelines",
    cls=LazyCommands,
    help="Prefect flows that run the DVC graph: independent stages at the same time, restartable, scheduled.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _name in COMMANDS:  # help is the first line of the file, which an import of Prefect would come with
    _text = Path(__file__).with_name(f"{_name}.py").read_text(encoding="utf-8")
    app.command(_name, help=_text.partition("\n")[0].strip('"'))(lambda: None)


def supervise(words: list[str]) -> int:
    """Run the command line `words` in a tree of its own and return its exit code.

    The first signal ends it in order, a Ctrl-C after that at once. Others count once: `timeout` sends its signal to the
    process and to its group.
    """
    stop, signals = threading.Event(), list[int]()

    def say(line: str) -> None:
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"{line}\n".encode())

    def end(number: int) -> None:
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.append(number)
        stop.set()

    how, code = "", 1
    with catch_signals(end), suppress(KeyboardInterrupt):
        result = run_command(
            [sys.executable, "-m", "pipelines", *words], cwd=Path.cwd(), env={**os.environ, SUPERVISED: "1"},
            on_line=say, notice=SECONDS_TO_END, grace=SECONDS_TO_KILL, stop=stop, own_output=True,
        )  # fmt: skip
        how, code = str(result), result.code
    if signals:
        how, code = f"ended by {signal.Signals(signals[0]).name}", 128 + signals[0]
    if code > 128:
        say(f"{how}; nothing of it is left running. Run the same command again to go on from there.")
    return code


def main() -> None:
    """Run the command line; telemetry is off unless the user turned it on."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS and not os.environ.pop(SUPERVISED, None):
        raise SystemExit(supervise(sys.argv[1:]))
    os.environ.update({**TELEMETRY_OFF, **LEASES_ON_DISK, **DEFAULTS, **os.environ})
    app()


if __name__ == "__main__":
    main()

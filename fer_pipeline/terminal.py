"""Print results and errors and exit; nothing else in the package does. An error that a user can correct is one line.

What is printed may hold names from files of strangers: line breaks and terminal escapes are taken out of it here.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from fer_pipeline.core.documents import escape_controls, one_line
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Summary

# What `typer.BadParameter` inherits from: a class of click, or of the copy of it inside newer versions of typer.
UsageError: Any = typer.BadParameter.__mro__[1]

_last_checks: list[Callable[[], None]] | None = None  # None where the process is not ours to end


@contextmanager
def report_errors() -> Iterator[None]:
    """Prints an error of the block as one line and exits with 1, or with 130 after Ctrl-C."""
    try:
        yield
        return
    except KeyboardInterrupt:
        typer.echo("stopped; finished work is kept, run again to continue", err=True)
        raise typer.Exit(130) from None
    except PipelineError as error:
        line = str(error)
    except UsageError as error:
        program = error.ctx.command_path if error.ctx else "python -m fer_pipeline"
        line = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".?")
        line = f"{line[:1].lower()}{line[1:].replace('. Did', '; did')}; see: {program} --help"
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        file = f"{error.filename}: " if error.filename else ""
        line = f"{file}{error.strerror}; finished work is kept, correct this and run again"
    typer.echo(f"error: {one_line(line)}", err=True)
    raise typer.Exit(1)


class OneLineGroup(TyperGroup):
    """Commands whose errors are one line, those of a mistyped command line too."""

    make_context = report_errors()(TyperGroup.make_context)  # parses the words before the command
    invoke = report_errors()(TyperGroup.invoke)  # parses the words of the command, and runs it


def own_process() -> None:
    """Makes `check_last` wait for the end of this process; to be called before anything else registers for that."""
    global _last_checks
    _last_checks = []
    atexit.register(_end_process)  # the first that is registered is called last


def check_last(check: Callable[[], None]) -> None:
    """Calls `check` as the last thing that a good process does, or at once; its error is that of the process.

    Python needs a second or more to take large modules apart, in which what was checked might change.
    """
    if _last_checks is None:
        check()
    else:
        _last_checks.append(check)


def _end_process() -> None:
    if not _last_checks:
        return
    code = 0
    try:
        with report_errors():
            for check in _last_checks:
                check()
    except typer.Exit as end:
        code = end.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_result(result: Summary | str | Iterator[Summary]) -> None:
    """Prints the warnings and the line of a stage, or a text; exits with 1 where a stage or check failed.

    What a command goes on doing after a line was printed, it does as an iterator.
    """
    if isinstance(result, Iterator):
        for one in result:
            print_result(one)
        return
    summary = Summary("", result) if isinstance(result, str) else result
    for warning in summary.warnings:
        typer.secho(f"warning: {one_line(warning)}", err=True, fg="yellow")
    text = f"{summary.stage}: {summary.line}" if summary.stage else summary.line
    typer.echo("\n".join(map(escape_controls, text.split("\n"))))
    if summary.failed:
        raise typer.Exit(1)

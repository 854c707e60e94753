"""Print results and errors and exit; nothing else in the package does. An error that a user can correct is one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.summary import Summary


@contextmanager
def report_errors() -> Iterator[None]:
    """Prints an error of the block as one line and exits with 1, or with 130 after Ctrl-C."""
    try:
        yield
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno is None:
            raise
        file = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {file}{error.strerror}; finished work is kept, correct this and run again", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; finished work is kept, run again to continue", err=True)
        raise typer.Exit(130) from None


def print_summary(summary: Summary) -> None:
    """Prints the warnings and the line of a stage; exits with 1 where it failed in part."""
    for warning in summary.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    typer.echo(f"{summary.stage}: {summary.line}")
    if summary.failed:
        raise typer.Exit(1)

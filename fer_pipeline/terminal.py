"""The terminal: the only place that prints or exits. A fault that a user can mend is one line and exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.summary import Summary


@contextmanager
def faults() -> Iterator[None]:
    """Turns a fault into its line and its exit code."""
    try:
        yield
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror}; what was finished is kept, mend it and run again", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; what was finished is kept, run again to go on", err=True)
        raise typer.Exit(130) from None


def say(summary: Summary) -> None:
    """Prints what a stage has to say; exit code 1 where it failed in part."""
    for warning in summary.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    typer.echo(f"{summary.stage}: {summary.line}")
    if summary.failed:
        raise typer.Exit(1)

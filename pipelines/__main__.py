"""`python -m pipelines reproduce|refresh|sweep|serve`: the flows by hand, on a running server or one of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="pipelines",
    help="Prefect flows that run the DVC graph: independent stages at the same time, restartable, scheduled.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
SURROUNDINGS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # In memory, as by default, a server that is started again would never free the slots of a dead run.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # its own 20 s are too few on a busy machine
}
Targets = Annotated[list[str] | None, typer.Argument(help="Stages, groups of stages or outputs; none: all.")]
Workspace = Annotated[str | None, typer.Option(help="The folder of dvc.yaml; else the working directory.")]
Cores = Annotated[int | None, typer.Option(help="Cores that all running stages share; else all there are.")]
Gpu = Annotated[list[str] | None, typer.Option(help="A GPU for stages that use one; several. Else all there are.")]
Timeout = Annotated[float | None, typer.Option(help="After this long a stage is ended.")]


@contextmanager
def faults() -> Iterator[None]:
    """Turns a fault that a person can mend into its line and exit code 1."""
    from pipelines.errors import FlowError

    try:
        yield
    except FlowError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.callback()
def _commands() -> None:
    pass


@app.command()
def reproduce(
    targets: Targets = None,
    force: Annotated[bool, typer.Option(help="Run stages that are up to date, too.")] = False,
    rev: Annotated[str | None, typer.Option(help="A git revision, in a work tree of its own.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Save what came out as a DVC experiment.")] = None,
    workspace: Workspace = None,
    cores: Cores = None,
    gpu: Gpu = None,
    timeout_hours: Timeout = None,
) -> None:
    """Bring the stages of a workspace up to date."""
    with faults():
        from pipelines.reproduce import reproduce as flow
        from pipelines.workspace import find_workspace

        _end(
            flow(
                targets=targets,
                force=force,
                rev=rev,
                experiment=experiment,
                workspace=str(find_workspace(workspace)),
                cores=cores,
                gpus=gpu,
                timeout_hours=timeout_hours,
                return_state=True,
            )
        )


@app.command()
def refresh(
    targets: Targets = None,
    branch: Annotated[str, typer.Option(help="The git branch that takes the new dvc.lock.")] = "refresh",
    push: Annotated[bool, typer.Option(help="Push the artefacts to the DVC remote.")] = False,
    remote: Annotated[str | None, typer.Option(help="The DVC remote; else the default one.")] = None,
    git_remote: Annotated[str | None, typer.Option(help="Push the branch there, after the artefacts.")] = None,
    allow_dirty: Annotated[bool, typer.Option(help="Go on with uncommitted changes.")] = False,
    workspace: Workspace = None,
    cores: Cores = None,
    gpu: Gpu = None,
    timeout_hours: Timeout = None,
) -> None:
    """Make and commit a new version where data or settings changed."""
    with faults():
        from pipelines.refresh import refresh as flow
        from pipelines.workspace import find_workspace

        _end(
            flow(
                targets=targets,
                branch=branch,
                push=push,
                remote=remote,
                git_remote=git_remote,
                allow_dirty=allow_dirty,
                workspace=str(find_workspace(workspace)),
                cores=cores,
                gpus=gpu,
                timeout_hours=timeout_hours,
                return_state=True,
            )
        )


@app.command()
def sweep(
    setting: Annotated[list[str], typer.Argument(help="PATH=VALUE,VALUE of params.yaml; values are YAML.")],
    target: Annotated[list[str] | None, typer.Option(help="A stage, group or output; several. None: all.")] = None,
    jobs: Annotated[int, typer.Option(help="How many combinations at the same time.", min=1)] = 1,
    prefix: Annotated[str, typer.Option(help="What the names of the experiments begin with.")] = "",
    rev: Annotated[str, typer.Option(help="The git revision that the settings vary.")] = "HEAD",
    workspace: Workspace = None,
    cores: Cores = None,
    gpu: Gpu = None,
    timeout_hours: Timeout = None,
) -> None:
    """Reproduce every combination of some settings as a DVC experiment."""
    with faults():
        from pipelines.settings import read_grid
        from pipelines.sweep import sweep as flow
        from pipelines.workspace import find_workspace

        _end(
            flow(
                grid=read_grid(setting),
                targets=target,
                jobs=jobs,
                prefix=prefix,
                rev=rev,
                workspace=str(find_workspace(workspace)),
                cores=cores,
                gpus=gpu,
                timeout_hours=timeout_hours,
                return_state=True,
            )
        )


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="The server's; the reports are on the next one.", min=1, max=65534)] = 4200,
    workspace: Workspace = None,
) -> None:
    """Start a server, the pool, the deployments and a worker on this machine, until Ctrl-C."""
    with faults():
        from pipelines.serve import serve as run_all

        run_all(port, workspace)


def _end(state: Any) -> None:
    typer.echo(state.message)
    raise typer.Exit(0 if state.is_completed() else 1)


def main() -> None:
    """Runs the command line; telemetry is off unless the user turned it on."""
    for name, value in SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    app()


if __name__ == "__main__":
    main()

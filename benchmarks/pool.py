"""`python -m benchmarks.pool`: makes a pool of embeddings or of aligned faces of any size, and removes it again."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pools import embeddings as of_embeddings
from benchmarks.pools.folder import MARKER
from benchmarks.pools.folder import remove as remove_pool
from fer_pipeline.core.progress import progress
from fer_pipeline.terminal import report_errors

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Makes and removes pools of any size.")
Rows = Annotated[int, typer.Option(min=1, help="How many faces.")]
Out = Annotated[Path, typer.Option(help="A new folder.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same bytes.")]


@app.command()
def embeddings(rows: Rows, out: Out, dimensions: Annotated[int, typer.Option(min=1)] = 512, seed: Seed = 0) -> None:
    """Writes embeddings in half precision, in Arrow shards as `embed` writes them."""
    with report_errors(), progress("embeddings", rows, "faces") as advance:
        of_embeddings.write_pool(out, rows=rows, dimensions=dimensions, seed=seed, advance=advance)
    typer.echo(f"{rows:,} × {dimensions} in {out}; to remove it: python -m benchmarks.pool remove {out}")


@app.command()
def faces(
    rows: Rows,
    out: Out,
    seed: Seed = 0,
    name: Annotated[str, typer.Option(help="The data set's name, which begins every identifier.")] = "generated",
    drawn: Annotated[int, typer.Option(min=1, help="Portraits that are drawn; the faces are variations of them.")] = (
        2000
    ),
    workers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Writes aligned faces of 112 px: `train/part-*.parquet` as `align` writes them, `train.rec` and its `.idx`."""
    from benchmarks.pools.faces import Plan, write_faces

    with report_errors(), progress("faces", rows, "faces") as advance:
        plan = Plan(name, rows, min(drawn, rows), seed)
        write_faces(out, plan, workers=workers, advance=advance)
    typer.echo(f"{rows:,} faces in {out}; to remove them: python -m benchmarks.pool remove {out}")


@app.command()
def remove(folder: Annotated[Path, typer.Argument(help=f"A folder that holds {MARKER}.")]) -> None:
    """Removes a generated pool and nothing else."""
    with report_errors():
        freed, left = remove_pool(folder)
    typer.echo(f"{freed / 1e9:.2f} GB removed" + (f"; {len(left)} other files stay in {folder}" if left else ""))


if __name__ == "__main__":
    app()

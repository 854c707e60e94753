"""`python -m benchmarks.judge_by_truth LIST`: fills in a review file as somebody who makes no mistake.

In: a list of `mined sample` or `mined suggest`, and the truth of drawn pools. Out: the same file with a verdict in each
row that had none, for `mined review`; a face that shows no one class is `other` without a label. Faces of which the
truth says nothing stay without a verdict and are counted. So it can be simulated what judging brings: judge as many
faces that were suggested and as many at random, in two copies of a walked project with a recipe that names `reviewed:
data/reviewed`, and compare its results.
"""

from pathlib import Path
from typing import Annotated

import typer

from fer_pipeline.artifacts.review import OTHER, RIGHT, Judgement, read_review, write_review
from fer_pipeline.artifacts.truth import Truth, read_truth
from fer_pipeline.core.settings import PARAMS, read_project
from fer_pipeline.terminal import report_errors

WHO, WHEN = "the truth", "2000-01-01T00:00:00.000Z"  # the same list gives the same bytes


def main(
    file: Annotated[Path, typer.Argument(metavar="LIST", help="The review file to fill in.")],
    truth: Annotated[Path, typer.Option(help="The folder of the true expressions of pools.")] = Path("data/truth"),
    params: Annotated[Path, typer.Option(help="The file of settings.")] = PARAMS,
) -> None:
    """Judge what a review file lists by the truth."""
    with report_errors():
        project = read_project(params)
        rows, known = read_review(file, classes=project.classes), read_truth(truth, project.pools)
        judged = [row if row.verdict else judge(row, known, project.classes) for row in rows]
        write_review(file, judged)
        typer.echo(f"{sum(bool(row.verdict) for row in judged):,} of {len(rows):,} faces are judged in {file}")


def judge(row: Judgement, truth: Truth, classes: tuple[str, ...]) -> Judgement:
    """Return a row with the verdict that the truth has of its face, or as it is where that is not known."""
    shown = truth.label(row.set, row.face_id)
    if not shown:
        return row
    verdict = RIGHT if shown == row.label else OTHER
    return row._replace(verdict=verdict, label=shown if shown in classes else "", who=WHO, when=WHEN)


if __name__ == "__main__":
    typer.run(main)

"""The whole project folder in, `reports/index.html`, `reports/tables/*.csv` and `reports/figures/*.svg` out.

The page is one file that needs nothing else: it opens from a disk or a mail, without a network and without scripts. Its
bytes depend on what it shows alone (no date, no host). It reads what other stages measured and opens no test split.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fer_pipeline.core.files import replacing_folder, write_bytes, write_text
from fer_pipeline.core.settings import ProjectSettings, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.reporting.contents import contents, figures_of
from fer_pipeline.reporting.evidence import gather
from fer_pipeline.reporting.exports import write_tables
from fer_pipeline.reporting.page import render
from fer_pipeline.reporting.results import Resampling

Count = Annotated[int, Field(ge=0)]


class Config(Settings):
    """What the page shows and how doubt is measured."""

    title: str = "Facial expression report"
    baseline: str = "baseline"  # the recipe that all others are compared with
    faces_per_class: Count = 10  # mined faces shown of each class
    failures_per_class: Count = 4  # mistakes shown of each class and target, of those that evaluate kept
    bootstrap: Annotated[int, Field(ge=100)] = 2000  # replicates of the test sets
    bootstrap_seed: int = 0
    by_subject: bool = True  # draw persons where they are known; else faces within each class


def run(config: Config, project: ProjectSettings, *, out: Path, root: Path = Path(".")) -> Summary:
    """Write the tables, the figures and the page.

    Args:
        config: The section `report`.
        project: What all stages share.
        out: Where `index.html`, `tables` and `figures` are written.
        root: The folder of the project whose results are shown.
    """
    resampling = Resampling(config.bootstrap, config.bootstrap_seed, config.by_subject)
    evidence = gather(
        root,
        project,
        resampling,
        baseline=config.baseline,
        faces_per_class=config.faces_per_class,
        failures_per_class=config.failures_per_class,
    )
    found = contents(evidence, project, resampling, title=config.title, baseline=config.baseline)
    page = render(**found)
    with replacing_folder(out / "tables") as folder:
        write_tables(folder, evidence)
    figures = figures_of(found)
    with replacing_folder(out / "figures") as folder:
        for figure in figures:
            write_bytes(folder / f"{figure.name}.svg", figure.svg)
    write_text(out / "index.html", page)
    counts: dict[str, int | float] = {
        "results": len(evidence.results),
        "figures": len(figures),
        "bytes": len(page.encode()),
    }
    return Summary("report", f"{found['headline']}; see {out / 'index.html'}", counts, tuple(found["warnings"]))

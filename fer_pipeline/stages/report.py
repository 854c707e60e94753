"""Write the report of the whole project: `index.html`, `tables/*.csv` and `figures/*.svg` in `reports`.

The page is one file that needs nothing else: it opens from a disk or a mail, without a network and without scripts. Its
bytes depend on what it shows alone (no date, no host). It reads what other stages measured and opens no test split.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fer_pipeline.core.files import replacing_folder, write_bytes, write_text
from fer_pipeline.core.settings import PlainName, ProjectSettings, Settings, Summary
from fer_pipeline.evaluation.summary import Resampling
from fer_pipeline.reporting.page import build_context, render
from fer_pipeline.reporting.report_data import Selection, collect
from fer_pipeline.reporting.tables import write_tables

Count = Annotated[int, Field(ge=0)]


class Config(Settings):
    """What the page shows and how doubt is measured."""

    title: str = "Facial expression report"
    baseline: str = "baseline"  # the recipe that all others are compared with
    controls: dict[PlainName, PlainName] = Field(default_factory=dict)  # recipe: the recipe that is its control
    descriptions: dict[PlainName, str] = Field(default_factory=dict)  # recipe: what it adds, in the plural
    faces_per_class: Count = 10  # mined faces shown of each class
    failures_per_class: Count = 4  # mistakes shown of each class and target, of those that evaluate wrote
    bootstrap: Annotated[int, Field(ge=100)] = 2000  # replicates of the test sets
    bootstrap_seed: int = 0
    by_subject: bool = True  # draw persons where they are known; else faces within each class


def run(config: Config, project: ProjectSettings, *, out: Path, root: Path = Path(".")) -> Summary:
    """Write the tables, the figures and the page.

    Args:
        out: Where `index.html`, `tables` and `figures` are written.
        root: The folder of the project whose results are shown.
    """
    selection = Selection(
        baseline=config.baseline,
        resampling=Resampling(config.bootstrap, config.bootstrap_seed, config.by_subject),
        controls=config.controls,
        descriptions=config.descriptions,
        faces_per_class=config.faces_per_class,
        failures_per_class=config.failures_per_class,
    )
    data = collect(root, project, selection)
    context = build_context(data, project, selection, title=config.title)
    page = render(context)
    with replacing_folder(out / "tables") as folder:
        write_tables(folder, data)
    with replacing_folder(out / "figures") as folder:
        for figure in context["figures"]:
            write_bytes(folder / f"{figure.name}.svg", figure.svg)
    write_text(out / "index.html", page)
    counts: dict[str, int | float] = {
        "results": len(data.results),
        "figures": len(context["figures"]),
        "bytes": len(page.encode()),
    }
    return Summary("report", f"{context['headline']}; see {out / 'index.html'}", counts, tuple(context["warnings"]))

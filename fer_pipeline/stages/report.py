"""Write the report of the whole project: `index.html`, a page of each recipe, tables and figures, in `reports`.

The page is one file that needs nothing else: it opens from a disk or a mail, without a network and without scripts. Its
bytes depend on what it shows alone (no date, no host). It reads what other stages measured and opens no test split.
"""

from pathlib import Path

from fer_pipeline.core.files import refuse_link, replacing_folder, write_bytes, write_text
from fer_pipeline.core.settings import ProjectSettings, Summary
from fer_pipeline.reporting.page import PageSettings, ReportData, build_context, render, render_learners
from fer_pipeline.reporting.tables import write_tables


class Config(PageSettings):
    """The section `report`."""


def run(config: Config, project: ProjectSettings, *, out: Path, root: Path = Path(".")) -> Summary:
    """Write the tables, the figures and the page.

    Args:
        out: Where `index.html`, `learners`, `tables` and `figures` are written.
        root: The folder of the project whose results are shown.
    """
    for name in ("tables", "figures", "learners", "index.html"):
        refuse_link(out / name)
    data = ReportData(root, project, config)
    context = build_context(data, project, config)
    page = render(context)
    with replacing_folder(out / "tables") as folder:
        write_tables(folder, data)
    with replacing_folder(out / "figures") as folder:
        for name, svg in context["charts"].items():
            write_bytes(folder / f"{name}.svg", svg)
    with replacing_folder(out / "learners") as folder:
        for recipe, text in render_learners(root, data, project, config, context):
            write_text(folder / f"{recipe}.html", text)
    write_text(out / "index.html", page)
    counts: dict[str, int | float] = {
        "results": len(data.results),
        "figures": len(context["charts"]),
        "learners": len(context["learners"]),
        "bytes": len(page.encode()),
    }
    return Summary("report", f"{context['headline']}; see {out / 'index.html'}", counts, tuple(context["warnings"]))

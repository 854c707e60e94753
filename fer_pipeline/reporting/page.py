"""Everything that was found in, one HTML file out: styles and pictures inside it, no script, nothing from outside."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fer_pipeline.reporting import numbers
from fer_pipeline.reporting.pictures import data_uri

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = ("percent", "points", "plus_minus", "span", "count", "plural", "listing", "visible")


def render(**found: Any) -> str:
    """The page. Every value is escaped by Jinja; the style sheet alone is trusted."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({name: getattr(numbers, name) for name in FILTERS}, data_uri=data_uri)
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("index.html.j2").render(style=style, **found)

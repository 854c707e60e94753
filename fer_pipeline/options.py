"""Read the options of a command from the signature and the docstring of its `run`, without importing its module.

Importing a stage brings torch along, which takes seconds; so the file is only parsed. Names, types and defaults are
those of the signature, help texts those of the docstring's section `Args:` (Google style). Keyword-only parameters
become options, the others arguments. A parameter of the type `dict[str, Path]` takes all options that are no others:
`--labelled PATH --mined PATH`.
"""

import ast
import inspect
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import PARAMS, STORE

# What annotations and defaults of a `run` may name; an option that may be repeated is a list to typer.
NAMES = {"Path": Path, "Literal": Literal, "Sequence": list, "PARAMS": PARAMS, "STORE": STORE}
READ_FROM_SETTINGS = ("config", "project")  # a stage's first two parameters


class Command(NamedTuple):
    """What a command does, and its arguments and options as typer understands them."""

    parameters: list[inspect.Parameter]
    help: str
    other_options: str | None = None  # the parameter that takes all options that are no others


def read_command(file: Path) -> Command:
    """The command of the function `run` in a Python file."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    run = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "run")
    text, _, section = (ast.get_docstring(run) or "").partition("\n\nArgs:\n")
    helps = {name: " ".join(help.split()) for name, help in re.findall(r"^ +(\w+): (.+(?:\n {8}.+)*)", section, re.M)}
    # The signature alone is executed, of a function whose body is its docstring, without what names other modules.
    run.args.args = [arg for arg in run.args.args if arg.arg not in READ_FROM_SETTINGS]
    run.body, run.returns = run.body[:1], None
    namespace: dict[str, Any] = dict(NAMES)
    exec(compile(ast.Module([run], []), str(file), "exec"), namespace)
    parameters: list[inspect.Parameter] = []
    other_options = None
    for name, one in inspect.signature(namespace["run"]).parameters.items():
        kind, about = one.annotation, typer.Option(help=helps[name])
        if kind == dict[str, Path]:
            kind, about = list[str], typer.Argument(help=helps[name], metavar="--NAME PATH …")
            other_options = name
        elif one.kind is not inspect.Parameter.KEYWORD_ONLY:
            about = typer.Argument(help=helps[name])
        parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, about]))
    return Command(parameters, text, other_options)


def read_other_options(words: Sequence[str]) -> dict[str, Path]:
    """Options that no parameter names, `--labelled PATH --mined PATH`, by their names.

    Raises:
        ConfigError: A word is no option, or an option has no path or two.
    """
    paths: dict[str, Path] = {}
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, path in zip_longest(split[::2], split[1::2]):
        if not name.startswith("--") or path is None or path.startswith("--") or name[2:] in paths:
            raise ConfigError(f"cannot read the options {' '.join(words)!r}; give each source once, as --NAME PATH")
        paths[name[2:]] = Path(path)
    return paths

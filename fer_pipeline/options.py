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
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import PARAMS, STORE

# What annotations and defaults of a `run` may name; an option that may be repeated is a list to typer.
NAMES = {"Path": Path, "Literal": Literal, "Sequence": list, "PARAMS": PARAMS, "STORE": STORE}
OTHERS = "dict[str, Path]"
READ_FROM_SETTINGS = ("config", "project")  # a stage's first two parameters


@dataclass(frozen=True)
class Command:
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
    arguments = run.args.args[::-1], run.args.defaults[::-1]  # defaults are those of the last ones
    others = [one.arg for one in run.args.kwonlyargs if one.annotation and ast.unparse(one.annotation) == OTHERS]
    return Command(
        [
            *(
                _parameter(arg, default, typer.Argument(help=helps[arg.arg]))
                for arg, default in reversed([*zip_longest(*arguments)])
                if arg.arg not in READ_FROM_SETTINGS
            ),
            *(
                _others(arg, helps[arg.arg])
                if arg.arg in others
                else _parameter(arg, default, typer.Option(help=helps[arg.arg]))
                for arg, default in zip(run.args.kwonlyargs, run.args.kw_defaults, strict=True)
            ),
        ],
        text,
        others[0] if others else None,
    )


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


def _parameter(arg: ast.arg, default: ast.expr | None, about: Any) -> inspect.Parameter:
    assert arg.annotation is not None, f"the parameter {arg.arg} has no type"
    return inspect.Parameter(
        arg.arg,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is None else _evaluate(default),
        annotation=Annotated[_evaluate(arg.annotation), about],
    )


def _others(arg: ast.arg, help: str) -> inspect.Parameter:
    argument = typer.Argument(help=help, metavar="--NAME PATH …")
    return inspect.Parameter(arg.arg, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[list[str], argument])


def _evaluate(expression: ast.expr) -> Any:
    return eval(compile(ast.Expression(expression), "<signature>", "eval"), dict(NAMES))

"""Build the command line from signature and docstring of the `run` of stages and commands; print what they return.

Importing a stage brings torch along, which takes seconds; so files are only parsed until one is run. Names, types and
defaults are those of the signature, help texts those of the docstring's section `Args:` (Google style). Keyword-only
parameters become options, the others arguments. A parameter of the type `dict[str, Path]` takes all options that are no
others: `--labelled PATH --mined PATH`.
"""

import ast
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from fer_pipeline.commands.check import WALK
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import PARAMS, STORE
from fer_pipeline.terminal import OneLineGroup, check_last, own_process, print_result

# What annotations and defaults of a `run` may name; an option that may be repeated is a list to typer.
NAMES = {"Path": Path, "Literal": Literal, "Sequence": list, "PARAMS": PARAMS, "STORE": STORE}
READ_FROM_SETTINGS = ("config", "project")  # a stage's first two parameters
COMMANDS = ("init", "predict", "check", "profile", "plan", "results", "neurons", "prune", "fsck", "doctor", "weights")
# Groups of commands: of each file its functions that are commands; the first file's docstring says what the group does.
GROUPS = {
    "mined": {
        "mined": ("show", "query", "diff", "log", "duplicates", "export"),
        "gallery": ("gallery", "view"),
        "review": ("sample", "suggest", "review"),
    },
    "folds": {"folds": ("divide", "table")},
}

app = typer.Typer(
    name="fer_pipeline",
    cls=OneLineGroup,
    help="From a small labelled face set and a large unlabelled pool to a better facial expression model. "
    "`dvc repro` runs the stages in order; each also runs alone.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Command(NamedTuple):
    """What a command does, and its arguments and options as typer understands them."""

    parameters: list[inspect.Parameter]
    help: str
    other_options: str | None = None  # the parameter that takes all options that are no others


def read_command(file: Path, function: str = "run") -> Command:
    """The command of a function in a Python file."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    run = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    text, _, section = (ast.get_docstring(run) or "").partition("\n\nArgs:\n")
    helps = {name: " ".join(help.split()) for name, help in re.findall(r"^ +(\w+): (.+(?:\n {8}.+)*)", section, re.M)}
    # The signature alone is executed, of a function whose body is its docstring, without what names other modules.
    run.args.args = [arg for arg in run.args.args if arg.arg not in READ_FROM_SETTINGS]
    run.body, run.returns, run.decorator_list = run.body[:1], None, []
    namespace: dict[str, Any] = dict(NAMES)
    exec(compile(ast.Module([run], []), str(file), "exec"), namespace)
    parameters: list[inspect.Parameter] = []
    other_options = None
    for name, one in inspect.signature(namespace[function]).parameters.items():
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


def _add_command(folder: str, name: str, panel: str) -> None:
    """Adds a command with the parameters of the `run` in `folder/name.py`; a stage has `--params` besides."""
    command = read_command(Path(__file__).parent / folder / f"{name}.py")
    parameters = command.parameters
    if folder == "stages":
        kind, option = inspect.Parameter.KEYWORD_ONLY, Annotated[Path, typer.Option(help="The file of settings.")]
        parameters = [*parameters, inspect.Parameter("params", kind, default=PARAMS, annotation=option)]

    def call(**options: Any) -> None:
        if others := command.other_options:
            options[others] = read_other_options(options[others])
        if folder == "stages":
            from fer_pipeline.stage_runner import run_stage

            summary, require_unchanged = run_stage(name, options, params=options.pop("params"))
            print_result(summary)
            check_last(require_unchanged)
        else:
            print_result(load("fer_pipeline.commands", name).run(**options))

    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    settings = {"ignore_unknown_options": command.other_options is not None}
    app.command(name, help=command.help, rich_help_panel=panel, context_settings=settings)(call)


def _add_group(name: str, files: Mapping[str, Sequence[str]], panel: str) -> None:
    """Adds a command that has one below it for each of some functions in files of `commands/`."""
    folder = Path(__file__).parent / "commands"
    about = ast.get_docstring(ast.parse((folder / f"{next(iter(files))}.py").read_text(encoding="utf-8"))) or ""
    group = typer.Typer(no_args_is_help=True, add_completion=False, help=about.partition("\n")[0])
    for file, functions in files.items():
        for function in functions:
            _add_function(group, file, function, read_command(folder / f"{file}.py", function))
    app.add_typer(group, name=name, rich_help_panel=panel)


def _add_function(group: typer.Typer, file: str, function: str, command: Command) -> None:
    def call(**options: Any) -> None:
        print_result(getattr(load("fer_pipeline.commands", file), function)(**options))

    call.__signature__ = inspect.Signature(command.parameters)  # pyright: ignore[reportFunctionMemberAccess]
    group.command(function, help=command.help)(call)


for _name in WALK:
    _add_command("stages", _name, "Stages, in walking order")
for _name in COMMANDS:
    _add_command("commands", _name, "Commands")
for _name, _files in GROUPS.items():
    _add_group(_name, _files, "Commands")


def main() -> None:
    """Runs the command line; telemetry of every dependency is off unless the user turned it on."""
    own_process()
    for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    app(sys.argv[1:] or ["--help"])

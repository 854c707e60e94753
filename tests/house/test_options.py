"""The command line offers what the `run` of a stage or command takes, though it only parses the file."""

import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from fer_pipeline.cli import COMMANDS, GROUPS, Command, read_command, read_other_options
from fer_pipeline.commands.check import WALK
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import load
from tests.project import project_settings


@pytest.mark.parametrize("stage", WALK)
def test_options_are_the_parameters_of_run(root: Path, stage: str) -> None:
    command = read_command(root / "fer_pipeline" / "stages" / f"{stage}.py")
    run = inspect.signature(load("fer_pipeline.stages", stage).run)
    config, project, *expected = run.parameters.values()
    assert (config.name, project.name) == ("config", "project")
    check_same(command, expected)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_commands_are_the_parameters_of_run(root: Path, name: str) -> None:
    command = read_command(root / "fer_pipeline" / "commands" / f"{name}.py")
    check_same(command, list(inspect.signature(load("fer_pipeline.commands", name).run).parameters.values()))


@pytest.mark.parametrize(
    ("name", "function"), [(name, one) for files in GROUPS.values() for name, all in files.items() for one in all]
)
def test_options_of_grouped_commands_are_the_parameters_of_their_functions(
    root: Path, name: str, function: str
) -> None:
    command = read_command(root / "fer_pipeline" / "commands" / f"{name}.py", function)
    expected = inspect.signature(getattr(load("fer_pipeline.commands", name), function)).parameters.values()
    check_same(command, list(expected))


def check_same(command: Command, expected: list[inspect.Parameter]) -> None:
    assert [(one.name, one.default) for one in command.parameters] == [(one.name, one.default) for one in expected]
    for option, parameter in zip(command.parameters, expected, strict=True):
        kind, about = get_args(option.annotation)
        words = (Sequence[str], dict[str, Path])  # options that may be said several times, or have any name
        assert kind == (list[str] if parameter.annotation in words else parameter.annotation)
        assert about.help


def test_every_command_of_the_graph_names_options_that_exist(root: Path, graph) -> None:
    for node in graph:
        command = read_command(root / "fer_pipeline" / "stages" / f"{node.stage}.py")
        known = {"--" + option.name.replace("_", "-") for option in command.parameters}
        unknown = {word for word in shlex.split(node.cmd) if word.startswith("--")} - known
        assert not unknown or command.other_options == "sources"


def test_options_of_any_name_are_paths_by_name() -> None:
    words = ["--labelled", "a", "--mined", "b"]
    assert read_other_options(words) == {"labelled": Path("a"), "mined": Path("b")}
    assert read_other_options(["--labelled=a=b"]) == {"labelled": Path("a=b")}
    for wrong in (["a"], ["--labelled"], ["--labelled", "--mined"], ["--labelled", "a", "--labelled", "b"]):
        with pytest.raises(ConfigError, match=r"give each source once, as --NAME PATH"):
            read_other_options(wrong)


def test_an_argument_and_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "look.py"
    file.write_text(
        'def run(folder: Path, number: int = 3, *, deep: bool = False) -> str:\n    """Look.\n\n    Args:\n'
        "        folder: Where\n            it lies.\n        number: How many.\n        deep: All of it.\n"
        '\n    Returns:\n        words: What it sees.\n    """\n'
    )
    command = read_command(file)
    found = [(one.name, one.default, *get_args(one.annotation)) for one in command.parameters]
    assert [(name, default, kind, about.help) for name, default, kind, about in found] == [
        ("folder", inspect.Parameter.empty, Path, "Where it lies."),
        ("number", 3, int, "How many."),
        ("deep", False, bool, "All of it."),
    ]
    assert command.help == "Look."


def test_unknown_names_are_one_line_with_the_known_ones() -> None:
    project = project_settings()
    with pytest.raises(ConfigError, match="no data set 'x' in the settings; they have street, studio"):
        project.dataset("x")
    with pytest.raises(ConfigError, match="no recipe 'x' in the settings; they have baseline"):
        project.recipe("x")

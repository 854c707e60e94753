"""Nothing from the settings reaches a shell as code, whoever runs the stages: a canary file would tell.

Every key and every text in the settings is made hostile in turn. What DVC then pastes into commands is refused by the
check that stands before them, or is read by a real shell as the very words that the settings have.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.parsing import DataResolver, ResolveError
from dvc.repo import Repo

from fer_pipeline.commands import check
from fer_pipeline.core.errors import ConfigError
from pipelines import FlowError
from pipelines.workspace import read_graph
from tests.walk.conftest import tiny

Place = tuple[str | int, ...]
GUARD = "python -m fer_pipeline check --commands"
HOSTILE = {
    "separator": "; touch canary;",
    "substitution": "$(touch canary)",
    "backquotes": "`touch canary`",
    "quote": "'; touch canary; '",
    "double quote": '"; touch canary; "',
    "newline": "\ntouch canary\n",
    "line separator": "\u2028touch canary\u2028",
    "pipe": "| touch canary",
    "redirection": "> canary",
    "expression": "${touch canary}",
}
HARMLESS = {"comment": " # more", "blanks": " a  b ", "letters": "ä-ß_é", "assignment": "a=b,c:d@e+f%g"}
EVERYTHING = "".join({**HOSTILE, **HARMLESS}.values())


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, bool]]:
    """Where a text stands in settings, and whether it is the key of a mapping."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*place, key), True
            yield from places(item, (*place, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*place, number))
    elif isinstance(value, str):
        yield place, False


def changed(settings: Any, place: Place, is_key: bool, text: str) -> Any:
    """The settings with a text put behind what stands at a place."""
    inside = copy = deepcopy(settings)
    for step in place[:-1]:
        inside = inside[step]
    if is_key:
        inside[f"{place[-1]}{text}"] = inside.pop(place[-1])
    else:
        inside[place[-1]] += text
    return copy


class Project:
    """Settings and the commands of the project's graph, in a folder of their own."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.settings = tiny(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")))
        whole = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        self.graph = {
            name: {
                **{key: stage[key] for key in ("foreach", "matrix") if key in stage},
                **({"do": {"cmd": stage["do"]["cmd"]}} if "do" in stage else {"cmd": stage["cmd"]}),
            }
            for name, stage in whole.items()
        }
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        self.write(self.settings)
        self.repo = Repo(str(folder))

    def write(self, settings: Any) -> None:
        (self.folder / "params.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        (self.folder / "dvc.yaml").write_text(json.dumps({"stages": self.graph}), encoding="utf-8")

    def all_commands(self, settings: Any) -> dict[str, list[str]]:
        """The commands of every stage, as DVC resolves them."""
        self.write(settings)
        stages: Any = DataResolver(self.repo, str(self.folder), {"stages": self.graph}).resolve()
        commands = {name: stage["cmd"] for name, stage in stages["stages"].items()}
        return {name: [one] if isinstance(one, str) else one for name, one in commands.items()}

    def commands(self, settings: Any) -> dict[str, str]:
        """The command of every stage without the check before it."""
        return {name: commands[-1] for name, commands in self.all_commands(settings).items()}

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a program in the folder; `python` is this one, and DVC's memory is beside the folder."""
        binaries = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([binaries, os.environ["PATH"]]),
            "PYTHONPATH": str(self.root),
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
        }
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    made = Project(folder, root)
    with made.repo:
        yield made


def is_refused(project: Project, settings: Any) -> bool:
    project.write(settings)
    try:
        check.check_commands(Path("params.yaml"))
    except ConfigError as error:
        return "\n" not in str(error)
    return False


def words_of_a_shell(project: Project, command: str) -> list[str]:
    """What a real shell makes of a command, as the program that it starts is given it."""
    script = project.folder / "python"
    script.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" > words\n", encoding="utf-8")
    script.chmod(0o755)
    subprocess.run(
        ["/bin/sh", "-c", command], cwd=project.folder, env={"PATH": f"{project.folder}:{os.environ['PATH']}"}
    )
    return ["python", *(project.folder / "words").read_text(encoding="utf-8").split("\0")[:-1]]


# One place of each kind that DVC pastes into commands, and whether it is the key of a mapping.
PASTED: list[tuple[Place, bool]] = [
    (("anchor",), False),
    (("pools", 0), False),
    (("targets", 0), False),
    (("datasets", "film"), True),
    (("recipes", "both"), True),
    (("recipes", "both", "sources", "mined"), True),
    (("recipes", "both", "sources", "mined"), False),
    (("synthesize", "sets", "street"), True),
    (("embed", "sets", 1), False),
    (("distill", "sources", "auxiliary"), True),
    (("distill", "sources", "auxiliary"), False),
    (("evaluate", "recipes", 1), False),
]


def test_every_text_in_the_settings_is_refused_or_is_no_part_of_a_command(project: Project) -> None:
    plain, pasted = project.commands(project.settings), set()
    for place, is_key in places(project.settings):
        settings = changed(project.settings, place, is_key, EVERYTHING)
        if is_refused(project, settings):
            pasted.add((place, is_key))
            continue
        with suppress(ResolveError):  # a section of another name, for example, is none that DVC finds
            assert project.commands(settings) == plain, f"{place} reaches a command"
    assert pasted >= set(PASTED)
    assert {place[:1] for place, _ in pasted} == {place[:1] for place, _ in PASTED}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_shell_reads_is_refused_wherever_dvc_pastes_it(project: Project, text: str) -> None:
    for place, is_key in PASTED:
        assert is_refused(project, changed(project.settings, place, is_key, text)), place


@pytest.mark.parametrize(("place", "is_key"), PASTED)
def test_the_check_of_all_settings_refuses_it_too(project: Project, root: Path, place: Place, is_key: bool) -> None:
    (project.folder / "dvc.yaml").unlink()  # the settings alone are looked at
    for text in HOSTILE.values():
        settings = changed(project.settings, place, is_key, text)
        Path("params.yaml").write_text(json.dumps(settings), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            check.check(Path("params.yaml"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_paths_with_blanks_and_letters_of_any_script_are_read_as_they_are(project: Project, text: str) -> None:
    path = f"data/auxiliary{text}/x"
    recipe = {**project.settings["recipes"]["both"], "sources": {"labelled": path}, "deps": [path] * 3}
    settings = {**project.settings, "recipes": {"both": recipe}, "distill": {"sources": {"auxiliary": path}}}
    if "#" in path:
        assert is_refused(project, settings)
        return
    assert not is_refused(project, settings)
    commands = project.commands(settings)
    for name, option in {"distill@auxiliary": "--source", "train_final@both": "--labelled"}.items():
        words = words_of_a_shell(project, commands[name])
        assert words[words.index(option) + 1] == path
        assert words == shlex.split(commands[name])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("recipes: {a: {sources: &a {b: *a}}}\n", r"\*a stands in what it names"),
        # A line ends there for one reader, and a comment begins: the other reads on.
        ("pools: [a\u2028# , $(touch canary)]\n", "would stand in cmd of the stage score|not valid YAML"),
        ("pools: 3\ndatasets: a\nrecipes: null\n", None),  # of which DVC makes no stage
        ("pools: [[a, '$(touch canary)']]\n", "would stand in cmd of the stage score"),
        ("pools: [2026-11-27, 1.5, true, null]\n", None),
        ("pools: [a]\n---\npools: [$(touch canary)]\n", "not valid YAML"),
    ],
)
def test_settings_of_odd_shapes_are_read_as_dvc_reads_them(project: Project, text: str, line: str | None) -> None:
    (project.folder / "params.yaml").write_text(text, encoding="utf-8")
    if line is None:
        check.check_commands(Path("params.yaml"))
        return
    with pytest.raises(ConfigError, match=line) as caught:
        check.check_commands(Path("params.yaml"))
    assert "\n" not in str(caught.value)


def test_dvc_runs_nothing_of_hostile_settings(project: Project) -> None:
    """By itself, by `dvc repro`, where nothing of ours has looked before DVC has pasted everything."""
    settings, text = project.settings, HOSTILE["separator"] + HOSTILE["substitution"] + HOSTILE["newline"]
    for place, is_key in PASTED:
        if "both" not in place[1:-1] and "sources" not in place[1:-1]:
            settings = changed(settings, place, is_key, text)
    project.write(settings)
    assert project.run(sys.executable, "-m", "dvc", "stage", "list").returncode == 0
    result = project.run(sys.executable, "-m", "dvc", "repro", "--keep-going")
    stages = sum("check --commands" in str(command) for command in project.all_commands(settings).values())
    assert result.stderr.count("would stand in cmd of the stage") == stages > 10
    with pytest.raises(FlowError, match=r"would stand in cmd of the stage") as caught:
        read_graph(project.folder)
    assert "\n" not in str(caught.value)
    assert not project.canary.exists()
    for stage in project.graph.values():  # without the check it would run
        inner = stage.get("do", stage)
        inner["cmd"] = inner["cmd"][-1] if isinstance(inner["cmd"], list) else inner["cmd"]
    project.write(changed(project.settings, ("anchor",), False, HOSTILE["substitution"]))
    project.run(sys.executable, "-m", "dvc", "repro", "--single-item", "train_primitive")
    assert project.canary.exists()


@pytest.mark.parametrize(("place", "is_key"), [one for one in PASTED if "sources" not in one[0][1:-1]][1:])
def test_no_name_leads_an_output_elsewhere(project: Project, root: Path, place: Place, is_key: bool) -> None:
    """DVC removes an output before it runs the command: here what the name leads to."""
    (project.folder / "dvc.yaml").write_bytes((root / "dvc.yaml").read_bytes())
    text = json.dumps(changed(project.settings, place, is_key, "/../../../precious"))
    (project.folder / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FlowError, match=r"/\.\./\.\./\.\./precious' would stand in outs of the stage ") as caught:
        read_graph(project.folder)
    assert "\n" not in str(caught.value)


def test_the_check_is_the_first_command_of_every_stage_that_holds_settings(root: Path) -> None:
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        command = stage.get("do", stage)["cmd"]
        if "${" in str(command):
            assert command[:-1] == [GUARD], name
        else:
            assert isinstance(command, str), name

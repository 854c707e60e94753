"""A stage fails when what it reads was edited while it ran, and only then."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fer_pipeline.commands.check import check_for
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_text
from fer_pipeline.run_inputs import RunInputs
from fer_pipeline.stage_runner import run_stage
from fer_pipeline.stages import synthesize


@pytest.fixture
def folder(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the demo's settings, a handful of portraits in each set."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for one in params["synthesize"]["sets"].values():
        one.update(splits=dict.fromkeys(one["splits"], 2), subjects=2)
    params["resources"] = {"device": "cpu", "workers": 1}
    write_text(tmp_path / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    write_text(tmp_path / "dvc.yaml", (root / "dvc.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edited_while_drawing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[dict[str, Any]], None]], str]:
    """Draws a set, edits the settings meanwhile, and returns the one line of the error, or nothing."""
    drawn = synthesize.run

    def run(edit: Callable[[dict[str, Any]], None]) -> str:
        def edit_and_run(*args: Any, **options: Any) -> Any:
            params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
            edit(params)
            write_text(Path("params.yaml"), yaml.safe_dump(params, sort_keys=False))
            return drawn(*args, **options)

        monkeypatch.setattr(synthesize, "run", edit_and_run)
        try:
            draw()
        except DataError as error:
            return str(error)
        return ""

    return run


def draw() -> None:
    options = {"name": "film", "out": Path("data/raw/film"), "truth": Path("data/truth/film.parquet")}
    _, require_unchanged = run_stage("synthesize", options, params=Path("params.yaml"))
    require_unchanged()


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (
            lambda p: p["synthesize"]["sets"]["film"].update(subjects=1),
            "synthesize.sets.film.subjects changed from 2 to 1",
        ),
        (lambda p: p.update(seeds=[5, 6]), r"seeds changed from \[10, 11, 12\] to \[5, 6\]"),
        (lambda p: p["synthesize"].update(misspelt=1), "unknown key 'misspelt'.*: it was edited"),
        (lambda p: p.clear(), "it was edited"),
    ],
)
def test_settings_of_a_running_stage(edited_while_drawing, edit: Any, line: str) -> None:
    fault = edited_while_drawing(edit)
    assert re.search(f"params.yaml.*{line} while synthesize ran.*run it again", fault), fault
    assert "\n" not in fault


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p["mine"].update(value=0.5),
        lambda p: p["resources"].update(workers=7),
        lambda p: p.update(targets=["film"]),
        lambda p: p["datasets"]["studio"].update(split="test"),
    ],
)
def test_settings_that_the_stage_does_not_use_may_be_edited(edited_while_drawing, edit: Any) -> None:
    assert edited_while_drawing(edit) == ""


def test_the_whole_section_counts_of_a_stage_of_which_others_know_a_part(folder: Path) -> None:
    """`distill` starts where the final models do, so that what stages share holds a part of `train_final`."""
    params = Path("params.yaml")
    inputs = RunInputs("train_final", params, {"recipe": "baseline"})
    inputs.add_settings(check_for("train_final", params, remembered=folder / "checked"))
    inputs.require_unchanged()
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    values["train_final"]["training"]["steps"] = 400
    write_text(params, yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(DataError, match=r"train_final.training.steps changed from 500 to 400"):
        inputs.require_unchanged()


def test_without_a_graph_all_that_stages_share_counts(edited_while_drawing, folder: Path) -> None:
    (folder / "dvc.yaml").unlink()
    assert edited_while_drawing(lambda p: p["resources"].update(workers=7)) == ""
    assert "targets" in edited_while_drawing(lambda p: p.update(targets=["film"]))


def test_an_edit_that_is_taken_back_counts_where_the_stage_has_used_it(folder: Path, monkeypatch) -> None:
    """The settings that ran are compared, not those that lay there when the stage began."""
    before = Path("params.yaml").read_text(encoding="utf-8")
    drawn = synthesize.run

    def run(*args: Any, **options: Any) -> Any:
        write_text(Path("params.yaml"), before)
        return drawn(*args, **options)

    monkeypatch.setattr(synthesize, "run", run)
    write_text(Path("params.yaml"), before.replace("subjects: 2", "subjects: 1"))
    with pytest.raises(DataError, match=r"synthesize\.sets\.\w+\.subjects changed from 1 to 2"):
        draw()
    draw()


def test_raw_files_of_align(folder: Path) -> None:
    inputs = align_inputs(folder)
    inputs.require_unchanged()
    picture = next(path for path in sorted(Path("data/raw/film").rglob("*")) if path.is_file())
    for edit in (lambda: picture.write_bytes(b"other"), lambda: picture.with_name("more").touch(), picture.unlink):
        inputs = align_inputs(folder)
        edit()
        with pytest.raises(DataError, match=rf"{picture.parent} changed while align ran"):
            inputs.require_unchanged()
    (Path("data/raw") / "street").mkdir()
    align_inputs(folder).require_unchanged()


@pytest.mark.parametrize("locked", [5, 500])
@pytest.mark.parametrize("model", ["models/primitive", "models/primitive/card.json"])
def test_what_was_made_with_other_settings_than_recorded_is_no_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locked: int, model: str
) -> None:
    card = Path("models/primitive/card.json")
    write_text(card, json.dumps({"training": {"settings": {"steps": 500}}}))
    params = {"params.yaml": {"train_primitive": {"training": {"steps": locked}}}}
    entry = {"cmd": "x", "params": params, "outs": [{"path": "models/primitive"}]}
    write_text(Path("dvc.lock"), yaml.safe_dump({"schema": "2.0", "stages": {"train_primitive": entry}}))
    options = {"name": "studio", "model": Path(model), "faces": Path("data/faces/studio")}
    others = {"name": "studio", "faces": Path("data/faces/studio")}
    checked = check_for("embed", Path("params.yaml"), remembered=folder / "checked")
    RunInputs("embed", Path("params.yaml"), options).add_settings(checked)  # by hand
    monkeypatch.setenv("DVC_STAGE", "embed@studio")
    RunInputs("embed", Path("params.yaml"), others).add_settings(checked)
    if locked == 500:
        RunInputs("embed", Path("params.yaml"), options).add_settings(checked)
        return
    with pytest.raises(DataError) as fault:
        RunInputs("embed", Path("params.yaml"), options).add_settings(checked)
    assert str(fault.value) == (
        "models/primitive/card.json was made with train_primitive.training.steps 500, and dvc.lock says 5: it was "
        "edited as train_primitive ended; run: dvc repro --force --single-item train_primitive, then this again"
    )


def align_inputs(folder: Path) -> RunInputs:
    if not Path("data/raw/film").exists():
        draw()
    options = {"name": "film", "out": Path("data/faces/film")}
    inputs = RunInputs("align", Path("params.yaml"), options)
    inputs.add_settings(check_for("align", Path("params.yaml"), remembered=folder / "checked"))
    return inputs


@pytest.mark.parametrize(
    ("added", "line"),
    [
        (b"\nADDED = 1\n", "fer_pipeline/core/samples.py changed while align ran"),
        (b"\n# a comment\n", None),
        (b"\n(", "samples"),
    ],
)
def test_code_of_a_running_stage(folder: Path, added: bytes, line: str | None) -> None:
    inputs = align_inputs(folder)
    path = Path(sys.modules["fer_pipeline.core.samples"].__file__ or "")
    inputs._code[path] += added  # as if the file had lost it since
    if line is None:
        inputs.require_unchanged()
    else:
        with pytest.raises(DataError, match=line):
            inputs.require_unchanged()
    inputs = align_inputs(folder)
    inputs._code[path.parents[1] / "strategies" / "a_tenth.py"] = b"was = 1"
    # That is loaded, but no part of what `align` does.
    assert "fer_pipeline.strategies.supervised" in sys.modules
    inputs._code[path.parents[1] / "strategies" / "supervised.py"] = b"was = 1"
    inputs.require_unchanged()
    (folder / "dvc.yaml").unlink()
    inputs = align_inputs(folder)
    inputs._code[path.parents[1] / "strategies" / "supervised.py"] = b"was = 1"
    with pytest.raises(DataError, match=r"strategies/supervised\.py changed"):
        inputs.require_unchanged()

"""What a stage is given: workers for its cores, outputs that are no links; what is said where a store has no locks."""

import os
from pathlib import Path
from typing import get_args

import pytest

from fer_pipeline import stage_runner
from fer_pipeline.cli import read_command
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import ProjectSettings, read_project
from fer_pipeline.stage_runner import limit_workers, run_stage
from fer_pipeline.stages import report

# The options of each stage that name what it writes, by the outputs in dvc.yaml.
WRITTEN = {
    "synthesize": ("out", "truth"),
    "align": ("out", "census", "contents"),
    "train_primitive": ("out",),
    "embed": ("out",),
    "score": ("out",),
    "mine": ("out",),
    "shard": ("out", "control", "second_rule", "true_labels", "reviewed"),
    "distill": ("out",),
    "train_final": ("out", "timings"),
    "evaluate": ("out", "metrics"),
}


@pytest.mark.parametrize(("stage", "option"), [(stage, one) for stage, some in WRITTEN.items() for one in some])
def test_an_output_that_is_a_link_is_refused_before_any_work(
    tmp_path: Path, root: Path, stage: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_runner, "check_for", lambda *_, **__: pytest.fail("work has begun"))
    command = read_command(root / "fer_pipeline" / "stages" / f"{stage}.py")
    options = {
        one.name: tmp_path / one.name for one in command.parameters if "Path" in str(get_args(one.annotation)[0])
    }
    options["store"] = tmp_path / "store"
    (tmp_path / "store").symlink_to(tmp_path)  # which may be one
    (tmp_path / option).symlink_to(tmp_path / "big")
    with pytest.raises(DataError, match=rf"{option} is a link to {tmp_path / 'big'}; write to that place by its name"):
        run_stage(stage, options, params=tmp_path / "params.yaml")


def test_the_report_goes_into_a_folder_that_may_be_a_link_but_its_parts_may_not(
    tmp_path: Path, project: ProjectSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ReportData", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "big").mkdir()
    (tmp_path / "reports").symlink_to(tmp_path / "big")
    for name in ("index.html", "tables", "figures"):
        (tmp_path / "big" / name).symlink_to(tmp_path)
        with pytest.raises(DataError, match=rf"reports/{name} is a link to "):
            report.run(report.Config(), project, out=tmp_path / "reports", root=tmp_path)
        (tmp_path / "big" / name).unlink()


@pytest.fixture
def project(root: Path) -> ProjectSettings:
    return read_project(root / "profiles" / "demo.yaml")


def _with(project: ProjectSettings, **resources: object) -> ProjectSettings:
    return project.model_copy(update={"resources": project.resources.model_copy(update=resources)})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_workers_are_at_most_three_for_two_of_the_cores_that_were_given(project: ProjectSettings) -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert limit_workers(_with(project, workers=16)).resources.workers == 1
        assert limit_workers(_with(project, workers=16, parallel="data")).resources.workers == 16
    finally:
        os.sched_setaffinity(0, mine)
    assert limit_workers(_with(project, workers=1)).resources.workers == 1
    assert limit_workers(_with(project, workers=4096)).resources.workers == len(mine) + len(mine) // 2

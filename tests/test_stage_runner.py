"""A stage takes at most three workers for two of the cores that it was given."""

import os
from pathlib import Path

import pytest

from fer_pipeline.core.settings import ProjectSettings, read_project
from fer_pipeline.stage_runner import limit_workers


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

"""Workers and cores: a stage takes no more workers than the cores that it was given."""

import os
from pathlib import Path

import pytest

from fer_pipeline.core.settings import World, read_world
from fer_pipeline.stage_commands import _within_cores


@pytest.fixture
def world(root: Path) -> World:
    return read_world(root / "profiles" / "demo.yaml")


def _with(world: World, **resources: object) -> World:
    return world.model_copy(update={"resources": world.resources.model_copy(update=resources)})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_workers_are_no_more_than_the_cores_that_were_given(world: World) -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert _within_cores(_with(world, workers=16)).resources.workers == 1
        assert _within_cores(_with(world, workers=16, parallel="data")).resources.workers == 16
    finally:
        os.sched_setaffinity(0, mine)
    assert _within_cores(_with(world, workers=1)).resources.workers == 1
    assert _within_cores(_with(world, workers=4096)).resources.workers == len(mine)

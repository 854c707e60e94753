"""What dead runs leave on a real server: they are marked, and nothing else is."""

import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Running

from pipelines import cleanup
from pipelines.cleanup import clean_up, tag_run, workspace_tag

LOG = logging.getLogger("test")


@flow
def work() -> None:
    """Stands for any flow."""


@task
def step() -> None:
    """Stands for any task."""


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        yield client


def state_of(client: SyncPrefectClient, run: UUID) -> str:
    state = client.read_flow_run(run).state
    assert state is not None
    return state.name


def test_only_what_died_in_this_workspace_is_marked(
    tmp_path: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text('{"write": {')
    runs = {
        name: client.create_flow_run(work, name=name, tags=["mine"], state=state).id
        for name, state in {
            "this": Running(), "dead": Running(), "half-cancelled": Cancelling(), "ending": Running(),
            "over": Completed(), "elsewhere": Running(), "unsigned": Running(),
        }.items()
    }  # fmt: skip
    for name in runs.keys() - {"elsewhere", "unsigned"}:
        tag_run(tmp_path, runs[name])
    tag_run(tmp_path / "elsewhere", runs["elsewhere"])
    assert sorted(client.read_flow_run(runs["dead"]).tags) == sorted(["dvc", "mine", workspace_tag(tmp_path)])
    tasks = {
        name: client.create_task_run(step, runs["dead"], dynamic_key=name, state=state).id
        for name, state in {"at work": Running(), "done": Completed(name="Cached")}.items()
    }

    def settle(_: float) -> None:
        client.set_flow_run_state(runs["ending"], Completed(), force=True)

    monkeypatch.setattr(cleanup.time, "sleep", settle)
    clean_up(tmp_path, runs["this"], LOG)
    assert {name: state_of(client, run) for name, run in runs.items()} == {
        "this": "Running", "dead": "Crashed", "half-cancelled": "Crashed", "ending": "Completed",
        "over": "Completed", "elsewhere": "Running", "unsigned": "Running",
    }  # fmt: skip
    states = {name: client.read_task_run(number).state for name, number in tasks.items()}
    assert {name: state and state.name for name, state in states.items()} == {"at work": "Crashed", "done": "Cached"}
    assert not (tmp_path / ".dvc" / "tmp" / "rwlock").exists()
    assert "the run 'dead' ended without reporting it" in caplog.text
    caplog.clear()
    clean_up(tmp_path, runs["this"], LOG)  # a second time there is nothing to do
    assert caplog.text == ""

"""Shared ground of the tests: one thread, no network, the sample faces where they are present, a Prefect server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.prefect_server import Api, Server, port_of_nobody, prefect_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")

ROOT = Path(__file__).resolve().parent.parent

# Files that take long, the longest first: so both processes end at about the same time.
LONGEST = (
    "pipelines/test_signals.py",
    "walk/test_graph.py",
    "pipelines/test_refresh.py",
    "pipelines/test_reproduce.py",
    "pipelines/test_serve.py",
    "fuzz/test_fuzz.py",
    "stages/test_train_final.py",
    "stages/test_distill.py",
    "stages/test_train_primitive.py",
    "training/test_group.py",
    "stages/test_resume.py",
    "inspection/test_pages.py",
    "health/test_repair.py",
    "training/test_phases.py",
    "sharding/test_ray.py",
    "fuzz/test_memory.py",
    "training/test_fit.py",
    "strategies/test_contract.py",
    "alignment/test_cascade.py",
    "commands/test_check.py",
    "synthesis/test_detection.py",
    "alignment/test_plan.py",
    "stages/test_full_disk.py",
    "reporting/test_page.py",
    "benchmarks/test_gpu_sides.py",
    "benchmarks/test_pools.py",
)

servers = pytest.StashKey[Server]()
served = pytest.StashKey[set[Path]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with tests that need the server first, of these and of the rest the longest first."""
    config.stash[served] = {item.path for item in items if "server" in getattr(item, "fixturenames", ())}
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path not in config.stash[served], places.get(item.path, len(places))))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends the server when no test will need it any more: brisk as it is, it takes a tenth of a core."""
    if item.path not in item.config.stash[served] and servers in item.config.stash:
        item.config.stash[servers].end()
        del item.config.stash[servers]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def sample_faces() -> Path:
    """The folder of sample photographs, which the project does not ship."""
    folder = Path(os.environ.get("FER_SAMPLE_FACES", ROOT.parent / "shared" / "faces"))
    if not folder.is_dir():
        pytest.skip(f"no sample faces in {folder}; set FER_SAMPLE_FACES")
    return folder


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Installs weights as a user would, once a session; returns the path of their first file."""
    from fer_pipeline.commands import weights as command  # brings torch
    from fer_pipeline.core.errors import DataError
    from fer_pipeline.networks import pretrained

    folder, failed = tmp_path_factory.mktemp("weights"), dict[str, str]()

    def install_once(name: str) -> Path:
        before = Path.cwd()
        os.chdir(folder)
        try:
            if name not in failed:
                command.run("install", [name])
            return pretrained.locate(name)[0].resolve()
        except DataError as error:  # no npm, or no registry in reach
            failed[name] = str(error)
        finally:
            os.chdir(before)
        pytest.skip(failed[name])

    return install_once


@pytest.fixture(scope="session")
def environment_of() -> Callable[[Path], dict[str, str]]:
    """Makes the environment of programs whose Prefect home is a given folder."""
    return prefect_environment


@pytest.fixture
def free_port() -> int:
    """A port of the loopback that nobody holds now."""
    return port_of_nobody()


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of programs that speak with `server`: its home and its address."""
    home = tmp_path_factory.mktemp("prefect")
    return {**prefect_environment(home), "PREFECT_API_URL": f"http://127.0.0.1:{port_of_nobody()}/api"}


@pytest.fixture(scope="session")
def server(server_environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the API of a bare server, which ends with the last file that needs it."""
    started = request.config.stash[servers] = Server(server_environment)
    try:
        started.wait()
        yield started.url
    finally:
        started.end()


@pytest.fixture
def api(server: str) -> Api:
    """What the server answers."""
    return Api(server)

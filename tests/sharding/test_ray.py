"""Jobs on a Ray cluster: the same bytes as here, whoever dies, and one line where no cluster can be had."""

import hashlib
import http.server
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.settings import DatasetSettings, RaySettings, Resources
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.sharding import ray as backend
from fer_pipeline.sharding import ray_cleanup
from fer_pipeline.sharding.jobs import WORKER_DIED, Job, Outcome
from fer_pipeline.sharding.local import Worker, WorkerPool
from fer_pipeline.stages import align, embed
from tests.project import project_settings

# Read when Ray is imported: the cluster of these tests lives on the loopback, behind a token.
os.environ |= backend.QUIET | backend.LOOPBACK
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ray = pytest.importorskip("ray")

SECONDS_TO_START = 120
SECONDS_TO_END = 30
CLASSES = ("anger", "fear", "neutral")

MAKERS = """
import os
import signal
import time
from functools import partial

from fer_pipeline.core.errors import DataError


def begin(notes, device):
    (notes / f"begun-{os.getpid()}").touch()
    return partial(make, notes)


def make(notes, job, path, advance):
    if job.payload == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.payload == "kill once" and not (notes / "killed").exists():
        advance(3)
        (notes / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.payload == "fault":
        advance(2)
        path.write_text("half")
        raise ValueError("of the\\ndata")
    if job.payload == "endless":
        path.write_text("half")
        while True:
            time.sleep(0.1)
            advance(0)
    path.write_text(f"{job.name}: {os.environ['OMP_NUM_THREADS']} thread in {os.getcwd()}")
    advance(job.items)


def refuse(device):
    raise DataError("the model is damaged")


def die(device):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of one node."""
    folder = Path(tempfile.mkdtemp(prefix="ray-")).resolve()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head"]
    options = ["--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}", "--num-cpus=2", "--num-gpus=0"]
    more = ["--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    log = folder / "start.log"
    try:
        with log.open("w") as stream:
            subprocess.run([*command, *options, *more], stdout=stream, stderr=stream, check=True, cwd="/")
        yield address
    finally:
        ray_cleanup.remove(folder, driver=os.getpid())


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "makers_of_a_test.py").write_text(MAKERS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import makers_of_a_test  # pyright: ignore[reportMissingImports]

    ray.cloudpickle.register_pickle_by_value(makers_of_a_test)  # the workers do not find it by its name
    yield makers_of_a_test
    ray.cloudpickle.unregister_pickle_by_value(makers_of_a_test)
    sys.modules.pop("makers_of_a_test")


def job(number: int, payload: str = "") -> Job[str]:
    return Job(f"{number:032x}", f"part-{number:05d}", 7, payload)


def resources(address: str | None, *, retries: int = 2, **more: Any) -> Resources:
    asked = RaySettings(address=address, **more)
    return Resources(device="cpu", workers=2, backend="ray", retries=retries, ray=asked)


def spread(begin: Any, jobs: Any, store: Path, where: Resources, told: list[int]) -> Iterator[Any]:
    return backend.run_jobs(
        jobs, begin, store=Store(store, owner="stage@set"), resources=where, preload="torch", advance=told.append
    )


def test_every_job_is_made_whoever_dies(tmp_path: Path, cluster: str, makers: ModuleType) -> None:
    payloads = {2: "fault", 4: "kill once", 6: "kill", 9: "fault"}
    jobs = [job(number, payloads.get(number, "")) for number in range(14)]
    told: list[int] = []
    begin = partial(makers.begin, tmp_path)
    found = {o.job.name: o.fault for o in spread(begin, jobs, tmp_path / "store", resources(cluster), told)}
    faults = {"fault": "ValueError: of the data", "kill": WORKER_DIED}
    assert found == {one.name: faults.get(one.payload) for one in jobs}
    assert sum(told) == 7 * len(jobs)
    store = Store(tmp_path / "store")
    for one in jobs:
        assert store.has(one.key) == (one.payload not in faults)
        if one.payload not in faults:
            assert store.shard(one.key).read_text() == f"{one.name}: 1 thread in {Path.cwd()}"
    assert not list((tmp_path / "store").rglob("*.tmp"))
    # The one job kills one worker and the other three; besides the dead there are never more than two.
    assert 1 + 3 <= len(list(tmp_path.glob("begun-*"))) <= 1 + 3 + 2


class FakeWorker(Worker):
    """Says that it is ready when it is first read from; a job that kills it before takes this message with it."""

    takes_job_early = False

    def __init__(self, pool: "FakePool") -> None:
        self.device, self.pool, self.fate = "cpu", pool, pool.fates.pop(0)
        self.channel = None if self.fate == "waits" else self

    def send(self, job: Job[Any]) -> None:
        self.job, self.reported = job, 0

    def receive(self) -> Any:
        if self.job is None and self.fate == "lives":
            return None
        if self.job is None:
            raise EOFError
        if self.job.payload == "kill" and self.pool.kills:
            self.pool.kills -= 1
            raise EOFError
        return Outcome(self.job, None, 0.0)

    def ask_to_stop(self) -> None:
        pass

    def stop(self) -> None:
        pass


class FakePool(WorkerPool):
    """Its workers live, die while they load or wait for a place, by turns; the job "kill" kills `kills` of them."""

    retry_alone = False

    def __init__(self, kills: int, fates: list[str]) -> None:
        super().__init__(lambda device: FakeWorker(self), ["cpu", "cpu"], 2, lambda items: None)
        self.kills, self.fates = kills, fates

    def wait(self) -> list[Any]:
        heard = [worker.channel for worker in self._workers if worker.channel and (worker.job or not worker.ready)]
        assert heard, "this would wait for ever"
        return heard


@pytest.mark.parametrize(
    ("killing", "kills", "fates", "fault"),
    [
        (0, 3, ["lives"] * (2 + 3), WORKER_DIED),
        (0, 1, ["lives", "lives", "waits"], None),
        (5, 1, ["lives", "dies", "dies", "dies", "dies", "lives"], None),
    ],
    ids=["given up after three", "no place for another worker", "after a host on which none can load"],
)
def test_a_lost_job_goes_to_a_worker_that_is_ready(
    killing: int, kills: int, fates: list[str], fault: str | None
) -> None:
    jobs = [job(number, "kill" if number == killing else "") for number in range(6)]
    found = {outcome.job.name: outcome.fault for outcome in FakePool(kills, fates).run(iter(jobs))}
    assert found == {one.name: fault if one.payload else None for one in jobs}
    assert not fates


def test_a_lost_worker_may_take_as_long_to_come_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own, of a cluster that has no place: 100 s are waited, from when a worker was last ready."""
    clock, coming = iter([0, 99, 1000, 1099, 1101]), list[object]()
    monkeypatch.setattr(backend, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(backend, "HeadMonitor", lambda address: SimpleNamespace(check=lambda: None, lost=False))
    fake = SimpleNamespace(
        cluster_resources=dict,
        get_runtime_context=lambda: SimpleNamespace(gcs_address="head:6379"),
        remote=lambda **options: lambda actor: None,
        wait=lambda channels, timeout: (coming, channels),
    )
    where = resources("head:6379", wait_seconds=100)
    pool = backend._ActorPool(fake, pytest.fail, (Path(), "", Path()), where, lambda items: None)
    assert pool.wait() == []
    pool._workers = [SimpleNamespace(channel=0, ready=True)]  # pyright: ignore[reportAttributeAccessIssue]
    assert pool.wait() == []
    pool._workers = []
    assert pool.wait() == []
    coming.append("that it is ready")
    assert pool.wait() == coming
    coming.clear()
    with pytest.raises(ConfigError, match="no Ray worker came within 100 s"):
        pool.wait()


def test_the_bytes_are_those_of_local_workers(tmp_path: Path, cluster: str) -> None:
    """`align`, then `embed` of what it wrote, through the stages themselves."""
    images = tmp_path / "raw"
    images.mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
    names = "\n".join(f"{number:02d}.png,{CLASSES[number % 3]}" for number in range(24))
    (tmp_path / "labels.csv").write_text(f"image,emotion\n{names}\n", encoding="utf-8")
    options = {"csv": "labels.csv", "images": "raw", "label": "emotion"}
    dataset = DatasetSettings(adapter="csv", path=tmp_path, split="train", options=options)
    network = NetworkSettings(name="small", width=4, size=32)
    card = Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=32))
    save_checkpoint(tmp_path / "model", build(network, len(CLASSES), seed=0), card)
    settings = {"crop": 32, "prealigned": True, "shard_rows": 6, "cut": "count"}
    found = {}
    for kind, where in {"local": Resources(device="cpu", workers=1), "ray": resources(cluster)}.items():
        place, store = tmp_path / kind, tmp_path / f"store-{kind}"
        project = project_settings(classes=CLASSES, datasets={"set": dataset}, resources=where)
        config = align.Config.model_validate(settings)
        align.run(config, project, name="set", out=place / "faces", store=store)
        made = embed.run(
            embed.Config(),
            project,
            name="set",
            faces=place / "faces" / "train",
            model=tmp_path / "model",
            out=place / "embeddings",
            store=store,
        )
        assert made.counts["shards"] == 4
        found[kind] = hashes(place)
    assert found["ray"] == found["local"]
    assert sum(name.endswith((".parquet", ".arrow")) for name in found["ray"]) >= 8


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_that_is_left_stops_its_workers(tmp_path: Path, cluster: str, makers: ModuleType) -> None:
    jobs = [job(0, "endless"), job(1), *(job(number, "endless") for number in range(2, 5))]
    outcomes = spread(partial(makers.begin, tmp_path), jobs, tmp_path / "store", resources(cluster), [])
    assert next(outcomes).job.name == "part-00001"
    await_true(lambda: list((tmp_path / "store" / "shards").rglob("*.tmp")))
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not list((tmp_path / "store").rglob("*.tmp")), "a shard is left without a trace"
    await_true(lambda: not any(is_running(int(p.name.removeprefix("begun-"))) for p in tmp_path.glob("begun-*")))


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path, cluster: str, makers: ModuleType) -> None:
    with pytest.raises(DataError, match="the model is damaged"):
        list(spread(makers.refuse, [job(0), job(1)], tmp_path / "store", resources(cluster), []))
    with pytest.raises(PipelineError, match="no worker can load what it needs"):
        list(spread(makers.die, [job(0)], tmp_path / "store", resources(cluster, retries=0), []))


def test_workers_that_never_come_are_not_waited_for(tmp_path: Path, cluster: str, makers: ModuleType) -> None:
    where = resources(cluster, cpus_per_worker=64, wait_seconds=1)
    with pytest.raises(ConfigError, match="one asks for 64 CPUs and 0 GPUs, the cluster has 2 and 0 in all"):
        list(spread(partial(makers.begin, tmp_path), [job(0)], tmp_path / "store", where, []))


def test_a_host_that_does_not_see_the_store_is_refused(tmp_path: Path) -> None:
    begin = partial(pytest.fail, "begun")
    options: dict[str, Any] = {"owner": "", "folder": tmp_path}
    error = backend.Actor(begin, "cpu", tmp_path / "store" / "token", **options).start()
    assert isinstance(error, ConfigError)
    assert f"does not see the store {tmp_path / 'store'}" in str(error)


def test_a_cluster_that_is_lost_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls without an answer; one that is answered between them begins the count anew."""
    monkeypatch.setattr(backend, "SECONDS_BETWEEN_CALLS", 0)
    replies = iter([False, False, True, False, False, False])
    monkeypatch.setattr(backend, "answers", lambda address: next(replies))
    head = backend.HeadMonitor("head:6379")
    for _ in range(5):
        head.check()
    with pytest.raises(PipelineError, match=r"head:6379 no longer answers; finished shards are kept"):
        head.check()
    assert head.lost


@pytest.mark.parametrize("kind", ["nobody", "mute", "another service"])
def test_an_address_that_does_not_answer_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(backend, "SECONDS_TO_ANSWER", 0.5)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        address = f"127.0.0.1:{server.server_address[1]}"
        if kind == "another service":
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        if kind == "nobody":
            server.server_close()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}; .*RAY_ADDRESS"):
            next(spread(pytest.fail, [job(0)], tmp_path / "store", resources(None), []))
        if kind == "another service":
            server.shutdown()
    assert not ray.is_initialized()


def test_a_running_head_answers(cluster: str) -> None:
    assert backend.answers(cluster)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379"])
def test_an_address_of_another_form_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="give host:port"):
        next(spread(pytest.fail, [job(0)], tmp_path, resources(address), []))


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="say device cuda instead of 'cuda:1'"):
        next(spread(pytest.fail, [job(0)], tmp_path, Resources(device="cuda:1", backend="ray"), []))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[ray\]'"):
        next(spread(pytest.fail, [job(0)], tmp_path, resources("head:6379"), []))


def test_nothing_to_make_asks_no_cluster(tmp_path: Path) -> None:
    assert list(spread(pytest.fail, [], tmp_path, resources("nowhere:1"), [])) == []


DRIVER = """
import os
import time
from functools import partial
from pathlib import Path

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.jobs import Job
from fer_pipeline.sharding.ray import run_jobs


def begin(notes, device):
    logs = Path(os.readlink("/proc/self/fd/1"))  # <folder of this Ray>/session_…/logs/worker-….out
    Path(notes, f"worker-{os.getpid()}").write_text(str(logs.parents[2]))
    return lambda job, path, advance: time.sleep(1000)


if __name__ == "__main__":
    jobs = [Job(f"{number:032x}", "j", 1, None) for number in range(4)]
    list(run_jobs(jobs, partial(begin, os.getcwd()), store=Store(Path("store")), preload="torch", advance=print,
                resources=Resources(device="cpu", workers=2, backend="ray")))
"""


def test_a_ray_of_our_own_ends_with_its_driver(tmp_path: Path) -> None:
    """Killed without a word: of a dozen processes and their files nothing is left."""
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home = tmp_path / "home"
    home.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "driver.py"], cwd=tmp_path, env=plain | {"PYTHONPATH": os.getcwd(), "HOME": str(home)}
    )
    await_true(lambda: driver.poll() is not None or len(list(tmp_path.glob("worker-*"))) == 2)
    assert driver.poll() is None
    folder = Path(next(tmp_path.glob("worker-*")).read_text())
    processes = ray_cleanup.processes_of(folder) - {driver.pid}
    workers = {int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*")}
    assert processes >= workers
    assert len(processes) > 4
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    await_true(lambda: not any(is_running(process) for process in processes))
    await_true(lambda: not folder.exists())
    assert not list(home.iterdir()), "no token is left in the home folder"


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_true(what: Any) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)

"""Commands that a signal ends: nothing of them is left, the last lines say so, and the next run goes on.

Real terminals, servers and stages. Without PREFECT_API_URL each command has a server of its own, which has to end with
it.
"""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.prefect_server import Api
from tests.processes import words_of

GRAPH = """
stages:
  first:
    cmd: echo run >> ${FOLDER}/count && echo 1 > first.txt
    params: [size]
    outs: [first.txt]
  long:
    cmd: python long.py
    deps: [first.txt, long.py]
    outs: [long.txt]
"""
LONG = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(os.environ["FOLDER"])
if (folder / "open").exists():
    Path("long.txt").write_text("through")
    sys.exit()
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
(folder / "begun").touch()
time.sleep(600)
"""
SLOW_IMPORT = """
import os, time
from pathlib import Path
(Path(os.environ["FOLDER"]) / "begun").touch()
time.sleep(600)
"""
START_SECONDS, END_SECONDS = 300, 60
CTRL_C = b"\x03"
COMMANDS = {"reproduce": [], "refresh": [], "sweep": ["size=2,3"]}
ADVICE = "nothing of it is left running. Run the same command again to go on from there."
ENDED = r"ended while long ran; 2 stages: 1 (Completed|Cached), 1 Cancelled"


def _as_in_a_shell(on_terminal: bool) -> None:
    """Takes the terminal and heeds all signals, also where the tests run in the background of a script."""
    if on_terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Program:
    """A command in a session of its own, on a terminal or, as in cron, on none; `FOLDER` marks its processes."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], *, on_terminal: bool) -> None:
        self.output, self.on_terminal, self.mark = bytearray(), on_terminal, environment["FOLDER"]
        self.begun = Path(self.mark) / "begun"
        self.keyboard, written = pty.openpty() if on_terminal else os.pipe()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=written if on_terminal else subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
            preexec_fn=lambda: _as_in_a_shell(on_terminal),
        )
        os.close(written)
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # nobody writes to it any more
            while not self._closed.is_set():
                if select.select([self.keyboard], [], [], 0.1)[0]:
                    if not (piece := os.read(self.keyboard, 4096)):
                        return
                    self.output += piece

    def close(self) -> None:
        """Closes the terminal."""
        if not self._closed.is_set():
            self._closed.set()
            self._reader.join()
            os.close(self.keyboard)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal as it comes there: a key of the terminal, its end, or from another program."""
        if self.on_terminal and number is signal.SIGINT:
            os.write(self.keyboard, CTRL_C)
        elif self.on_terminal and number is signal.SIGHUP:
            self.close()
        else:
            self.process.send_signal(number)

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    def living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FOLDER") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def until(self, true: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, (self.text[-3000:], [*map(words_of, self.living())])
            time.sleep(0.1)

    def stands(self) -> None:
        """Wait until the stage runs, or what is imported slowly."""
        self.until(lambda: self.begun.exists() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.text[-3000:]
        self.begun.unlink()

    def servers(self) -> list[str]:
        """The ports of the servers that came with the flow."""
        found = [*map(words_of, self.living())]
        return [words[words.index("--port") + 1] for words in found if "uvicorn" in words]

    def flow(self) -> psutil.Process:
        """The process that does the work, below the one that waits for it."""
        commands = [one for one in self.living() if words_of(one)[1:3] == ["-m", "pipelines"]]
        (flow,) = [one for one in commands if one.pid != self.process.pid]
        return flow

    def ended(self, code: int, *lines: str) -> None:
        """See that nothing is left, that the exit code is right and that the last lines are these."""
        assert self.process.wait(END_SECONDS) == code, self.text[-3000:]
        self.until(lambda: not self.living(), END_SECONDS)
        self._reader.join(END_SECONDS)
        if lines and not self._closed.is_set():
            after = self.text.rpartition("^C")[2].splitlines()[-len(lines) :]  # a terminal shows the keys
            assert all(re.fullmatch(*pair) for pair in zip(lines, after, strict=True)), self.text[-3000:]
        assert "Traceback" not in self.text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Prefect for all: to make its database takes longer than to start a server."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def start(
    request: pytest.FixtureRequest,
    new_repository: Callable[..., Path],
    environment_of: Callable[[Path], dict[str, str]],
    tmp_path: Path,
    home: Path,
    root: Path,
) -> Callable[..., Program]:
    """Starts commands in a workspace whose second stage does not end while there is no file `open`."""
    files = {"dvc.yaml": GRAPH, "long.py": LONG, "params.yaml": "size: 1\n", ".gitignore": "/*.txt\n"}
    folder = new_repository(tmp_path / "workspace", {**files, "dvc.yaml": GRAPH.replace("${FOLDER}", str(tmp_path))})

    def make(name: str, *, on_terminal: bool = True, imports: Path | None = None, **environment: str) -> Program:
        paths = os.pathsep.join(map(str, filter(None, [imports, root])))
        more = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "FOLDER": str(tmp_path), **environment}
        command = [sys.executable, "-m", "pipelines", name, *COMMANDS[name]]
        program = Program(command, folder, {**environment_of(home), **more}, on_terminal=on_terminal)

        def end() -> None:
            for process in program.living():
                with suppress(psutil.Error):
                    process.kill()
            program.process.wait()
            program.close()

        request.addfinalizer(end)
        return program

    return make


def by(number: signal.Signals) -> str:
    return re.escape(f"ended by {number.name}; {ADVICE}")


def _is_ended_by(number: signal.Signals, program: Program) -> None:
    program.stands()
    [port] = program.servers()
    with pytest.raises(urllib.error.HTTPError, match="401"):  # it answers the flow alone
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/flows/name/reproduce", timeout=START_SECONDS)
    program.send(number)
    if number is signal.SIGKILL:
        program.ended(-number)
    else:
        program.ended(128 + number, ENDED, by(number))


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "none"])
def test_a_signal_ends_all_and_the_next_run_goes_on(
    start: Callable[..., Program], on_terminal: bool, tmp_path: Path
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        _is_ended_by(number, start("reproduce", on_terminal=on_terminal))
    (tmp_path / "open").touch()
    program = start("reproduce", on_terminal=on_terminal)
    program.ended(0, "2 stages: 1 Cached, 1 Completed")
    assert (tmp_path / "count").read_text() == "run\n"
    assert (tmp_path / "workspace" / "long.txt").read_text() == "through"


@pytest.mark.parametrize(
    ("name", "number", "lines"),
    [
        ("reproduce", signal.SIGINT, ENDED),
        ("refresh", signal.SIGHUP, f"not refreshed: {ENDED}"),
        ("sweep", signal.SIGTERM, f"2 of 2 experiments are not finished: size-2 {ENDED}"),
    ],
)
def test_a_server_is_told_that_a_person_ended_the_run(
    start: Callable[..., Program], server: str, api: Api, tmp_path: Path, name: str, number: signal.Signals, lines: str
) -> None:
    program = start(name, on_terminal=False, PREFECT_API_URL=server)
    program.stands()
    assert program.servers() == []
    program.send(number)
    program.ended(128 + number, lines, by(number))
    runs = api.ask("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1 if name == "reproduce" else 2})
    assert {run["state"]["type"] for run in runs} == {"CANCELLED"}
    [reproduced] = [run["id"] for run in runs if run["name"].startswith("reproduce ·")]
    label = "size-2: " if name == "sweep" else ""
    assert api.states(reproduced) == {f"{label}first": "Completed", f"{label}long": "Cancelled"}


def test_more_than_one_ctrl_c_is_one_line_too(start: Callable[..., Program]) -> None:
    program = start("reproduce")
    program.stands()
    while program.process.poll() is None:  # two that come at the same moment are one signal
        program.send(signal.SIGINT)
        time.sleep(0.2)
    program.ended(130, by(signal.SIGINT))


def test_a_killed_flow_takes_all_with_it(start: Callable[..., Program]) -> None:
    program = start("reproduce")
    program.stands()
    program.flow().kill()
    program.ended(137, re.escape(f"killed by signal 9 (SIGKILL); {ADVICE}"))


@pytest.mark.parametrize(
    ("module", "code"),
    [("typer", -signal.SIGINT), ("prefect", 130), ("uvicorn", 130)],
    ids=["imports", "imports of the flow", "start of the server"],
)
def test_a_ctrl_c_before_the_flow_has_begun_is_no_traceback(
    start: Callable[..., Program], tmp_path: Path, module: str, code: int
) -> None:
    """A shell takes the death by the signal itself for 130, too."""
    (tmp_path / "imports").mkdir()
    (tmp_path / "imports" / f"{module}.py").write_text(SLOW_IMPORT)
    program = start("reproduce", imports=tmp_path / "imports")
    program.stands()
    program.send(signal.SIGINT)
    program.ended(code, *([by(signal.SIGINT)] if code > 0 else []))

"""Commands that a signal ends: nothing of them is left, and the last line says so. Real terminals, servers, stages.

Without PREFECT_API_URL: each command has a server of its own, which has to end with it.
"""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

GRAPH = """
stages:
  long:
    cmd: python long.py
    deps: [long.py]
    params: [size]
    outs: [long.txt]
"""
LONG = """
import os, signal, subprocess, sys, time
from pathlib import Path
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
Path(os.environ["BEGUN"]).touch()
time.sleep(600)
"""
START_SECONDS, END_SECONDS = 300, 60
CTRL_C = b"\x03"
COMMANDS = {"reproduce": [], "refresh": [], "sweep": ["size=2"]}
ADVICE = "nothing of it is left running. Run the same command again to go on from there."


def _as_in_a_shell() -> None:
    """Takes the terminal and heeds all signals, also where the tests run in the background of a script."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A command on a terminal of its own; `BEGUN` marks every process that it starts."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], begun: Path) -> None:
        self.output, self.begun = bytearray(), begun
        self.keyboard, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "BEGUN": str(begun)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_as_in_a_shell,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # nobody writes to it any more
            while piece := os.read(self.keyboard, 4096):
                self.output += piece

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    def living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("BEGUN") == str(self.begun) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def until(self, true: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, (self.text[-3000:], [one.cmdline() for one in self.living()])
            time.sleep(0.1)

    def stands(self) -> None:
        """Wait until the stage runs; its server does so, too."""
        self.until(lambda: self.begun.exists() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.text[-3000:]
        assert any("uvicorn" in process.cmdline() for process in self.living())

    def flow(self) -> psutil.Process:
        """The process that does the work, below the one that waits for it."""
        commands = [one for one in self.living() if one.cmdline()[1:3] == ["-m", "pipelines"]]
        (flow,) = [one for one in commands if one.pid != self.process.pid]
        return flow

    def ended(self, code: int, how: str = "") -> None:
        """See that nothing is left, that the exit code is right and that the last line says `how` it ended."""
        assert self.process.wait(END_SECONDS) == code, self.text[-3000:]
        self.until(lambda: not self.living(), END_SECONDS)
        self._reader.join(END_SECONDS)
        if how:
            last = self.text.splitlines()[-1].replace("^C", "")  # a terminal shows the keys
            assert last == f"{how}; {ADVICE}", self.text[-3000:]
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
) -> Callable[[str], Terminal]:
    """Starts a command in a workspace whose only stage does not end, and waits until it has begun."""

    def make(name: str) -> Terminal:
        files = {"dvc.yaml": GRAPH, "long.py": LONG, "params.yaml": "size: 1\n", ".gitignore": "/long.txt\n"}
        folder = new_repository(tmp_path / "workspace", files)
        environment = {**environment_of(home), "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "pipelines", name, *COMMANDS[name]]
        terminal = Terminal(command, folder, environment, tmp_path / "begun")

        def end() -> None:
            for process in terminal.living():
                with suppress(psutil.Error):
                    process.kill()
            terminal.process.wait()
            os.close(terminal.keyboard)

        request.addfinalizer(end)
        terminal.stands()
        return terminal

    return make


@pytest.mark.parametrize(
    ("name", "number"), [("reproduce", signal.SIGTERM), ("refresh", signal.SIGHUP), ("sweep", signal.SIGTERM)]
)
def test_a_signal_ends_all(start: Callable[[str], Terminal], name: str, number: signal.Signals) -> None:
    terminal = start(name)
    terminal.process.send_signal(number)
    terminal.ended(128 + number, f"ended by {number.name}")


def test_a_ctrl_c_ends_all(start: Callable[[str], Terminal]) -> None:
    terminal = start("reproduce")
    os.write(terminal.keyboard, CTRL_C)
    terminal.ended(130, "ended by SIGINT")


def test_more_than_one_ctrl_c_is_one_line_too(start: Callable[[str], Terminal]) -> None:
    terminal = start("reproduce")
    while terminal.process.poll() is None:  # two that come at the same moment are one signal
        os.write(terminal.keyboard, CTRL_C)
        time.sleep(0.2)
    terminal.ended(130, "ended by SIGINT")


def test_a_killed_flow_takes_all_with_it(start: Callable[[str], Terminal]) -> None:
    terminal = start("reproduce")
    terminal.flow().kill()
    terminal.ended(137, "killed by signal 9 (SIGKILL)")


def test_a_killed_command_takes_all_with_it(start: Callable[[str], Terminal]) -> None:
    terminal = start("reproduce")
    terminal.process.kill()
    terminal.ended(-signal.SIGKILL)

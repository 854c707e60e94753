"""One side in a process of its own, as the harness sees it. In: the side. Out: rounds, or a SideError of one line."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.gauges import memory_mb
from benchmarks.harness.rounds import Rounds, Side, SideError

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
SAMPLE_SECONDS = 0.02
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Process:
    """A child that answers: `log` is what the side printed, `patience` the seconds that an answer may take."""

    child: subprocess.Popen[bytes]
    log: Path
    patience: float
    heard: bytes = b""

    def round(self, rounds: Rounds) -> None:
        """Lets the side do its work once and adds what it took."""
        told, anon = self.ask({"round": len(rounds.cpu)})
        rounds.cpu.append(told["cpu"])
        rounds.wall.append(told["wall"])
        rounds.peak_mb.append(told["peak_mb"])
        rounds.anon_mb.append(max(anon, told["anon_mb"]) - told["anon_base_mb"])
        rounds.facts.append(told["facts"])

    def ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, and the most anonymous memory seen meanwhile, in MB."""
        stdin, stdout = self.child.stdin, self.child.stdout
        assert stdin is not None
        assert stdout is not None
        most = memory_mb("RssAnon", self.child.pid)
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise SideError(self._end()) from None
        limit = time.monotonic() + self.patience
        while b"\n" not in self.heard:
            if time.monotonic() > limit:
                raise SideError(f"no answer within {self.patience:.0f} s")
            if select.select([stdout], [], [], SAMPLE_SECONDS)[0]:
                new = os.read(stdout.fileno(), 1 << 16)
                if not new:
                    raise SideError(self._end())
                self.heard += new
            elif self.child.poll() is not None:  # what it started may hold the pipe open
                raise SideError(self._end())
            most = max(most, memory_mb("RssAnon", self.child.pid))
        line, _, self.heard = self.heard.partition(b"\n")
        told = json.loads(line)
        if "fault" in told:
            raise SideError(told["fault"])
        return told, most

    def _end(self) -> str:
        code = self.child.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"the process died ({how}){': ' + last[0][:200] if last else ''}"


@contextlib.contextmanager
def started(name: str, side: Side, scratch: Path, threads: int, patience: float) -> Iterator[Process]:
    """The process of one side, set up and waiting for rounds; nothing of it lives on afterwards."""
    if side.peer and not PEERS.exists():
        raise SideError("the peers' environment is missing; run make bench-peers")
    environment = {**os.environ, **dict.fromkeys(THREAD_COUNTS, str(threads)), "PYTHONPATH": str(ROOT)}
    log = scratch / f"{name.replace('/', '_')}-{time.monotonic_ns()}.log"
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [str(PEERS) if side.peer else sys.executable, "-m", "benchmarks.harness.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
    try:
        process = Process(child, log, patience)
        process.ask({"entry": side.entry, "options": side.options})
        yield process
    finally:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(timeout=3)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()

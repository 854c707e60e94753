"""Remove what is left of a local Ray: run as a script, wait for the parent to end, then kill Ray's processes.

Arguments: the folder of the Ray, where all its processes write their logs, and the process id of its driver. Ray's
processes end with their driver, except those that its node started: when a driver is killed they live on for a minute.
Uses the standard library alone and a session of its own, so that it starts at once and outlives a killed process group.
"""

import os
import shutil
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

ROUNDS = 50  # a process that is being killed may have started another
SECONDS_BETWEEN_ROUNDS = 0.1


def processes_of(folder: Path) -> set[int]:
    """Returns the processes that hold a file of `folder` open for writing; Ray overwrites their names."""
    processes = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if folder in Path(os.readlink(descriptor)).parents and descriptor.lstat().st_mode & stat.S_IWUSR:
                processes.add(int(descriptor.parts[2]))
    return processes


def remove(folder: Path, *, driver: int) -> None:
    """Kills the processes of this Ray and removes its folder; the driver may live on."""
    for _ in range(ROUNDS):
        processes = processes_of(folder) - {driver}
        if not processes:
            break
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(SECONDS_BETWEEN_ROUNDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the parent
    sys.stdin.buffer.read()  # ends when the other end is closed: on purpose, or because its process is gone
    remove(Path(sys.argv[1]), driver=int(sys.argv[2]))

"""The end of a local Ray: run as a script, it waits for its parent and then removes what is left of that Ray.

In: the folder of the Ray, where all its processes write their logs, and the process of its driver. Ray's processes
share the fate of their driver, except those that its node started: when a driver is killed they live on for a minute.
Stands alone on the standard library and in a session of its own, so that it is there at once and outlives a killed
process group.
"""

import os
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

ROUNDS = 50  # a process that is being killed may have started another
SECONDS_BETWEEN_ROUNDS = 0.1


def await_parent() -> None:
    """Returns when the other end of the standard input is closed: on purpose, or because its process is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass


def processes_of(folder: Path) -> set[int]:
    """The processes that hold a file of `folder` open for writing; Ray overwrites their names and environment."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if folder in Path(os.readlink(descriptor)).parents and descriptor.lstat().st_mode & stat.S_IWUSR:
                found.add(int(descriptor.parts[2]))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def remove(folder: Path, *, driver: int) -> None:
    """Kills the processes of this Ray and removes its folder; the driver may live on."""
    for _ in range(ROUNDS):
        left = processes_of(folder) - {driver}
        if not left:
            break
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(SECONDS_BETWEEN_ROUNDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the parent
    await_parent()
    remove(Path(sys.argv[1]), driver=int(sys.argv[2]))

"""Sides whose cost is known by construction."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.harness.gauges import memory_starts_here

Once = Callable[[], dict]
SPIN = """
import time
while time.process_time() < {seconds}: pass
print(time.process_time())
"""


def counting(step: int) -> Once:
    """Talks on standard output, from Python and from a child, and counts its rounds."""
    state = {"total": 0}
    print('{"ready": "a side may print what looks like an answer"}')
    subprocess.run(["echo", "and so may its children"], check=True)

    def once() -> dict:
        print("noise")
        state["total"] += step
        return {"total": state["total"], "threads": os.environ["OMP_NUM_THREADS"]}

    return once


def spinning(seconds: float) -> Once:
    """Uses CPU itself; the fact is its own account."""

    def once() -> dict:
        start = time.process_time()
        while time.process_time() < start + seconds:
            pass
        return {"cpu": time.process_time() - start}

    return once


def spinning_below(seconds: float, wait: bool) -> Once:
    """Uses CPU in a child that is waited for or that outlives the round; the fact is the child's account."""

    def once() -> dict:
        code = SPIN.format(seconds=seconds) + ("" if wait else "import sys; sys.stdout.flush(); time.sleep(60)")
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        used = float(child.stdout.readline())
        if wait:
            child.wait()
        return {"cpu": used, "pid": child.pid}

    return once


def holding(mebibytes: int, marked: bool) -> Once:
    """Holds memory since its set-up, and as much again in a round."""
    if marked:
        memory_starts_here()
    held = b"\1" * (mebibytes << 20)

    def once() -> dict:
        more = b"\1" * (mebibytes << 20)
        time.sleep(0.1)  # the anonymous part is sampled
        return {"bytes": len(held) + len(more)}

    return once


def mapping(path: str) -> Once:
    """Reads a mapped file."""

    def once() -> dict:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return {"sum": sum(view[place] for place in range(0, len(view), 4096))}

    return once


def dying() -> Once:
    """Dies in its first round without a word."""
    return lambda: os.kill(os.getpid(), 9)  # type: ignore[return-value]


def failing() -> Once:
    """Fails in its set-up with a message of two lines."""
    raise ValueError("no such\npicture")


def stopping() -> Once:
    """Ends the process in a round."""
    return lambda: sys.exit("enough")


def sleeping() -> Once:
    """Does not answer."""
    return lambda: time.sleep(600)  # type: ignore[return-value]

"""The process of one side. In: JSON lines on standard input. Out: JSON lines on what was standard output.

First line in: `{"entry": "module:function", "options": {...}}`; answer: `{"ready": true}`. Every further line asks for
one round; answer: `{"cpu", "wall", "peak_mb", "anon_mb", "anon_base_mb", "facts"}`. A fault is answered by
`{"fault": "one line"}`, its traceback goes to standard error. Whatever a side prints goes to standard error too.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.harness import gauges

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Sets the side up and answers rounds until standard input ends."""
    _belong_to_the_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        order = json.loads(sys.stdin.readline())
        module, _, name = order["entry"].partition(":")
        work = getattr(importlib.import_module(module), name)(**order["options"])
        answer({"ready": True})
        for _ in sys.stdin:
            answer(_round(work))
    except BaseException as error:  # a side may also call sys.exit
        traceback.print_exc()
        answer({"fault": " ".join(f"{type(error).__name__}: {error}".split())[:400]})
    finally:
        for pid in gauges.descendants(os.getpid()):
            _end(pid)


def _round(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    gc.collect()
    resident, anonymous = gauges.memory_base_mb()
    gauges.forget_peak()
    wall, cpu = time.perf_counter(), gauges.cpu_seconds()
    facts = work()
    cpu, wall = gauges.cpu_seconds() - cpu, time.perf_counter() - wall
    return {
        "cpu": cpu,
        "wall": wall,
        "peak_mb": gauges.memory_mb("VmHWM") - resident,
        "anon_mb": gauges.memory_mb("RssAnon"),
        "anon_base_mb": anonymous,
        "facts": facts,
    }


def _belong_to_the_parent() -> None:
    """Ends with the parent, and inherits daemons of its own children, so that their CPU is counted and they end too."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    main()

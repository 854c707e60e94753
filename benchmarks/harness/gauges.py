"""What a process has used. In: the kernel's accounts of a process. Out: CPU seconds and megabytes."""

import os
import resource
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_base: tuple[float, float] | None = None


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, children before their own; those that end meanwhile are left out."""
    found, frontier = [], [pid]
    while frontier:
        parent = frontier.pop()
        try:
            children = [
                int(word)
                for thread in Path(f"/proc/{parent}/task").iterdir()
                for word in (thread / "children").read_text().split()
            ]
        except OSError:
            continue
        found += children
        frontier += children
    return found


def cpu_seconds() -> float:
    """User and system seconds of this process, of its ended children and of everything that lives below it.

    A difference of two readings is exact however the processes below began or ended in between, as long as whoever
    started them waits for them. Living ones are counted in steps of the kernel's clock (10 ms).
    """
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used) + sum(map(_ticks, descendants(os.getpid()))) / _TICKS


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])  # own user and system, then those of its ended children


def memory_mb(field: str, pid: int | str = "self") -> float:
    """A field of /proc/PID/status in megabytes: VmRSS, VmHWM (peak) or RssAnon (without mapped files); 0 if gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), 0.0)


def forget_peak() -> bool:
    """Lets VmHWM begin anew; False where the kernel does not allow it, so that the peak is that of the whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory_starts_here() -> None:
    """A side whose figure is memory calls this in its set-up, after its imports and before it loads or warms anything.

    Without it memory counts from the end of the set-up, and what a warm-up has left in the heap is not seen.
    """
    global _base
    _base = memory_mb("VmRSS"), memory_mb("RssAnon")


def memory_base_mb() -> tuple[float, float]:
    """Where memory counts from, resident and anonymous: the mark, or else now (and from then on the same)."""
    if _base is None:
        memory_starts_here()
    assert _base is not None
    return _base

"""Memory, processors, limits and the clock in, whether they carry what the settings ask for out."""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fer_pipeline.health.finding import Finding, Place

GIB = 1 << 30
A_WORKER = 0.7 * GIB  # torch and one shard
LEAST_FILES, ENOUGH_FILES = 256, 4096
ENOUGH_SHARED = 1 * GIB  # Docker's own 64 MiB is too little for Ray and for NCCL
CGROUP = Path("/sys/fs/cgroup")
SKEW_SECONDS = 5.0
OLDEST_NOW = 1_760_000_000  # October 2025: no clock of today stands before it


def _free_memory() -> int:
    from fer_pipeline.training.memory_budget import free_memory  # brings torch

    return free_memory()


def memory(place: Place, *, free: Callable[[], int] = _free_memory) -> Finding:
    """What the settings take, against what the machine and its container have left."""
    there, resources = free(), place.resources
    images = (resources.memory_gb or 0) * GIB
    needed = images + resources.workers * A_WORKER
    found = f"{there / GIB:.1f} GiB are free, the settings take about {needed / GIB:.1f}"
    if images > there:
        cure = f"set resources.memory_gb to {max(there / GIB / 2, 0):.0f} at most, or null for half of what is free"
        return Finding("memory", "problem", found, cure)
    if needed > there:
        return Finding("memory", "warning", found, "lower resources.workers or resources.memory_gb")
    return Finding("memory", "ok", found)


def allowed_processors(cgroup: Path = CGROUP) -> float:
    """Processors that this process may use, by its affinity and by its container's quota."""
    there = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return min(there, int(quota) / int(period))
    except (OSError, ValueError):  # "max" where there is none
        return there


def processors(place: Place, *, allowed: Callable[[], float] = allowed_processors) -> Finding:
    """One worker has one thread; more of them than processors only wait for each other."""
    there, workers = allowed(), place.resources.workers
    found = f"{there:g} processors, resources.workers is {workers}"
    if place.resources.backend == "local" and workers > there:
        return Finding("processors", "warning", found, f"set resources.workers to {max(int(there), 1)}")
    return Finding("processors", "ok", found)


def open_files(place: Place, *, limit: Callable[[], int] | None = None) -> Finding:
    """How many files one process may hold open."""
    soft = limit() if limit else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return Finding("open_files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}")
    level = "problem" if soft < LEAST_FILES else "warning"
    return Finding("open_files", level, f"{soft:,} a process", "ulimit -n 65536")


def shared_memory(
    place: Place, *, folder: Path = Path("/dev/shm"), free: Callable[[Path], int] | None = None
) -> Finding:
    """What processes share: Ray's objects, the exchanges between GPUs."""
    if not folder.is_dir():
        cure = "mount a tmpfs there (docker run --shm-size 8g)"
        return Finding("shared_memory", "problem", f"{folder} is not there", cure)
    there = free(folder) if free else shutil.disk_usage(folder).free
    found = f"{there / GIB:.1f} GiB are free in {folder}"
    if there < ENOUGH_SHARED:
        return Finding("shared_memory", "warning", found, "docker run --shm-size 8g, or an emptyDir of medium Memory")
    return Finding("shared_memory", "ok", found)


def clock(
    place: Place, *, now: Callable[[], float] = time.time, stamped: Callable[[Path], float] | None = None
) -> Finding:
    """DVC believes times of change, leases and schedules the clock: the disk's and the machine's must agree."""
    here, there = now(), (stamped or _stamped)(place.root)
    if here < OLDEST_NOW:
        told = time.strftime("%Y-%m-%d", time.gmtime(here))
        return Finding("clock", "problem", f"it says {told}", "set the clock (timedatectl set-ntp true)")
    skew = there - here
    if abs(skew) > SKEW_SECONDS:
        found = f"the file system's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
        return Finding("clock", "warning", found, "keep both by NTP (timedatectl set-ntp true)")
    return Finding("clock", "ok", "this machine and its file system agree")


def _stamped(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.", suffix=".tmp") as file:
        return os.stat(file.name).st_mtime

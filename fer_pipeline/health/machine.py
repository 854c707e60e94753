"""Check memory, processors, limits, clock and disks against what the settings ask for."""

import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from fer_pipeline.health.dvc_project import LINK_TYPES, DvcConfig, read_config, read_outputs
from fer_pipeline.health.findings import CheckContext, Finding, grade

GIB = 1 << 30
GB = 1_000_000_000
WORKER_MEMORY = 0.7 * GIB  # torch and one shard
LEAST_FILES, ENOUGH_FILES = 256, 4096
ENOUGH_SHARED = 1 * GIB  # Docker's own 64 MiB is too little for Ray and for NCCL
CGROUP = Path("/sys/fs/cgroup")
MAX_SKEW_SECONDS = 5.0
EARLIEST_TIME = 1_760_000_000  # October 2025: no clock of today is before it
LEAST_FREE, LITTLE_FREE = 1 * GB, 10 * GB
LEAST_INODES, LITTLE_INODES = 10_000, 0.05  # the second is a share of all
LINKS = ("reflink", "hardlink", "symlink", "copy")
FICLONE = 0x40049409  # ioctl_ficlone(2)
BYTES_HASHED_A_SECOND = 0.4 * GB
TEMPORARY_FILE_SYSTEMS = ("overlay", "tmpfs", "ramfs", "aufs")  # they end with their container or machine


def _free_memory() -> int:
    from fer_pipeline.training.images import free_memory  # brings torch

    return free_memory()


def check_memory(context: CheckContext, *, free: Callable[[], int] = _free_memory) -> Finding:
    """Checks what the settings take against what the machine and its container have left."""
    available, resources = free(), context.resources
    images = (resources.memory_gb or 0) * GIB
    needed = images + resources.workers * WORKER_MEMORY
    message = f"{available / GIB:.1f} GiB are free, the settings take about {needed / GIB:.1f}"
    advice = "lower resources.workers or resources.memory_gb"
    if images > available:
        advice = f"set resources.memory_gb to {available / GIB / 2:.0f} at most, or null for half of what is free"
    return grade(message, advice, problem=images > available, warning=needed > available)


def allowed_processors(cgroup: Path = CGROUP) -> float:
    """Returns the processors that this process may use, by its affinity and by its container's quota."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return min(count, int(quota) / int(period))
    except (OSError, ValueError):  # "max" where there is none
        return count


def check_processors(context: CheckContext, *, allowed: Callable[[], float] = allowed_processors) -> Finding:
    """Checks that each worker, which has one thread, has a processor."""
    count, workers = allowed(), context.resources.workers
    message = f"{count:g} processors, resources.workers is {workers}"
    is_crowded = context.resources.backend == "local" and workers > count
    return grade(message, f"set resources.workers to {max(int(count), 1)}", warning=is_crowded)


def check_open_files(context: CheckContext, *, limit: Callable[[], int] | None = None) -> Finding:
    """Checks how many files one process may hold open."""
    soft = limit() if limit else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return Finding("ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}")
    return grade(f"{soft:,} a process", "ulimit -n 65536", problem=soft < LEAST_FILES, warning=True)


def check_shared_memory(
    context: CheckContext, *, folder: Path = Path("/dev/shm"), free: Callable[[Path], int] | None = None
) -> Finding:
    """Checks the memory that processes share: Ray's objects, the exchanges between GPUs."""
    if not folder.is_dir():
        return Finding("problem", f"{folder} does not exist", "mount a tmpfs there (docker run --shm-size 8g)")
    available = free(folder) if free else shutil.disk_usage(folder).free
    advice = "docker run --shm-size 8g, or an emptyDir of medium Memory"
    return grade(f"{available / GIB:.1f} GiB are free in {folder}", advice, warning=available < ENOUGH_SHARED)


def _timestamp(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.", suffix=".tmp") as file:
        return os.stat(file.name).st_mtime


def check_clock(
    context: CheckContext, *, now: Callable[[], float] = time.time, timestamp: Callable[[Path], float] = _timestamp
) -> Finding:
    """Checks that the clocks of the machine and its disk agree: DVC believes times of change, leases the clock."""
    here, there = now(), timestamp(context.root)
    if here < EARLIEST_TIME:
        date = time.strftime("%Y-%m-%d", time.gmtime(here))
        return Finding("problem", f"it says {date}", "set the clock (timedatectl set-ntp true)")
    if abs(skew := there - here) <= MAX_SKEW_SECONDS:
        return Finding("ok", "this machine and its file system agree")
    message = f"the file system's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    return Finding("warning", message, "synchronise both by NTP (timedatectl set-ntp true)")


def check_space(context: CheckContext, *, usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage) -> Finding:
    """Checks that there is space for anything at all; `plan` says what a run needs."""
    total, _, free = usage(context.root)
    message = f"{free / GB:,.1f} of {total / GB:,.1f} GB are free"
    advice = "python -m fer_pipeline prune, then dvc gc --workspace, or a larger disk"
    return grade(message, advice, problem=free < LEAST_FREE, warning=free < LITTLE_FREE)


def _count_inodes(folder: Path) -> tuple[int, int]:
    status = os.statvfs(folder)
    return status.f_files, status.f_favail


def check_inodes(context: CheckContext, *, count: Callable[[Path], tuple[int, int]] = _count_inodes) -> Finding:
    """Checks how many files the file system can still hold; some do not count them."""
    total, free = count(context.root)
    if total == 0:
        return Finding("ok", "this file system does not count them")
    advice = "remove folders of many small files, or make the file system with more inodes"
    is_little = free < LITTLE_INODES * total
    return grade(f"{free:,} of {total:,} are free", advice, problem=free < LEAST_INODES, warning=is_little)


def can_link(kind: str, source: Path, out: Path) -> bool:
    """Says whether a link of this kind can be made of `source` at `out`; removes it again."""
    try:
        if kind == "hardlink":
            os.link(source, out)
        elif kind == "symlink":
            out.symlink_to(source)
        elif kind == "reflink":
            with source.open("rb") as original, out.open("wb") as clone:
                fcntl.ioctl(clone.fileno(), FICLONE, original.fileno())
        else:
            shutil.copyfile(source, out)
    except OSError:
        return False
    finally:
        out.unlink(missing_ok=True)
    return True


CanLink = Callable[[str, Path, Path], bool]


def link_type(config: DvcConfig, root: Path, *, can_link: CanLink = can_link) -> str:
    """Tries with two small files how DVC takes into its cache what a stage wrote; `none` where it fails.

    A hard link that comes after another type is taken by `dvc checkout` alone: a stage's files are then copied.
    """
    types, possible = config.link_types or LINK_TYPES, _possible_links(config, root, can_link)
    kind = next((kind for kind in types if kind in possible), "none")
    return "copy" if kind == "hardlink" and types[0] != "hardlink" else kind


def _possible_links(config: DvcConfig, root: Path, can_link: CanLink) -> tuple[str, ...]:
    with (
        tempfile.NamedTemporaryFile(dir=_existing_parent(config.cache), prefix=".doctor.", suffix=".tmp") as source,
        tempfile.TemporaryDirectory(dir=root, prefix=".doctor.", suffix=".tmp") as folder,
    ):
        source.write(b"x" * 4096)
        source.flush()
        return tuple(kind for kind in LINKS if can_link(kind, Path(source.name), Path(folder) / "out"))


def _existing_parent(folder: Path) -> Path:
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())


def check_links(context: CheckContext, *, can_link: CanLink = can_link) -> Finding:
    """Checks that DVC links: a copy takes the disk twice, a hard link or a reflink once."""
    root, config = context.root, read_config(context.root)
    kind, possible = link_type(config, root, can_link=can_link), _possible_links(config, root, can_link)
    setting = ", ".join(config.link_types) if config.link_types else "not set, so reflink, copy"
    best = next(
        (types for types in ("reflink,hardlink,copy", "hardlink,copy") if types.split(",")[0] in possible), None
    )
    advice = f"dvc config cache.type {best or 'copy'}"
    if kind == "none":
        return Finding("problem", f"no type of cache.type ({setting}) works here; DVC fails", advice)
    message = f"DVC takes what a stage wrote by {kind} (cache.type: {setting})"
    if kind != "copy":
        return Finding("ok", message)
    size = sum(output.size for output in read_outputs(root).outputs if output.is_cached)
    message += f": every output is on the disk twice, {size / GB:,.1f} GB more"
    if best:
        return Finding("warning", message, f"{advice} && dvc checkout --relink")
    is_apart = _existing_parent(config.cache).stat().st_dev != root.stat().st_dev
    reason = "the cache is on another file system" if is_apart else "this file system has neither links nor reflinks"
    return Finding("warning", f"{message}; {reason}", "dvc cache dir FOLDER, one on the file system of the project")


def file_system(path: Path) -> str:
    """Returns the type of the file system of a path, whether it exists yet or not; '' where that is unknown."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: len(mount.mountpoint))
    return next((one.fstype for one in reversed(mounts) if path.absolute().is_relative_to(one.mountpoint)), "")


def check_site_cache(context: CheckContext, *, kind_of: Callable[[Path], str] = file_system) -> Finding:
    """Checks that the hashes that DVC remembers survive this machine: without them everything is hashed again."""
    folder = read_config(context.root).site_cache or Path("/var/tmp/dvc")
    kind = kind_of(folder)
    message = f"DVC remembers hashes in {folder} ({kind or 'unknown file system'})"
    if kind not in TEMPORARY_FILE_SYSTEMS:
        return Finding("ok", message)
    size = sum(output.size for output in read_outputs(context.root).outputs)
    again = f"{size / GB:,.1f} GB are hashed again, {size / BYTES_HASHED_A_SECOND:,.0f} s"
    advice = "dvc config --local core.site_cache_dir FOLDER, one that stays"
    return Finding("warning", f"{message}, which ends with this container or machine; then {again}", advice)

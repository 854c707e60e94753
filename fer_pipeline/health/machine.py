"""Check GPUs, disks, memory, processors, limits and the clock against what the settings ask for.

Driver, torch and FAISS must see the same GPUs.
"""

import fcntl
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from fer_pipeline.health.dvc_project import LINK_TYPES, DvcConfig, read_config, read_outputs
from fer_pipeline.health.software import CheckContext, Finding, grade

GIB = 1 << 30
GB = 1_000_000_000
LEAST_MEMORY = 6 * GIB  # of a GPU: a ResNet-18 at 112 px in batches of 128 trains in less
WORKER_MEMORY = 0.7 * GIB  # torch and one shard
LEAST_FILES, ENOUGH_FILES = 256, 4096
ENOUGH_SHARED = 1 * GIB  # Docker's own 64 MiB is too little for Ray and for NCCL
SHARED_MEMORY, CGROUP = Path("/dev/shm"), Path("/sys/fs/cgroup")
MAX_SKEW_SECONDS = 5.0
EARLIEST_TIME = 1_760_000_000  # October 2025: no clock of today is before it
LEAST_FREE, LITTLE_FREE = 1 * GB, 10 * GB
LEAST_INODES, LITTLE_INODES = 10_000, 0.05  # the second is a share of all
FICLONE = 0x40049409  # ioctl_ficlone(2)
BYTES_HASHED_A_SECOND = 0.4 * GB
TEMPORARY_FILE_SYSTEMS = ("overlay", "tmpfs", "ramfs", "aufs")  # they end with their container or machine


class Gpus(NamedTuple):
    """`num_devices` and `driver` are nvidia-smi's, the rest is torch's."""

    num_devices: int = 0
    driver: str = ""
    names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    memories: tuple[int, ...] = ()  # bytes
    architectures: tuple[str, ...] = ()  # of torch's build: sm_75, …; none in a build for the CPU alone
    cuda: str | None = None  # of torch's build
    complaint: str = ""


@cache
def query_gpus() -> Gpus:
    """Asks nvidia-smi and torch, once."""
    import torch

    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_properties(number) for number in range(count)]
    drivers: list[str] = []  # its version, once for each GPU
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        drivers = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    return Gpus(
        num_devices=len(drivers),
        driver=drivers[0] if drivers else "",
        names=tuple(device.name for device in devices),
        capabilities=tuple((device.major, device.minor) for device in devices),
        memories=tuple(device.total_memory for device in devices),
        architectures=tuple(torch.cuda.get_arch_list()),
        cuda=torch.version.cuda,
        complaint=" ".join(str(complaints[0].message).split())[:200] if complaints else "",
    )


def check_driver(context: CheckContext) -> Finding:
    """Checks that torch reaches the GPUs of the driver, and that the settings' device exists."""
    gpus, device = query_gpus(), context.resources.device
    if gpus.names:
        return Finding("ok", f"{len(gpus.names)} GPUs, driver {gpus.driver or 'unknown'}, CUDA {gpus.cuda}")
    if not gpus.num_devices:
        if device.startswith("cuda"):
            advice = "set resources.device: auto, or start the machine with a GPU (docker run --gpus all)"
            return Finding("problem", f"resources.device is {device}, and there is no NVIDIA GPU", advice)
        return Finding("ok", "no NVIDIA GPU; everything runs on the CPU")
    message = f"{gpus.num_devices} GPUs with driver {gpus.driver}, of which torch sees none"
    if (visible := context.environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        advice = "unset CUDA_VISIBLE_DEVICES, or name GPUs in it"
        return Finding("warning", f"{message}: CUDA_VISIBLE_DEVICES is {visible!r}", advice)
    reason = gpus.complaint or f"it was built for CUDA {gpus.cuda}"
    advice = f"update the driver to one for CUDA {gpus.cuda}, or install a torch that was built for an older CUDA"
    if gpus.cuda is None:
        reason, advice = "this torch was built for the CPU alone", "pip install --force-reinstall torch torchvision"
    return Finding("problem", f"{message}: {reason}", advice)


def check_gpu(context: CheckContext) -> Finding:
    """Checks compute capability and memory of each GPU, and how many the settings want."""
    gpus = query_gpus()
    if not gpus.names:
        return Finding("ok", "no GPU to check")
    parts = zip(gpus.names, gpus.capabilities, gpus.memories, strict=True)
    message = "; ".join(f"{name}, {major}.{minor}, {memory / GIB:.0f} GiB" for name, (major, minor), memory in parts)
    matches = [re.search(r"_(\d+)(\d)", name) for name in gpus.architectures]  # sm_90a: 9.0
    oldest = min(((int(match[1]), int(match[2])) for match in matches if match), default=(0, 0))
    if min(gpus.capabilities) < oldest:
        advice = "install a torch that was built for it, or set resources.device: cpu"
        return Finding("problem", f"{message}: this torch has code from {oldest[0]}.{oldest[1]} on", advice)
    if (wanted := context.resources.gpus or 0) > len(gpus.names):
        advice = f"set resources.gpus to {len(gpus.names)} at most"
        return Finding("problem", f"{message}: resources.gpus wants {wanted}", advice)
    if min(gpus.memories) < LEAST_MEMORY:
        return Finding("warning", f"{message}: little memory", "lower `batch` of the trainings and of embed")
    return Finding("ok", message)


def count_faiss_gpus() -> int | None:
    """Returns how many GPUs FAISS sees; None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def check_faiss(context: CheckContext) -> Finding:
    """Checks that `score` can search on the GPUs that torch has."""
    num_torch, num_faiss = len(query_gpus().names), count_faiss_gpus()
    if num_faiss is None:
        advice = "pip install faiss-gpu (Linux), or faiss-cpu"
        return Finding("warning", "not installed; `score` takes a slower engine", advice)
    if num_faiss == 0 != num_torch:
        advice = "pip uninstall faiss-cpu, then pip install --force-reinstall faiss-gpu nvidia-cublas-cu12"
        return Finding("warning", f"sees no GPU, torch sees {num_torch}; `score` runs on the CPU", advice)
    message = f"sees {num_faiss} GPUs, {'as torch does' if num_faiss == num_torch else f'torch sees {num_torch}'}"
    advice = "give both the same CUDA_VISIBLE_DEVICES, and pip install --force-reinstall faiss-gpu"
    return grade(message, advice, problem=num_faiss != num_torch)


def check_space(context: CheckContext) -> Finding:
    """Checks that there is space for anything at all; `plan` says what a run needs."""
    total, _, free = shutil.disk_usage(context.root)
    message = f"{free / GB:,.1f} of {total / GB:,.1f} GB are free"
    advice = "python -m fer_pipeline prune, then dvc gc --workspace, or a larger disk"
    return grade(message, advice, problem=free < LEAST_FREE, warning=free < LITTLE_FREE)


def check_inodes(context: CheckContext) -> Finding:
    """Checks how many files the file system can still hold; some do not count them."""
    status = os.statvfs(context.root)
    total, free = status.f_files, status.f_favail
    if total == 0:
        return Finding("ok", "this file system does not count them")
    advice = "remove folders of many small files, or make the file system with more inodes"
    is_little = free < LITTLE_INODES * total
    return grade(f"{free:,} of {total:,} are free", advice, problem=free < LEAST_INODES, warning=is_little)


def _reflink(source: Path, out: Path) -> None:
    with source.open("rb") as original, out.open("wb") as clone:
        fcntl.ioctl(clone.fileno(), FICLONE, original.fileno())


LINKS = {"reflink": _reflink, "hardlink": os.link, "symlink": os.symlink, "copy": shutil.copyfile}


def can_link(kind: str, source: Path, out: Path) -> bool:
    """Says whether a link of this kind can be made of `source` at `out`; removes it again."""
    with suppress(OSError):
        LINKS[kind](source, out)
        out.unlink()
        return True
    out.unlink(missing_ok=True)
    return False


def possible_links(config: DvcConfig, root: Path) -> list[str]:
    """Tries with two small files which links can be made from DVC's cache to the project."""
    with (
        tempfile.NamedTemporaryFile(dir=_existing_parent(config.cache), prefix=".doctor.", suffix=".tmp") as source,
        tempfile.TemporaryDirectory(dir=root, prefix=".doctor.", suffix=".tmp") as folder,
    ):
        source.write(b"x" * 4096)
        source.flush()
        return [kind for kind in LINKS if can_link(kind, Path(source.name), Path(folder) / "out")]


def link_type(config: DvcConfig, root: Path) -> str:
    """Tries how DVC takes into its cache what a stage wrote; `none` where it fails.

    A hard link that comes after another type is taken by `dvc checkout` alone: a stage's files are then copied.
    """
    types, possible = config.link_types or LINK_TYPES, possible_links(config, root)
    kind = next((kind for kind in types if kind in possible), "none")
    return "copy" if kind == "hardlink" and types[0] != "hardlink" else kind


def _existing_parent(folder: Path) -> Path:
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())


def check_links(context: CheckContext) -> Finding:
    """Checks that DVC links: a copy takes the disk twice, a hard link or a reflink once."""
    root, config = context.root, read_config(context.root)
    kind, possible = link_type(config, root), possible_links(config, root)
    setting = ", ".join(config.link_types) if config.link_types else "not set, so reflink, copy"
    best = {"reflink": "reflink,hardlink,copy", "hardlink": "hardlink,copy"}.get(possible[0]) if possible else None
    advice = f"dvc config cache.type {best or 'copy'}"
    if kind == "none":
        return Finding("problem", f"no type of cache.type ({setting}) works here; DVC fails", advice)
    message = f"DVC takes what a stage wrote by {kind} (cache.type: {setting})"
    if kind != "copy":
        return Finding("ok", message)
    size = sum(output.size for output in read_outputs(root)[0] if output.is_cached)
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


def is_private(folder: Path) -> bool:
    """Says whether no other user can enter a folder; DVC makes one that is not there for all users."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o077


def check_site_cache(context: CheckContext) -> Finding:
    """Checks that the hashes that DVC remembers are nobody else's to write, and survive this machine.

    They are pickles, which run what their writer wants; without them everything is hashed again.
    """
    folder = read_config(context.root).site_cache or Path("/var/tmp/dvc")
    kind = file_system(folder)
    message = f"DVC remembers hashes in {folder} ({kind or 'unknown file system'})"
    if not is_private(folder):
        own = f"/var/tmp/dvc-{os.getuid()}"
        advice = f"mkdir -m 700 {own}; dvc config --global core.site_cache_dir {own}"
        return Finding("warning", f"{message}: other users can write there what DVC then unpickles", advice)
    if kind not in TEMPORARY_FILE_SYSTEMS:
        return Finding("ok", message)
    size = sum(output.size for output in read_outputs(context.root)[0])
    again = f"{size / GB:,.1f} GB are hashed again, {size / BYTES_HASHED_A_SECOND:,.0f} s"
    advice = "dvc config --local core.site_cache_dir FOLDER, one that stays"
    return Finding("warning", f"{message}, which ends with this container or machine; then {again}", advice)


def check_memory(context: CheckContext) -> Finding:
    """Checks what the settings take against what the machine and its container have left."""
    from fer_pipeline.training.images import free_memory  # brings torch

    available, resources = free_memory(), context.resources
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


def check_processors(context: CheckContext) -> Finding:
    """Checks that there are at most three workers, which have one thread each, for two processors."""
    count, workers = allowed_processors(), context.resources.workers
    message = f"{count:g} processors, resources.workers is {workers}"
    is_crowded = context.resources.backend == "local" and workers > 1.5 * count
    return grade(message, f"set resources.workers to {max(int(count), 1)}", warning=is_crowded)


def check_open_files(context: CheckContext) -> Finding:
    """Checks how many files one process may hold open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return Finding("ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}")
    return grade(f"{soft:,} a process", "ulimit -n 65536", problem=soft < LEAST_FILES, warning=True)


def check_shared_memory(context: CheckContext) -> Finding:
    """Checks the memory that processes share: Ray's objects, the exchanges between GPUs."""
    if not SHARED_MEMORY.is_dir():
        return Finding("problem", f"{SHARED_MEMORY} does not exist", "mount a tmpfs there (docker run --shm-size 8g)")
    available = shutil.disk_usage(SHARED_MEMORY)[2]
    advice = "docker run --shm-size 8g, or an emptyDir of medium Memory"
    return grade(f"{available / GIB:.1f} GiB are free in {SHARED_MEMORY}", advice, warning=available < ENOUGH_SHARED)


def file_time(folder: Path) -> float:
    """Returns the time that the file system gives to a file that is made now."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.", suffix=".tmp") as file:
        return os.stat(file.name).st_mtime


def check_clock(context: CheckContext) -> Finding:
    """Checks that the clocks of the machine and its disk agree: DVC believes times of change, leases the clock."""
    now = time.time()
    skew = file_time(context.root) - now
    if now < EARLIEST_TIME:
        date = time.strftime("%Y-%m-%d", time.gmtime(now))
        return Finding("problem", f"it says {date}", "set the clock (timedatectl set-ntp true)")
    message = f"the file system's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) <= MAX_SKEW_SECONDS:
        message = "this machine and its file system agree"
    advice = "synchronise both by NTP (timedatectl set-ntp true)"
    return grade(message, advice, warning=abs(skew) > MAX_SKEW_SECONDS)

"""What the driver, torch and FAISS see of GPUs in, whether they see the same, and enough of it, out."""

import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from fer_pipeline.health.finding import Finding, Place

GIB = 1 << 30
LEAST_MEMORY = 6 * GIB  # a ResNet-18 at 112 px in batches of 128 trains in less


@dataclass(frozen=True)
class Gpus:
    """`seen` and `driver` as nvidia-smi tells them, the rest as torch does."""

    seen: int = 0
    driver: str = ""
    names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    memories: tuple[int, ...] = ()  # bytes
    built_for: tuple[str, ...] = ()  # sm_75, …; none in a build for the CPU alone
    cuda: str | None = None  # of torch's build
    complaint: str = ""


@cache
def look() -> Gpus:
    """Asks nvidia-smi and torch, once."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_properties(number) for number in range(count)]
    drivers = _smi()
    return Gpus(
        seen=len(drivers),
        driver=drivers[0] if drivers else "",
        names=tuple(device.name for device in devices),
        capabilities=tuple((device.major, device.minor) for device in devices),
        memories=tuple(device.total_memory for device in devices),
        built_for=tuple(torch.cuda.get_arch_list()),
        cuda=torch.version.cuda,
        complaint=" ".join(str(told[0].message).split())[:200] if told else "",
    )


def _smi() -> list[str]:
    """The driver's version, once for each GPU that nvidia-smi sees."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return told.stdout.split() if told.returncode == 0 else []


def driver(place: Place, *, gpus: Callable[[], Gpus] = look) -> Finding:
    """Whether torch reaches the GPUs that the driver has, and the settings' device is there."""
    found, wanted = gpus(), place.resources.device
    if found.names:
        return Finding(
            "driver", "ok", f"{len(found.names)} GPUs, driver {found.driver or 'unknown'}, CUDA {found.cuda}"
        )
    if not found.seen:
        if wanted.startswith("cuda"):
            cure = "set resources.device: auto, or start the machine with a GPU (docker run --gpus all)"
            return Finding("driver", "problem", f"resources.device is {wanted}, and there is no NVIDIA GPU", cure)
        return Finding("driver", "ok", "no NVIDIA GPU; everything runs on the CPU")
    there = f"{found.seen} GPUs with driver {found.driver}, of which torch sees none"
    if (hidden := place.environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        cure = "unset CUDA_VISIBLE_DEVICES, or name GPUs in it"
        return Finding("driver", "warning", f"{there}: CUDA_VISIBLE_DEVICES is {hidden!r}", cure)
    if found.cuda is None:
        cure = "pip install --force-reinstall torch torchvision"
        return Finding("driver", "problem", f"{there}: this torch was built for the CPU alone", cure)
    why = found.complaint or f"it was built for CUDA {found.cuda}"
    cure = f"update the driver to one for CUDA {found.cuda}, or install a torch that was built for an older CUDA"
    return Finding("driver", "problem", f"{there}: {why}", cure)


def gpu(place: Place, *, gpus: Callable[[], Gpus] = look) -> Finding:
    """Name, compute capability and memory of each GPU, and how many the settings want."""
    found = gpus()
    if not found.names:
        return Finding("gpu", "ok", "none to look at")
    parts = zip(found.names, found.capabilities, found.memories, strict=True)
    told = "; ".join(f"{name}, {major}.{minor}, {memory / GIB:.0f} GiB" for name, (major, minor), memory in parts)
    oldest = min((_capability(one) for one in found.built_for), default=(0, 0))
    if min(found.capabilities) < oldest:
        cure = "install a torch that was built for it, or set resources.device: cpu"
        return Finding("gpu", "problem", f"{told}: this torch has code from {oldest[0]}.{oldest[1]} on", cure)
    if (wanted := place.resources.gpus or 0) > len(found.names):
        cure = f"set resources.gpus to {len(found.names)} at most"
        return Finding("gpu", "problem", f"{told}: resources.gpus wants {wanted}", cure)
    if min(found.memories) < LEAST_MEMORY:
        return Finding("gpu", "warning", f"{told}: little memory", "lower `batch` of the trainings and of embed")
    return Finding("gpu", "ok", told)


def _capability(name: str) -> tuple[int, int]:
    """`sm_90a` -> (9, 0)."""
    digits = "".join(letter for letter in name.partition("_")[2] if letter.isdigit())
    return (int(digits[:-1]), int(digits[-1])) if len(digits) > 1 else (0, 0)


def faiss_count() -> int | None:
    """How many GPUs FAISS sees; None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def faiss(place: Place, *, gpus: Callable[[], Gpus] = look, count: Callable[[], int | None] = faiss_count) -> Finding:
    """Whether `score` can search on the GPUs that torch has."""
    theirs, ours = len(gpus().names), count()
    if ours is None:
        cure = "pip install faiss-gpu (Linux), or faiss-cpu"
        return Finding("faiss", "warning", "not installed; `score` takes a slower engine", cure)
    if ours == theirs:
        return Finding("faiss", "ok", f"sees {ours} GPUs, as torch does")
    if ours == 0:
        cure = "pip uninstall faiss-cpu, then pip install --force-reinstall faiss-gpu nvidia-cublas-cu12"
        return Finding("faiss", "warning", f"sees no GPU, torch sees {theirs}; `score` runs on the CPU", cure)
    cure = "give both the same CUDA_VISIBLE_DEVICES, and pip install --force-reinstall faiss-gpu"
    return Finding("faiss", "problem", f"sees {ours} GPUs, torch sees {theirs}", cure)

"""Check that the driver, torch and FAISS see the same GPUs, and as many as the settings ask for."""

import re
import subprocess
import warnings
from dataclasses import dataclass
from functools import cache

from fer_pipeline.health.findings import CheckContext, Finding, grade

GIB = 1 << 30
LEAST_MEMORY = 6 * GIB  # a ResNet-18 at 112 px in batches of 128 trains in less


@dataclass(frozen=True)
class Gpus:
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
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        drivers = result.stdout.split() if result.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        pass
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
    is_same, advice = (
        num_faiss == num_torch,
        "give both the same CUDA_VISIBLE_DEVICES, and pip install --force-reinstall faiss-gpu",
    )
    message = f"sees {num_faiss} GPUs, {'as torch does' if is_same else f'torch sees {num_torch}'}"
    return grade(message, advice, problem=not is_same)

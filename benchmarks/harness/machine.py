"""The birth certificate of figures: machine, versions, commit and load."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "simplejpeg",
    "pillow",
    "faiss-gpu",
    "faiss-cpu",
    "llvmlite",
    "openvino",
    "onnxruntime",
    "ray",
)


def machine() -> dict[str, Any]:
    """What stays the same from run to run on one machine."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith(("model name", "Hardware"))
        ),
        platform.processor() or platform.machine(),
    )
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": processor,
        "cores": cores(),
        "memory_gb": round(total * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpu": gpu_name(),
    }


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def moment(root: Path) -> dict[str, Any]:
    """What differs from run to run: commit, whether files differ from it, load of the last minute, versions."""
    commit = _git(root, "rev-parse", "--short", "HEAD")
    return {
        "commit": commit or "unknown",
        "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "load": round(os.getloadavg()[0], 2),
        "packages": {name: found for name in PACKAGES if (found := _version(name))} | _peers(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _peers() -> dict[str, str]:
    pins = (Path(__file__).resolve().parents[1] / "peers.txt").read_text().splitlines()
    return dict(pin.split("==") for pin in pins if "==" in pin)


def gpu_name() -> str | None:
    """The GPUs of this machine, or None."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return ", ".join(told.stdout.split("\n")[:-1]) or None


def _git(root: Path, *arguments: str) -> str:
    try:
        told = subprocess.run(["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return ""
    return told.stdout.strip()

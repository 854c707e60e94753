"""The installed packages in, those that are known to break out. The facts were tried in November 2026."""

import importlib.metadata
import sys
from collections.abc import Callable
from functools import partial

from packaging.specifiers import SpecifierSet

from fer_pipeline.alignment.weights import SHA256, Network, read_package_file, verify_checksum
from fer_pipeline.core.errors import DataError
from fer_pipeline.health.finding import Finding, Place

Version = Callable[[str], str | None]
OLDEST_PYTHON = (3, 11)


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def python(place: Place, *, running: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """The package is written for 3.11."""
    found = f"Python {running[0]}.{running[1]}"
    if running < OLDEST_PYTHON:
        return Finding("python", "problem", f"{found} is too old", "make the environment with Python 3.11 or later")
    return Finding("python", "ok", found)


def _within(
    package: str, wanted: str, why: str, place: Place, *, needed: bool = True, version: Version = installed
) -> Finding:
    found = version(package)
    cure = f"pip install '{package}{wanted}'"
    if found is None:
        return Finding(package, "problem", "not installed", cure) if needed else _without_flows(package)
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding(package, "ok", found)
    return Finding(package, "problem", f"{found}, wanted {wanted}: {why}", cure)


def _without_flows(package: str) -> Finding:
    return Finding(package, "ok", "not installed, which only the flows need (pip install -e '.[flows]')")


torch = partial(_within, "torch", ">=2.11", "older ones were never tried")
dvc = partial(_within, "dvc", ">=3.60,<4", "others were never tried")
prefect = partial(_within, "prefect", ">=3.8.8,<3.9", "others do not install or run as they should", needed=False)
fastapi = partial(_within, "fastapi", "<0.154", "0.154 breaks `prefect deploy --all`, 0.155 the server", needed=False)
sqlalchemy = partial(
    _within, "sqlalchemy", ">=2.0,<2.1", "Prefect's scheduler then schedules nothing, and says nothing", needed=False
)


def try_operators() -> str:
    """Calls an operator of torchvision that is compiled; '' where it answers, else what it says."""
    try:
        import torch as engine
        from torchvision.ops import nms

        nms(engine.tensor([[0.0, 0.0, 1.0, 1.0]]), engine.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def torchvision(place: Place, *, version: Version = installed, fault: Callable[[], str] = try_operators) -> Finding:
    """Torch's builds for the CPU alone fit no build of torchvision: its operators are then not there."""
    found = f"torch {version('torch')} with torchvision {version('torchvision')}"
    told = fault()
    if not told:
        return Finding("torchvision", "ok", found)
    cure = "pip install --force-reinstall torch torchvision (both from PyPI; its builds run without a GPU too)"
    return Finding("torchvision", "problem", f"{found} do not fit: {told}", cure)


def mtcnn(place: Place, *, read: Callable[[Network], bytes] = read_package_file) -> Finding:
    """`align` reads the weights that the package ships, and no others."""
    networks: tuple[Network, ...] = tuple(SHA256)
    try:
        for network in networks:
            verify_checksum(read(network), network)
    except DataError as error:
        told, _, cure = str(error).partition("; run: ")
        return Finding("mtcnn", "problem", told, cure)
    return Finding("mtcnn", "ok", f"the weights of {', '.join(networks)} are the published ones")

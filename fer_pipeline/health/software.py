"""Define what a check of `doctor` is given and returns; check the installed packages against versions known to break.

The facts were tried in November 2026.
"""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.specifiers import SpecifierSet

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Resources

OLDEST_PYTHON = (3, 11)
PACKAGES = {  # the versions that work, and why others do not
    "torch": (">=2.11", "older ones were never tried"),
    "dvc": (">=3.60,<4", "others were never tried"),
    "prefect": (">=3.8.8,<3.9", "others do not install or run as they should"),
    "fastapi": ("<0.154", "0.154 breaks `prefect deploy --all`, 0.155 the server"),
    "sqlalchemy": (">=2.0,<2.1", "Prefect's scheduler then schedules nothing, without an error"),
}
ONLY_FOR_FLOWS = ("prefect", "fastapi", "sqlalchemy")


@dataclass(frozen=True)
class CheckContext:
    """The project, its settings and the environment that it is to run in."""

    root: Path
    resources: Resources = field(default_factory=Resources)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Finding(NamedTuple):
    """What a check found, and what to do where that is not as it should be."""

    level: Literal["ok", "warning", "problem"]
    message: str
    advice: str = ""


def grade(message: str, advice: str, *, problem: bool = False, warning: bool = False) -> Finding:
    """Returns a problem or a warning with advice, else `ok` without."""
    if problem or warning:
        return Finding("problem" if problem else "warning", message, advice)
    return Finding("ok", message)


def installed_version(package: str) -> str | None:
    """Returns the version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(context: CheckContext) -> Finding:
    """Checks the interpreter: the package is written for 3.11."""
    message, is_old = "Python {}.{}".format(*sys.version_info), sys.version_info[:2] < OLDEST_PYTHON
    advice = "make the environment with Python 3.11 or later"
    return grade(f"{message} is too old" if is_old else message, advice, problem=is_old)


def compare_version(package: str, context: CheckContext) -> Finding:
    """Compares the version of one of `PACKAGES` with those that work."""
    version, (wanted, reason) = installed_version(package), PACKAGES[package]
    if version is None and package in ONLY_FOR_FLOWS:
        return Finding("ok", "not installed, which only the flows need (pip install -e '.[flows]')")
    if version is not None and SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("ok", version)
    message = f"{version}, wanted {wanted}: {reason}" if version else "not installed"
    return Finding("problem", message, f"pip install '{package}{wanted}'")


def call_operator() -> str:
    """Calls a compiled operator of torchvision; returns '' where it answers, else the error."""
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def check_torchvision(context: CheckContext) -> Finding:
    """Checks that torchvision has its operators: torch's builds for the CPU alone fit no build of it."""
    error = call_operator()
    message = f"torch {installed_version('torch')} with torchvision {installed_version('torchvision')}"
    advice = "pip install --force-reinstall torch torchvision (both from PyPI; its builds run without a GPU too)"
    return grade(f"{message} do not fit: {error}" if error else message, advice, problem=bool(error))


def check_mtcnn(context: CheckContext) -> Finding:
    """Checks that the package ships the published weights: `align` reads no others."""
    from fer_pipeline.alignment import networks  # brings torch

    try:
        for network in networks.SHA256:
            networks.verify_checksum(networks.read_package_file(network), network)
    except DataError as error:
        message, _, advice = str(error).partition("; run: ")
        return Finding("problem", message, advice)
    return Finding("ok", f"the weights of {', '.join(networks.SHA256)} are the published ones")

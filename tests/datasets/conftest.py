"""Tiny worlds for the adapters: `worlds/<name>.py` builds one for the adapter `<name>`, found by its name.

A world is a dict: `path` and `options` as in the settings, `expected` (id -> split, label, subject), `pictures` (id ->
decoded pixels) and `spoil()`, which overwrites every picture's bytes and nothing else.
"""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

WORLDS = Path(__file__).parent / "worlds"


def load_world_module(name: str) -> ModuleType:
    """The builder's module; an adapter without one fails here, and the message says what to write."""
    file = WORLDS / f"{name}.py"
    assert file.is_file(), f"the adapter {name} has no tiny world: write tests/datasets/worlds/{name}.py"
    spec = importlib.util.spec_from_file_location(f"world_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world_module() -> Callable[[str], ModuleType]:
    return load_world_module


@pytest.fixture
def build_world(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    return lambda name: load_world_module(name).build(tmp_path / "wörld")


@pytest.fixture(scope="session")
def decode() -> Callable[[bytes], np.ndarray]:
    return lambda encoded: np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

"""Small examples for the adapters: `examples/<name>.py` builds one for the adapter `<name>`, found by its name.

An example is a dict: `path` and `options` as in the settings, `expected` (id -> split, label, subject), `pictures`
(id -> decoded pixels) and `spoil()`, which overwrites every picture's bytes and nothing else.
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

EXAMPLES = Path(__file__).parent / "examples"


def load_example_module(name: str) -> ModuleType:
    """The builder's module; an adapter without one fails here, and the message says what to write."""
    file = EXAMPLES / f"{name}.py"
    assert file.is_file(), f"the adapter {name} has no small example: write tests/datasets/examples/{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def example_module() -> Callable[[str], ModuleType]:
    return load_example_module


@pytest.fixture
def build_example(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    return lambda name: load_example_module(name).build(tmp_path / "exämple")


@pytest.fixture(scope="session")
def decode() -> Callable[[bytes], np.ndarray]:
    return lambda encoded: np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

"""Tensors from outside: a file in, a flat mapping of names to tensors out, and never a line of its code run.

safetensors, or `torch.load(weights_only=True)`, which refuses any pickled object but tensors and plain containers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "backbone", "params")
PREFIXES = ("module.", "_orig_mod.")


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a weights file, its hash checked first where one is given."""
    if not path.is_file():
        raise DataError(f"weights {path} do not exist; put the file there or change the setting")
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise DataError(f"weights {path} have sha256 {found}, expected {sha256}; fetch the file again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise DataError(f"weights {path} cannot be read ({_first_line(error)}); fetch the file again") from None
    except Exception as error:  # pickle.UnpicklingError, and what a damaged pickle may raise besides
        raise DataError(
            f"weights {path} hold more than tensors and are refused ({_first_line(error)}); save a plain state_dict"
        ) from None
    return {name: tensor for name, tensor in _unwrapped(loaded, path).items() if isinstance(tensor, Tensor)}


def _unwrapped(loaded: Any, path: Path) -> dict[str, Any]:
    while isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
        inner = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"weights {path} hold no state_dict, found {type(loaded).__name__}; save a plain state_dict")
    names = dict(loaded)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]

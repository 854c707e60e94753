"""Parts found by file name: the folder is the registry. A package's name in, the names in it or one module out."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from fer_pipeline.core.errors import ConfigError


def available(package: str) -> tuple[str, ...]:
    """The names of a package's parts, sorted. Files that begin with an underscore are no parts."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} does not exist"
    assert spec.submodule_search_locations, f"{package} is no package"
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    return tuple(sorted(file.stem for folder in folders for file in folder.glob("*.py") if file.stem[0] != "_"))


def load(package: str, name: str) -> ModuleType:
    """The part `name` of `package`; ConfigError lists the choices where there is none of that name."""
    choices = available(package)
    if name not in choices:
        raise ConfigError(f"unknown {package.rpartition('.')[2]} {name!r}; choose one of {', '.join(choices)}")
    return importlib.import_module(f"{package}.{name}")

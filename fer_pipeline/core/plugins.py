"""Find parts by their file's name: the folder is the registry."""

import importlib
from pathlib import Path
from types import ModuleType

from fer_pipeline.core.errors import ConfigError


def available(package: str) -> tuple[str, ...]:
    """The names of a package's parts, sorted. Files that begin with an underscore are no parts.

    Raises:
        ConfigError: Two files have one name, so that only one of them could be found.
    """
    files: dict[str, Path] = {}
    for folder in importlib.import_module(package).__path__:
        for file in (*Path(folder).glob("*.py"), *(path.parent for path in Path(folder).glob("*/__init__.py"))):
            if file.stem[0] == "_":
                continue
            if file.stem in files:
                raise ConfigError(f"two files are called {file.name}: {files[file.stem]} and {file}; rename one")
            files[file.stem] = file
    return tuple(sorted(name for name, file in files.items() if file.suffix == ".py"))


def load(package: str, name: str) -> ModuleType:
    """Imports the plugin `name` of `package`; ConfigError lists the choices where there is none of that name."""
    choices = available(package)
    if name not in choices:
        raise ConfigError(f"unknown {package.rpartition('.')[2]} {name!r}; choose one of {', '.join(choices)}")
    return importlib.import_module(f"{package}.{name}")

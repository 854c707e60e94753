"""Find parts by their file's name: the folder is the registry."""

import importlib
from pathlib import Path
from types import ModuleType

from fer_pipeline.core.errors import ConfigError, PipelineError

OWN_PARTS = {"strategies": "strategy", "datasets": "adapter"}  # folders to which people add files of their own


def available(package: str) -> tuple[str, ...]:
    """Returns the names of a package's parts, sorted. Files that begin with an underscore are no parts.

    Raises:
        ConfigError: Two files have one name, so that only one of them could be found.
    """
    files: dict[str, Path] = {}
    for folder in importlib.import_module(package).__path__:
        for file in (*Path(folder).glob("[!_]*.py"), *(path.parent for path in Path(folder).glob("[!_]*/__init__.py"))):
            if file.stem in files:
                raise ConfigError(f"two files are called {file.name}: {files[file.stem]} and {file}; rename one")
            files[file.stem] = file
    return tuple(sorted(name for name, file in files.items() if file.suffix == ".py"))


def load(package: str, name: str) -> ModuleType:
    """Imports and returns the part `name` of `package`.

    Raises:
        ConfigError: There is none of that name (the error lists the choices), or a person's own file has a fault.
    """
    folder, choices = package.rpartition(".")[2], available(package)
    if name not in choices:
        raise ConfigError(f"unknown {folder} {name!r}; choose one of {', '.join(choices)}")
    place = f"{folder}/{name}.py"
    try:
        return importlib.import_module(f"{package}.{name}")
    except Exception as error:  # whatever a person's file does when it is imported
        if folder not in OWN_PARTS or isinstance(error, PipelineError):
            raise
        fault = f"{place} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
        if isinstance(error, SyntaxError):
            file, line = Path(error.filename or place), f", line {error.lineno}" if error.lineno else ""
            fault = f"{file.parent.name}/{file.name}{line}: {error.msg}"
        raise ConfigError(f"{fault}; correct the file or choose another {OWN_PARTS[folder]}") from None

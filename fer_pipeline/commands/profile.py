"""The papers' settings: a profile's name in, `params.yaml` in its place out."""

from pathlib import Path

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import write_bytes

PROFILES = Path("profiles")


def listing(folder: Path = PROFILES) -> str:
    """Every profile with the first line of its comment."""
    profiles = sorted(folder.glob("*.yaml"))
    if not profiles:
        raise DataError(f"no profiles in {folder.resolve().name}/; run in the project's folder")
    return "\n".join(f"{path.stem:16} {path.read_text('utf-8').splitlines()[0].lstrip('# ')}" for path in profiles)


def put(name: str, params: Path, *, force: bool, folder: Path = PROFILES) -> str:
    """Puts a profile in place; settings that stand there and are no profile's own are replaced only with `force`."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(names)}")
    known = [(folder / f"{other}.yaml").read_bytes() for other in names]
    if params.exists() and params.read_bytes() not in known and not force:
        raise ConfigError(f"{params} holds settings of its own; keep a copy and say --force to replace it")
    write_bytes(params, (folder / f"{name}.yaml").read_bytes())
    return f"{params} now holds the profile {name}; look at its data sets' paths, then run: dvc repro"

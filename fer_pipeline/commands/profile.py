"""List the papers' settings, or put one of them in place of `params.yaml`."""

from pathlib import Path

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import write_bytes
from fer_pipeline.core.settings import PARAMS

PROFILES = Path("profiles")


def run(name: str | None = None, *, params: Path = PARAMS, force: bool = False) -> str:
    """List the papers' settings, or put one of them in place of params.yaml.

    Args:
        name: The profile to put in place; without it, all are listed.
        params: The file of settings.
        force: Replace the settings that stand there.
    """
    return list_profiles() if name is None else use_profile(name, params, force=force)


def list_profiles(folder: Path = PROFILES) -> str:
    """Returns every profile with the first line of its comment."""
    profiles = sorted(folder.glob("*.yaml"))
    if not profiles:
        raise DataError(f"no profiles in {folder.resolve().name}/; run in the project's folder")
    return "\n".join(f"{path.stem:16} {path.read_text('utf-8').splitlines()[0].lstrip('# ')}" for path in profiles)


def use_profile(name: str, params: Path, *, force: bool, folder: Path = PROFILES) -> str:
    """Puts a profile in the place of `params`; the user's own settings are replaced only with `force`."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(names)}")
    check_replaceable(params, folder, force=force)
    write_bytes(params, (folder / f"{name}.yaml").read_bytes())
    return f"{params} now holds the profile {name}; look at its data sets' paths, then run: dvc repro"


def check_replaceable(params: Path, profiles: Path, *, force: bool) -> None:
    """Refuses to replace settings that are no profile's own, unless forced."""
    known = [path.read_bytes() for path in sorted(profiles.glob("*.yaml"))]
    if params.exists() and params.read_bytes() not in known and not force:
        raise ConfigError(f"{params} holds settings of its own; keep a copy and say --force to replace it")

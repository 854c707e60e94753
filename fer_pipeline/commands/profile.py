"""List the papers' settings, or put one of them in place of `params.yaml`."""

from pathlib import Path

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, write_bytes
from fer_pipeline.core.settings import PARAMS

PROFILES = Path("profiles")


def run(name: str | None = None, *, params: Path = PARAMS, force: bool = False) -> str:
    """List the papers' settings, or put one of them in place of params.yaml.

    Args:
        name: The profile to put in place; without it, all are listed.
        params: The file of settings.
        force: Replace the settings that stand there.
    """
    profiles = {path.stem: path.read_bytes() for path in sorted(PROFILES.glob("*.yaml"))}
    if not profiles:
        raise DataError(f"no profiles in {PROFILES.resolve()}; run in the project's folder, which has {PROFILES}/")
    if name is None:
        comments = {name: content.decode().splitlines()[0].lstrip("# ") for name, content in profiles.items()}
        return "\n".join(f"{name:16} {comment}" for name, comment in comments.items())
    if name not in profiles:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(profiles)}")
    check_replaceable(params, force=force)
    write_bytes(params, profiles[name])
    return f"{params} now holds the profile {name}; look at its data sets' paths, then run: dvc repro"


def check_replaceable(params: Path, *, force: bool) -> None:
    """Refuses to replace settings that are no profile's own, unless forced, and a link to settings."""
    refuse_link(params)
    known = [path.read_bytes() for path in PROFILES.glob("*.yaml")]
    if params.exists() and params.read_bytes() not in known and not force:
        raise ConfigError(f"{params} holds settings of its own; keep a copy and say --force to replace it")

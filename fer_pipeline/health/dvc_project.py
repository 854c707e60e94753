"""Read what DVC is set to in a project, and which outputs it records there.

Settings: DVC 3's `config.py` reads four files, of which a later one overrides an earlier one; paths are relative to
their file. They are parsed here, with DVC's own parser, because asking DVC takes most of a second each time.
Outputs: those of every `dvc.lock` and `*.dvc` file, with their hashes.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from configobj import ConfigObj, ConfigObjError
from platformdirs import site_config_dir, user_config_dir

from fer_pipeline.core.errors import DataError

LINK_TYPES = ("reflink", "copy")  # DVC's, where nothing is set
APP = ("dvc", "iterative")


class Remote(NamedTuple):
    """One remote; `folder` is None where it is not a folder of this machine."""

    name: str
    url: str
    verify: bool = False

    @property
    def folder(self) -> Path | None:
        return None if "://" in self.url else Path(self.url)


class DvcConfig(NamedTuple):
    """DVC's settings as far as fsck and doctor need them; `site_cache` is None where DVC chooses."""

    cache: Path
    remotes: Mapping[str, Remote]
    default: str | None = None
    link_types: tuple[str, ...] | None = None
    site_cache: Path | None = None

    @property
    def remote(self) -> Remote | None:
        """The default remote."""
        return self.remotes.get(self.default) if self.default else None


class Output(NamedTuple):
    """One output; `path` is relative to the project's folder, `stage` an address that `dvc repro` knows."""

    path: str
    stage: str
    md5: str  # with `.dir` for a folder
    size: int = 0  # bytes
    is_cached: bool = True
    is_imported: bool = False  # by `dvc import`, which knows where it came from

    @property
    def is_folder(self) -> bool:
        return self.md5.endswith(".dir")

    def file(self, name: str) -> str:
        """The path of a file in it, '' for the output itself."""
        return f"{self.path}/{name}" if name else self.path


def read_config(root: Path) -> DvcConfig:
    """Reads DVC's settings in the folder that holds `.dvc`; a DataError where there is none."""
    if not (root / ".dvc").is_dir():
        raise DataError(f"no .dvc folder in {root.resolve()}; run in the project's folder, or make one with: dvc init")
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or site_config_dir(*APP)
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or user_config_dir(*APP)
    values: dict[str, Any] = {}  # `core.remote` and `remote.<name>.url`, with paths resolved
    for file in (Path(system, "config"), Path(user, "config"), root / ".dvc/config", root / ".dvc/config.local"):
        try:
            content = ConfigObj(str(file), encoding="utf-8").dict() if file.is_file() else {}
        except (ConfigObjError, UnicodeDecodeError) as error:
            fault = f"{file} is no valid DVC configuration ({error})"
            raise DataError(f"{fault}; correct it, or write it again with: dvc config") from None
        for title, section in content.items():
            prefix = re.sub(r'^\s*remote\s*"(.*)"\s*$', r"remote.\1", title, flags=re.IGNORECASE)
            for key, value in section.items() if isinstance(section, dict) else ():
                if key in ("url", "dir"):
                    local = value.removeprefix("local://")
                    if local == value and not re.match(r"\w+://", value):
                        local = os.path.normpath(file.parent.absolute() / Path(value).expanduser())
                    value = local
                values[f"{prefix}.{key}".lower()] = value
    urls = {match[1]: url for key, url in values.items() if (match := re.fullmatch(r"remote\.(.*)\.url", key))}
    verified = {name for name in urls if str(values.get(f"remote.{name}.verify")).lower() in ("true", "yes", "on", "1")}
    types = values.get("cache.type")
    site = os.environ.get("DVC_SITE_CACHE_DIR") or values.get("core.site_cache_dir")
    return DvcConfig(
        cache=Path(values.get("cache.dir") or root / ".dvc" / "cache"),
        remotes={name: Remote(name, url, name in verified) for name, url in urls.items()},
        default=values.get("core.remote", "").lower() or None,
        link_types=tuple(re.findall(r"\w+", str(types))) if types else None,
        site_cache=Path(site) if site else None,
    )


def read_outputs(root: Path) -> tuple[list[Output], int]:
    """Reads every `dvc.lock` and `*.dvc` file; a DataError names one that cannot be read.

    Returns:
        The outputs, and how many others cannot be checked: outside of the project, or hashed as DVC 2 did.
    """
    outputs: list[Output | None] = []
    folders_of_outputs: set[Path] = set()  # no file in an output records outputs of the project
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        for name in sorted(name for name in files if name == "dvc.lock" or Path(name).suffix == ".dvc"):
            content = _read_mapping(here / name)
            try:
                if name == "dvc.lock":
                    stages = content.get("stages") or {}
                    outs = [out for stage in stages.values() for out in stage.get("outs") or ()]
                    folders_of_outputs |= {here / out["path"] for out in outs}
                    outputs += _outputs_of_lock(root, here, stages)
                else:
                    flags = {"is_imported": bool(content.get("deps"))}
                    stage, place = (here / name).relative_to(root).as_posix(), here / str(content.get("wdir", "."))
                    for out in content.get("outs") or ():
                        outputs.append(
                            _output(root, place, out, stage, is_cached=bool(out.get("cache", True)), **flags)
                        )
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise _broken(here / name, f"{type(error).__name__} {error}") from None
        plain = {name for name in subfolders if name[0] != "." and not (here / name / "pyvenv.cfg").exists()}
        subfolders[:] = sorted(name for name in plain if here / name not in folders_of_outputs)
    checked = [output for output in outputs if output is not None]
    return checked, len(outputs) - len(checked)


def _outputs_of_lock(root: Path, here: Path, locked: Mapping[str, Any]) -> Iterator[Output | None]:
    definition = here / "dvc.yaml"
    stages = (_read_mapping(definition).get("stages") or {}) if definition.exists() else {}
    prefix = "" if here == root else f"{here.relative_to(root).as_posix()}/dvc.yaml:"
    for name, stage in locked.items():
        defined = stages.get(name.partition("@")[0]) or {}
        defined = defined.get("do", defined)
        uncached = _uncached_patterns(defined)
        for out in stage.get("outs") or ():
            is_cached = not any(pattern.fullmatch(str(out["path"])) for pattern in uncached)
            yield _output(root, here / str(defined.get("wdir", ".")), out, f"{prefix}{name}", is_cached=is_cached)


def _output(root: Path, folder: Path, out: Mapping[str, Any], stage: str, **flags: bool) -> Output | None:
    """An output; None where it cannot be checked."""
    path = Path(os.path.normpath(folder / str(out["path"])))
    is_inside = "://" not in str(out["path"]) and "${" not in str(folder) and path.is_relative_to(root)
    if not is_inside or out.get("hash") != "md5" or "md5" not in out:
        return None
    return Output(path.relative_to(root).as_posix(), stage, str(out["md5"]), int(out.get("size", 0)), **flags)


def _uncached_patterns(stage: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """Patterns of the outputs that a stage of `dvc.yaml` keeps out of the cache (`cache: false`)."""
    entries = [out for section in ("outs", "metrics", "plots") for out in stage.get(section) or ()]
    flags = [item for out in entries if isinstance(out, dict) for item in out.items()]
    paths = [path for path, value in flags if isinstance(value, dict) and value.get("cache") is False]
    return [re.compile(".+".join(map(re.escape, re.split(r"\$\{[^}]*\}", path)))) for path in paths]


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _broken(file, " ".join(str(error).split())) from None
    if not isinstance(content, dict | None):
        raise _broken(file, f"it holds a {type(content).__name__}, not a mapping")
    return content or {}


def _broken(file: Path, reason: str) -> DataError:
    return DataError(f"{file} is broken: {reason}; restore it from git: git checkout -- {file.name}")

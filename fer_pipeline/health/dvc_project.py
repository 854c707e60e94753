"""Read what DVC is set to in a project, and which outputs it records there.

Settings: DVC 3's `config.py` reads four files, of which a later one overrides an earlier one; paths are relative to
their file. They are parsed here, with DVC's own parser, because asking DVC takes most of a second each time.
Outputs: those of every `dvc.lock` and `*.dvc` file, with their hashes. The checks ask whether git and the remote hold
what was made: that nothing can be lost, or is committed by accident.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from configobj import ConfigObj, ConfigObjError
from platformdirs import site_config_dir, user_config_dir

from fer_pipeline.artifacts.locked_stages import broken, read_mapping, read_stages, run_git
from fer_pipeline.core.documents import brief
from fer_pipeline.core.errors import DataError
from fer_pipeline.health.software import CheckContext, Finding

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
                if key in ("url", "dir", "remote") and not isinstance(value, str):  # a comma makes a list of it
                    fault = f"{file} has the value {brief(value)} for {key} of {title}"
                    raise DataError(f"{fault}; put it in quotes, or write it again with: dvc config")
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
            try:
                if name == "dvc.lock":
                    stages = read_stages(here / name)
                    outs = [out for stage in stages.values() for out in stage.get("outs") or ()]
                    folders_of_outputs |= {here / out["path"] for out in outs}
                    outputs += _outputs_of_lock(root, here, stages)
                else:
                    content = read_mapping(here / name)
                    stage, place = (here / name).relative_to(root).as_posix(), here / str(content.get("wdir", "."))
                    for out in content.get("outs") or ():
                        flags = {"is_cached": bool(out.get("cache", True)), "is_imported": bool(content.get("deps"))}
                        outputs.append(_output(root, place, out, stage, **flags))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise broken(here / name, f"{type(error).__name__} {error}") from None
        plain = {name for name in subfolders if name[0] != "." and not (here / name / "pyvenv.cfg").exists()}
        subfolders[:] = sorted(name for name in plain if here / name not in folders_of_outputs)
    checked = [output for output in outputs if output is not None]
    return checked, len(outputs) - len(checked)


def _outputs_of_lock(root: Path, here: Path, locked: Mapping[str, Any]) -> Iterator[Output | None]:
    """Yields the outputs of the stages in a `dvc.lock`; `dvc.yaml` says which are not cached (`cache: false`)."""
    definition = here / "dvc.yaml"
    stages = (read_mapping(definition).get("stages") or {}) if definition.exists() else {}
    prefix = "" if here == root else f"{here.relative_to(root).as_posix()}/dvc.yaml:"
    for name, stage in locked.items():
        defined = stages.get(name.partition("@")[0]) or {}
        defined = defined.get("do", defined)
        entries = [out for section in ("outs", "metrics", "plots") for out in defined.get(section) or ()]
        flags = [item for out in entries if isinstance(out, dict) for item in out.items()]
        paths = [path for path, value in flags if isinstance(value, dict) and value.get("cache") is False]
        uncached = [re.compile(".+".join(map(re.escape, re.split(r"\$\{[^}]*\}", path)))) for path in paths]
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


def check_remote(context: CheckContext) -> Finding:
    """Checks where copies are pushed to, and whether each pull verifies them."""
    config = read_config(context.root)
    if config.remote is None and config.default:
        advice = f"dvc remote add {config.default} URL, or dvc remote default NAME"
        return Finding("problem", f"the default remote {config.default!r} is not defined", advice)
    if config.remote is None:
        advice = "dvc remote add --default NAME URL && dvc remote modify NAME verify true"
        return Finding("warning", "there is no default remote: this disk has the only copy", advice)
    name, url, folder = config.remote.name, config.remote.url, config.remote.folder
    if folder is not None and not folder.is_dir():
        return Finding("warning", f"{name}: the folder {url} does not exist", "mount it, or run: dvc push")
    if not config.remote.verify:
        advice = f"dvc remote modify {name} verify true"
        return Finding("warning", f"{name} ({url}): pull does not notice a flipped bit", advice)
    return Finding("ok", f"{name} ({url}), each pull checks its bytes")


def check_lock_file(context: CheckContext) -> Finding:
    """Checks that `dvc.lock`, which says which bytes belong to which commit, is committed."""
    root = context.root
    if run_git(root, "rev-parse", "--is-inside-work-tree") is None:
        return Finding("warning", "this is no git repository", "git init, and commit")
    if not (root / "dvc.lock").exists():
        return Finding("ok", "no stage has run yet")
    if run_git(root, "check-ignore", "-q", "dvc.lock") is not None:
        return Finding("problem", "git ignores dvc.lock", "take it out of .gitignore, and commit it")
    state = run_git(root, "status", "--porcelain", "--", "dvc.lock") or ""
    if not state.strip():
        return Finding("ok", "dvc.lock is committed")
    is_new, advice = state.startswith("??"), "git add dvc.lock && git commit -m 'Record what was made'"
    fault = "is in no commit: nobody can pull what it names" if is_new else "differs from the last commit"
    return Finding("warning", f"dvc.lock {fault}", advice)


def check_outputs(context: CheckContext) -> Finding:
    """Checks that git ignores the files in DVC's care: it would commit them."""
    root = context.root
    if run_git(root, "rev-parse", "--is-inside-work-tree") is None:
        return Finding("ok", "this is no git repository")
    paths = [output.path for output in read_outputs(root)[0] if output.is_cached]
    if not paths:
        return Finding("ok", "no stage has run yet")
    tracked = (run_git(root, "ls-files", "-z", "--", *(f":(literal){path}" for path in paths)) or "").split("\0")[:-1]
    if tracked:
        roots = sorted({path for path in paths for one in tracked if one == path or one.startswith(f"{path}/")})
        advice = f"git rm -r --cached --quiet {shlex.join(roots[:5])}"
        return Finding("problem", f"git tracks {len(tracked):,} files of outputs", advice)
    ignored = (run_git(root, "check-ignore", "-z", "--stdin", stdin="\0".join(paths)) or "").split("\0")
    if others := sorted(set(paths) - set(ignored)):
        message = f"git does not ignore {', '.join(others[:3])}{' …' if len(others) > 3 else ''}"
        return Finding("warning", message, f"printf '/%s\\n' {shlex.join(others)} >> .gitignore")
    return Finding("ok", f"git ignores all {len(paths):,}")

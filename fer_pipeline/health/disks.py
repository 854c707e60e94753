"""The file systems under the project in, whether there is room, and whether DVC links or copies there, out."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fer_pipeline.health.dvc_config import LINK_TYPES, DvcConfig, read_config
from fer_pipeline.health.finding import Finding, Place
from fer_pipeline.health.outputs import promised

GB = 1_000_000_000
LINKS = ("reflink", "hardlink", "symlink", "copy")
LEAST_FREE = 1 * GB
LITTLE_FREE = 10 * GB
LEAST_INODES = 10_000
LITTLE_INODES = 0.05  # of all
FICLONE = 0x40049409  # ioctl_ficlone(2)
REHASHED_A_SECOND = 0.4 * GB
FLEETING = ("overlay", "tmpfs", "ramfs", "aufs")  # they end with their container or machine


def space(place: Place, *, usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage) -> Finding:
    """Room for anything at all; `plan` says what a run needs."""
    total, _, free = usage(place.root)
    found = f"{free / GB:,.1f} of {total / GB:,.1f} GB are free"
    cure = "python -m fer_pipeline prune, then dvc gc --workspace, or a larger disk"
    if free < LEAST_FREE:
        return Finding("space", "problem", found, cure)
    return Finding("space", "warning", found, cure) if free < LITTLE_FREE else Finding("space", "ok", found)


def inodes(place: Place, *, counted: Callable[[Path], tuple[int, int]] | None = None) -> Finding:
    """Names that the file system still has; some count none."""
    total, free = (counted or _inodes)(place.root)
    if total == 0:
        return Finding("inodes", "ok", "this file system does not count them")
    found = f"{free:,} of {total:,} are free"
    cure = "remove folders of many small files, or make the file system with more inodes"
    if free < LEAST_INODES:
        return Finding("inodes", "problem", found, cure)
    few = free < LITTLE_INODES * total
    return Finding("inodes", "warning", found, cure) if few else Finding("inodes", "ok", found)


def _inodes(folder: Path) -> tuple[int, int]:
    state = os.statvfs(folder)
    return state.f_files, state.f_favail


def works(kind: str, source: Path, out: Path) -> bool:
    """Whether a link of this kind can be made of `source` at `out`; nothing is left of the trial."""
    try:
        if kind == "hardlink":
            os.link(source, out)
        elif kind == "symlink":
            out.symlink_to(source)
        elif kind == "reflink":
            with source.open("rb") as read, out.open("wb") as written:
                fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
        else:
            shutil.copyfile(source, out)
    except OSError:
        return False
    finally:
        out.unlink(missing_ok=True)
    return True


def link_type(config: DvcConfig, root: Path, *, works: Callable[[str, Path, Path], bool] = works) -> str:
    """How DVC takes into its cache what a stage wrote, by trying with two small files; `none` where it fails.

    A hard link that stands behind another type is taken by `dvc checkout` alone: a stage's files are then copied.
    """
    types = config.link_types or LINK_TYPES
    kind = next((kind for kind in types if kind in _working(config, root, works)), "none")
    return "copy" if kind == "hardlink" and types[0] != "hardlink" else kind


def _working(config: DvcConfig, root: Path, works: Callable[[str, Path, Path], bool]) -> tuple[str, ...]:
    with (
        tempfile.NamedTemporaryFile(dir=_there(config.cache), prefix=".doctor.", suffix=".tmp") as source,
        tempfile.TemporaryDirectory(dir=root, prefix=".doctor.", suffix=".tmp") as folder,
    ):
        source.write(b"x" * 4096)
        source.flush()
        out = Path(folder) / "out"
        return tuple(kind for kind in LINKS if works(kind, Path(source.name), out))


def _there(folder: Path) -> Path:
    """A folder, or where it will be made."""
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())


def links(place: Place, *, works: Callable[[str, Path, Path], bool] = works) -> Finding:
    """A copy doubles the disk; a hard link or a reflink uses it once."""
    config = read_config(place.root)
    kind, there = link_type(config, place.root, works=works), _working(config, place.root, works)
    told = ", ".join(config.link_types) if config.link_types else "not set, so reflink, copy"
    found = f"DVC takes what a stage wrote by {kind} (cache.type: {told})"
    best = next((types for types in ("reflink,hardlink,copy", "hardlink,copy") if types.split(",")[0] in there), None)
    cure = f"dvc config cache.type {best or 'copy'}"
    if kind == "none":
        return Finding("links", "problem", f"no type of cache.type ({told}) works here; DVC fails", cure)
    if kind != "copy":
        return Finding("links", "ok", found)
    twice = sum(output.size for output in promised(place.root).outputs if output.cached)
    found += f": every output lies on the disk twice, {twice / GB:,.1f} GB more"
    if best:
        return Finding("links", "warning", found, f"{cure} && dvc checkout --relink")
    apart = _there(config.cache).stat().st_dev != place.root.stat().st_dev
    why = "; the cache lies on another file system" if apart else "; this file system has neither links nor reflinks"
    cure = "dvc cache dir FOLDER, one on the file system of the project"
    return Finding("links", "warning", found + why, cure)


def site_cache(place: Place, *, kind_of: Callable[[Path], str] | None = None) -> Finding:
    """Where DVC remembers the hashes of files: gone with it, everything is hashed again."""
    set_to = read_config(place.root).site_cache
    folder = set_to or Path("/var/tmp/dvc")
    kind = (kind_of or file_system)(folder)
    found = f"DVC remembers hashes in {folder} ({kind or 'unknown file system'})"
    if kind not in FLEETING:
        return Finding("site_cache", "ok", found)
    size = sum(output.size for output in promised(place.root).outputs)
    again = f"{size / GB:,.1f} GB are hashed again, {size / REHASHED_A_SECOND:,.0f} s"
    found += f", which ends with this container or machine; then {again}"
    return Finding("site_cache", "warning", found, "dvc config --local core.site_cache_dir FOLDER, one that stays")


def file_system(path: Path, *, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that a path lies on, whether it exists yet or not."""
    best, kind = -1, ""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        point, this = line.split()[1:3]
        point = point.replace("\\040", " ")
        if path.absolute().is_relative_to(point) and len(point) >= best:
            best, kind = len(point), this
    return kind

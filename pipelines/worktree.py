"""A git revision of a workspace in, a folder beside it to reproduce that revision in out; and what came out, as a DVC
experiment.

The folder is a git work tree with the same parent folder, so that relative paths to data outside mean the same, and
with the workspace's own DVC cache, so that what is known there is not made again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import FlowError
from pipelines.workspace import stage_environment


@contextmanager
def revision(workspace: Path, rev: str | None, name: str | None = None) -> Iterator[Path]:
    """The workspace itself, or the work tree of a revision; it stays, so that a rerun goes on there."""
    if rev is None:
        yield workspace
        return
    commit = git(workspace, "rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")
    place = workspace.with_name(f"{workspace.name}@{name or commit[:10]}")
    if not place.exists():
        git(workspace, "worktree", "prune")
        git(workspace, "worktree", "add", "--detach", str(place), commit)
    yield furnish(workspace, place)


def furnish(workspace: Path, place: Path) -> Path:
    """Gives a work tree the workspace's cache, and what is neither in git nor made by a stage: raw data, by link."""
    dvc(place, "cache", "dir", "--local", dvc(workspace, "cache", "dir"))
    if (workspace / "dvc.lock").exists() and not (place / "dvc.lock").exists():
        shutil.copy2(workspace / "dvc.lock", place / "dvc.lock")
    for name in _raw_inputs(workspace):
        there = place / name
        if not there.exists() and (workspace / name).exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(workspace / name, there)
    dvc(place, "checkout", "--quiet", "--allow-missing")
    return place


def remove(workspace: Path, place: Path) -> None:
    """Takes a work tree away; what is in DVC's cache and in git stays."""
    git(workspace, "worktree", "remove", "--force", str(place))


def save_experiment(place: Path, name: str) -> None:
    """Saves what lies in a workspace as a DVC experiment of that name, in the place of one that had it."""
    dvc(place, "exp", "save", "--force", "--name", name)


def git(folder: Path, *words: str, environment: dict[str, str] | None = None, check: bool = True) -> str:
    """What a git command prints; FlowError with its last line where it fails, unless told not to check."""
    return _told(["git", *words], folder, environment, check=check)


def dvc(folder: Path, *words: str) -> str:
    """What a dvc command prints; FlowError with its last line where it fails."""
    return _told([sys.executable, "-m", "dvc", *words], folder, None)


def _told(command: Sequence[str], folder: Path, environment: dict[str, str] | None, *, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=folder, env=stage_environment(environment), capture_output=True, text=True, check=False
    )
    if check and done.returncode != 0:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        words = [word for word in command if word not in (sys.executable, "-m")][:3]
        raise FlowError(f"`{' '.join(words)}` failed in {folder}: {last[-1] if last else done.returncode}")
    return done.stdout.strip()


def _raw_inputs(workspace: Path) -> list[str]:
    """Paths inside the workspace that stages read, that no stage makes and that git does not hold."""
    import yaml

    lock = workspace / "dvc.lock"
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}
    except (yaml.YAMLError, KeyError, TypeError):
        return []
    read = {dep["path"] for stage in stages.values() for dep in stage.get("deps", [])}
    made = {out["path"] for stage in stages.values() for out in stage.get("outs", [])}
    inside = [path for path in read if not Path(path).is_absolute() and ".." not in Path(path).parts]
    loose = [path for path in inside if not any(_holds(path, out) or _holds(out, path) for out in made)]
    return sorted(path for path in loose if not git(workspace, "ls-files", "--", path))


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder + "/")

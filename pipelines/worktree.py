"""A git revision of a workspace in, a folder beside it to reproduce that revision in out; and what came out, as a DVC
experiment.

The folder is a git work tree with the same parent folder, so that relative paths to data outside mean the same, and
with the workspace's own DVC cache, so that what is known there is not made again.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import FlowError
from pipelines.graph import raw_inputs
from pipelines.workspace import stage_environment


@contextmanager
def revision(workspace: Path, rev: str | None, name: str | None = None) -> Iterator[Path]:
    """The workspace itself, or the work tree of a revision; it stays, so that a rerun goes on there.

    A work tree that stands at another revision is moved to this one. FlowError for a revision that is not there.
    """
    if rev is None:
        yield workspace
        return
    commit = git(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}", check=False)
    if not commit:
        raise FlowError(f"{rev!r} is no commit, branch or tag of {workspace}; `git log --all --oneline` shows them")
    inside = git(workspace, "rev-parse", "--show-prefix")  # the repository may hold more than the workspace
    home = workspace.parents[len(Path(inside).parts) - 1] if inside else workspace
    tree = home.with_name(f"{home.name}@{name or commit[:10]}")
    place = tree / inside
    whole = place / ".dvc" / "tmp" / "pipelines.furnished"
    if _stands_at(tree) != commit or not whole.exists():
        _put(workspace, tree, commit)
        furnish(workspace, place)
        whole.touch()
    yield place


def furnish(workspace: Path, place: Path) -> Path:
    """Gives a work tree the workspace's cache, and what is neither in git nor made by a stage: raw data, by link."""
    local = workspace / ".dvc" / "config.local"
    if local.exists():  # remotes and link types of this host
        shutil.copy2(local, place / ".dvc" / "config.local")
    dvc(place, "cache", "dir", "--local", dvc(workspace, "cache", "dir"))
    if (workspace / "dvc.lock").exists() and not (place / "dvc.lock").exists():
        shutil.copy2(workspace / "dvc.lock", place / "dvc.lock")
    for path in _loose(workspace, raw_inputs(place)):
        source, link = workspace / path, place / path
        if source.exists() and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    # By force: what a killed run left half made is made again.
    dvc(place, "checkout", "--quiet", "--force", "--allow-missing")
    return place


def remove(workspace: Path, place: Path) -> None:
    """Takes a work tree away; what is in DVC's cache and in git stays."""
    with _one_at_a_time(workspace):
        git(workspace, "worktree", "remove", "--force", git(place, "rev-parse", "--show-toplevel"))


def save_experiment(place: Path, name: str) -> None:
    """Saves what lies in a workspace as a DVC experiment of that name, in the place of one that had it."""
    with _one_at_a_time(place):  # while DVC saves one it has notes in git that all work trees share
        dvc(place, "exp", "save", "--force", "--name", name)


def git(folder: Path, *words: str, environment: dict[str, str] | None = None, check: bool = True) -> str:
    """What a git command prints; FlowError with its last line where it fails, unless told not to check."""
    return _told(["git", *words], folder, environment, check=check)


def dvc(folder: Path, *words: str) -> str:
    """What a dvc command prints; FlowError with its last line where it fails."""
    return _told([sys.executable, "-m", "dvc", *words], folder, None)


def _told(command: Sequence[str], folder: Path, environment: dict[str, str] | None, *, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=folder, env=stage_environment(environment), capture_output=True, check=False,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    if check and done.returncode != 0:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        words = [word for word in command if word not in (sys.executable, "-m")][:3]
        raise FlowError(f"`{' '.join(words)}` failed in {folder}: {last[-1] if last else done.returncode}")
    return done.stdout.rstrip("\n")


def _stands_at(tree: Path) -> str | None:
    """The commit of a work tree that was made to its end; None where there is none."""
    if not (tree / ".git").is_file():
        return None
    if (Path(git(tree, "rev-parse", "--absolute-git-dir", check=False)) / "locked").exists():  # git was killed
        return None
    return git(tree, "rev-parse", "--verify", "--quiet", "HEAD", check=False) or None


def _put(workspace: Path, tree: Path, commit: str) -> None:
    """Makes a work tree, or moves the one that is there."""
    if _stands_at(tree) is not None:
        git(tree, "checkout", "--quiet", "--force", "--detach", commit)
        return
    if tree.exists() and not (tree / ".git").is_file():
        raise FlowError(f"{tree} is in the way: it is no work tree of {workspace}; move it away")
    with _one_at_a_time(workspace):  # git prunes what another git is just making
        git(workspace, "worktree", "remove", "--force", "--force", str(tree), check=False)
        git(workspace, "worktree", "prune")
        git(workspace, "worktree", "add", "--detach", str(tree), commit)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other flow of this host does such a thing in the same repository."""
    common = folder / git(folder, "rev-parse", "--git-common-dir")
    with (common / "pipelines.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _loose(workspace: Path, raw: Sequence[str]) -> list[str]:
    """What git does not hold of some paths; of a folder that it holds in part, what it was told to ignore."""
    if not raw:
        return []
    asked = ("--literal-pathspecs", "ls-files", "-z")
    tracked = git(workspace, *asked, "--", *raw).split("\0")
    ignored = git(workspace, *asked, "--others", "--ignored", "--exclude-standard", "--directory", "--", *raw)
    found = []
    for path in raw:
        if not any(_holds(path, one) for one in tracked):
            found.append(path)
        else:
            inside = (one.rstrip("/") for one in ignored.split("\0") if _holds(path, one))
            found += [one for one in inside if Path(one).name != "__pycache__"]
    return found


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")

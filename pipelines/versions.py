"""The branch that a refresh commits `dvc.lock` to, without touching index, files or what is checked out."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import FlowError
from pipelines.worktree import git

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Branch:
    """A branch of a workspace's repository."""

    workspace: Path
    name: str

    def tip(self) -> str | None:
        """Its last commit; None where there is no such branch."""
        try:
            return git(self.workspace, "rev-parse", "--verify", "--quiet", f"refs/heads/{self.name}")
        except FlowError:
            return None

    def base(self) -> str:
        """The commit that a new version is compared with: the branch's last one, or what is checked out."""
        return self.tip() or git(self.workspace, "rev-parse", "HEAD")

    def holds_lock(self) -> bool:
        """Whether the branch, or what is checked out where there is no branch, has the workspace's dvc.lock."""
        try:
            theirs = git(self.workspace, "rev-parse", "--verify", "--quiet", f"{self.base()}:{LOCK}")
        except FlowError:
            return False
        return theirs == git(self.workspace, "hash-object", LOCK)

    def was_pushed(self, remote: str, git_remote: str) -> bool:
        """Whether the branch's last commit went to these remotes."""
        try:
            return (
                git(self.workspace, "rev-parse", "--verify", "--quiet", self._mark(remote, git_remote)) == self.base()
            )
        except FlowError:
            return False

    def set_pushed(self, remote: str, git_remote: str) -> None:
        """Remembers that it did."""
        git(self.workspace, "update-ref", self._mark(remote, git_remote), self.base())

    def _mark(self, remote: str, git_remote: str) -> str:
        return f"refs/pipelines/pushed/{self.name}/{remote or 'default'}/{git_remote or 'nowhere'}"


def dirty(workspace: Path) -> list[str]:
    """Tracked files that differ from what is checked out; dvc.lock, which runs write, is none of them."""
    told = git(workspace, "status", "--porcelain", "--untracked-files=no", "-z")
    return [entry[3:] for entry in told.split("\0") if len(entry) > 3 and entry[3:] != LOCK]


def commit_lock(branch: Branch, *, subject: str, lines: Sequence[str] = ()) -> str:
    """Commits the workspace's dvc.lock, on the files of what is checked out, to a branch; the commit.

    The settings of the checked-out commit come along: the version then says what made it. Where nothing differs from
    the branch's last commit, that one is returned. FlowError where the branch moved meanwhile.
    """
    place, tip = branch.workspace, branch.tip()
    head = git(place, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.path.join(folder, "index")}
        git(place, "read-tree", head, environment=index)
        blob = git(place, "hash-object", "-w", LOCK)
        git(place, "update-index", "--add", "--cacheinfo", f"100644,{blob},{LOCK}", environment=index)
        tree = git(place, "write-tree", environment=index)
    if tip and git(place, "rev-parse", f"{tip}^{{tree}}") == tree:
        return tip
    message = "\n".join([subject, "", *lines]).strip() + "\n"
    if git(place, "symbolic-ref", "--quiet", "HEAD", check=False) == f"refs/heads/{branch.name}":
        git(place, "add", "--force", "--", LOCK)
        git(place, *_author(place), "commit", "--quiet", "-m", message, "--only", "--", LOCK)
        return git(place, "rev-parse", "HEAD")
    parents = [tip, head] if tip and not _is_ancestor(place, head, tip) else [tip or head]
    words = [word for parent in parents for word in ("-p", parent)]
    commit = git(place, *_author(place), "commit-tree", tree, *words, "-m", message)
    git(place, "update-ref", f"refs/heads/{branch.name}", commit, tip or "0" * 40)
    return commit


def _is_ancestor(place: Path, older: str, newer: str) -> bool:
    return git(place, "merge-base", older, newer, check=False) == older


def _author(place: Path) -> list[str]:
    """Who commits, where git was told nobody."""
    if git(place, "config", "user.email", check=False):
        return []
    return ["-c", "user.name=fer_pipeline", "-c", "user.email=fer_pipeline@localhost"]

"""The branch that a refresh commits `dvc.lock` to, without touching index, files or what is checked out."""

import hashlib
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
    """A branch of a workspace's repository, or one that can be made; FlowError for one that cannot be written."""

    workspace: Path
    name: str

    def __post_init__(self) -> None:
        try:
            git(self.workspace, "check-ref-format", self._ref)
        except FlowError:
            raise FlowError(f"{self.name!r} is no name for a branch; take one as refresh") from None
        others = git(self.workspace, "for-each-ref", "--format=%(refname)", "refs/heads").splitlines()
        if near := [one for one in others if one.startswith(f"{self._ref}/") or self._ref.startswith(f"{one}/")]:
            known = near[0].removeprefix("refs/heads/")
            raise FlowError(f"git cannot hold the branches {self.name} and {known} together; take another name")
        held = f"branch {self._ref}" in git(self.workspace, "worktree", "list", "--porcelain").splitlines()
        if held and not self._is_checked_out():
            raise FlowError(f"the branch {self.name} is checked out in another work tree; take another name")

    def tip(self) -> str | None:
        """Its last commit; None where there is no such branch."""
        return git(self.workspace, "rev-parse", "--verify", "--quiet", self._ref, check=False) or None

    def base(self) -> str:
        """The commit that a new version is compared with: the branch's last one, or what is checked out."""
        return self.tip() or git(self.workspace, "rev-parse", "HEAD")

    def holds_lock(self) -> bool:
        """Whether the branch, or what is checked out where there is no branch, has what DVC notes in the workspace."""
        ours = records(self.workspace)
        entries = git(self.workspace, "ls-tree", "-z", self.base(), "--", *{LOCK, *ours}).split("\0")
        theirs = {path: kind.split()[2] for kind, _, path in (one.partition("\t") for one in entries if one)}
        hashes = git(self.workspace, "hash-object", "--", *ours).splitlines() if ours else []
        return theirs == dict(zip(ours, hashes, strict=True))

    def was_pushed(self, remote: str, git_remote: str) -> bool:
        """Whether the branch's last commit went to these remotes."""
        mark = self._mark(remote, git_remote)
        return git(self.workspace, "rev-parse", "--verify", "--quiet", mark, check=False) == self.base()

    def set_pushed(self, remote: str, git_remote: str) -> None:
        """Remembers that it did."""
        git(self.workspace, "update-ref", self._mark(remote, git_remote), self.base())

    def _mark(self, remote: str, git_remote: str) -> str:
        where = hashlib.sha256(f"{remote}\n{git_remote}".encode()).hexdigest()[:16]  # a URL is no name for a ref
        return f"refs/pipelines/pushed/{self.name}/{where}"

    @property
    def _ref(self) -> str:
        return f"refs/heads/{self.name}"

    def _is_checked_out(self) -> bool:
        return git(self.workspace, "symbolic-ref", "--quiet", "HEAD", check=False) == self._ref


def records(workspace: Path) -> list[str]:
    """The files in which DVC notes versions: dvc.lock beside every dvc.yaml, and the .dvc files of added data."""
    told = git(workspace, "ls-files", "-z", "--", ":(glob)**/dvc.yaml", ":(glob)**/*.dvc").split("\0")
    locks = {LOCK, *(str(Path(one).with_name(LOCK)) for one in told if Path(one).name == "dvc.yaml")}
    notes = {one for one in told if one.endswith(".dvc")}
    return sorted(one for one in locks | notes if (workspace / one).is_file())


def dirty(workspace: Path) -> list[str]:
    """Tracked files that differ from what is checked out, without those that DVC writes in a run."""
    inside = git(workspace, "rev-parse", "--show-prefix")
    told = git(workspace, "status", "--porcelain", "--untracked-files=no", "--no-renames", "-z", "--", ".")
    changed = [entry[3:].removeprefix(inside) for entry in told.split("\0") if entry]
    return sorted({*changed} - {*records(workspace), LOCK})


def commit_lock(branch: Branch, *, subject: str, lines: Sequence[str] = ()) -> str:
    """Commits what DVC notes in the workspace, on the files of what is checked out, to a branch; the commit.

    The settings of the checked-out commit come along: the version then says what made it. Where nothing differs from
    the branch's last commit, that one is returned. FlowError where the branch moved meanwhile.
    """
    place, tip, ours = branch.workspace, branch.tip(), records(branch.workspace)
    head = git(place, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.path.join(folder, "index")}
        git(place, "read-tree", head, environment=index)
        git(place, "update-index", "--add", "--", *ours, environment=index)
        tree = git(place, "write-tree", environment=index)
        if tip and git(place, "rev-parse", f"{tip}^{{tree}}") == tree:
            return tip
        message = Path(folder) / "message"  # a command line would be too short for many lines
        message.write_text("\n".join([subject, "", *lines]).strip() + "\n", encoding="utf-8")
        if branch._is_checked_out():
            git(place, "add", "--force", "--", *ours)
            git(place, *_author(place), "commit", "--quiet", "-F", str(message), "--only", "--", *ours)
            return git(place, "rev-parse", "HEAD")
        parents = [tip, head] if tip and not _is_ancestor(place, head, tip) else [tip or head]
        words = [word for parent in parents for word in ("-p", parent)]
        commit = git(place, *_author(place), "commit-tree", tree, *words, "-F", str(message))
    git(place, "update-ref", branch._ref, commit, tip or "0" * len(commit))
    return commit


def _is_ancestor(place: Path, older: str, newer: str) -> bool:
    return git(place, "merge-base", older, newer, check=False) == older


def _author(place: Path) -> list[str]:
    """Who commits, where git was told nobody."""
    if git(place, "config", "user.email", check=False):
        return []
    return ["-c", "user.name=fer_pipeline", "-c", "user.email=fer_pipeline@localhost"]

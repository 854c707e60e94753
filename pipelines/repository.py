"""Run git and DVC in a workspace: work trees of revisions, DVC experiments, and a branch for new versions of dvc.lock.

A work tree has the same parent folder as the repository, so that relative paths to data outside mean the same, and the
workspace's own DVC cache, so that what is known there is not made again. A branch is committed to without touching
index, files or what is checked out.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines import FlowError
from pipelines.workspace import LOCK, list_raw_inputs, stage_environment


def run_git(folder: Path, *words: str, environment: dict[str, str] | None = None, check: bool = True) -> str:
    """Return what a git command prints; FlowError with its last line where it fails, unless `check` is off."""
    return _run(["git", *words], folder, environment, check)


def run_dvc(folder: Path, *words: str) -> str:
    """Return what a dvc command prints; FlowError with its last line where it fails."""
    return _run([sys.executable, "-m", "dvc", *words], folder)


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=folder, env=stage_environment(folder, environment), capture_output=True, check=False,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    if check and done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        words = [word for word in command if word not in (sys.executable, "-m")][:3]
        raise FlowError(f"`{' '.join(words)}` failed in {folder}: {lines[-1] if lines else done.returncode}")
    return done.stdout.rstrip("\n")


@contextmanager
def checkout_revision(workspace: Path, rev: str | None, name: str | None = None) -> Iterator[Path]:
    """Yield the workspace itself, or the work tree of a revision; it stays, so that a rerun goes on there.

    A work tree that stands at another revision is moved to this one. FlowError for a revision that is not there.
    """
    if rev is None:
        yield workspace
        return
    revision = f"{rev}^{{commit}}"
    commit = run_git(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", revision, check=False)
    if not commit:
        raise FlowError(f"{rev!r} is no commit, branch or tag of {workspace}; `git log --all --oneline` shows them")
    inside = run_git(workspace, "rev-parse", "--show-prefix")  # the repository may hold more than the workspace
    top = workspace.parents[len(Path(inside).parts) - 1] if inside else workspace
    tree = top.with_name(f"{top.name}@{name or commit[:10]}")
    folder = tree / inside
    ready = folder / ".dvc" / "tmp" / "pipelines.ready"
    current = _read_commit(tree)
    if current != commit or not ready.exists():
        if current is not None:
            run_git(tree, "checkout", "--quiet", "--force", "--detach", commit)
        elif tree.exists() and not (tree / ".git").is_file():
            raise FlowError(f"{tree} is in the way: it is no work tree of {workspace}; move it away")
        else:
            with _lock_repository(workspace):  # git prunes what another git is just making
                run_git(workspace, "worktree", "remove", "--force", "--force", str(tree), check=False)
                run_git(workspace, "worktree", "prune")
                run_git(workspace, "worktree", "add", "--detach", str(tree), commit)
        prepare_work_tree(workspace, folder)
        ready.touch()
    yield folder


def prepare_work_tree(workspace: Path, folder: Path) -> None:
    """Give a work tree the workspace's cache, and what is neither in git nor made by a stage: raw data, by link."""
    local = workspace / ".dvc" / "config.local"
    if local.exists():  # remotes and link types of this host
        shutil.copy2(local, folder / ".dvc" / "config.local")
    run_dvc(folder, "cache", "dir", "--local", run_dvc(workspace, "cache", "dir"))
    if (workspace / LOCK).exists() and not (folder / LOCK).exists():
        shutil.copy2(workspace / LOCK, folder / LOCK)
    for path in _list_untracked(workspace, list_raw_inputs(folder)):
        source, link = workspace / path, folder / path
        if source.exists() and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    # By force: what a killed run left half made is made again.
    run_dvc(folder, "checkout", "--quiet", "--force", "--allow-missing")


def remove_work_tree(workspace: Path, folder: Path) -> None:
    """Remove a work tree; what is in DVC's cache and in git stays."""
    with _lock_repository(workspace):
        run_git(workspace, "worktree", "remove", "--force", run_git(folder, "rev-parse", "--show-toplevel"))


def save_experiment(folder: Path, name: str, targets: Sequence[str] | None = None, stages: Sequence[str] = ()) -> None:
    """Save what lies in a workspace as a DVC experiment of that name, in the place of one that had it.

    What was made is remembered with it: all stages, or `targets`, which are these `stages`. DVC locks what it saves as
    made of what lies there now, so that others must not be saved.
    """
    with _lock_repository(folder):  # while DVC saves one it has notes in git that all work trees share
        run_dvc(folder, "exp", "save", "--force", f"--name={name}", *(stages if targets else ()))
        if commit := find_experiment(folder, "HEAD", name):  # the note keeps nothing alive but what it was made from
            run_git(folder, "update-ref", _made_ref(commit, targets), "HEAD")


def has_made(folder: Path, experiment: str, targets: Sequence[str] | None) -> bool:
    """Tell whether the commit of an experiment was saved when these targets, or all stages, had been made."""
    return any(_resolve(folder, _made_ref(experiment, made)) for made in (None, targets))


def _made_ref(experiment: str, targets: Sequence[str] | None) -> str:
    digest = hashlib.sha256("\n".join(sorted({*targets})).encode()).hexdigest()[:16] if targets else "all"
    return f"refs/pipelines/made/{experiment}/{digest}"


def find_experiment(folder: Path, rev: str, name: str) -> str | None:
    """Return the commit of the experiment of that name that was made from a revision; None where there is none."""
    base = run_git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}", check=False)
    return _resolve(folder, f"refs/exps/{base[:2]}/{base[2:]}/{name}") if base else None


def check_experiment_name(name: str) -> None:
    """Refuse a name that DVC or git would refuse when everything has been made."""
    try:
        if "/" in name:
            raise FlowError
        run_git(Path(), "check-ref-format", f"refs/exps/{name}")
    except FlowError:
        raise FlowError(f"{name!r} is no name for an experiment; take letters, digits and - _ . alone") from None


def _read_commit(tree: Path) -> str | None:
    """Return the commit of a work tree that was made to its end; None where there is none."""
    made = (tree / ".git").is_file()
    if made and not (Path(run_git(tree, "rev-parse", "--absolute-git-dir", check=False)) / "locked").exists():
        return _resolve(tree, "HEAD")
    return None  # a git that was killed leaves `locked`


def _resolve(folder: Path, name: str) -> str | None:
    """Return the commit that a reference names; None where there is no such reference."""
    return run_git(folder, "rev-parse", "--verify", "--quiet", name, check=False) or None


@contextmanager
def _lock_repository(folder: Path) -> Iterator[None]:
    """Wait until no other flow of this host does such a thing in the same repository."""
    git_folder = folder / run_git(folder, "rev-parse", "--git-common-dir")
    with (git_folder / "pipelines.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            cure = "a repository that flows share needs a file system with locks"
            raise FlowError(f"{file.name} cannot be locked: {error.strerror}; {cure}") from None
        yield


def _list_untracked(workspace: Path, paths: Sequence[str]) -> list[str]:
    """Return which of some paths git does not hold; of a folder that it holds in part, what it ignores in it."""
    list_files, untracked = ("--literal-pathspecs", "ls-files", "-z"), []
    for path in paths:
        if run_git(workspace, *list_files, "--", path):
            options = ("--others", "--ignored", "--exclude-standard", "--directory")
            ignored = run_git(workspace, *list_files, *options, "--", path).split("\0")
            untracked += [one.rstrip("/") for one in ignored if Path(one).name not in ("", "__pycache__")]
        else:
            untracked.append(path)
    return untracked


@dataclass(frozen=True)
class Branch:
    """A branch of a workspace's repository, or one that can be made; FlowError for one that cannot be written."""

    workspace: Path
    name: str

    def __post_init__(self) -> None:
        try:
            run_git(self.workspace, "check-ref-format", self.ref)
        except FlowError:
            raise FlowError(f"{self.name!r} is no name for a branch; take one as refresh") from None
        others = run_git(self.workspace, "for-each-ref", "--format=%(refname)", "refs/heads").splitlines()
        if near := [one for one in others if one.startswith(f"{self.ref}/") or self.ref.startswith(f"{one}/")]:
            other = near[0].removeprefix("refs/heads/")
            raise FlowError(f"git cannot hold the branches {self.name} and {other} together; take another name")
        used = f"branch {self.ref}" in run_git(self.workspace, "worktree", "list", "--porcelain").splitlines()
        if used and not self.is_checked_out():
            raise FlowError(f"the branch {self.name} is checked out in another work tree; take another name")

    @property
    def ref(self) -> str:
        """The full name of its reference."""
        return f"refs/heads/{self.name}"

    def tip(self) -> str | None:
        """Return its last commit; None where there is no such branch."""
        return _resolve(self.workspace, self.ref)

    def base(self) -> str:
        """Return the commit that a new version is compared with: the branch's last one, or what is checked out."""
        return self.tip() or run_git(self.workspace, "rev-parse", "HEAD")

    def is_checked_out(self) -> bool:
        """Tell whether the workspace has this branch checked out."""
        return run_git(self.workspace, "symbolic-ref", "--quiet", "HEAD", check=False) == self.ref

    def holds_version(self) -> bool:
        """Tell whether the branch (or HEAD where there is no branch) has what DVC notes in the workspace."""
        ours = list_dvc_files(self.workspace)
        entries = run_git(self.workspace, "ls-tree", "-z", self.base(), "--", *{LOCK, *ours}).split("\0")
        theirs = {path: kind.split()[2] for kind, _, path in (entry.partition("\t") for entry in entries if entry)}
        hashes = run_git(self.workspace, "hash-object", "--", *ours).splitlines() if ours else []
        return theirs == dict(zip(ours, hashes, strict=True))

    def was_pushed(self, remote: str, git_remote: str) -> bool:
        """Tell whether the branch's last commit went to these remotes."""
        return _resolve(self.workspace, self._pushed_ref(remote, git_remote)) == self.base()

    def set_pushed(self, remote: str, git_remote: str) -> None:
        """Remember that it did."""
        run_git(self.workspace, "update-ref", self._pushed_ref(remote, git_remote), self.base())

    def _pushed_ref(self, remote: str, git_remote: str) -> str:
        digest = hashlib.sha256(f"{remote}\n{git_remote}".encode()).hexdigest()[:16]  # a URL is no name for a ref
        return f"refs/pipelines/pushed/{self.name}/{digest}"


def list_dvc_files(workspace: Path) -> list[str]:
    """Return the files in which DVC notes versions: dvc.lock beside every dvc.yaml, and the .dvc files of data."""
    tracked = run_git(workspace, "ls-files", "-z", "--", ":(glob)**/dvc.yaml", ":(glob)**/*.dvc").split("\0")
    paths = {LOCK, *(path for path in tracked if path.endswith(".dvc"))}
    paths |= {str(Path(path).with_name(LOCK)) for path in tracked if Path(path).name == "dvc.yaml"}
    return sorted(path for path in paths if (workspace / path).is_file())


def list_uncommitted(workspace: Path) -> list[str]:
    """Return the tracked files that differ from what is checked out, without those that DVC writes in a run."""
    prefix = run_git(workspace, "rev-parse", "--show-prefix")
    status = run_git(workspace, "status", "--porcelain", "--untracked-files=no", "--no-renames", "-z", "--", ".")
    changed = {entry[3:].removeprefix(prefix) for entry in status.split("\0") if entry}
    return sorted(changed - {*list_dvc_files(workspace), LOCK})


def commit_lock(branch: Branch, *, subject: str, lines: Sequence[str] = ()) -> str:
    """Commit what DVC notes in the workspace, on the files of what is checked out, to a branch; return the commit.

    The settings of the checked-out commit come along: the version then says what made it. Where nothing differs from
    the branch's last commit, that one is returned. FlowError where the branch moved meanwhile.
    """
    workspace, tip, ours = branch.workspace, branch.tip(), list_dvc_files(branch.workspace)
    head = run_git(workspace, "rev-parse", "HEAD")
    is_known = run_git(workspace, "config", "user.email", check=False)
    author = [] if is_known else ["-c", "user.name=fer_pipeline", "-c", "user.email=fer_pipeline@localhost"]
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.path.join(folder, "index")}
        run_git(workspace, "read-tree", head, environment=index)
        run_git(workspace, "update-index", "--add", "--", *ours, environment=index)
        tree = run_git(workspace, "write-tree", environment=index)
        if tip and run_git(workspace, "rev-parse", f"{tip}^{{tree}}") == tree:
            return tip
        message = Path(folder) / "message"  # a command line would be too short for many lines
        message.write_text("\n".join([subject, "", *lines]).strip() + "\n", encoding="utf-8")
        if branch.is_checked_out():
            run_git(workspace, "add", "--force", "--", *ours)
            run_git(workspace, *author, "commit", "--quiet", "-F", str(message), "--only", "--", *ours)
            return run_git(workspace, "rev-parse", "HEAD")
        parents = ["-p", tip or head]
        if tip and run_git(workspace, "merge-base", head, tip, check=False) != head:
            parents += ["-p", head]
        commit = run_git(workspace, *author, "commit-tree", tree, *parents, "-F", str(message))
    run_git(workspace, "update-ref", branch.ref, commit, tip or "0" * len(commit))
    return commit

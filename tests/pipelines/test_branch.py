"""The branch of versions: real repositories; git itself says what changed and what did not."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import FlowError
from pipelines.repository import Branch, commit_lock, list_dvc_files, list_uncommitted

NewRepository = Callable[..., Path]
FILES = {"dvc.yaml": "stages: {}\n", "params.yaml": "a: 1\n", ".gitignore": "/data\n"}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def state(folder: Path) -> tuple[str, ...]:
    """All that a person sees of a repository: HEAD, index, working files."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}
    told = git(folder, "status", "--porcelain"), git(folder, "ls-files", "-s"), git(folder, "symbolic-ref", "HEAD")
    return (*told, git(folder, "rev-parse", "HEAD"), repr(sorted(files.items())))


def tree(folder: Path, commit: str) -> dict[str, str]:
    """The files of a commit."""
    return {
        path: git(folder, "show", f"{commit}:{path}")
        for path in git(folder, "ls-tree", "-r", "--name-only", commit).split()
    }


@pytest.fixture
def folder(tmp_path: Path, new_repository: NewRepository) -> Path:
    """A repository with an untracked dvc.lock, and a change that is in the index."""
    folder = new_repository(tmp_path / "here", FILES)
    (folder / "dvc.lock").write_text("one\n")
    (folder / "staged").write_text("half done\n")
    git(folder, "add", "staged")
    return folder


def test_a_version_is_a_commit_that_nobody_sees_in_the_workspace(folder: Path) -> None:
    before, head = state(folder), git(folder, "rev-parse", "HEAD")
    branch = Branch(folder, "refresh")
    assert (branch.tip(), branch.base(), branch.holds_version()) == (None, head, False)
    first = commit_lock(branch, subject="Refresh: ü", lines=["# one | two: 1 → 2", ""])
    assert state(folder) == before
    assert first == branch.tip() == branch.base() == git(folder, "rev-parse", "refs/heads/refresh")
    assert git(folder, "rev-list", "--parents", "-1", first).split()[1:] == [head]
    assert tree(folder, first) == {**tree(folder, head), "dvc.lock": "one"}
    assert git(folder, "log", "-1", "--format=%B", first).strip() == "Refresh: ü\n\n# one | two: 1 → 2"
    assert branch.holds_version()
    assert commit_lock(branch, subject="again") == first  # nothing new
    (folder / "dvc.lock").write_text("two\n")
    assert not branch.holds_version()
    second = commit_lock(branch, subject="second")
    assert git(folder, "rev-list", "--parents", "-1", second).split()[1:] == [first]
    assert tree(folder, second)["dvc.lock"] == "two"


def test_new_settings_come_along_as_a_second_parent(folder: Path) -> None:
    branch = Branch(folder, "refresh")
    first = commit_lock(branch, subject="first")
    (folder / "params.yaml").write_text("a: 2\n")
    git(folder, "commit", "--quiet", "-m", "settings", "params.yaml")
    head = git(folder, "rev-parse", "HEAD")
    second = commit_lock(branch, subject="second")
    assert git(folder, "rev-list", "--parents", "-1", second).split()[1:] == [first, head]
    assert tree(folder, second)["params.yaml"] == "a: 2"
    assert commit_lock(branch, subject="third") == second


def test_on_the_branch_itself_only_the_lock_is_committed(folder: Path) -> None:
    head = git(folder, "rev-parse", "HEAD")
    commit = commit_lock(Branch(folder, "main"), subject="Refresh")
    assert git(folder, "rev-parse", "HEAD") == commit
    assert git(folder, "rev-list", "--parents", "-1", commit).split()[1:] == [head]
    assert git(folder, "diff", "--name-only", head, commit) == "dvc.lock"
    assert git(folder, "status", "--porcelain") == "A  staged"
    git(folder, "checkout", "--quiet", "--detach")
    (folder / "dvc.lock").write_text("two\n")
    assert git(folder, "rev-list", "-1", commit_lock(Branch(folder, "main"), subject="x") + "^") == commit
    assert git(folder, "rev-parse", "HEAD") == commit


def test_all_that_dvc_notes_is_in_a_version(folder: Path, tmp_path: Path) -> None:
    """Data of `dvc add` and pipelines in subfolders: a version without them could not be checked out."""
    (folder / "sub dir").mkdir()
    for path in ("sub dir/dvc.yaml", "sub dir/dvc.lock", "raw.txt.dvc", "ü.dvc"):
        (folder / path).write_text("1\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "more")
    branch = Branch(folder, "refresh")
    assert list_dvc_files(folder) == ["dvc.lock", "raw.txt.dvc", "sub dir/dvc.lock", "ü.dvc"]
    assert branch.holds_version()
    for path in ("raw.txt.dvc", "sub dir/dvc.lock", "ü.dvc"):
        (folder / path).write_text("2\n")
        assert not branch.holds_version()
        assert list_uncommitted(folder) == []
        before = state(folder)
        commit = commit_lock(branch, subject=path)
        assert state(folder) == before
        assert git(folder, "-c", "core.quotePath=off", "diff", "--name-only", f"{commit}^", commit) == path
        assert branch.holds_version()


def test_what_is_dirty_is_told_by_its_whole_name(folder: Path) -> None:
    git(folder, "reset", "--quiet", "--hard")
    assert list_uncommitted(folder) == []
    (folder / "dvc.lock").write_text("one\n")
    git(folder, "add", "dvc.lock")
    git(folder, "commit", "--quiet", "-m", "with a lock")
    (folder / "dvc.lock").write_text("two\n")
    assert git(folder, "status", "--porcelain") == " M dvc.lock"
    assert list_uncommitted(folder) == []
    (folder / "untracked").touch()
    git(folder, "mv", "params.yaml", "pa rams ü.yaml")
    (folder / "dvc.yaml").write_text("stages: {x: {cmd: y}}\n")
    assert list_uncommitted(folder) == ["dvc.yaml", "pa rams ü.yaml", "params.yaml"]


def test_a_workspace_below_the_top_of_its_repository(tmp_path: Path, new_repository: NewRepository) -> None:
    top = new_repository(tmp_path, {"code.py": "1", **{f"work/{path}": text for path, text in FILES.items()}})
    folder = top / "work"
    (folder / "dvc.lock").write_text("one\n")
    (top / "code.py").write_text("2")
    branch = Branch(folder, "refresh")
    assert not branch.holds_version()
    assert list_uncommitted(folder) == []
    commit = commit_lock(branch, subject="first")
    assert git(folder, "diff", "--name-only", "HEAD", commit) == "work/dvc.lock"
    assert branch.holds_version()
    (folder / "params.yaml").write_text("a: 3\n")
    assert list_uncommitted(folder) == ["params.yaml"]


def test_where_git_knows_nobody_the_pipeline_commits(tmp_path: Path, new_repository: NewRepository) -> None:
    folder = new_repository(tmp_path, FILES, author=False)
    (folder / "dvc.lock").write_text("one\n")
    for name in ("refresh", "main"):
        commit = commit_lock(Branch(folder, name), subject="first")
        assert git(folder, "log", "-1", "--format=%an <%ae>", commit) == "fer_pipeline <fer_pipeline@localhost>"


def test_a_branch_that_moved_meanwhile_is_not_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = Branch(folder, "refresh")
    commit_lock(branch, subject="first")
    other = git(folder, "rev-parse", "HEAD")
    (folder / "dvc.lock").write_text("two\n")
    tip = branch.tip()
    git(folder, "update-ref", "refs/heads/refresh", other)
    monkeypatch.setattr(Branch, "tip", lambda _: tip)
    with pytest.raises(FlowError, match="update-ref"):
        commit_lock(branch, subject="second")
    assert git(folder, "rev-parse", "refresh") == other


@pytest.mark.parametrize("name", ["refresh", "Auffrischung/für-später", "a.b", "x" * 200])
def test_what_was_pushed_is_remembered_by_remote(folder: Path, name: str) -> None:
    branch = Branch(folder, name)
    commit_lock(branch, subject="first")
    places = [("", ""), ("s3", ""), ("", "s3"), ("", "https://host:1/a..b.git"), ("my remote", "../other.git")]
    for number, place in enumerate(places):
        assert [branch.was_pushed(*one) for one in places] == [True] * number + [False] * (len(places) - number)
        branch.set_pushed(*place)
    (folder / "dvc.lock").write_text("two\n")
    commit_lock(branch, subject="second")
    assert not any(branch.was_pushed(*one) for one in places)


@pytest.mark.parametrize("name", ["", "a..b", "a b", "x.lock", "/a", "a/", "@{-1}", "~", "a\nb"])
def test_a_name_that_git_refuses_is_told_before_any_work(folder: Path, name: str) -> None:
    with pytest.raises(FlowError, match="is no name for a branch"):
        Branch(folder, name)


def test_branches_that_cannot_be_written_are_told_before_any_work(folder: Path, tmp_path: Path) -> None:
    git(folder, "branch", "a/b")
    for name in ("a", "a/b/c"):
        with pytest.raises(FlowError, match=f"cannot hold the branches {name} and a/b together"):
            Branch(folder, name)
    git(folder, "worktree", "add", "--quiet", str(tmp_path / "other"), "a/b")
    with pytest.raises(FlowError, match="checked out in another work tree"):
        Branch(folder, "a/b")


def test_a_repository_without_a_commit_is_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(FlowError, match="rev-parse HEAD"):
        Branch(tmp_path, "refresh").base()
    with pytest.raises(FlowError, match="not a git repository"):
        list_uncommitted(Path("/"))


def test_a_difference_of_any_length_fits_in_a_message(folder: Path) -> None:
    lines = [f"recipe {number} on target: accuracy: 0.5 → 0.6" for number in range(5000)]
    commit = commit_lock(Branch(folder, "refresh"), subject="Refresh", lines=lines)
    assert git(folder, "log", "-1", "--format=%B", commit).splitlines()[2:5002] == lines

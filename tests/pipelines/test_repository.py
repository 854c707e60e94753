"""Work trees of revisions: raw data by link, added data as it was then; a rerun goes on there, nothing is lost."""

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipelines import FlowError, repository
from pipelines.repository import checkout_revision, remove_work_tree, run_git, save_experiment

NewRepository = Callable[..., Path]
FILES = {
    "dvc.yaml": "stages: {join: {cmd: cat raw/in ../outside/o mixed/photo added code > out, "
    "deps: [raw, ../outside/o, mixed, added, code], outs: [out]}}\n",
    "code": "code 1\n",
    "mixed/README.md": "photographs lie here\n",
    ".gitignore": "/raw\n/mixed/*\n!/mixed/README.md\n__pycache__\n",
}


def repro(folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo() as repo:
            repo.reproduce()
    return (folder / "out").read_text()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, new_repository: NewRepository) -> Path:
    """Two versions of code and of added data, tagged v1 and v2; raw data is neither in git nor in DVC."""
    top = tmp_path_factory.mktemp("trees")
    folder = new_repository(top / "my work", FILES)
    for path, text in {"raw/in": "raw\n", "../outside/o": "outside\n", "mixed/photo": "photo\n"}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    (folder / "mixed" / "__pycache__").mkdir()
    (folder / ".dvc" / "config.local").write_text('[remote "here"]\n    url = /srv/remote\n')
    for version in "12":
        (folder / "code").write_text(f"code {version}\n")
        (folder / "added").write_text(f"added {version}\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            with Repo() as repo:
                repo.add("added")
        assert repro(folder) == f"raw\noutside\nphoto\nadded {version}\ncode {version}\n"
        run_git(folder, "add", "--all")
        run_git(folder, "commit", "--quiet", "-m", f"version {version}")
        run_git(folder, "tag", f"v{version}")
    return folder


def test_a_revision_is_reproduced_beside_the_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with checkout_revision(workspace, "v1", "a trial") as place:
        assert place == workspace.parent / "my work@a trial"
    assert run_git(place, "rev-parse", "HEAD") == run_git(workspace, "rev-parse", "v1")
    assert os.readlink(place / "raw") == str(workspace / "raw")
    assert os.readlink(place / "mixed" / "photo") == str(workspace / "mixed" / "photo")
    assert sorted(os.listdir(place / "mixed")) == ["README.md", "photo"]
    assert not (place / "added").is_symlink()
    assert (place / "added").read_text() == "added 1\n"
    assert (place / "out").read_text() == "raw\noutside\nphoto\nadded 1\ncode 1\n"  # from the shared cache
    assert "url = /srv/remote" in (place / ".dvc" / "config.local").read_text()
    assert run_git(place, "status", "--porcelain") == ""

    # A run in it is killed: the next one goes on from what is there, without another look at it.
    (place / "code").write_text("code 3\n")
    (place / "out").unlink()
    (place / "out").write_text("half")
    with monkeypatch.context() as patch:
        patch.setattr(repository, "run_dvc", lambda *_: pytest.fail("it was furnished again"))
        with checkout_revision(workspace, "v1", "a trial") as again:
            assert again == place
    assert (place / "out").read_text() == "half"
    assert repro(place) == "raw\noutside\nphoto\nadded 1\ncode 3\n"
    save_experiment(place, "trial-3")
    saved = run_git(workspace, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    assert any(one.endswith("/trial-3") for one in saved)  # known to the workspace, too

    # What it varies has moved on: so does the tree, whatever a killed run left in it.
    (place / "out").unlink()
    (place / "out").write_text("half")
    with checkout_revision(workspace, "v2", "a trial") as moved:
        assert moved == place
    assert (place / "code").read_text() == "code 2\n"
    assert (place / "added").read_text() == "added 2\n"
    assert repro(place) == "raw\noutside\nphoto\nadded 2\ncode 2\n"

    remove_work_tree(workspace, place)
    assert not place.exists()
    assert run_git(workspace, "worktree", "list").count("\n") == 0
    assert (workspace / "raw" / "in").read_text() == "raw\n"
    assert (workspace / "mixed" / "photo").read_text() == "photo\n"
    assert (workspace / "added").read_text() == "added 2\n"
    assert run_git(workspace, "status", "--porcelain") == ""


def test_no_revision_is_the_workspace_itself(tmp_path: Path) -> None:
    with checkout_revision(tmp_path, None) as place:
        assert place == tmp_path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git's part alone."""
    monkeypatch.setattr(repository, "prepare_work_tree", lambda _, place: (place / ".dvc" / "tmp").mkdir(exist_ok=True))


@pytest.mark.usefixtures("bare")
def test_trees_are_named_by_commit_and_found_by_any_name_of_it(workspace: Path) -> None:
    commit = run_git(workspace, "rev-parse", "v1")
    for name in ("v1", commit, commit[:12], "HEAD~1", "main^"):
        with checkout_revision(workspace, name) as place:
            assert place == workspace.with_name(f"my work@{commit[:10]}")
    remove_work_tree(workspace, place)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("rev", ["v9", "HEAD~99", "", "--all", "dvc.yaml", "v1:code"])
def test_an_unknown_revision_is_told_by_name(workspace: Path, rev: str) -> None:
    before = sorted(os.listdir(workspace.parent))
    with pytest.raises(FlowError, match="is no commit, branch or tag of") as refused, checkout_revision(workspace, rev):
        pass
    assert repr(rev) in str(refused.value)
    assert sorted(os.listdir(workspace.parent)) == before


@pytest.mark.usefixtures("bare")
def test_what_lies_in_the_way_is_left_alone(workspace: Path) -> None:
    other = workspace.with_name("my work@mine")
    (other / "precious").mkdir(parents=True)
    with pytest.raises(FlowError, match="is in the way"), checkout_revision(workspace, "v1", "mine"):
        pass
    assert (other / "precious").is_dir()


@pytest.mark.usefixtures("bare")
def test_a_tree_that_git_did_not_finish_is_made_again(workspace: Path) -> None:
    with checkout_revision(workspace, "v1", "killed") as place:
        pass
    (place / "code").unlink()
    inner = Path(run_git(place, "rev-parse", "--absolute-git-dir"))
    (inner / "locked").write_text("initializing")  # as git leaves it when it is killed
    with checkout_revision(workspace, "v1", "killed") as again:
        assert (again / "code").read_text() == "code 1\n"
    assert not list(inner.glob("locked"))
    subprocess.run(["rm", "-r", str(place)], check=True)  # by hand
    with checkout_revision(workspace, "v1", "killed") as again:
        assert (again / "code").read_text() == "code 1\n"
    remove_work_tree(workspace, again)


@pytest.mark.usefixtures("bare")
def test_a_workspace_below_the_top_of_its_repository(tmp_path: Path, new_repository: NewRepository) -> None:
    top = new_repository(tmp_path / "top", {"code": "1", "deep/er/.dvc/config": "", "deep/er/dvc.yaml": ""})
    with checkout_revision(top / "deep" / "er", "HEAD", "x") as place:
        assert place == tmp_path / "top@x" / "deep" / "er"
        assert (place / "dvc.yaml").exists()
    remove_work_tree(top / "deep" / "er", place)
    assert not (tmp_path / "top@x").exists()


@pytest.mark.usefixtures("bare")
def test_many_trees_are_made_at_the_same_time(workspace: Path) -> None:
    def make(number: int) -> Path:
        with checkout_revision(workspace, "v1", f"trial {number}") as place:
            return place

    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(make, range(8)))
        assert [(place / "code").read_text() for place in places] == ["code 1\n"] * 8
        list(pool.map(lambda place: remove_work_tree(workspace, place), places))
    assert not any(place.exists() for place in places)


def test_a_command_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match=r"^`git checkout nowhere` failed in .*: .*not a git repository"):
        run_git(tmp_path, "checkout", "nowhere", environment={"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)})
    assert run_git(tmp_path, "checkout", "nowhere", environment={"GIT_DIR": str(tmp_path)}, check=False) == ""

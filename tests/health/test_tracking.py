"""Git and DVC's remote, in repositories made for it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_pipeline.health import tracking
from fer_pipeline.health.finding import Place

LOCK = "stages: {a: {outs: [{path: out/a, hash: md5, md5: x.dir}, {path: out/b, hash: md5, md5: y}]}}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".dvc").mkdir()
    return Place(tmp_path)


@pytest.fixture
def git(place: Place) -> Callable[..., None]:
    def run(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *words], cwd=place.root, check=True, capture_output=True)

    run("init", "-q")
    return run


def write(place: Place, path: str, text: str) -> None:
    (place.root / path).parent.mkdir(parents=True, exist_ok=True)
    (place.root / path).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "level", "words"),
    [
        ("", "warning", "this disk has the only copy"),
        ("[core]\nremote = far\n", "problem", "'far' is not defined"),
        ("[core]\nremote = far\n['remote \"far\"']\nurl = s3://b/x\n", "warning", "takes a flipped bit for whole"),
        ("[core]\nremote = far\n['remote \"far\"']\nurl = s3://b/x\nverify = true\n", "ok", "far (s3://b/x)"),
        ("[core]\nremote = near\n['remote \"near\"']\nurl = ../gone\nverify = true\n", "warning", "does not exist"),
    ],
)
def test_remote(place: Place, config: str, level: str, words: str) -> None:
    write(place, ".dvc/config", config)
    found = tracking.remote(place)
    assert found.level == level
    assert words in found.found


def test_without_git(place: Place) -> None:
    assert tracking.lock_file(place).level == "warning"
    assert tracking.outputs(place).level == "ok"


def test_lock_file(place: Place, git: Callable[..., None]) -> None:
    assert tracking.lock_file(place).found == "nothing was made yet"
    write(place, "dvc.lock", LOCK)
    assert "in no commit" in tracking.lock_file(place).found
    git("add", "dvc.lock")
    git("commit", "-qm", "a")
    assert tracking.lock_file(place).level == "ok"
    write(place, "dvc.lock", LOCK + "# more\n")
    found = tracking.lock_file(place)
    assert (found.level, "differs" in found.found) == ("warning", True)
    git("rm", "-q", "--cached", "dvc.lock")
    write(place, ".gitignore", "dvc.lock\n")
    assert tracking.lock_file(place).level == "problem"


def test_outputs(place: Place, git: Callable[..., None]) -> None:
    assert tracking.outputs(place).found == "nothing was made yet"
    write(place, "dvc.lock", LOCK)
    write(place, ".gitignore", "/out/a\n")
    found = tracking.outputs(place)
    assert (found.level, found.found) == ("warning", "git does not ignore out/b")
    subprocess.run(found.cure, shell=True, cwd=place.root, check=True)
    assert tracking.outputs(place).level == "ok"
    write(place, "out/a/file", "x")
    git("add", "-f", "out/a/file")
    found = tracking.outputs(place)
    assert (found.level, found.found) == ("problem", "git tracks 1 files of outputs")
    subprocess.run(found.cure, shell=True, cwd=place.root, check=True)
    assert tracking.outputs(place).level == "ok"

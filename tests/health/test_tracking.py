"""Git and DVC's remote, in repositories made for it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_pipeline.health import dvc_project
from fer_pipeline.health.software import CheckContext

LOCK = "stages: {a: {outs: [{path: out/a, hash: md5, md5: x.dir}, {path: out/b, hash: md5, md5: y}]}}\n"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckContext:
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".dvc").mkdir()
    return CheckContext(tmp_path)


@pytest.fixture
def git(context: CheckContext) -> Callable[..., None]:
    def run(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *words], cwd=context.root, check=True, capture_output=True)

    run("init", "-q")
    return run


def write(context: CheckContext, path: str, text: str) -> None:
    (context.root / path).parent.mkdir(parents=True, exist_ok=True)
    (context.root / path).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "level", "words"),
    [
        ("", "warning", "this disk has the only copy"),
        ("[core]\nremote = far\n", "problem", "'far' is not defined"),
        ("[core]\nremote = far\n['remote \"far\"']\nurl = s3://b/x\n", "warning", "does not notice a flipped bit"),
        ("[core]\nremote = far\n['remote \"far\"']\nurl = s3://b/x\nverify = true\n", "ok", "far (s3://b/x)"),
        ("[core]\nremote = near\n['remote \"near\"']\nurl = ../gone\nverify = true\n", "warning", "does not exist"),
    ],
)
def test_remote(context: CheckContext, config: str, level: str, words: str) -> None:
    write(context, ".dvc/config", config)
    finding = dvc_project.check_remote(context)
    assert finding.level == level
    assert words in finding.message


def test_without_git(context: CheckContext) -> None:
    assert dvc_project.check_lock_file(context).level == "warning"
    assert dvc_project.check_outputs(context).level == "ok"


def test_lock_file(context: CheckContext, git: Callable[..., None]) -> None:
    assert dvc_project.check_lock_file(context).message == "no stage has run yet"
    write(context, "dvc.lock", LOCK)
    assert "in no commit" in dvc_project.check_lock_file(context).message
    git("add", "dvc.lock")
    git("commit", "-qm", "a")
    assert dvc_project.check_lock_file(context).level == "ok"
    write(context, "dvc.lock", LOCK + "# more\n")
    finding = dvc_project.check_lock_file(context)
    assert (finding.level, "differs" in finding.message) == ("warning", True)
    git("rm", "-q", "--cached", "dvc.lock")
    write(context, ".gitignore", "dvc.lock\n")
    assert dvc_project.check_lock_file(context).level == "problem"


def test_outputs(context: CheckContext, git: Callable[..., None]) -> None:
    assert dvc_project.check_outputs(context).message == "no stage has run yet"
    write(context, "dvc.lock", LOCK)
    write(context, ".gitignore", "/out/a\n")
    finding = dvc_project.check_outputs(context)
    assert (finding.level, finding.message) == ("warning", "git does not ignore out/b")
    subprocess.run(finding.advice, shell=True, cwd=context.root, check=True)
    assert dvc_project.check_outputs(context).level == "ok"
    write(context, "out/a/file", "x")
    git("add", "-f", "out/a/file")
    finding = dvc_project.check_outputs(context)
    assert (finding.level, finding.message) == ("problem", "git tracks 1 files of outputs")
    subprocess.run(finding.advice, shell=True, cwd=context.root, check=True)
    assert dvc_project.check_outputs(context).level == "ok"

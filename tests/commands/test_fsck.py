"""fsck over projects that are written by hand, without DVC: what is found, what is not, and what is printed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.artifacts.store import Store
from fer_pipeline.cli import app
from fer_pipeline.health import diagnosis
from fer_pipeline.health.dvc_project import read_config
from fer_pipeline.sharding.locks import lock_for_run


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Written:
    """A project with one output of one file, as DVC would have left it with copies for links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outs: dict[str, list[dict[str, Any]]] = {}
        (folder / ".dvc").mkdir()
        self.add("make", "out/a.bin", b"a content")

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def add(self, stage: str, path: str, content: bytes, **more: Any) -> Path:
        """An output, its object and its line in `dvc.lock`; where the object lies."""
        self.write(path, content)
        self.outs.setdefault(stage, []).append({"path": path, "hash": "md5", "md5": md5(content), **more})
        stages = {name: {"cmd": "make", "outs": outs} for name, outs in self.outs.items()}
        self.write("dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}).encode())
        return self.write(self.object(content), content)

    def object(self, content: bytes) -> str:
        return f".dvc/cache/files/md5/{md5(content)[:2]}/{md5(content)[2:]}"

    def write(self, path: str, content: bytes) -> Path:
        (self / path).parent.mkdir(parents=True, exist_ok=True)
        (self / path).write_bytes(content)
        return self / path

    def fsck(self, *words: str) -> tuple[int, str]:
        output = CliRunner().invoke(app, ["fsck", *words])
        return output.exit_code, output.output

    def found(self, *words: str) -> dict[str, Any]:
        return json.loads(self.fsck("--json", *words)[1])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    monkeypatch.chdir(tmp_path)
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / "nowhere"))
    return Written(tmp_path)


def test_all_intact(project: Written) -> None:
    code, output = project.fsck()
    assert (code, output) == (0, "fsck: 1 objects, 1 files of outputs, 0 shards, 18 B read: all intact\n")


def test_one_inode_is_read_once_for_both_hashes(project: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(project / ".store").make("ab12", lambda path: path.write_bytes(b"a content"))
    for name in (project.object(b"a content"), "out/a.bin"):
        (project / name).unlink()
        os.link(project / ".store/shards/ab/ab12", project / name)
    read: list[Path] = []
    hash_file = diagnosis.hash_file
    monkeypatch.setattr(diagnosis, "hash_file", lambda path, kinds: (read.append(path), hash_file(path, kinds))[1])
    checked = project.found()["checked"]
    assert checked == {"objects": 1, "bytes": len(b"a content"), "files": 1, "shards": 1}
    assert len(read) == 1


def test_hashes_are_those_of_the_standard_tools(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 300_000)  # more than one chunk
    found = diagnosis.hash_file(tmp_path / "file", frozenset({"md5", "sha256"}))
    assert (found.md5, found.size) == ("55a95d24c5e52ee25a245028a1768961", 3_000_000)  # md5sum's
    assert found.sha256 == "6ca41633343f162f0f0604879eeac607e5e5087adeee2e4247199301968790d0"  # sha256sum's


def test_a_table_and_one_command(project: Written) -> None:
    project.write(project.object(b"a content"), b"a cOntent")
    project.write("out/a.bin", b"another!!")
    code, output = project.fsck()
    assert code == 1
    lines = output.splitlines()
    assert lines[0].endswith("1 damaged, 1 changed")
    assert lines[2].split() == ["what", "where", "output", "stage", "expected", "found"]
    assert lines[3].split()[:5] == ["damaged", "cache:", project.object(b"a content"), "out/a.bin", "make"]
    assert lines[-1] == "to repair it, run: python -m fer_pipeline fsck --remove && dvc repro make"


def test_one_stage_that_runs_again_makes_both_of_its_outputs(project: Written) -> None:
    project.add("make", "out/b.bin", b"b content").unlink()  # whole in the workspace: to be committed, if it were alone
    assert project.found()["repair"] == "dvc commit out/b.bin"
    (project / project.object(b"a content")).unlink()
    (project / "out/a.bin").unlink()
    assert project.found()["repair"] == "dvc repro make"


def test_a_remote_elsewhere_is_trusted_and_that_is_said(project: Written) -> None:
    project.write(".dvc/config", b"[core]\nremote = far\n['remote \"far\"']\nurl = s3://bucket/x\n")
    (project / project.object(b"a content")).write_bytes(b"a cOntent")
    (project / "out/a.bin").unlink()
    output = project.fsck()[1]
    assert "fsck --remove && dvc pull out/a.bin\n" in output
    assert "dvc remote modify far verify true" in output
    assert output.rstrip().endswith("this makes it again: dvc repro make")
    code, output = project.fsck("--remote", "far")
    assert code == 1
    assert output == (
        "error: the remote 'far' (s3://bucket/x) is no folder of this machine, so fsck cannot read it; "
        "let each pull check it: dvc remote modify far verify true\n"
    )
    assert project.fsck("--remote", "near")[1] == "error: no remote 'near'; DVC knows far\n"


def test_the_last_copy_of_what_a_person_added_is_set_aside(project: Written) -> None:
    (project / "dvc.lock").unlink()
    added = {"outs": [{"path": "a.bin", "hash": "md5", "md5": md5(b"a content")}]}
    project.write("out/a.bin.dvc", yaml.safe_dump(added).encode())
    damaged = project / project.object(b"a content")
    damaged.write_bytes(b"a cOntent")
    (project / "out/a.bin").unlink()
    os.link(damaged, project / "out/a.bin")
    code, output = project.fsck("--remove")
    assert code == 0
    assert "no other copy is known" in output
    assert "put one in its place before you run it" in output
    assert not damaged.exists()
    assert not (project / "out/a.bin").exists()
    assert [path.read_bytes() for path in (project / ".dvc/tmp/damaged").iterdir()] == [b"a cOntent"]


def test_a_link_to_a_damaged_object_is_reported_once_and_goes_with_it(project: Written) -> None:
    damaged = project / project.object(b"a content")
    damaged.write_bytes(b"a cOntent")
    (project / "out/a.bin").unlink()
    (project / "out/a.bin").symlink_to(damaged)
    (finding,) = project.found()["findings"]
    assert finding["repair"] == "python -m fer_pipeline fsck --remove && dvc repro make"
    assert project.fsck("--remove")[0] == 0
    assert not (project / "out/a.bin").is_symlink()


def test_nothing_is_removed_while_a_stage_is_running(project: Written) -> None:
    damaged = project.write(project.object(b"a content"), b"a cOntent")
    with lock_for_run(project / ".store", "align@x"):
        code, output = project.fsck("--remove")
        assert (code, "align@x is at work" in output) == (1, True)
        assert project.fsck()[0] == 1
    assert damaged.exists()


def test_damage_of_an_older_version(project: Written) -> None:
    project.write(project.object(b"of long ago"), b"of lOng ago")
    (finding,) = project.found()["findings"]
    assert (finding["kind"], finding["out"], finding["repair"]) == (
        "damaged",
        "",
        "python -m fer_pipeline fsck --remove",
    )
    project.fsck("--remove")
    assert project.fsck()[0] == 0


def test_what_cannot_be_read_is_one_line_of_the_table(project: Written) -> None:
    path = project / project.object(b"a content")
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a regular file whose first byte is an input/output error
    (finding,) = project.found()["findings"]
    assert (finding["kind"], finding["found"]) == ("unreadable", os.strerror(5))
    assert finding["repair"].endswith("--remove && dvc commit out/a.bin")


def test_what_this_user_may_not_read_is_not_removed(project: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / project.object(b"a content")
    hash_file = diagnosis.hash_file

    def refuse(file: Path, kinds: frozenset[str]) -> diagnosis.FileHash:
        return diagnosis.FileHash(error="Permission denied", is_denied=True) if file == path else hash_file(file, kinds)

    monkeypatch.setattr(diagnosis, "hash_file", refuse)
    (finding,) = project.found("--remove")["findings"]
    assert finding["repair"] == f"chmod u+r {path}"
    assert path.exists()


def test_what_has_no_hash_is_counted(project: Written) -> None:
    project.write(".dvc/cache/ab/" + "0" * 30, b"of DVC 2")
    project.add("make", "s3://bucket/out", b"elsewhere")
    (project / project.object(b"elsewhere")).unlink()
    (project / ".store/shards/cd").mkdir(parents=True)
    project.write(".store/shards/cd/cd34", b"before there were checksums")
    output = project.fsck()[1]
    assert "(not checked: 1 objects of dvc 2, 1 outputs elsewhere, 1 shards without checksums)" in output


def test_outputs_kept_out_of_the_cache_need_no_object(project: Written) -> None:
    project.write(
        "dvc.yaml",
        b"stages:\n  score:\n    foreach: [x]\n    do:\n      cmd: c\n"
        b"      metrics: [{'out/${item}.json': {cache: false}}]\n",
    )
    project.add("score@x", "out/x.json", b"{}").unlink()
    assert project.fsck()[0] == 0
    project.write("out/x.json", b"[]")
    (finding,) = project.found()["findings"]
    assert finding["repair"] == "touch out/x.json && dvc repro score@x"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"stages: [", "dvc.lock is broken: while parsing"),
        (b"- a", "it holds a list, not a mapping"),
        (b"stages: {make: {outs: [{hash: md5}]}}", "dvc.lock is broken: the key 'make.outs.0.path' is missing"),
        (b"\xff\xfe", "dvc.lock is broken: 'utf-8' codec"),
        (b"stages: {make: {outs: [{path: " + b"x" * 300 + b"}]}}", "a path is too long"),
    ],
)
def test_a_broken_lock_is_one_line(project: Written, content: bytes, words: str) -> None:
    project.write("dvc.lock", content)
    code, output = project.fsck()
    assert code == 1
    assert words in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_no_project_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = CliRunner().invoke(app, ["fsck"])
    assert (output.exit_code, output.output.count("\n")) == (1, 1)
    assert output.output.startswith("error: no .dvc folder in ")


def test_settings_are_those_that_dvc_itself_reads(project: Written) -> None:
    from dvc.config import Config

    project.write(
        ".dvc/config",
        b'[core]\nremote = Near\n[cache]\ntype = "reflink,copy"\ndir = ../elsewhere\n'
        b"['remote \"near\"']\nurl = ../../up\nverify = true\n['remote \"far\"']\nurl = s3://b/x\n",
    )
    project.write(".dvc/config.local", b"['remote \"near\"']\nurl = ~/home\n[core]\nremote = near\n")
    theirs, ours = Config(str(project / ".dvc")), read_config(project.folder)
    assert {name: remote.url for name, remote in ours.remotes.items()} == {
        name: str(remote["url"]) for name, remote in theirs["remote"].items()
    }
    assert ours.cache == Path(theirs["cache"]["dir"]).resolve()
    assert ours.link_types == tuple(theirs["cache"]["type"])
    assert (ours.default, ours.remotes["near"].verify) == (theirs["core"]["remote"], theirs["remote"]["near"]["verify"])
    assert ours.remotes["far"].folder is None


@pytest.mark.parametrize("text", ["['remote \"a\"']\nurl = a,b\n", "[cache]\ndir = a,b\n", "[core]\nremote = a,b\n"])
def test_a_setting_that_is_a_list_is_one_line(project: Written, text: str) -> None:
    project.write(".dvc/config", text.encode())
    code, output = project.fsck()
    assert (code, output.count("\n")) == (1, 1)
    assert ".dvc/config has the value ['a', 'b'] for " in output
    project.write(".dvc/config", b"[cache]\ntype = reflink,copy\n")  # which DVC takes for the same as in quotes
    assert read_config(project.folder).link_types == ("reflink", "copy")

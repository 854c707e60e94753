"""A tiny project of two stages under real DVC, with a remote in a folder; made once, copied for each test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.cli import app

# `numbers` links its first file out of the store, as `align` and `embed` do; the store makes it where it is not there.
MAKE = """
import pathlib, sys
from fer_pipeline.artifacts.store import Store
store, out = Store(pathlib.Path(".store"), owner="numbers@demo"), pathlib.Path("out/numbers")
store.make("ab12", lambda path: path.write_text("".join(f"{n}\\n" for n in range(500))))
store.link("ab12", out / "shard")
(out / "two").write_text("two\\n" * 90)
"""
GRAPH = """
stages:
  numbers:
    cmd: python make.py
    outs: [out/numbers]
  sums:
    cmd: cat out/numbers/shard out/numbers/two | wc -c > out/sums.txt
    deps: [out/numbers]
    outs: [out/sums.txt]
"""


class Repository:
    """One copy of the project, and what a person types in it."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder, self.site = folder, site

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def shell(self, line: str, *, code: int | None = 0) -> str:
        """Runs a line in a shell; what it says."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.site),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        result = subprocess.run(line, shell=True, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert code is None or result.returncode == code, f"{line}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    def fsck(self, *words: str, code: int = 1) -> dict[str, Any]:
        """What fsck says in JSON; its exit code says whether it found something."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("DVC_SITE_CACHE_DIR", str(self.site))
            result = CliRunner().invoke(app, ["fsck", "--json", *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    @property
    def locked(self) -> dict[str, str]:
        """The hash of each output as DVC wrote it down."""
        stages = yaml.safe_load((self / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}

    def object(self, path: str, *, remote: bool = False) -> Path:
        """The object that holds the bytes of a file of an output, whatever they are now."""
        md5 = PROMISED[path] if path in PROMISED else self.locked[path]
        base = self.folder.parent / "remote" if remote else self.folder / ".dvc" / "cache"
        return base / "files" / "md5" / md5[:2] / md5[2:]

    def bytes(self) -> dict[str, bytes]:
        """Every file of an output, and every object of cache and remote."""
        roots = (self / "out", self / ".dvc/cache/files", self.folder.parent / "remote/files")
        return {
            str(file.relative_to(self.folder.parent)): file.read_bytes()
            for root in roots
            for file in sorted(root.rglob("*"))
            if file.is_file()
        }


# md5sum's, of what the stages write.
PROMISED = {
    "out/numbers/shard": "96d9f3cd2c28748e81d86852ab2e1636",
    "out/numbers/two": "a4bc754d1fa18a066e126371a18d6be3",
    "out/sums.txt": "837abcd0340216d313798a6a3e2b8c18",
}


def flip_bit(path: Path) -> None:
    """Flips one bit, in place and behind the back of everyone who looks at times and sizes."""
    state = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(1)
        byte = stream.read(1)[0]
        stream.seek(1)
        stream.write(bytes([byte ^ 1]))
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _built(folder: Path, link: str) -> Repository:
    project = Repository(folder / "project", folder.parent / "site")
    (project / ".dvc").mkdir(parents=True)
    (project / "make.py").write_text(MAKE, encoding="utf-8")
    (project / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (project / ".gitignore").write_text("/out\n/.store\n", encoding="utf-8")
    project.shell("git init -q .")
    (project / ".dvc/config").write_text(
        f"[core]\n    remote = kept\n[cache]\n    type = {link}\n['remote \"kept\"']\n    url = ../../remote\n",
        encoding="utf-8",
    )
    project.shell("dvc repro -q && dvc push -q")
    return project


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The project as it stands after its first run and push, once for each type of link."""
    made: dict[str, Path] = {}

    def template(link: str) -> Path:
        if link not in made:
            made[link] = tmp_path_factory.mktemp(link)
            _built(made[link], link)
        return made[link]

    return template


@pytest.fixture
def repository(tmp_path: Path, templates: Callable[[str], Path]) -> Callable[[str], Repository]:
    """A copy of it, in which links are still links."""

    def copied(link: str) -> Repository:
        subprocess.run(["cp", "-a", f"{templates(link)}/.", str(tmp_path / "here")], check=True)
        return Repository(tmp_path / "here" / "project", tmp_path / "site")

    return copied


@pytest.fixture
def flip() -> Callable[[Path], None]:
    """Flips one bit of a file and leaves its time, size, mode and inode as they were."""
    return flip_bit

"""Small repositories for the flows."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def make_repository(folder: Path, files: dict[str, str], *, author: bool = True) -> Path:
    """A git repository with DVC in it, as `git init` and `dvc init` make it, with one commit of these files."""
    config = f"[core]\n    analytics = false\n    check_update = false\n    site_cache_dir = {folder}/.dvc/tmp/site\n"
    ignored = "/config.local\n/tmp\n/cache\n"
    for path, content in {".dvc/config": config, ".dvc/.gitignore": ignored, ".dvcignore": "", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@localhost"]
    for words in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", *who, *words], cwd=folder, check=True)
    if author:
        for name, value in (("user.name", "Someone"), ("user.email", "someone@localhost")):
            subprocess.run(["git", "config", name, value], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def new_repository() -> Iterator[Callable[..., Path]]:
    """Makes repositories; the user's own settings of git mean nothing to them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith("GIT_")]:
            patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield make_repository

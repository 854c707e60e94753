"""Weights of others, installed as a user would install them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_pipeline.commands import weights as command
from fer_pipeline.core.errors import DataError
from fer_pipeline.networks import pretrained


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Installs weights as a user would, once a session; returns the path of their first file."""
    folder, failed = tmp_path_factory.mktemp("weights"), dict[str, str]()

    def install_once(name: str) -> Path:
        before = Path.cwd()
        os.chdir(folder)
        try:
            if name not in failed:
                command.run("install", [name])
            return pretrained.locate(name)[0].resolve()
        except DataError as error:  # no npm, or no registry in reach
            failed[name] = str(error)
        finally:
            os.chdir(before)
        pytest.skip(failed[name])

    return install_once

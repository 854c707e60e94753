"""Imports only go down. Stated rules sag; linted ones hold."""

import subprocess
import sys
from pathlib import Path


def test_imports_only_go_down(root: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-3000:]


def test_flows_import_nothing_of_the_package(root: Path) -> None:
    for file in (root / "pipelines").rglob("*.py"):
        assert "fer_pipeline" not in [
            word
            for line in file.read_text().splitlines()
            if line.startswith(("import ", "from "))
            for word in line.split()
        ]

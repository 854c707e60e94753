"""Imports only go down. Stated rules sag; linted ones hold."""

import ast
import subprocess
import sys
from pathlib import Path


def test_imports_only_go_down(root: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-3000:]


def test_flows_import_nothing_of_the_package(root: Path) -> None:
    """They drive it through DVC, so that either can be replaced."""
    files = sorted((root / "pipelines").rglob("*.py"))
    assert files
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not [name for name in names if name.split(".")[0] == "fer_pipeline"], file

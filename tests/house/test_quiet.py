"""Importing prints nothing and asks nobody; `--help` answers without torch, Prefect or DVC."""

import subprocess
import sys
from pathlib import Path

MODULES = """
import importlib, pkgutil, sys, fer_pipeline
for module in pkgutil.walk_packages(fer_pipeline.__path__, "fer_pipeline."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
NO_SOCKETS = """
import socket
def refuse(*args, **kwargs):
    raise SystemExit("a module reached for the network")
socket.socket.connect = refuse
"""
HELP = """
import sys
sys.argv = ["fer_pipeline", *{arguments!r}]
from fer_pipeline.cli import main
try:
    main()
except SystemExit:
    pass
heavy = sorted({{"torch", "prefect", "dvc", "faiss", "pandas", "llvmlite"}} & set(sys.modules))
assert not heavy, heavy
"""


def run(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)


def test_importing_prints_nothing(root: Path) -> None:
    told = run(NO_SOCKETS + MODULES, root)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_help_loads_nothing_heavy(root: Path) -> None:
    for arguments in (["--help"], ["train_final", "--help"], ["mined", "diff", "--help"], []):
        told = run(HELP.format(arguments=arguments), root)
        assert told.returncode == 0, told.stderr
        assert "Usage" in told.stdout + told.stderr


def test_looking_for_faces_loads_neither_torchvision_nor_a_compiler(root: Path) -> None:
    found = "sorted({'torchvision', 'torch._dynamo', 'sympy'} & set(sys.modules))"
    told = run(f"import sys, fer_pipeline.stages.align; print({found})", root)
    assert (told.returncode, told.stdout, told.stderr) == (0, "[]\n", "")

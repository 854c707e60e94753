"""Rules of the house that no linter knows."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = sorted(Path("fer_pipeline").rglob("*.py")) + sorted(Path("pipelines").rglob("*.py"))
IDS = [str(path) for path in FILES]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_a_module_has_one_duty(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "over 400 lines: does it still have one duty?"
    assert ast.get_docstring(ast.parse(text)) or file.name == "__main__.py", "no module docstring"
    assert file.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_nothing_is_unpickled_printed_or_exited(file: Path) -> None:
    """Checkpoints come from strangers; only the command line speaks and exits."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [ast.unparse(call.func) for call in calls]
    assert "pickle.load" not in names
    assert "pickle.loads" not in names
    for call, name in zip(calls, names, strict=True):
        if name == "torch.load":
            assert "weights_only=True" in ast.unparse(call), "torch.load without weights_only=True"
        if name.endswith(("yaml.load", "np.load", "numpy.load")):
            assert "allow_pickle=True" not in ast.unparse(call)
    if file.name != "terminal.py":
        assert "print" not in names
        assert not {"exit", "sys.exit", "os._exit"} & set(names)


def test_no_machine_in_tracked_files(root: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    absolute = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/[\w.-]+/")
    registry = re.compile(r"(index-url|find-links)[ =]+https?://", re.I)
    for name in filter(None, tracked):
        path = root / name
        if not path.is_file():
            continue
        assert path.stat().st_size < 1_000_000, f"{name} is over 1 MB"
        if path.suffix in {".png", ".jpg"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert not absolute.search(text), f"{name} holds a path of one machine: {absolute.search(text)}"
        assert not registry.search(text), f"{name} names a registry"


@pytest.mark.parametrize(
    ("package", "extras"),
    [("fer_pipeline", {"faces", "openvino", "onnx", "ray"}), ("pipelines", {"flows"})],
)
def test_what_is_imported_is_declared(root: Path, package: str, extras: set[str]) -> None:
    """A package that only another one brings is gone when that one does without it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    requirements = project["dependencies"] + [line for extra in extras for line in optional[extra]]
    declared = {canonicalize_name(Requirement(line).name) for line in requirements}
    distributions = importlib.metadata.packages_distributions()
    for file in sorted((root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.append(node.module)
            for name in {module.partition(".")[0] for module in modules} - {package, *sys.stdlib_module_names}:
                candidates = {canonicalize_name(one) for one in distributions.get(name, [name])}
                assert candidates & declared, f"{file} imports {name}, which pyproject.toml does not declare"

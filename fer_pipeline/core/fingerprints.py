"""Compute fingerprints: 32 hex digits that change with any of some settings, hashes, names or pieces of code."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def _to_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {"settings": type(value).__name__, **value.model_dump(mode="json")}
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    assert isinstance(value, Path), f"cannot fingerprint a {type(value).__name__}"
    return str(value)


def fingerprint(*parts: Any) -> str:
    """Returns the fingerprint of JSON values, settings, bytes, and paths (their names, not their contents)."""
    text = json.dumps(parts, default=_to_json, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Python holds file names that are not UTF-8 as surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


PACKAGE = Path(__file__).parents[1]
# What whatever trains depends on, beside its own code: changed code trains anew.
MODEL_CODE = (
    *("networks", "core/seeds.py"),
    *(f"artifacts/{name}.py" for name in ("arrow", "distilled", "faces", "history", "seed_folders", "split")),
)


def code_fingerprint(*names: str | Path) -> str:
    """Returns the fingerprint of Python files and folders of them, without comments, docstrings and formatting.

    It is a part of the key of whatever is kept in the store and made by this code: an edited loss makes a model anew, a
    reworded docstring does not. Names are seen from the package, and count.
    """
    paths = [PACKAGE / name for name in names]
    files = sorted({file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])})
    seen = [file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name for file in files]
    return fingerprint([[name, normalise(file.read_bytes())] for name, file in zip(seen, files, strict=True)])


@cache
def normalise(source: bytes) -> str:
    """Returns the fingerprint of one Python file without its comments, docstrings and formatting."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A statement that is a plain string does nothing: a docstring, or a comment written as one.
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode("utf-8", "surrogatepass")).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

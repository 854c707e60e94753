"""Compute fingerprints: 32 hex digits that change with any of some settings, hashes, names or pieces of code."""

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def _to_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {"settings": type(value).__name__, **_to_json(value.model_dump(mode="json"))}
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, str | int | float | bool), f"cannot fingerprint a {type(value).__name__}"
    return value


def fingerprint(*parts: Any) -> str:
    """Returns the fingerprint of JSON values, settings, bytes, and paths (their names, not their contents)."""
    text = json.dumps(_to_json(parts), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Python holds file names that are not UTF-8 as surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


PACKAGE = Path(__file__).parents[1]


def code_fingerprint(*paths: Path) -> str:
    """The fingerprint of Python files, or of all those under folders, without comments, docstrings and formatting.

    It is a part of the key of whatever is kept in the store and made by this code: an edited loss makes a model anew, a
    reworded docstring does not. The names of files and folders count as seen from the package.
    """
    files = sorted({file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])})
    return fingerprint([[_name(file), _normalised(file.read_bytes())] for file in files])


def _name(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name


@cache
def _normalised(source: bytes) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = list(_without_docstrings(node.body)) or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode("utf-8", "surrogatepass")).hexdigest()


def _without_docstrings(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    """A statement that is a plain string does nothing: a docstring, or a comment written as one."""
    for node in body:
        expression = node.value if isinstance(node, ast.Expr) else None
        if not (isinstance(expression, ast.Constant) and isinstance(expression.value, str)):
            yield node

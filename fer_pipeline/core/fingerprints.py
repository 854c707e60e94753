"""Fingerprints: any settings, hashes and names in, 32 hex digits out that change when one of them does."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {"settings": type(value).__name__, **_plain(value.model_dump(mode="json"))}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, str | int | float | bool), f"cannot fingerprint a {type(value).__name__}"
    return value


def fingerprint(*parts: Any) -> str:
    """The fingerprint of JSON-able values, settings, paths (their names, not their contents) and bytes."""
    text = json.dumps(_plain(parts), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # File names that are no UTF-8 are surrogates in Python.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

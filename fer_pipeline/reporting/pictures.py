"""Bytes in, data URIs out, so that the page is one file; crops are shown as they are, never enlarged by guessing."""

import base64

import numpy as np
from jaxtyping import UInt8

from fer_pipeline.artifacts.faces import encode

PNG, JPEG, SVG = b"\x89PNG", b"\xff\xd8\xff", b"<?xml"
KINDS = {PNG: "image/png", JPEG: "image/jpeg", SVG: "image/svg+xml"}


def data_uri(picture: bytes) -> str:
    """A picture's bytes as the text of a `src` attribute. The kind is told by the bytes and never by a name."""
    kind = next((kind for magic, kind in KINDS.items() if picture.startswith(magic)), None)
    assert kind is not None, "no PNG, JPEG or SVG"
    return f"data:{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def crop_uri(crop: UInt8[np.ndarray, "h w 3"]) -> str:
    """A crop as a JPEG data URI."""
    return data_uri(encode(crop, format="jpeg", quality=88))


def sharp_uri(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture whose single pixels matter, as a PNG data URI."""
    return data_uri(encode(picture, format="png"))

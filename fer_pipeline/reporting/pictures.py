"""Bytes in, data URIs out, so that the page is one file; crops are made smaller, never larger."""

import base64

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fer_pipeline.artifacts.faces import encode

LARGEST = 112  # pixels of a side
PNG, JPEG, SVG = b"\x89PNG", b"\xff\xd8\xff", b"<?xml"
KINDS = {PNG: "image/png", JPEG: "image/jpeg", SVG: "image/svg+xml"}


def data_uri(picture: bytes) -> str:
    """A picture's bytes as the text of a `src` attribute. The kind is told by the bytes and never by a name."""
    kind = next((kind for magic, kind in KINDS.items() if picture.startswith(magic)), None)
    assert kind is not None, "no PNG, JPEG or SVG"
    return f"data:{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def crop_uri(crop: UInt8[np.ndarray, "h w 3"]) -> str:
    """A crop as a JPEG data URI, made small where it is larger than the page shows it."""
    if max(crop.shape[:2]) > LARGEST:
        crop = np.asarray(Image.fromarray(crop).resize((LARGEST, LARGEST), Image.Resampling.LANCZOS))
    return data_uri(encode(crop, format="jpeg", quality=88))

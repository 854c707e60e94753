"""Three sessions: seven frames of happiness in front, six of disgust in both views, one of another state."""

from pathlib import Path

import numpy as np
from PIL import Image

SESSIONS = {"12": ("S001-001", 7, "0", 4), "7": ("S016-004", 6, "2", 2), "8": ("S016-005", 5, "0", 9)}
EXPECTED = {
    **{f"12/S001-001/0000{frame}.png": ("happiness", "S001") for frame in (3, 4, 5)},
    **{f"7/S016-004/0000{frame}.png": ("disgust", "S016") for frame in (2, 3, 4)},
}
MARKS = """<?xml version="1.0"?>
<ActionUnits>
<ActionUnit Number="12"><Marker Type="0" Frame="1"/>
<Marker Type="2" Frame="4"/><Marker Type="3" Frame="7"/></ActionUnit>
<ActionUnit Number="46R"><Marker Type="2" Frame="3"/><Marker Type="3" Frame="7"/></ActionUnit>
</ActionUnits>
"""


def build(folder: Path) -> dict:
    rng = np.random.default_rng(10)
    pictures = {}
    for number, (name, frames, view, emotion) in SESSIONS.items():
        session = folder / "Sessions" / number
        (session / name).mkdir(parents=True)
        (session / f"{name}.avi").write_bytes(b"RIFF\x10\0\0\0AVI ")
        (session / "session.xml").write_text(f'<Session><track type="video" view="{view}"/></Session>')
        (session / f"{name}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?><track><Metatag Name="Emotion" Value="{emotion}"/></track>'
        )
        for frame in range(1, frames + 1):
            pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(session / name / f"{frame:05d}.png")
            pictures[f"{number}/{name}/{frame:05d}.png"] = pixels
    (folder / "Sessions" / "12" / "S001-001-oao_aucs.xml").write_text(MARKS)

    def spoil() -> None:
        for file in folder.rglob("*.png"):
            file.write_bytes(b"\0" * file.stat().st_size)

    expected = {name: (None, *meaning) for name, meaning in EXPECTED.items()}
    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}

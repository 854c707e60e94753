"""`dvc.lock` in, the same with its new stages in the order of `dvc repro` out: the bytes that DVC alone would leave.

DVC appends a stage to its lock file when the stage is done; where stages run side by side that order is chance's.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

BLOCK = re.compile(r"^  (?! )(.+):\s*$")


def locked_stages(path: Path) -> list[str]:
    """The stages of a lock file in its order; none where there is no file."""
    return list(_parts(path.read_text(encoding="utf-8"))[1]) if path.exists() else []


def order_new_stages(path: Path, before: Sequence[str], walk: Sequence[str]) -> bool:
    """Puts the stages that were not in the lock `before` behind those that were, as in `walk`; whether that changed it.

    A file that is not laid out as DVC writes it is left as it is.
    """
    if not path.exists():
        return False
    text = path.read_text(encoding="utf-8")
    head, blocks = _parts(text)
    old = [name for name in before if name in blocks]
    places = {address: place for place, address in enumerate(walk)}
    new = sorted((name for name in blocks if name not in set(old)), key=lambda name: places.get(name, len(places)))
    ordered = head + "".join(blocks[name] for name in [*old, *new])
    if ordered == text or yaml.safe_load(ordered) != yaml.safe_load(text):
        return False
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(ordered, encoding="utf-8")
    temporary.replace(path)
    return True


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first stage, and the lines of each."""
    head, blocks, name = "", {}, None
    inside = False
    for line in text.splitlines(keepends=True):
        found = BLOCK.match(line) if inside else None
        if found:
            name = str(yaml.safe_load(found.group(1)))
            blocks[name] = line
        elif name is not None:
            blocks[name] += line
        else:
            head += line
            inside = line.rstrip() == "stages:"
    return head, blocks

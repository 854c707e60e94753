"""The order of dvc.lock after stages that ran side by side."""

from pathlib import Path

import pytest

from pipelines import FlowError
from pipelines.workspace import order_new_stages, read_locked_stages

HEAD = "schema: '2.0'\nstages:\n"
BLOCKS = {
    name: f"  {name}:\n    cmd: echo {name}\n    outs:\n    - path: {name}.txt\n      md5: 0\n"
    for name in ("a", "b@x", "c", "d")
}


def lock(*names: str) -> str:
    return HEAD + "".join(BLOCKS[name] for name in names)


def test_new_stages_stand_behind_the_old_in_the_order_of_the_walk(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(lock("d", "c", "b@x", "a"))
    assert read_locked_stages(path) == ["d", "c", "b@x", "a"]
    assert order_new_stages(path, ["d"], ["a", "b@x", "c", "d"])
    assert path.read_text() == lock("d", "a", "b@x", "c")
    assert not order_new_stages(path, ["d"], ["a", "b@x", "c", "d"]), "nothing is left to be done"


def test_what_is_not_laid_out_as_dvc_writes_it_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    text = "stages: {b: {cmd: x}, a: {cmd: y}}\n"
    path.write_text(text)
    assert not order_new_stages(path, [], ["a", "b"])
    assert path.read_text() == text
    assert not order_new_stages(tmp_path / "none", [], ["a"])


def test_stages_outside_of_the_walk_stay_last(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(lock("c", "b@x", "a"))
    assert order_new_stages(path, [], ["a", "b@x"])
    assert path.read_text() == lock("a", "b@x", "c")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "  a:\n    cmd: x\n   b: y\n", "did not find expected key"),
        (HEAD + "  a: b: c\n", "mapping values are not allowed"),
        (HEAD + "  !!value a: 1\n", "the tag .* is none that is read here"),
        (HEAD + "  a: 2026-13-45\n", "month must be in"),
        (HEAD + "  a: " + "[" * 5000, "nested more than 100 deep"),
        (HEAD + BLOCKS["a"] + BLOCKS["a"], "the key 'a' is given twice"),
        ("stages: [a]\n", "its stages are a list"),
        ("- a\n", "no attribute"),
        ("\x1b[31m\n", "control characters|special characters"),
    ],
)
def test_a_damaged_lock_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    for read in (read_locked_stages, lambda path: order_new_stages(path, [], ["a"])):
        with pytest.raises(FlowError, match=rf"dvc\.lock is broken: .*{told}.*git checkout -- dvc\.lock$") as raised:
            read(path)
        assert str(raised.value).isprintable()
    assert path.read_text() == text
    path.write_bytes(b"\xff")
    with pytest.raises(FlowError, match="can't decode byte 0xff"):
        read_locked_stages(path)

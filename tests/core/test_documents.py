"""JSON and YAML of strangers: what is right comes back, everything else is one short line, and cheap.

Both packages hold the same reader, and every test here runs with both.
"""

import json
import os
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from ruamel.yaml import YAML

import fer_pipeline.core.documents
import pipelines.documents

RIGHT_YAML = """
a: {b: [1, -2.5, true, null, 2026-01-02, "ü", 0x1F, 1_000, 1:30]}
base: &base {x: 1, y: [2, 3]}
more: {<<: *base, y: *base}
9223372036854775807: -9223372036854775808
tagged: !!str 3
"""
WRONG_YAML = {
    "a date that is none": ("a: 2026-13-45", "month must be in"),
    "a key twice": ("a: 1\nb: 2\na: 3", "the key 'a' is given twice, see line 1"),
    "a key twice, in other words": ("1: 2\n0x1: 3", "two keys below line 1"),
    "a number without an end": (f"a: {'9' * 5000}", "a number has 5,000 digits"),
    "a fraction without an end": (f"a: {'9' * 5000}.5", "a number has 5,002 digits"),
    "a number of 65 bits": ("a: 9223372036854775808", "more than 64 bits"),
    "lists without an end": ("a: " + "[" * 100_000, "nested more than 100 deep"),
    "blocks without an end": ("- " * 100_000, "nested more than 100 deep"),
    "keys without an end": ("? " * 50_000, "nested more than 100 deep"),
    "a list in itself": ("a: &a [*a]", r"\*a stands in what it names"),
    "a mapping merged with itself": ("a: &a {b: 1, <<: *a}", r"\*a stands in what it names"),
    "a tag of Python's": ("a: !!python/object/apply:os.system [id]", "tag .* is none that is read here"),
    "a tag of nobody's": ("a: !x 1", "tag '!x' is none that is read here"),
    "a truth that is none": ("a: !!bool maybe", "maybe"),
    "an integer that is empty": ("a: !!int ''", "index out of range"),
    "a text without an end": ('a: "b', "unexpected end of stream"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "a character that ends names": (r'a: "b\0c"', r"'b\\x00c' holds a character that is none"),
    "a terminal's escape": ("a: b\x1b[31m", "control characters are not allowed|special characters"),
    "a list as key": ("? [a]\n: 1", "unhashable key"),
}
WRONG_JSON = {
    "nothing": ("", "Expecting value"),
    "half a list": ("[1, 2", "Expecting ',' delimiter"),
    "a key twice": ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
    "no number": ('{"a": NaN}', "NaN is no number"),
    "a number without bounds": ('{"a": -1e999}', "-1e999 is no number"),
    "an integer without an end": ("9" * 5000, "the integer 9+ … 9+ has more than 64 bits"),
    "an integer of 65 bits": ("-9223372036854775809", "more than 64 bits"),
    "lists without an end": ("[" * 100_000, "nested more than 100 deep"),
    "lists deeper than is read": ("[" * 101 + "]" * 101, "nested more than 100 deep"),
    "half a character": (r'{"\ud800": 1}', r"'\\ud800' holds a character that is none"),
    "a character that ends names": (r'["a\u0000"]', r"'a\\x00' holds a character that is none"),
}


@pytest.fixture(params=[fer_pipeline.core.documents, pipelines.documents], ids=["fer_pipeline", "pipelines"])
def documents(request: pytest.FixtureRequest) -> ModuleType:
    """The reader of either package."""
    return request.param


def test_right_documents_come_back(documents: ModuleType, tmp_path: Path) -> None:
    """YAML as PyYAML's own safe loader reads it, JSON as Python's does."""
    assert documents.parse_yaml(RIGHT_YAML) == yaml.safe_load(RIGHT_YAML)
    assert documents.parse_yaml("") is None
    value = {"a": [1, -2.5, True, None, "ü\n\t\x7f"], "b": {"c": -(2**63)}, "": "[" * 99}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert documents.read_json(path) == documents.read_yaml(path) == value
    assert documents.parse_json("[" * 100 + "]" * 100) == json.loads("[" * 100 + "]" * 100)
    infinite = documents.parse_json("[Infinity, 1e999]", finite=False)
    assert infinite == [float("inf")] * 2


@pytest.mark.parametrize(("text", "told"), WRONG_YAML.values(), ids=WRONG_YAML)
def test_wrong_yaml_is_one_short_line(documents: ModuleType, text: str, told: str) -> None:
    for read in (documents.parse_yaml, lambda text: documents.load_commented(text, YAML())):
        with pytest.raises(documents.DocumentError, match=told) as raised:
            read(text)
        assert len(str(raised.value)) <= 200
        assert str(raised.value).isprintable()


@pytest.mark.parametrize(("text", "told"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_wrong_json_is_one_short_line(documents: ModuleType, text: str, told: str) -> None:
    with pytest.raises(documents.DocumentError, match=told) as raised:
        documents.parse_json(text)
    assert len(str(raised.value)) <= 200
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("use", ["[{}]", "{{<<: [{}]}}"], ids=["values", "merged mappings"])
def test_aliases_that_stand_for_too_much_cost_nothing(documents: ModuleType, use: str) -> None:
    """Nine times nine times … a word: 9^8 values in half a kilobyte."""
    lines = ["a0: &a0 {x: word}"]
    lines += [f"a{n}: &a{n} {use.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 9)]
    tracemalloc.start()
    with pytest.raises(documents.DocumentError, match="its aliases stand for more than 100,000 values"):
        documents.parse_yaml("\n".join(lines))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    few = "\n".join(lines[:4])
    assert documents.parse_yaml(few) == yaml.safe_load(few)


def test_files_beyond_the_bounds_are_not_read(documents: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it has no bytes on the disk
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (documents.read_json, documents.read_yaml):
        with pytest.raises(documents.DocumentError, match=r"1,099,511,627,776 bytes, and at most"):
            read(path)
        with pytest.raises(documents.DocumentError, match="no plain file"):
            read(pipe)
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_values_are_counted_before_they_are_built(documents: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 50)
    assert documents.parse_yaml("[" + "1," * 40 + "]") == [1] * 40
    with pytest.raises(documents.DocumentError, match="more than 50 values"):
        documents.parse_yaml("[" + "1," * 50 + "]")


def test_the_first_alias_is_found(documents: ModuleType) -> None:
    assert documents.find_alias("a: &x 1\nb:\n  - *x\n  - *x") == (3, "x")
    assert documents.find_alias("a: '*x'") is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain, with  two spaces\tand ü 脸 👩\u200d🚀", "plain, with  two spaces\tand ü 脸 👩\u200d🚀"),
        (" one\n   two\r\nthree\u2028four ", "one two three four"),
        ("x\n\x1b[31mERROR\x07", r"x \x1b[31mERROR\x07"),
        ("gpj.\u202eexe \x9b2J \udcff", r"gpj.\u202eexe \x9b2J \udcff"),
    ],
)
def test_a_text_becomes_one_plain_line(documents: ModuleType, text: str, line: str) -> None:
    assert documents.one_line(text) == line


def test_long_texts_and_values_are_cut(documents: ModuleType) -> None:
    assert documents.one_line("a" * 10**7 + "; the cure", 100) == "a" * 72 + " … " + "a" * 15 + "; the cure"
    nested = {"key": [["word " * 1000] * 1000] * 1000}
    for value in (nested, 10**300, "x" * 10**6, [nested] * 100):
        assert len(documents.brief(value)) <= 160
    assert documents.brief({"a": [1, "b"]}) == "{'a': [1, 'b']}"

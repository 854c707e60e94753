"""Read JSON and YAML that anybody may have written, within bounds, and put any text into one plain line.

What is damaged, or made to take all memory, is a `DocumentError` of one short line. Size, depth, integers and what
aliases repeat are bounded before anything of their size is built; a key that is given twice is refused, since readers
differ in which of the two they take. `fer_pipeline` and `pipelines` import nothing of each other and hold equal copies
of this file.
"""

import json
import math
import re
import reprlib
import stat
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MAX_JSON, MAX_YAML = 2**25, 2**24  # bytes of a file
MAX_VALUES = 1_000_000  # of YAML, each of which takes most of a kilobyte while it is read
MAX_DEPTH = 100
MAX_REPEATED = 100_000  # values that aliases stand for
MAX_INTEGER = 2**63  # what other programs and arrays hold
MAX_NUMBER = 400  # characters
PLAIN_TAGS = ("!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")))
BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they turn the text around
Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster one, where PyYAML was built with it


class DocumentError(ValueError):
    """A document is damaged, or beyond what is read: one line."""


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Read a file of JSON as `parse_json` does; an OSError where it cannot be opened."""
    return parse_json(_read_bytes(path, MAX_JSON), finite=finite)


def read_yaml(path: Path) -> Any:
    """Read a file of YAML; an OSError where it cannot be opened."""
    return parse_yaml(_read_bytes(path, MAX_YAML))


def parse_json(data: bytes | str, *, finite: bool = True) -> Any:
    """Return the value of a JSON text, in which NaN and infinity are no numbers unless `finite` is false."""

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise DocumentError(f"{one_line(text, 40)} is no number of JSON")
        return value

    try:
        value = json.loads(
            _decode(data), object_pairs_hook=_unique, parse_int=_integer, parse_float=number, parse_constant=number
        )
    except RecursionError:
        raise DocumentError(f"it is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise DocumentError(one_line(error, 200)) from None
    _check_values(value)
    return value


def parse_yaml(data: bytes | str) -> Any:
    """Return the value of a YAML text, as YAML's safe loaders understand it."""
    text = _decode(data)
    try:
        _check_events(text)
        value = yaml.load(text, _Loader)
    except Exception as error:  # a tag or a number that is none raises whatever its constructor happens to
        what = str(error) if isinstance(error, ValueError | yaml.YAMLError) else repr(error)
        raise DocumentError(one_line(what.replace('in "<unicode string>",', "at"), 200)) from None
    _check_values(value)
    return value


def load_commented(text: str, editor: Any) -> Any:
    """Return the value of a YAML text as `editor`, a `ruamel.yaml.YAML`, loads it: with its comments, to be written."""
    parse_yaml(text)
    try:
        return editor.load(text)
    except Exception as error:  # it reads some numbers and dates in its own way
        raise DocumentError(one_line(error, 200)) from None


def find_alias(text: str) -> tuple[int, str] | None:
    """Return line and name of the first alias in a YAML text that can be parsed."""
    events = (event for event in yaml.parse(text, Base) if isinstance(event, yaml.AliasEvent))
    return next(((event.start_mark.line + 1, str(event.anchor)) for event in events), None)


def one_line(text: object, most: int = 2000) -> str:
    """Return a text without line breaks and terminal escapes, cut in its middle where it is longer than `most`."""
    line = str(text)
    if len(line) > 4 * most:  # before any work is done on it
        line = f"{line[: 2 * most]} … {line[-2 * most :]}"
    line = re.sub(r"\s+", lambda space: " " if set(space[0]) & BREAKS else space[0], line).strip()
    line = escape_controls(line)
    tail = most // 4
    return line if len(line) <= most else f"{line[: most - tail - 3]} … {line[-tail:]}"


def brief(value: object) -> str:
    """Return a value for a message, however large it is, in at most 160 characters."""
    return one_line(_BRIEF.repr(value), 160)


def escape_controls(line: str) -> str:
    """Return a line with what a terminal would obey, or could not show, written out."""
    return line if line.isprintable() else "".join(map(_visible, line))


def _visible(letter: str) -> str:
    is_plain = letter not in DIRECTIONS and unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp")
    return letter if is_plain or letter == "\t" else letter.encode("unicode_escape").decode()


def _read_bytes(path: Path, limit: int) -> bytes:
    state = path.stat()
    # One might wait for ever for a pipe; of a folder, `read_bytes` raises the OSError.
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise DocumentError("it is no plain file")
    if state.st_size > limit:
        raise DocumentError(f"it has {state.st_size:,} bytes, and at most {limit:,} are read")
    return path.read_bytes()


def _decode(data: bytes | str) -> str:
    try:
        return data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DocumentError(f"the key {brief(twice)} is given twice")
    return found


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else MAX_INTEGER
    if not -MAX_INTEGER <= value < MAX_INTEGER:
        raise DocumentError(f"the integer {one_line(text, 40)} has more than 64 bits")
    return value


def _check_values(value: Any) -> None:
    """Refuse what is nested too deep, and text with NUL or half a surrogate pair, which no file's name can hold."""
    level, depth = [value], 0
    while level:
        for text in level:
            if isinstance(text, str) and not text.isprintable() and re.search("[\0\ud800-\udfff]", text):
                raise DocumentError(f"{brief(text)} holds a character that is none")
        groups = [one for one in level if isinstance(one, dict | list)]
        if groups and depth == MAX_DEPTH:
            raise DocumentError(f"it is nested more than {MAX_DEPTH} deep")
        level = [child for one in groups for child in ((*one, *one.values()) if isinstance(one, dict) else one)]
        depth += 1


def _check_events(text: str) -> None:
    """Refuse what is nested too deep, tags of programs, and aliases that stand for too much, before it is built."""
    sizes: dict[str, int] = {}  # values of what an anchor names, written out
    parents: list[list[Any]] = []  # anchor and size of what is open
    repeated = values = 0
    for event in yaml.parse(text, Base):
        values += 1
        if values > MAX_VALUES:
            raise DocumentError(f"it has more than {MAX_VALUES:,} values")
        size, line = 1, f"line {event.start_mark.line + 1}" if event.start_mark else "the file"
        if (tag := getattr(event, "tag", None)) is not None and tag not in PLAIN_TAGS:
            raise DocumentError(f"{line}: the tag {brief(tag)} is none that is read here")
        if isinstance(event, yaml.CollectionStartEvent):
            parents.append([event.anchor, 1])
            if len(parents) > MAX_DEPTH:
                raise DocumentError(f"{line}: it is nested more than {MAX_DEPTH} deep")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in sizes:
                size = sizes[event.anchor]
            elif any(anchor == event.anchor for anchor, _ in parents):
                raise DocumentError(f"{line}: *{one_line(event.anchor, 40)} stands in what it names")
            repeated += size
            if repeated > MAX_REPEATED:
                raise DocumentError(f"{line}: its aliases stand for more than {MAX_REPEATED:,} values")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = parents.pop()
            if anchor:
                sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
        else:
            continue
        if parents:
            parents[-1][1] += size


class _Loader(Base):
    """Refuses a key that is given twice, of which YAML would take the last without a word, and endless numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        for key, _ in node.value if len(counts) < counts.total() else ():
            if isinstance(key, yaml.ScalarNode) and counts[key.value] > 1:
                raise DocumentError(f"the key {brief(key.value)} is given twice, see line {key.start_mark.line + 1}")
        merges, pairs = any(key.value == "<<" for key, _ in node.value), len(node.value)
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < pairs and not merges:
            raise DocumentError(f"two keys below line {node.start_mark.line + 1} are the same value")
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        self._check_length(node)
        value = super().construct_yaml_int(node)
        if not -MAX_INTEGER <= value < MAX_INTEGER:
            raise DocumentError(f"line {node.start_mark.line + 1}: an integer has more than 64 bits")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        self._check_length(node)
        return super().construct_yaml_float(node)

    def _check_length(self, node: yaml.ScalarNode) -> None:
        if len(node.value) > MAX_NUMBER:
            raise DocumentError(f"line {node.start_mark.line + 1}: a number has {len(node.value):,} digits")


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxdict, _BRIEF.maxlist, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, 4, 6, 80, 80, 40

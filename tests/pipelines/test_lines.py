"""Bytes to lines: whole ones in order, the last states of bars, nothing without bounds."""

import numpy as np
import pytest

from pipelines.lines import LIMIT, SECONDS_BETWEEN_REDRAWS, Line, Lines


def cut(pieces: list[bytes], *, seconds: float = 0.0) -> list[Line]:
    """The lines of a stream whose pieces come `seconds` apart."""
    lines = Lines()
    found = [line for at, piece in enumerate(pieces) for line in lines.feed(piece, at * seconds)]
    return [*found, *lines.close()]


def texts(pieces: list[bytes]) -> list[str]:
    return [line.text for line in cut(pieces) if line.whole]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_pieces_of_any_size_give_the_same_lines(size: int) -> None:
    stream = "eins\nzw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf\n\n\tdrei\r\nvier".encode()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert texts(pieces) == ["eins", "zwölf", "", "\tdrei", "vier"]


def test_only_the_last_state_of_a_redrawn_line_is_kept() -> None:
    assert texts([b"\r 1%", b"\r 2%\r", b" 3%", b"\n\r 4%\r 5%\r      \r", b"done\nend\r"]) == [" 3%", "done", "end"]


def test_a_bar_is_shown_at_most_twice_a_second() -> None:
    bar = [f"{step}%\r".encode() for step in range(1000)]
    shown = cut([*bar, b"\n"], seconds=0.01)
    assert [line.text for line in shown if line.whole] == ["999%"]
    assert 0.9 < (len(shown) - 1) * SECONDS_BETWEEN_REDRAWS / 10 <= 1.1
    numbers = [int(line.text[:-1]) for line in shown]
    assert numbers == sorted(numbers)


def test_a_bar_that_pauses_is_shown_once_and_not_again_at_its_end() -> None:
    lines = Lines()
    assert list(lines.feed(b"\r10%", 0)) == []  # it may be half drawn
    assert list(lines.quiet(0.1)) == [Line("10%", whole=False)]
    assert list(lines.quiet(9)) == []
    assert list(lines.feed(b"\n", 10)) == [Line("10%", new=False)]
    assert list(lines.feed(b"10%\n", 11)) == [Line("10%")]


def test_a_line_without_an_end_is_not_shown_by_halves() -> None:
    lines = Lines()
    assert list(lines.feed(b"Downloading ... ", 0)) == []
    assert list(lines.quiet(5)) == []
    assert list(lines.feed(b"done\n", 6)) == [Line("Downloading ... done")]


@pytest.mark.parametrize("letter", ["a", "ö", "€", "😀"])
def test_a_long_line_is_cut_and_says_so(letter: str) -> None:
    whole, long = letter * LIMIT, letter * (LIMIT * 5)
    size = len(long.encode())
    assert texts([whole.encode(), b"\n", long.encode()[:777], long.encode()[777:], b"\nnext\n"]) == [
        whole,
        f"{whole} … (line of {size:,} bytes cut)",
        "next",
    ]


def test_a_line_of_any_length_takes_little_memory() -> None:
    lines = Lines()
    for _ in range(1000):
        assert list(lines.feed(b"x" * 65536, 0)) == []
    assert len(lines._text.kept) + len(lines._state.kept) <= 8 * LIMIT
    assert "65,536,000 bytes cut" in next(lines.close()).text


def test_rubbish_becomes_text_that_a_database_takes() -> None:
    rubbish = np.random.default_rng(0).bytes(50_000)
    found = cut([rubbish])
    assert len([line for line in found if line.whole]) >= rubbish.count(b"\n")
    for line in found:
        line.text.encode("utf-8")  # no half characters
        assert not {chr(code) for code in range(32)} & set(line.text) - {"\t", "\x1b"}
    assert texts([b"a\x00b\x1b[31mred\xff\n"]) == ["a\N{REPLACEMENT CHARACTER}b\x1b[31mred\N{REPLACEMENT CHARACTER}"]

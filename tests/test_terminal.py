"""What a person reads is one plain line, whatever a file or a library put into it."""

import pytest
import typer

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Summary
from fer_pipeline.terminal import print_result, report_errors

HOSTILE = "x\n\x1b[31mERROR fake.jpg\r\x07 \u202egpj.exe"
PLAIN = r"x \x1b[31mERROR fake.jpg \x07 \u202egpj.exe"


@pytest.mark.parametrize("error", [DataError(HOSTILE), FileNotFoundError(2, "not there", HOSTILE)])
def test_an_error_is_one_plain_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, report_errors():
        raise error
    assert ended.value.exit_code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {PLAIN}")
    assert told.removesuffix("\n").isprintable()


def test_an_error_without_an_end_keeps_its_cure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), report_errors():
        raise DataError(f"found {'x' * 10**7}; rerun align")
    told = capsys.readouterr().err
    assert len(told) < 2100
    assert told.endswith("x; rerun align\n")


def test_results_keep_their_lines_and_lose_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(Summary("align", HOSTILE, warnings=(HOSTILE, "plain ü")))
    told = capsys.readouterr()
    assert told.err.splitlines() == [f"warning: {PLAIN}", "warning: plain ü"]
    assert told.out == "align: x\n" + r"\x1b[31mERROR fake.jpg\r\x07 \u202egpj.exe" + "\n"
    print_result("a\tb\n\n  c")
    assert capsys.readouterr().out == "a\tb\n\n  c\n"

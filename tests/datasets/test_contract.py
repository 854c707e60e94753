"""What every adapter promises. A new file in `fer_pipeline/datasets` is tested here once it has a small example."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split, validate

PACKAGE = "fer_pipeline.datasets"
BuildExample = Callable[[str], dict[str, Any]]

pytestmark = pytest.mark.parametrize("name", available(PACKAGE))


def opened(name: str, example: dict[str, Any]) -> tuple[Any, Any, list[Sample]]:
    adapter = load(PACKAGE, name)
    options = validate(adapter.Options, example["options"], where="options")
    return adapter, options, list(adapter.samples(example["path"], options))


def test_samples_are_those_of_the_example(name: str, build_example: BuildExample) -> None:
    example = build_example(name)
    _, _, found = opened(name, example)
    assert len({sample.id for sample in found}) == len(found)
    assert {sample.id: (sample.split, sample.label, sample.subject) for sample in found} == example["expected"]
    assert {sample.split for sample in found} <= {*get_args(Split), None}


def test_ids_and_order_are_stable(name: str, build_example: BuildExample) -> None:
    example = build_example(name)
    assert opened(name, example)[2] == opened(name, example)[2]


def test_samples_depend_on_no_picture(name: str, build_example: BuildExample) -> None:
    example = build_example(name)
    before = opened(name, example)[2]
    example["spoil"]()
    assert opened(name, example)[2] == before


def test_read_gives_the_picture_in_any_order(
    name: str, build_example: BuildExample, decode: Callable[[bytes], np.ndarray]
) -> None:
    example = build_example(name)
    adapter, options, found = opened(name, example)
    random.Random(0).shuffle(found)
    for sample in (*found, found[0]):
        data = adapter.read(sample, options)
        assert type(data) is bytes
        np.testing.assert_array_equal(decode(data), example["pictures"][sample.id])


def test_a_spoiled_picture_is_unreadable_and_not_fatal(
    name: str, build_example: BuildExample, decode: Callable[[bytes], np.ndarray]
) -> None:
    example = build_example(name)
    example["spoil"]()
    adapter, options, found = opened(name, example)
    for sample in found:
        with pytest.raises((DataError, OSError, SyntaxError)):
            decode(adapter.read(sample, options))


def test_a_vanished_source_is_one_line(name: str, build_example: BuildExample) -> None:
    example = build_example(name)
    adapter, options, found = opened(name, example)
    for sample in found:
        sample.path.unlink(missing_ok=True)
    with pytest.raises(DataError) as fault:
        adapter.read(found[0], options)
    assert "\n" not in str(fault.value)
    assert found[0].path.name in str(fault.value)


@pytest.mark.parametrize("content", ["nothing", "empty folder"])
def test_a_missing_or_empty_source_is_one_line_that_names_it(name: str, content: str, tmp_path: Path) -> None:
    adapter = load(PACKAGE, name)
    folder = tmp_path / "absent"
    if content == "empty folder":
        folder.mkdir()
    with pytest.raises(PipelineError) as fault:
        list(adapter.samples(folder, adapter.Options()))
    assert "\n" not in str(fault.value)
    assert str(folder) in str(fault.value)


def test_options_are_settings_that_refuse_unknown_keys(name: str) -> None:
    adapter = load(PACKAGE, name)
    assert issubclass(adapter.Options, Settings)
    adapter.Options()
    with pytest.raises(ConfigError, match="no_such_option"):
        validate(adapter.Options, {"no_such_option": 1}, where="options")


def test_the_docstring_names_a_source(name: str) -> None:
    docstring = load(PACKAGE, name).__doc__ or ""
    assert "Source:" in docstring
    assert docstring.startswith("Read "), "the first line says what is read"


def test_the_example_is_no_trivial_one(name: str, build_example: BuildExample) -> None:
    expected = build_example(name)["expected"]
    assert len(expected) >= 3

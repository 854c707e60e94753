"""The table in the terminal holds the figures of the CSV files, rounded, and says where the report lies."""

from pathlib import Path

import pytest

from fer_pipeline.commands import results
from fer_pipeline.core.errors import DataError

ENDS = ("", "_seeds_low", "_seeds_high")


def test_figures_and_intervals(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    names = ["mean_class_accuracy", "accuracy", "macro_f1", "class_accuracy_sd"]
    head = ["recipe", "target", "seeds", "faces", *(f"{name}{end}" for name in names for end in ENDS)]
    head[-2:] = [f"class_accuracy_sd_both_{end}" for end in ("low", "high")]
    one = ["vas", "film", "2", "56", *["0.51249", "0.5", "0.525"] * 3, "0.1", "0.04", "0.16"]
    alone = ["das", "film", "1", "56", *["0.6", "", ""] * 4]
    (tables / "results.csv").write_text("\n".join(",".join(row) for row in (head, one, alone)))
    (tables / "differences.csv").write_text(
        "recipe,against,target,metric,difference,low,high,p_corrected,claim,seeds_for_a_point\n"
        "vas,baseline,film,mean_class_accuracy,0.0304,-0.01,0.07,0.2,unclear,31\n"
        "vas,baseline,film,accuracy,0.4,0.3,0.5,,,\n"
        "das,vas,film,mean_class_accuracy,0.5,0.4,0.6,,,\n"
    )
    assert results.run(reports=tmp_path).splitlines()[0] == "vas, das; 2 seeds", "of unknown length"
    (tables / "timings.csv").write_text(
        "recipe,steps,seconds_per_epoch,peak_memory_bytes\nvas,1500 1600,0.126,734000000\ndas,1700,2,\npublished,,1,\n"
    )
    lines = results.run(reports=tmp_path).splitlines()
    assert lines[0] == "vas, das; 2 seeds; 1,500 to 1,700 steps a model"
    lines = lines[2:]
    assert lines[2].split() == [
        "vas",
        "film",
        "56",
        "2",
        *["0.512", "[0.500,", "0.525]"] * 3,
        "0.100",
        "[0.040,",
        "0.160]",
        "0.13",
        "734",
    ]
    assert lines[3].split() == ["das", "film", "56", "1", *["0.600"] * 4, "2.00"]
    assert "+0.030 [-0.010, +0.070]" in "\n".join(lines)
    assert lines[9].split()[-3:] == ["0.2", "unclear", "31"]
    assert not any("published" in line for line in lines[:-1])
    differences = [line.split()[:4] for line in lines[9:11]]
    assert differences == [["vas", "baseline", "film", "+0.030"], ["das", "vas", "film", "+0.500"]]
    assert sum("[" in line for line in lines[4:]) == 2, "each pair, in the one figure"
    assert lines[-1] == f"report: {tmp_path}/index.html"


def test_a_published_network_has_no_seeds(tmp_path: Path) -> None:
    test_figures_and_intervals(tmp_path)
    table = tmp_path / "tables" / "results.csv"
    table.write_text(table.read_text().replace("das,film,1", "das,film,0"))
    lines = results.run(reports=tmp_path).splitlines()
    assert lines[5].split()[:4] == ["das", "film", "56", "0"]
    assert "0 seeds: a published network as it comes, nothing trained here" in lines


def test_mined_classes_and_rules_side_by_side(tmp_path: Path) -> None:
    """A bound or an estimate that is not known is no number."""
    test_figures_and_intervals(tmp_path)
    tables = tmp_path / "tables"
    (tables / "mined_classes.csv").write_text(
        "class,kept,heldout,precision,low,high,pool_share,pool_low,pool_high,reason\n"
        "anger,20,25,0.3,,0.61,0.01,0,0.03,its share of the pool may be 0\n"
        'fear,7,3,,,,,,,"3 held-out faces predicted so, 20 wanted"\n'
    )
    (tables / "rules.csv").write_text(
        "rule,class,kept,precision,low,high\n"
        "margin,*,27,0.5,0.25,0.75\nmargin,anger,20,0.3,,0.61\nprobability,*,27,0.75,0.5,1\n"
    )
    text = results.run(reports=tmp_path)
    assert [" ".join(line.split()) for line in text.splitlines()[-9:-1] if line] == [
        "anger 20 0.300 [?, 0.610] 25 0.010 [0.000, 0.030] its share of the pool may be 0",
        "fear 7 not known 3 not known 3 held-out faces predicted so, 20 wanted",
        "rules at equal counts, before caps",
        "rule faces estimated precision",
        "----------- ----- --------------------",
        "margin 27 0.500 [0.250, 0.750]",
        "probability 27 0.750 [0.500, 1.000]",
    ]
    assert "calibration" not in text
    table = tables / "mined_classes.csv"
    table.write_text("".join(f"{line},{'calibration' if number else 'model'}\n" for number, line in
                             enumerate(table.read_text().splitlines())))  # fmt: skip
    assert results.run(reports=tmp_path).splitlines()[-2] == (
        "precision is estimated by the calibration model, which did not see the held-out faces; the labeller did"
    )


def test_nothing_to_show_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run: dvc repro"):
        results.run(reports=tmp_path)


def test_a_cell_is_one_line_whatever_its_file_is_called() -> None:
    lines = results.format_table([("name", "n"), ("a\n\x1b[31mb", "1"), ("  c", "2")])
    assert lines == [r"name         n", r"a \x1b[31mb  1", r"  c          2"]

"""The stage: the same bytes whoever draws, truth apart from data, one line for a wrong name."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.datasets import synthetic
from fer_pipeline.stages import synthesize
from tests.project import project_settings

SETS = {"street": {"splits": {"train": 9}, "styles": {"wild": 1.0}, "labelled": False, "acting": {"mixed": 0.5}}}
CONFIG = synthesize.Config.model_validate({"sets": SETS, "size": 48, "rows_per_part": 4, "workers": 1})


def draw(config: synthesize.Config, folder: Path, *, seed: int = 0) -> dict[str, bytes]:
    summary = synthesize.run(
        config,
        project_settings(seeds=(seed,)),
        name="street",
        out=folder / "raw",
        truth=folder / "truth" / "street.parquet",
    )
    assert summary.counts["portraits"] == 9
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))}


def test_bytes_depend_on_the_seed_and_not_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = draw(CONFIG, tmp_path / "alone")
    assert list(alone) == [*(f"raw/part-0000{part}.parquet" for part in range(3)), "truth/street.parquet"]
    monkeypatch.setattr(synthesize, "ROWS_PER_CALL", 2)
    assert draw(CONFIG.model_copy(update={"workers": 2}), tmp_path / "two") == alone
    assert draw(CONFIG, tmp_path / "alone") == alone  # over an earlier run
    assert draw(CONFIG, tmp_path / "other", seed=1) != alone


def test_data_hold_no_truth_and_truth_meets_the_data_by_face_id(tmp_path: Path) -> None:
    draw(CONFIG, tmp_path)
    samples = list(synthetic.samples(tmp_path / "raw", synthetic.Options()))
    assert pq.read_schema(tmp_path / "raw" / "part-00000.parquet").names == [
        "sample_id",
        "image",
        "label",
        "subject",
        "split",
    ]
    assert {sample.label for sample in samples} == {None}
    assert synthetic.read(samples[5], synthetic.Options())[:2] == b"\xff\xd8"
    truth = pq.read_table(tmp_path / "truth" / "street.parquet")
    assert truth.column("face_id").to_pylist() == [f"street/{sample.id}" for sample in samples]
    assert truth.column("dominant").null_count > 0
    units = truth.schema.metadata[b"action_units"].split(b",")
    assert len(truth.column("aus")[0]) == 2 * len(units)


def test_an_unknown_set_is_reported_in_one_line_and_nothing_is_touched(tmp_path: Path) -> None:
    before = draw(CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r"no set 'studio'; params has the sets street"):
        synthesize.run(
            CONFIG,
            project_settings(),
            name="studio",
            out=tmp_path / "raw",
            truth=tmp_path / "truth" / "street.parquet",
        )
    assert {str(f.relative_to(tmp_path)): f.read_bytes() for f in sorted(tmp_path.rglob("*.parquet"))} == before


def test_an_unknown_style_is_refused_before_any_work(tmp_path: Path) -> None:
    sets = {"street": {"splits": {"train": 2}, "styles": {"oil": 1.0}}}
    config = synthesize.Config.model_validate({"sets": sets})
    with pytest.raises(ConfigError, match="unknown style 'oil'"):
        synthesize.run(
            config, project_settings(), name="street", out=tmp_path / "raw", truth=tmp_path / "truth.parquet"
        )
    assert not (tmp_path / "raw").exists()

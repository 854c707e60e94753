"""The dated page of a run: every figure is the run's own, intervals over distillation seeds are scipy's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import typer
from typer.testing import CliRunner

from benchmarks.page import main, read_gains
from fer_pipeline.artifacts.distilled import CONTROLS

TABLES = {
    "results": "recipe,target,seeds,faces,mean_class_accuracy,mean_class_accuracy_seeds_low,"
    "mean_class_accuracy_seeds_high\n"
    "baseline,studio,5,1400,0.8500,0.8400,0.8600\n"
    "baseline,film,5,1120,0.7000,0.6800,0.7200\n"
    "vas,studio,5,1400,0.8600,0.8500,0.8700\n"
    "vas,film,5,1120,0.7400,0.7300,0.7500\n",
    "differences": "recipe,against,target,metric,difference,low,high,p_value,p_corrected,claim,seeds_for_a_point\n"
    "vas,baseline,studio,mean_class_accuracy,0.01,-0.012,0.032,0.2,,,\n"
    "vas,baseline,studio,accuracy,0.5,0.4,0.6,0.2,,,\n"
    "vas,baseline,film,mean_class_accuracy,0.04,0.02,0.06,0.01,,,\n"
    "vas,baseline,all targets,mean_class_accuracy,0.025,0.001,0.049,0.01,0.04,above,12\n"
    "vas,random_vas,all targets,mean_class_accuracy,0.02,-0.001,0.041,0.03,0.06,unclear,persons limit\n"
    "true_vas,vas,all targets,mean_class_accuracy,0.2,0.1,0.3,0.03,,,\n",
    "timings": "recipe,seeds,steps,labelled_seen,stopped_rising,times_baseline\n"
    "baseline,5,1500 1600,170.4,True,1.0\nvas,5,1700 1800,45.1,False,1.1\n",
    "precision": "kind,pool,class,faces,estimated,estimated_low,estimated_high,true,true_low,true_high\n"
    "mined,street,*,1622,0.94,0.77,0.98,0.898,0.88,0.91\n"
    "mined,street,fear,200,0.9,0.7,1,0.89,0.8,0.9\n"
    "second rule,street,*,1600,0.95,,,,,\n",
}


def controls(distilled: float, random_real: float) -> dict:
    """As `distill` writes it, from fresh weights: the plain training is the better one, that by steps is bad."""
    trainings = [
        {"start": "fresh", "training": way, "images": name, "draws": 3, "accuracy": value}
        | {"mean_class_accuracy": {"mean": value if way == "plain" else 0.1, "low": 0.1, "high": 0.9}}
        for way in ("steps", "plain")
        for name, value in (("distilled", distilled), ("random_real", random_real))
    ]
    gain = {"mean": distilled - random_real, "low": distilled - random_real - 0.04, "high": 0.5}
    return {"reason": "", "trainings": trainings, "differences": [{"start": "fresh", "against": "random_real", **gain}]}


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Path:
    """What a run of the full demo leaves, as far as the page reads it."""
    (tmp_path / "params.yaml").write_bytes((root / "profiles" / "demo_full.yaml").read_bytes())
    for name, text in TABLES.items():
        (tmp_path / "reports" / "tables").mkdir(parents=True, exist_ok=True)
        (tmp_path / "reports" / "tables" / f"{name}.csv").write_text(text)
    for seed, pair in {10: (0.40, 0.30), 11: (0.45, 0.31), 12: (0.38, 0.33)}.items():
        folder = tmp_path / "data" / "distilled" / "matched" / str(seed)
        folder.mkdir(parents=True)
        (folder / CONTROLS).write_text(json.dumps(controls(*pair)))
    return tmp_path


def write(project: Path, *options: str) -> str:
    application = typer.Typer()
    application.command()(main)
    out = project / "page.md"
    told = CliRunner().invoke(application, ["demo_full", "--root", str(project), "--out", str(out), *options])
    assert told.exit_code == 0, told.output
    return out.read_text()


def test_every_figure_is_the_runs(project: Path) -> None:
    page = write(project, "--seconds", "5400").replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "none")
    for line in (
        "It took 90 minutes.",
        "Chance is 0.143.",
        "test faces: studio 1400, film 1120.",
        "| vas | 0.860 [0.850, 0.870] | 0.740 [0.730, 0.750] |",
        "corrected for 2 comparisons",
        "| vas minus baseline | +1.0 [-1.2, +3.2] | +4.0 [+2.0, +6.0] | +2.5 [+0.1, +4.9] | 0.04 | 12 |",
        "| vas minus random_vas | none | none | +2.0 [-0.1, +4.1] | 0.06 | persons limit |",
        "| true_vas minus vas | none | none | +20.0 [+10.0, +30.0] | none | none |",
        "**Claimed: vas above baseline (+2.5 [+0.1, +4.9]).**",
        "| baseline | 1500, 1600 | 170 | yes | 1.0 |",
        "| vas | 1700, 1800 | 45 | no | 1.1 |",
        "| mined | street | 1622 | 0.898 [0.880, 0.910] | 0.940 [0.770, 0.980] |",
        "| second rule | street | 1600 | none | 0.950 |",
    ):
        assert line in page, line
    assert "fear" not in page
    widths = [{line.count("|") for line in block.splitlines()} for block in re.findall(r"(?:^\|.*\n)+", page, re.M)]
    assert all(len(width) == 1 for width in widths), "every row has the columns of its table"


def test_gains_have_the_interval_of_students_t_over_their_seeds(project: Path) -> None:
    (gains,) = read_gains(project / "data" / "distilled")
    np.testing.assert_allclose(gains.values, [0.10, 0.14, 0.05])
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(gains.values), scale=scipy.stats.sem(gains.values))
    page = write(project).replace("\N{MINUS SIGN}", "-")
    expected = (
        f"| 0.410 | 0.313 | +9.7 [{100 * low:+.1f}, {100 * high:+.1f}] | +10.0 (+6.0), +14.0 (+10.0), +5.0 (+1.0) |"
    )
    assert expected in page


def test_another_profile_than_the_one_that_was_run_is_refused(project: Path) -> None:
    application = typer.Typer()
    application.command()(main)
    told = CliRunner().invoke(application, ["demo", "--root", str(project), "--out", str(project / "page.md")])
    assert told.exit_code == 1
    assert "is not the profile demo; name the one that was run" in told.output + (told.stderr or "")
    assert not (project / "page.md").exists()

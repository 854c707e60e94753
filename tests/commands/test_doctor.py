"""doctor on this machine, whose facts are known from elsewhere, and how it tells what it finds."""

import json
import os
import platform
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.cli import app
from fer_pipeline.commands import doctor
from fer_pipeline.commands.plan import Estimate, StagePlan, plan_stages
from fer_pipeline.core.errors import DataError
from fer_pipeline.health.software import CheckContext, Finding

MB = 1_000_000


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["resources"] = {"device": "cpu", "workers": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_this_machine(project: Path) -> None:
    told = CliRunner().invoke(app, ["doctor", "--json", "--no-plan"])
    found = {one["name"]: one for one in json.loads(told.stdout)}
    assert told.exit_code == any(one["level"] == "problem" for one in found.values())
    assert len(found) == len(doctor.CHECKS) + 1, "every check has a name of its own"
    assert found["python"]["found"] == "Python " + ".".join(platform.python_version_tuple()[:2])
    packages = {path.name for path in Path(sysconfig.get_path("purelib")).glob("dvc-*.dist-info")}
    assert packages == {f"dvc-{found['dvc']['found']}.dist-info"}
    shell = subprocess.run(["sh", "-c", "ulimit -n"], capture_output=True, text=True, check=True).stdout.strip()
    assert found["open_files"]["found"] in (f"{int(shell):,}" if shell.isdigit() else "no limit", f"{shell} a process")
    assert (
        found["processors"]["found"].startswith(f"{len(os.sched_getaffinity(0))} processors")
        or Path("/sys/fs/cgroup/cpu.max").exists()
    )
    assert all(one["advice"] for one in found.values() if one["level"] != "ok")


def test_settings_that_do_not_hold_are_one_problem(project: Path) -> None:
    (project / "params.yaml").write_text("seeds: [", encoding="utf-8")
    told = CliRunner().invoke(app, ["doctor"])
    assert told.exit_code == 1
    lines = told.output.splitlines()
    assert lines[0].startswith("PROBLEM  settings: params.yaml is not valid YAML")
    assert len(lines) == len(doctor.CHECKS) + 1


def estimate(size: float, free: int) -> Estimate:
    return Estimate(4, 2, 200, "faces", 1, "cpu", 50.0, (3.0, 4.0, 5.0), size, free, "by hand")


@pytest.mark.parametrize(
    ("size", "link", "level"),
    [
        (30 * MB, "hardlink", "ok"),
        (45 * MB, "hardlink", "warning"),
        (60 * MB, "hardlink", "problem"),
        (15 * MB, "copy", "ok"),
        (30 * MB, "copy", "problem"),
    ],
)
def test_the_plan_against_the_disk(
    project: Path, monkeypatch: pytest.MonkeyPatch, size: int, link: str, level: str
) -> None:
    monkeypatch.setattr(doctor, "link_type", lambda *_: link)
    plans = [StagePlan("align", name, estimate(size, 100 * MB)) for name in ("a", "b")]
    finding = doctor.check_plan(CheckContext(project), lambda: [*plans, StagePlan("embed", "a", "no faces yet")])
    assert finding.level == level
    needed = 2 * size // MB * (2 if link == "copy" else 1)
    assert finding.message.startswith(f"{needed} MB" if needed >= 100 else f"{needed}.0 MB")
    assert "8 s to come" in finding.message
    assert finding.message.endswith("not known yet: embed a")


def test_a_plan_that_is_not_known(project: Path) -> None:
    def busy() -> list[StagePlan]:
        raise DataError("another run of align@a is at work")

    assert doctor.check_plan(CheckContext(project), busy).level == "warning"
    assert doctor.check_plan(CheckContext(project), lambda: [StagePlan("align", "a", "no raw data")]).level == "warning"


def test_the_plan_is_that_of_the_command(project: Path) -> None:
    finding = doctor.check_plan(
        CheckContext(project), lambda: plan_stages(params=Path("params.yaml"), store=Path(".store"), seconds=1)
    )
    assert finding.level == "warning"
    assert "align film" in finding.message, "nothing was drawn yet"


def test_how_it_is_told() -> None:
    findings = {"a": Finding("ok", "well", "unsaid"), "b": Finding("problem", "ill", "rest")}
    assert doctor.format_text(findings) == "ok       a: well\nPROBLEM  b: ill; rest"

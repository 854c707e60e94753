"""The deployments say what Prefect, Kubernetes and Slurm understand, checked against their own schemas."""

import json
import os
import re
import shlex
import signal
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.__main__ import DEFAULTS

POOLS = {"local": "process", "docker": "docker", "kubernetes": "kubernetes", "slurm": "process"}
FLOWS = {"reproduce", "refresh", "sweep"}
HOST = {"FER_WORKSPACE": "/somewhere/clone", "FER_CACHE": "/somewhere/cache", "FER_IMAGE": "registry.example/fer:1"}
KUBERNETES = "1.32"  # the oldest that its makers still mend
ROOM = Path("pipelines/deployments")
AUTOMATIONS = sorted(path.name for path in (ROOM / "automations").glob("*.yaml"))
Content = dict[str, Any]


def read(path: Path) -> Content:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def prefect_file(root: Path, pool: str) -> Path:
    return root / "prefect.yaml" if pool == "local" else root / ROOM / pool / "prefect.yaml"


def template(root: Path, pool: str) -> Content:
    """The base job template of a pool: ours, or what Prefect makes for processes."""
    if POOLS[pool] == "process":
        from prefect.workers.process import ProcessWorker

        return ProcessWorker.get_default_base_job_template()
    return json.loads((root / ROOM / pool / "base-job-template.json").read_text(encoding="utf-8"))


def job_variables(root: Path, pool: str, monkeypatch: pytest.MonkeyPatch) -> Content:
    """What a deployment asks of its pool, with the host's variables in place, as `prefect deploy` puts them."""
    from prefect.utilities.templating import apply_values

    for name, value in HOST.items():
        monkeypatch.setenv(name, value)
    [variables, *others] = [one["work_pool"]["job_variables"] for one in read(prefect_file(root, pool))["deployments"]]
    assert all(other == variables for other in others)
    return apply_values(variables, dict(os.environ))


@pytest.mark.parametrize("pool", POOLS)
def test_prefect_knows_every_word(root: Path, pool: str) -> None:
    """Prefect ignores words that it does not know: a misspelt limit would be no limit."""
    from prefect.cli.deploy._models import ConcurrencyLimitSpec, DeploymentConfig, PrefectYamlModel, WorkPoolConfig
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy

    content = read(prefect_file(root, pool))
    PrefectYamlModel.model_validate(content)
    assert set(content) - {"definitions", "prefect-version"} <= set(PrefectYamlModel.model_fields)
    for deployment in content["deployments"]:
        assert set(deployment) <= set(DeploymentConfig.model_fields)
        assert set(deployment["work_pool"]) <= set(WorkPoolConfig.model_fields)
        assert set(deployment["concurrency_limit"]) <= set(ConcurrencyLimitSpec.model_fields)
        assert deployment["concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_limit"]["collision_strategy"] == ConcurrencyLimitStrategy.ENQUEUE.value
        flow = deployment["entrypoint"].rpartition(":")[2]
        assert (deployment["name"], deployment["work_pool"]["name"]) == (f"{flow}-{pool}", pool)


@pytest.mark.parametrize("pool", POOLS)
def test_flows_are_there_and_only_refresh_has_a_schedule_that_sleeps(root: Path, pool: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import is_valid, validate

    names = set()
    for deployment in read(prefect_file(root, pool))["deployments"]:
        path, _, function = deployment["entrypoint"].partition(":")
        flow = load_flow_from_entrypoint(f"{root / path}:{function}")
        names.add(flow.name)
        schema = parameter_schema(flow).model_dump_for_openapi()
        assert validate(deployment.get("parameters", {}), schema, ignore_required=True) == []
        assert not is_valid({"targets": 3}, schema)
        schedules = deployment.get("schedules", [])
        assert len(schedules) == (flow.name == "refresh")
        for schedule in schedules:
            assert schedule["active"] is False
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert names == FLOWS


@pytest.mark.parametrize("pool", POOLS)
def test_pools_take_the_job_variables(root: Path, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.utilities.schema_tools.validation import validate

    variables, asked = template(root, pool)["variables"], job_variables(root, pool, monkeypatch)
    assert set(asked) <= set(variables["properties"])
    assert validate(asked, variables, raise_on_error=True) == []
    assert "{{" not in json.dumps(asked)
    assert all(isinstance(value, str) for value in asked["env"].values())


@pytest.mark.parametrize("pool", ["docker", "kubernetes"])
def test_every_variable_of_a_template_is_used_and_every_used_one_is_there(root: Path, pool: str) -> None:
    from prefect.utilities.templating import find_placeholders

    content = template(root, pool)
    used = {placeholder.name for placeholder in find_placeholders(content["job_configuration"])}
    assert used == set(content["variables"]["properties"])


def manifest(root: Path, variables: Content) -> Content:
    """The job that a Kubernetes worker makes: the template filled in, then environment, command and labels."""
    from prefect.utilities.templating import apply_values

    content = template(root, "kubernetes")
    defaults = {name: one["default"] for name, one in content["variables"]["properties"].items() if "default" in one}
    filled = {**defaults, "name": "run", "labels": {"prefect.io/flow-run-name": "run"}, **variables}
    job = apply_values(content["job_configuration"]["job_manifest"], filled)
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = shlex.split("prefect flow-run execute")
    return job


def test_the_kubernetes_job_is_valid_and_holds_a_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = manifest(root, job_variables(root, "kubernetes", monkeypatch))
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == HOST["FER_IMAGE"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"workspace": "/workspace", "cache": "/cache", "shm": "/dev/shm"}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert job["spec"]["backoffLimit"] == 0, "a second pod would run beside Prefect's own retry"


def test_the_validator_finds_what_is_wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = manifest(root, job_variables(root, "kubernetes", monkeypatch))
    misplaced, misspelt = deepcopy(job), deepcopy(job)
    misplaced["spec"]["template"]["spec"]["parallelism"] = 1
    misspelt["spec"]["template"]["spec"]["tolerations"] = "all"
    for wrong in (misplaced, misspelt):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["volumes.yaml", "worker.yaml"])
def test_kubernetes_manifests_are_valid(root: Path, name: str) -> None:
    documents = list(yaml.safe_load_all((root / ROOM / "kubernetes" / name).read_text(encoding="utf-8")))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_kubernetes_worker_and_its_jobs_read_the_password_from_one_secret(root: Path) -> None:
    """What is in the worker's environment as text would be in its manifest, and in that of each job."""
    documents = yaml.safe_load_all((root / ROOM / "kubernetes" / "worker.yaml").read_text(encoding="utf-8"))
    [worker] = [one for one in documents if one["kind"] == "Deployment"]
    [container] = worker["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    secret = told["PREFECT_API_AUTH_STRING"]
    jobs = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert secret == {"name": told[f"{jobs}_NAME"], "key": told[f"{jobs}_KEY"]}
    made = f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}="
    assert made in (root / "docs" / "cluster.md").read_text(encoding="utf-8")


def test_prefect_knows_every_setting_of_the_pages_and_manifests(root: Path) -> None:
    """Prefect ignores a variable that it does not know: a misspelt guard would be none."""
    from prefect.settings import Settings

    def names(model: Any) -> set[str]:
        known = set()
        for name, field in model.model_fields.items():
            prefix = str(model.model_config["env_prefix"])
            aliases = getattr(field.validation_alias, "choices", [])
            known |= {f"{prefix}{name}".upper(), *(alias.upper() for alias in aliases if isinstance(alias, str))}
            if hasattr(field.annotation, "model_fields"):
                known |= names(field.annotation)
        return known

    files = [root / "README.md", root / "prefect.yaml", *(root / "docs").rglob("*.md"), *(root / ROOM).rglob("*.*")]
    written = {name for file in files for name in re.findall(r"PREFECT_[A-Z0-9_]+", file.read_text(encoding="utf-8"))}
    assert "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED" in written
    unknown = {name for name in written if not name.startswith("PREFECT_INTEGRATIONS_KUBERNETES_")}
    assert unknown - names(Settings) == set()


def test_volume_claims_are_those_that_jobs_ask_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = yaml.safe_load_all((root / ROOM / "kubernetes" / "volumes.yaml").read_text(encoding="utf-8"))
    claims = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "PersistentVolumeClaim"}
    asked = job_variables(root, "kubernetes", monkeypatch)
    assert claims[asked["workspace_claim"]]["accessModes"] == ["ReadWriteOncePod"], "two pods in one workspace"
    assert claims[asked["cache_claim"]]["accessModes"] == ["ReadWriteMany"]


def test_the_docker_container_gets_its_gpus(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from docker.types import HostConfig

    more = template(root, "docker")["variables"]["properties"]["container_create_kwargs"]["default"]
    asked = job_variables(root, "docker", monkeypatch)
    binds = [volume.split(":") for volume in asked["volumes"]]
    assert binds == [[HOST["FER_WORKSPACE"], "/workspace"], [HOST["FER_CACHE"], "/cache"]]
    told = HostConfig(version="1.43", **more)
    assert told["DeviceRequests"] == [
        {"Driver": "", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    ]
    assert told["ShmSize"] == 16 << 30


def test_the_image_installs_what_the_project_names(root: Path) -> None:
    import tomllib

    lines = (root / ROOM / "docker" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    extras = next(line for line in lines if line.startswith("ARG EXTRAS=")).removeprefix("ARG EXTRAS=").split(",")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    [copied] = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    assert all((root / name).is_file() for name in copied)
    assert {project["readme"], *project["license-files"]} <= set(copied)


@pytest.mark.parametrize("name", AUTOMATIONS)
def test_automations_are_what_prefect_takes(root: Path, name: str) -> None:
    from prefect.events.schemas.automations import AutomationCore
    from prefect.server.events.schemas.automations import AutomationCreate

    content = read(root / ROOM / "automations" / name)
    automation = AutomationCore.model_validate(content)
    AutomationCreate.model_validate(automation.model_dump(mode="json"))
    assert set(content) <= set(AutomationCore.model_fields)


def test_a_dead_run_is_noticed_after_more_than_two_heartbeats(root: Path) -> None:
    trigger = read(root / ROOM / "automations" / "dead-run.yaml")["trigger"]
    assert trigger["within"] > 2 * int(DEFAULTS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]), "runs that a person starts"
    for pool in POOLS:
        for deployment in read(prefect_file(root, pool))["deployments"]:
            beat = int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
            assert trigger["within"] > 2 * beat


PREFECT = """#!/bin/bash
trap 'echo ended; exit 3' TERM
echo "$PWD|$PREFECT_HOME|$*"
while :; do sleep 0.05; done
"""


@pytest.fixture
def allocation(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job whose `prefect` tells what it was asked for, until it is ended."""
    program = tmp_path / ".venv" / "bin" / "prefect"
    program.parent.mkdir(parents=True)
    program.write_text(PREFECT)
    program.chmod(0o755)
    given = {
        "SLURM_JOB_ID": "71",
        "TMPDIR": str(tmp_path),
        "PIPELINES_WORKSPACE": str(tmp_path),
        "PREFECT_API_URL": "http://head:4200/api",
    }
    return {"PATH": os.environ["PATH"], **given}


def sbatch(root: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    script = str(root / ROOM / "slurm" / "worker.sbatch")
    return subprocess.Popen(
        ["bash", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )


def test_the_slurm_worker_gets_the_signal_and_is_alone(root: Path, allocation: dict[str, str]) -> None:
    job = sbatch(root, allocation)
    try:
        assert job.stdout is not None
        folder = allocation["PIPELINES_WORKSPACE"]
        asked = "worker start --pool slurm --type process --limit 1 --name slurm-71"
        assert job.stdout.readline() == f"{folder}|{folder}/prefect-71|{asked}\n"
        other = sbatch(root, allocation)
        assert "another worker is at work" in other.communicate(timeout=20)[1]
        assert other.returncode == 1
        job.send_signal(signal.SIGTERM)
        assert job.communicate(timeout=20)[0] == "ended\n"
        assert job.returncode == 3
    finally:
        job.kill()


@pytest.mark.parametrize("missing", ["PREFECT_API_URL", "PIPELINES_WORKSPACE"])
def test_the_slurm_worker_says_what_is_missing(root: Path, allocation: dict[str, str], missing: str) -> None:
    job = sbatch(root, {name: value for name, value in allocation.items() if name != missing})
    assert f"{missing}: is not set" in job.communicate(timeout=20)[1]
    assert job.returncode != 0

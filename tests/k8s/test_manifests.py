"""The manifests fit KubeRay's schemas, agree with the files they repeat, and follow the operator's own rules.

The schemas are those of the CRDs in the folder RAYDIS_KUBERAY_CRDS (default: kuberay-crds in the reference data). Their
CEL rules are not evaluated: they concern fields that are not used here.
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from raydis.cluster.resources import max_parallel_runs
from raydis.sweep.__main__ import app as sweep_app
from raydis.sweep.spec import load_spec

ROOT = Path(__file__).resolve().parents[2]
FILES = {"RayJob": ROOT / "k8s" / "rayjob.yaml", "RayService": ROOT / "k8s" / "rayservice.yaml"}
CRDS = {"RayJob": "ray.io_rayjobs.yaml", "RayService": "ray.io_rayservices.yaml"}
KINDS = sorted(FILES)
OPERATOR_SETS = {"RAY_AUTH_MODE"}  # where authOptions.mode is `token`
OURS_TO_CHANGE = {"model", "storage"}  # args that differ between a laptop and a cluster
MAX_NAME = 47  # the operator adds a suffix

Tree = dict[str, Any]


def manifest(kind: str) -> Tree:
    return yaml.safe_load(FILES[kind].read_text())


def cluster(tree: Tree) -> Tree:
    spec = tree["spec"]
    return spec["rayClusterSpec"] if tree["kind"] == "RayJob" else spec["rayClusterConfig"]


def groups(tree: Tree) -> list[Tree]:
    return [cluster(tree)["headGroupSpec"], *cluster(tree)["workerGroupSpecs"]]


def ray_containers(tree: Tree) -> list[Tree]:
    return [container for group in groups(tree) for container in group["template"]["spec"]["containers"]]


def pods(tree: Tree) -> list[Tree]:
    submitter = tree["spec"].get("submitterPodTemplate")
    return [
        template["spec"] for template in [*([submitter] if submitter else []), *(g["template"] for g in groups(tree))]
    ]


# ---- schemas


def closed(schema: Any) -> Any:
    """A CRD's structural schema as JSON Schema that, like the API server's strict mode, refuses unknown fields."""
    if not isinstance(schema, dict):
        return schema
    result = {key: value for key, value in schema.items() if key not in ("format", "default", "description")}
    for key in ("properties", "patternProperties"):
        if key in schema:
            result[key] = {name: closed(below) for name, below in schema[key].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            result[key] = closed(schema[key])
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="module")
def objections(shared_data: Path) -> Callable[[Tree], list[str]]:
    """What KubeRay's schema has against a manifest, as `path: message`."""
    folder = Path(os.environ.get("RAYDIS_KUBERAY_CRDS", shared_data / "kuberay-crds"))
    schemas = {}
    for kind, name in CRDS.items():
        definition = yaml.load((folder / name).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        assert definition["spec"]["names"]["kind"] == kind
        (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        schemas[kind] = jsonschema.Draft7Validator(schema)

    def objections(tree: Tree) -> list[str]:
        errors = schemas[tree["kind"]].iter_errors(tree)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]

    return objections


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_fits_the_schema_of_its_kind(objections: Callable[[Tree], list[str]], kind: str) -> None:
    tree = manifest(kind)
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", kind)
    assert objections(tree) == []


HEAD = "rayClusterSpec.headGroupSpec.template.spec"
WORKERS = "rayClusterConfig.workerGroupSpecs.0"
MISSING = object()


@pytest.mark.parametrize(
    ("kind", "path", "value", "found"),
    [
        ("RayJob", "entrypont", "python", "'entrypont' was unexpected"),
        ("RayJob", "backoffLimit", "two", "'two' is not of type 'integer'"),
        ("RayJob", "rayClusterSpec.headGroupSpec", MISSING, "'headGroupSpec' is a required property"),
        ("RayJob", "rayClusterSpec.authOptions.mode", "tokens", "'tokens' is not one of ['disabled', 'token']"),
        ("RayJob", f"{HEAD}.containers.0.name", MISSING, "'name' is a required property"),
        ("RayJob", f"{HEAD}.securityContext.runAsNonroot", True, "'runAsNonroot' was unexpected"),
        ("RayJob", f"{HEAD}.containers.0.resources.limits.memory", [8], "[8] is not"),
        ("RayService", "serveConfigV2", {"applications": []}, "is not of type 'string'"),
        ("RayService", "excludeHeadPodFromServeSvc", "yes", "'yes' is not of type 'boolean'"),
        ("RayService", f"{WORKERS}.groupName", MISSING, "'groupName' is a required property"),
        ("RayService", f"{WORKERS}.template.spec.containers.0.env.0.values", "1", "'values' was unexpected"),
    ],
)
def test_a_broken_manifest_is_refused(
    objections: Callable[[Tree], list[str]], kind: str, path: str, value: object, found: str
) -> None:
    tree = copy.deepcopy(manifest(kind))  # a copy for each use of a YAML anchor as well
    node: Any = tree["spec"]
    *above, last = path.split(".")
    for part in above:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    assert any(found in objection for objection in objections(tree))


# ---- rules that only the operator checks, and ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_follows_the_operators_rules(kind: str) -> None:
    tree = manifest(kind)
    spec = tree["spec"]
    assert len(tree["metadata"]["name"]) <= MAX_NAME
    assert "upgradeStrategy" not in cluster(tree)
    for group in groups(tree):
        assert not {"num-cpus", "num-gpus", "memory"} & set(group["rayStartParams"])
        assert "restartPolicy" not in group["template"]["spec"]
    for group in cluster(tree)["workerGroupSpecs"]:
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if kind == "RayJob":
        assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode")
        assert spec["shutdownAfterJobFinishes"]
        assert spec["ttlSecondsAfterFinished"] > 0
        assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    else:
        assert spec["upgradeStrategy"]["type"] in ("NewCluster", "None")


@pytest.mark.parametrize("kind", KINDS)
def test_every_pod_runs_without_root_and_without_privileges(kind: str) -> None:
    for pod in pods(manifest(kind)):
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_says_what_it_needs_and_memory_and_gpus_are_not_overcommitted(kind: str) -> None:
    for pod in pods(manifest(kind)):
        for container in pod["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert set(requests) == set(limits) >= {"cpu", "memory"}
            if container["name"] != "ray-job-submitter":  # Ray takes the limit for what it has
                assert requests["memory"] == limits["memory"]
                assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_pinned_and_agree(kind: str) -> None:
    tree = manifest(kind)
    assert cluster(tree)["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (ROOT / "infra" / "constraints.txt").read_text().splitlines()
    images = {container["image"] for pod in pods(tree) for container in pod["containers"]}
    assert len(images) == 1
    assert images.pop().partition(":")[2] not in ("", "latest")


@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_is_that_of_ray_env_and_tokens_are_the_operators(kind: str) -> None:
    lines = (ROOT / "infra" / "ray.env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    expected = {name: value for name, value in variables.items() if name not in OPERATOR_SETS}
    tree = manifest(kind)
    assert variables["RAY_AUTH_MODE"] == cluster(tree)["authOptions"]["mode"] == "token"
    for container in ray_containers(tree):
        assert {entry["name"]: entry["value"] for entry in container["env"]} == expected
        assert container["envFrom"] == [{"secretRef": {"name": "raydis-s3"}}]


@pytest.mark.parametrize("kind", KINDS)
def test_no_manifest_holds_a_credential(kind: str) -> None:
    def keys(node: Any) -> Iterator[str]:
        for name, below in (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        ):
            yield str(below) if name == "name" else str(name)
            yield from keys(below)

    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} & set(keys(manifest(kind)))


@pytest.mark.parametrize("path", FILES.values(), ids=KINDS)
def test_a_manifest_opens_with_what_it_is_and_how_to_use_it(path: Path) -> None:
    header = [line for line in path.read_text().split("apiVersion")[0].splitlines() if line]
    assert all(line.startswith("# ") for line in header)
    words = [line[2:].split()[0] for line in header]
    assert [word for word in words if word in ("What", "Command", "Change")] == ["What", "Command", "Change"]
    assert any(f"-f {path.relative_to(ROOT)}" in line for line in header)


# ---- the sweep


def arguments() -> list[str]:
    command = shlex.split(manifest("RayJob")["spec"]["entrypoint"])
    assert command[:3] == ["python", "-m", "raydis.sweep"]
    return command[3:]


def test_the_jobs_entrypoint_is_a_command_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the image's working directory has the same sweeps
    result = CliRunner().invoke(sweep_app, [*arguments(), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert arguments()[1:] == ["--storage", "s3://raydis/runs"]


def test_the_jobs_workers_hold_as_many_trials_as_there_are_of_them() -> None:
    (group,) = cluster(manifest("RayJob"))["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    nodes = [{"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}] * group["replicas"]
    compute = load_spec(ROOT / arguments()[0], []).run.compute
    assert max_parallel_runs(compute, [{"CPU": 0.0}, *nodes]) == group["replicas"]


# ---- the service


def test_the_service_is_that_of_serve_configs_apart_from_model_and_storage() -> None:
    shipped = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    ours = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(ours)
    for tree in (ours, shipped):
        (application,) = tree["applications"]
        application["args"] = {key: value for key, value in application["args"].items() if key not in OURS_TO_CHANGE}
    assert ours["applications"] == shipped["applications"]
    assert ours["logging_config"] == shipped["logging_config"]
    assert ours["http_options"] == {**shipped["http_options"], "host": "0.0.0.0"}


def test_the_service_serves_what_the_job_promotes() -> None:
    (application,) = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])["applications"]
    spec = load_spec(ROOT / arguments()[0], [])
    assert spec.promotion is not None
    assert application["args"] == {"model": f"{spec.model_name}@{spec.promotion.alias}", "storage": arguments()[2]}


def test_the_services_workers_hold_its_replicas() -> None:
    tree = manifest("RayService")
    (application,) = yaml.safe_load(tree["spec"]["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    scaling = AutoscalingConfig(**deployment["autoscaling_config"])
    (group,) = cluster(tree)["workerGroupSpecs"]
    cpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert scaling.max_replicas <= group["replicas"] * cpus  # a replica takes one CPU
    grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > 30 + 30  # a raylet's drain and a replica's graceful shutdown

"""Kubernetes manifests: every field exists in Kubernetes or KubeRay; checked without cluster and network."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from her2batch.job_settings import NightlySettings

FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"
SCHEMA = json.loads((FOLDER / "schema.json").read_text())
VERSION = "1.33"


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, one) for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def named(kind: str) -> dict[str, Any]:
    return next(one for _, one in documents() if one["kind"] == kind)


def check(document: dict[str, Any]) -> None:
    """Raise an error for an invalid manifest."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    jsonschema.validate(document, {"$ref": f"#/definitions/{document['kind']}", "definitions": SCHEMA["definitions"]})
    for template in templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]


def templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = cluster_spec(document)
    yield spec["headGroupSpec"]["template"]
    yield from (group["template"] for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize(
    ("name", "document"), documents(), ids=lambda one: one if isinstance(one, str) else one["kind"]
)
def test_manifest_is_valid(name: str, document: dict[str, Any]) -> None:
    check(document)
    assert document["metadata"]["namespace"] == "her2batch"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", ("spec", "activeDeadlineSecond"), 5), ("RayJob", ("spec", "backoffLimit"), "two"),
        ("RayCluster", ("spec", "authOptions", "mode"), "none"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "rayStartParams", "num-gpus"), 1),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagePulPolicy"), "Always"),
        ("CronJob", ("spec", "concurencyPolicy"), "Forbid"),
    ],
)  # fmt: skip
def test_misspelt_field_or_wrong_value_is_refused(kind: str, path: tuple, value: object) -> None:
    document = named(kind)
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


def test_job_and_cluster_manifests_have_the_same_cluster() -> None:
    assert cluster_spec(named("RayJob")) == cluster_spec(named("RayCluster"))


def test_nightly_job_ends_before_its_deadline_and_never_overlaps() -> None:
    job, cron = named("RayJob")["spec"], named("CronJob")["spec"]
    assert job["activeDeadlineSeconds"] > 11 * 3600
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    assert cron["concurrencyPolicy"] == "Forbid"


def test_worker_groups_scale_and_have_their_resources() -> None:
    spec = cluster_spec(named("RayCluster"))
    readers, gpus = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in (readers, gpus))
    assert json.loads(json.loads(readers["rayStartParams"]["resources"])) == {"reader": 8}
    assert "resources" not in gpus["rayStartParams"]
    assert gpus["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_are_not_root_and_mount_scans_read_only() -> None:
    for document in (named("RayCluster"), named("RayJob")):
        for template in templates(document):
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
            assert mounts["scans"]["readOnly"]
    assert cluster_spec(named("RayCluster"))["authOptions"] == {"mode": "token"}


def test_nightly_settings_in_the_config_map_are_valid() -> None:
    import tomllib

    settings = NightlySettings.model_validate(tomllib.loads(named("ConfigMap")["data"]["night.toml"]))
    assert settings.resources.address == "auto"
    assert settings.resources.workers  # what the autoscaler is asked for

"""Files for the SSH cluster, the container and the dashboard, parsed by the programs that read them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from her2batch.runtime import telemetry

FOLDER = Path(__file__).parents[2] / "cluster"


def said_by_ray(config: dict) -> str:
    """Return the message of Ray's own check of a cluster file, empty when it is valid.

    In a process of its own: Ray is not to be imported here before it is bound to loopback.
    """
    code = (
        "import sys, yaml\nfrom ray.autoscaler._private.util import prepare_config, validate_config\n"
        "validate_config(prepare_config(yaml.safe_load(sys.stdin)))"
    )
    run = subprocess.run([sys.executable, "-c", code], input=yaml.safe_dump(config), capture_output=True, text=True)
    return run.stderr if run.returncode else ""


def test_ray_accepts_the_cluster_file() -> None:
    config = yaml.safe_load((FOLDER / "ssh" / "cluster.yaml").read_text())
    assert said_by_ray(config) == ""
    assert "colour" in said_by_ray({**config, "colour": 1})


def test_nodes_start_with_a_token_and_workers_are_readers() -> None:
    config = yaml.safe_load((FOLDER / "ssh" / "cluster.yaml").read_text())
    for command in (config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]):
        assert "RAY_AUTH_MODE=token" in command
        assert "umask 077" in command
    assert '"reader":1' in config["worker_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_container_has_two_stages_is_pinned_and_not_root() -> None:
    lines = (FOLDER / "Containerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(bases) == 2
    assert all(re.search(r":\d+\.\d+\.\d+|@sha256:", base) for base in bases)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")
    assert not any(line.startswith("ADD ") for line in lines)
    assert not re.search(r"(?i)(token|password|secret)\s*=\s*[\"']?\w{8,}", "\n".join(lines))
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert all((FOLDER.parent / one).exists() for one in copied)


def exprs() -> list[str]:
    dashboard = json.loads((FOLDER / "grafana" / "her2batch.json").read_text())
    rules = yaml.safe_load((FOLDER / "prometheus" / "alerts.yml").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_dashboard_and_alerts_use_existing_metrics() -> None:
    source = Path(telemetry.__file__).read_text()
    ours = {f"ray_{name}_total" for name in re.findall(r'Counter\("(\w+)"', source)}
    ours |= {f"ray_{name}" for name in re.findall(r'Gauge\("(\w+)"', source)}
    rays = {"ray_node_cpu_utilization", "ray_node_mem_used"}
    asked = {name for one in exprs() for name in re.findall(r"\bray_\w+", one)}
    assert asked <= ours | rays
    assert ours <= asked  # and none is forgotten
    for one in exprs():
        assert one.count("(") == one.count(")")


def test_every_panel_has_a_title_a_unit_and_its_own_position() -> None:
    panels = json.loads((FOLDER / "grafana" / "her2batch.json").read_text())["panels"]
    assert all(panel["title"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_prometheus_reads_the_service_discovery_file_of_ray() -> None:
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"][0].endswith("prom_metrics_service_discovery.json")

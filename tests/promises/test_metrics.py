"""``/metrics``: read by the official parser; what dashboard and alert rules ask for is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from rig import Rig, regular_files

RESOURCES = Path(__file__).resolve().parents[2] / "resources"
DASHBOARD = RESOURCES / "grafana" / "nydus-fscache.json"
RULES = RESOURCES / "prometheus" / "nydus-fscache.rules.yaml"
OURS = re.compile(r"\bnydus_fscache_\w+")
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="NO promtool (apt-get install prometheus)"
)


def scrape(root: Path) -> str:
    """What the API's socket has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(root / "api.sock"))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    head, _, text = b"".join(parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Type: text/plain; version=" in head
    return text.decode()


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [
        sample.value for family in found.values() for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]  # fmt: skip
    assert samples, f"no {name} with {labels}"
    return sum(samples)


@pytest.fixture
def read_rig(rig: Rig, golden: Path) -> Rig:
    """An image is mounted, and all of it has been read."""
    image = golden / "images" / "one-lz4"
    point = rig.mount(image / "image.boot", image / "blobs", "m", "--cache-limit", "1G")
    for file in regular_files(point):
        file.read_bytes()
    return rig


def test_scrape(read_rig: Rig) -> None:
    text = scrape(read_rig.root)
    found, status = families(text), read_rig.status()
    blob = status["blobs"][0]
    assert value(found, "nydus_fscache_build_info", version=status["version"]) == 1
    requests = value(found, "nydus_fscache_requests_total")
    misses = value(found, "nydus_fscache_misses_total")
    assert requests >= misses > 0
    assert value(found, "nydus_fscache_miss_seconds_count") == misses
    assert value(found, "nydus_fscache_miss_seconds_bucket", le="+Inf") == misses
    assert 0 < value(found, "nydus_fscache_miss_seconds_sum") < 60 * misses
    assert value(found, "nydus_fscache_backend_bytes_total", backend="localfs") == blob["fetched"]
    assert value(found, "nydus_fscache_backend_requests_total") == blob["requests"]
    assert value(found, "nydus_fscache_backend_read_seconds_count") == blob["requests"]
    assert value(found, "nydus_fscache_cache_limit_bytes") == 1 << 30
    assert value(found, "nydus_fscache_cache_bytes") > 0
    place = {"mountpoint": str(read_rig.base / "m")}
    assert value(found, "nydus_fscache_mount_info", **place, state="mounted") == 1
    assert value(found, "nydus_fscache_mount_bytes", **place) == blob["size"]
    assert value(found, "nydus_fscache_mount_present_bytes", **place) == blob["present"]
    for nothing in (
        "failed_requests_total", "waiting_requests", "oldest_request_seconds", "restarts_total",
        "unserved_images", "upgrade_failed",
    ):  # fmt: skip
        assert value(found, f"nydus_fscache_{nothing}") == 0, nothing


def test_counters_outlive_the_mounts_and_a_restart_is_counted(read_rig: Rig) -> None:
    before = families(scrape(read_rig.root))
    read_rig.run("umount", read_rig.base / "m")
    after = families(scrape(read_rig.root))
    for name in ("bytes_total", "requests_total", "read_seconds_count"):
        counter = f"nydus_fscache_backend_{name}"
        assert value(after, counter) == value(before, counter) > 0
    pid = read_rig.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    while read_rig.run("status", check=False).returncode or read_rig.status()["pid"] == pid:
        pass
    assert value(families(scrape(read_rig.root)), "nydus_fscache_restarts_total") == 1
    read_rig.run("upgrade")
    assert value(families(scrape(read_rig.root)), "nydus_fscache_restarts_total") == 2


def test_errors_are_counted(rig: Rig, golden: Path, tmp_path: Path) -> None:
    image = golden / "images" / "one-lz4"
    blobs = tmp_path / "blobs"
    shutil.copytree(image / "blobs", blobs)
    point = rig.mount(image / "image.boot", blobs, "m", "--prefetch", "none")
    for blob in blobs.iterdir():
        os.truncate(blob, 0)
    with pytest.raises(OSError, match="Input/output error"):
        max(regular_files(point), key=lambda file: file.stat().st_size).read_bytes()
    found = families(scrape(rig.root))
    assert value(found, "nydus_fscache_failed_requests_total") > 0
    assert value(found, "nydus_fscache_backend_errors_total", backend="localfs") > 0


def test_metrics_at_a_port(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        taken.listen()
        rig.start("serve", "--metrics", address)
        rig.wait_until_ready()  # though it cannot have the address yet
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert value(families(text), "nydus_fscache_requests_total") == 0
    for path in ("v1/status", "v1/stop", ""):
        request = urllib.request.Request(f"http://{address}/{path}", method="GET")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.code == 404
        refused.value.close()
    rig.run("stop")
    refused_start = rig.run("serve", "--metrics", "localhost", check=False)
    assert refused_start.returncode == 2
    assert "127.0.0.1:9230" in refused_start.stderr


@needs_promtool
def test_the_linter_of_prometheus_has_nothing_to_say(read_rig: Rig) -> None:
    text = scrape(read_rig.root)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def dashboard_queries() -> list[str]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    variables = dashboard["templating"]["list"]
    assert len(queries) > 10
    return [*queries, *(v["query"]["query"] for v in variables if v["type"] == "query")]


def test_all_names_that_are_asked_for_are_exported(read_rig: Rig) -> None:
    found = families(scrape(read_rig.root))
    exported = {sample.name for family in found.values() for sample in family.samples}
    asked = {
        name for text in [*dashboard_queries(), RULES.read_text()] for name in OURS.findall(text)
    }
    assert asked <= exported, asked - exported
    unused = {n for n in exported if not n.endswith(("_created", "_count", "_sum"))} - asked
    # what no panel shows: the sum of two others, and what only an investigation needs
    assert unused == {
        "nydus_fscache_requests_total", "nydus_fscache_waiting_requests",
        "nydus_fscache_recovered_bytes_total", "nydus_fscache_start_time_seconds",
    }  # fmt: skip


def test_the_dashboard_is_as_linters_of_grafana_want_it() -> None:
    """The rules of grafana/dashboard-linter, in our words: it is not in a package registry."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    assert dashboard["editable"] is False
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["label"] == "Data source"
    for name in ("job", "instance"):
        variable = variables[name]
        assert (variable["label"], variable["allValue"]) == (name.title(), ".+")
        assert variable["multi"]
        assert variable["refresh"] == 2  # when the range of time changes
        assert variable["datasource"]["uid"] == "${datasource}"
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
    for query in (target["expr"] for panel in dashboard["panels"] for target in panel["targets"]):
        for name, labels in re.findall(r"(\w+)\{([^}]*)\}", query):
            assert labels == 'job=~"$job", instance=~"$instance"', query
            counted = re.search(rf"\b(rate|increase)\({name}\b", query)
            assert bool(counted) == name.endswith(("_total", "_bucket")), query
        assert "[" not in query.replace("[$__rate_interval]", "")


@needs_promtool
def test_queries_and_rules_are_understood(tmp_path: Path) -> None:
    def promtool(*words: str | Path) -> str:
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "9 rules found" in promtool("check", "rules", RULES)
    queries = [
        query.replace("$__rate_interval", "5m").replace("$instance", ".*")
        for query in dashboard_queries() if not query.startswith("label_values(")
    ]  # fmt: skip
    rules = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(queries)]
    panels = tmp_path / "panels.yaml"  # JSON is YAML
    panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", panels)
    case = {
        "rule_files": [str(RULES)],
        "tests": [{
            "interval": "1m",
            "input_series": [
                {"series": 'nydus_fscache_oldest_request_seconds{instance="a"}', "values": "30x9"},
                {"series": 'nydus_fscache_failed_requests_total{instance="a"}', "values": "0 3x8"},
            ],
            "alert_rule_test": [
                {"alertname": "NydusFscacheReadersWait", "eval_time": "5m", "exp_alerts": [{
                    "exp_labels": {"severity": "critical", "instance": "a"},
                    "exp_annotations": {
                        "summary": "Readers on a wait for data for 30s",
                        "description":
                            "After 90 s they get EIO. Is the registry reachable from the node?",
                    },
                }]},
                {"alertname": "NydusFscacheUpgradeFailed", "eval_time": "5m", "exp_alerts": []},
            ],
        }],
    }  # fmt: skip
    test = tmp_path / "test.yaml"
    test.write_text(json.dumps(case))
    promtool("test", "rules", test)

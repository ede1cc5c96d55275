#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The files of scripts/deploy as far as they can be shown without a node: alerts, dashboard (against a
Prometheus that scrapes a daemon), manifests. The packages: packages.py, systemd.py. Prints TAP."""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import manifests
import report as rp
import yaml
from relay import BUILD, TOP, Relay, free_port, wait_for
from tap import Tap

DEPLOY = os.path.join(TOP, "scripts/deploy")
RULES = os.path.join(DEPLOY, "prometheus-rules.yaml")
RULES_TEST = os.path.join(TOP, "tests/deploy/rules_test.yaml")
DASHBOARD = os.path.join(DEPLOY, "grafana-dashboard.json")
CIDS = range(42, 46)


def sh(*command, cwd=None):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}: {said}"
    return said


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


# ---- alerts ----


def rules():
    return [rule for group in yaml.safe_load(read(RULES))["groups"] for rule in group["rules"]]


def rules_are_valid():
    sh("promtool", "check", "rules", "--lint-fatal", RULES)


def each_alert_is_tested():
    """...so that it fires and does not fire, and says what to do."""
    tests = {}
    for test in yaml.safe_load(read(RULES_TEST))["tests"]:
        name = test["name"]
        tests.setdefault(name, set())
        for case in test["promql_expr_test"]:
            assert f'alertname="{name}"' in case["expr"], case
            tests[name].add("fires" if case.get("exp_samples") else "quiet")
    alerts = {rule["alert"]: rule for rule in rules()}
    assert set(alerts) == set(tests), set(alerts) ^ set(tests)
    for name, rule in alerts.items():
        assert tests[name] == {"fires", "quiet"}, (name, tests[name])
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert "$labels.instance" in rule["annotations"]["summary"], name
        assert len(rule["annotations"]["runbook"]) > 80, name
    sh("promtool", "test", "rules", RULES_TEST)


# ---- a daemon under load, and who looks at it ----


@contextlib.contextmanager
def prometheus(relay, port):
    """Scrapes the relay every second, and evaluates the alerts."""
    config = os.path.join(relay.dir, "prometheus.yaml")
    with open(config, "w", encoding="utf-8") as f:
        json.dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES],
            "scrape_configs": [{"job_name": "vsock-relay",
                                "static_configs": [{"targets": [f"127.0.0.1:{relay.port}"]}]}],
        }, f)  # fmt: skip
    with open(os.path.join(relay.dir, "prometheus.log"), "wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}",
             f"--storage.tsdb.path={relay.dir}/tsdb"], stdout=log, stderr=log)  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def query(port, expression):
    """The samples of an instant query: (labels, value)."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=30) as response:
        data = json.load(response)["data"]
    return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]


def load(relay, seconds):
    """What guests do: new content, the same again, what is wrong."""
    end, seed = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        seed += 1
        for cid in CIDS:
            address = relay.path(f"vm{cid}")
            payload = rp.report(cid, seed=seed)
            assert rp.send_framed(address, payload) == rp.ACCEPTED
            assert rp.send_framed(address, payload) in (rp.ACCEPTED, rp.NOTHING_TO_DO)
        assert rp.send_framed(relay.path("vm42"), b"\xff\xff") == rp.MALFORMED
        time.sleep(0.2)


def dashboard_queries():
    board = json.loads(read(DASHBOARD))
    found = [(panel["title"], target["expr"]) for panel in board["panels"]
             for target in panel.get("targets", [])]  # fmt: skip
    variables = [(f"variable {v['name']}", v["query"]["query"]) for v in board["templating"]["list"]
                 if v["type"] == "query"]  # fmt: skip
    return found, variables


def fill_in(expression):
    for name, value in (("$instance", ".*"), ("$__rate_interval", "10s"), ("$__range", "1m")):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def dashboard_shows_a_daemon():
    """No query is empty, none without a number."""
    queries, variables = dashboard_queries()
    assert len(queries) > 40, len(queries)
    port = free_port()
    hybrid = {f"vm{cid}": cid for cid in CIDS}
    with (
        tempfile.TemporaryDirectory() as state,
        Relay({"admission": {"grant_rate": 0}, "bpf": "off", "state_directory": f"{state}/state"},
              hybrid=hybrid) as relay,
        prometheus(relay, port),
    ):  # fmt: skip
        load(relay, 8)

        def scraped():
            with contextlib.suppress(OSError):
                return query(port, "count_over_time(up[1m])")[0][1] >= 5
            return False

        wait_for(scraped, 60, "five scrapes")
        load(relay, 2)
        empty = []
        for title, expression in queries:
            samples = query(port, fill_in(expression))
            if not any(not math.isnan(value) for _, value in samples):
                empty.append((title, expression, samples))
        assert not empty, empty
        for name, expression in variables:
            metric, label = re.match(r"label_values\((\w+), (\w+)\)", expression).groups()
            assert [labels[label] for labels, _ in query(port, metric)], name
        alerts_are_about_real_metrics(relay, port)
        relay.check()


def alerts_are_about_real_metrics(relay, port):
    """Every series that an alert names exists in the daemon, with the label that it selects by."""
    shown = relay.metrics_text()
    for rule in rules():
        for metric, labels in re.findall(r"\b(vsock_relay_\w+|process_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            assert f"\n{metric}" in shown, (rule["alert"], metric)
            for label, operator, values in re.findall(r'(\w+)(=~|=)"([^"]*)"', labels):
                if label == "job":
                    continue
                for value in values.split("|") if operator == "=~" else [values]:
                    pattern = rf'^{metric}{{.*\b{label}="{value}"'
                    assert re.search(pattern, shown, re.M), (rule["alert"], metric, label, value)
    # Nothing is wrong with this daemon but what the load did wrong.
    fired = {labels["alertname"] for labels, _ in query(port, "ALERTS")}
    assert fired <= {"VsockRelayBadReports", "VsockRelayNoBpf"}, fired


def dashboard_is_well_formed():
    """What Grafana needs: ids that differ, panels that do not lie on one another."""
    board = json.loads(read(DASHBOARD))
    assert board["uid"] and board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"], panel["title"]


def settings_of_the_package():
    """The conffile and the settings in the DaemonSet are good."""
    relayd = os.path.join(BUILD, "vsock-relayd")
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "settings.yaml")
        for text in (read(f"{DEPLOY}/vsock-relayd.yaml"), manifests.settings()):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            sh(relayd, "--check-config", "--config", path)


def main():
    tap = Tap(sys.argv[1] if len(sys.argv) > 1 else None)
    tap.run("promtool check rules: the alerts are valid", rules_are_valid)
    tap.run("promtool test rules: each alert fires when it should, not before", each_alert_is_tested)
    tap.run("the dashboard is well-formed", dashboard_is_well_formed)
    tap.run("a Prometheus that scrapes a daemon fills the dashboard, and knows the alerts' metrics",
            dashboard_shows_a_daemon)  # fmt: skip
    manifests.run_all(tap)
    tap.run("the settings that are packaged are good", settings_of_the_package)
    tap.end()


main()

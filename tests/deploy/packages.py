#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The Debian packages, without a node: what `make deb` makes of this build is complete, and lintian has
nothing to say. What they do when they are installed: systemd.py. Prints TAP."""

import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from relay import BUILD, TOP
from tap import Tap


def sh(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}: {said}"
    return said


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def packages(made):
    """The command of the README; nothing is compiled again."""
    for line in sh("make", "-C", TOP, "deb", f"B={BUILD}").splitlines():
        if line.endswith(".deb"):
            made[os.path.basename(line).split("_")[0]] = line
    assert {"vsock-relay", "vsock-agent"} <= set(made), made


def lintian_finds_nothing(made):
    command = ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0"]
    if os.getuid() == 0:
        command.append("--allow-root")
    said = sh(*command, *made.values())
    assert not re.search(r"^[EW]: ", said, re.M), said


def contents(path):
    listing = sh("dpkg-deb", "-c", path)
    return {line.split(None, 5)[5].lstrip("."): line.split()[0] for line in listing.splitlines()}


def packages_are_complete(made):
    relay, agent = contents(made["vsock-relay"]), contents(made["vsock-agent"])
    wanted = {
        "/usr/sbin/vsock-relayd", "/usr/sbin/vsock-relayctl", "/lib/systemd/system/vsock-relayd.service",
        "/usr/lib/sysusers.d/vsock-relay.conf", "/usr/lib/tmpfiles.d/vsock-relay.conf",
        "/etc/vsock-relay/vsock-relayd.yaml",
        "/usr/share/doc/vsock-relay/operating.md",
        "/usr/share/doc/vsock-relay/examples/vsock-relayd.yaml",
        "/usr/share/doc/vsock-relay/examples/prometheus-rules.yaml",
        "/usr/share/doc/vsock-relay/examples/grafana-dashboard.json",
        "/usr/share/man/man8/vsock-relayd.8.gz", "/usr/share/man/man5/vsock-relayd.yaml.5.gz",
        "/usr/share/man/man8/vsock-relayctl.8.gz",
        "/usr/share/bash-completion/completions/vsock-relayctl",
    }  # fmt: skip
    assert wanted <= set(relay), wanted - set(relay)
    wanted = {
        "/usr/bin/vsock-agent", "/lib/systemd/system/vsock-agent.service",
        "/lib/systemd/system/vsock-agent.timer", "/etc/default/vsock-agent",
        "/usr/share/man/man8/vsock-agent.8.gz",
    }  # fmt: skip
    assert wanted <= set(agent), wanted - set(agent)
    assert not {p for p in set(relay) & set(agent) if not p.endswith("/")}
    for name, files in (("vsock-relay", "/etc/vsock-relay/vsock-relayd.yaml"),
                        ("vsock-agent", "/etc/default/vsock-agent")):  # fmt: skip
        with tempfile.TemporaryDirectory() as control:
            sh("dpkg-deb", "-e", made[name], control)
            assert read(f"{control}/conffiles").split() == [files]


def main():
    tap = Tap()
    made = {}
    tap.run("make deb makes the packages", packages, made)
    tap.run("programs, pages, units and settings are in them", packages_are_complete, made)
    tap.run("lintian finds nothing in them", lintian_finds_nothing, made)
    tap.end()


main()

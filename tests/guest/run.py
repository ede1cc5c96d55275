#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VM in VM: a node with the relay, BPF attached, and in it a second QEMU, a real guest with CID 42
whose kernel sends through virtio-vsock. The tests are in node.py, which runs in the node.

    tests/guest/run.py BUILD [--quick | PART OF A TEST'S NAME]
"""

import os
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
TIMEOUT = "1680"  # of the long suite; the runner has one of its own
# Both read the same package database, so that the node knows what the guest's report must be.
MACHINE = ("/var/lib/dpkg/status", "/etc/os-release")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: tests/guest/run.py BUILD [--quick | PART OF A TEST'S NAME]")
    build = Path(sys.argv[1]).resolve()
    agent = f"{build}/vsock-agent-static:/usr/bin/vsock-agent"
    boot = [
        TOP / "tests/vm/boot.py", "--modules", "vhost", "--timeout", TIMEOUT,
        "--bin", f"{build}/vsock-relayd:/build/vsock-relayd", "--bin", agent,
        "--bin", build / "tests/vm/vsockdiag",
        "--add", f"{TOP}/tests/lib:/tests/lib",
        "--add", f"{TOP}/tests/guest/node.py:/tests/guest/node.py",
        "--env", "VSR_BUILD=/build",
        "--guest-command", "exec guestsh serve 1024",
        "--guest-bin", agent, "--guest-bin", build / "tests/vm/guestsh",
    ]  # fmt: skip
    for file in MACHINE:
        boot += ["--add", f"{file}:/machine{file}", "--guest-add", f"{file}:/machine{file}"]
    boot += ["--", "/usr/bin/python3", "/tests/guest/node.py", *sys.argv[2:]]
    os.execv(boot[0], [str(argument) for argument in boot])


main()

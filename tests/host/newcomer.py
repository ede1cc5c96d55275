#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a newcomer is told to type works as it stands: what `make run` shows, and, with --long, the
commands of the README that take longer. Argument: the build's folder. Needs the port that those
settings name, so one run at a time."""

import os
import re
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from relay import TOP, wait_for
from tap import Tap

PROGRAMS = ("vsock-relayd", "vsock-agent")


def shell(command):
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout + done.stderr


def run(build):
    """Starts it, types the commands that it shows, in their order; stops it with Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="vsr-newcomer.") as scratch:
        for program in PROGRAMS:
            os.symlink(os.path.join(build, program), os.path.join(scratch, program))
        log = os.path.join(scratch, "log")
        with open(log, "wb") as out:
            daemon = subprocess.Popen(
                [os.path.join(TOP, "scripts/run.sh"), scratch], stdout=out, stderr=out
            )
        try:
            type_what_it_says(daemon, log)
            daemon.send_signal(signal.SIGINT)
            assert daemon.wait(30) == 0, "status after Ctrl-C"
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()


def type_what_it_says(daemon, log):
    def said():
        with open(log, encoding="utf-8") as f:
            return f.read()

    def ready():
        assert daemon.poll() is None, said()
        return "is ready" in said()

    wait_for(ready, 30, "daemon is ready")
    commands = re.findall(r"^    (\S.*)$", said(), re.M)
    assert len(commands) == 3, commands
    send, look, metrics = commands
    assert "(answer 0)" in shell(send)
    reports = look.split()[-1]
    wait_for(lambda: os.path.exists(f"{reports}/0-42.pb"), 20, "report is stored")
    assert "0-42.pb" in shell(look)
    assert "vsock_relay_reports_valid_total 1\n" in shell(metrics)
    assert "(answer 1)" in shell(send), "the same again is a repeat"


# Each command of the README, and what runs it as it stands there.
README = {
    "make demo": "here, with --long",
    "make check": "whoever runs this suite with the others",
    "make deb": "tests/deploy/packages.py",
    "apt install ./build/vsock-relay_0.1.0_amd64.deb": "tests/deploy/node.py",
    "apt install ./build/vsock-agent_0.1.0_amd64.deb": "tests/deploy/node.py",
}


def readme():
    with open(os.path.join(TOP, "README.md"), encoding="utf-8") as f:
        return re.sub(r"^```.*?^```", "", f.read(), flags=re.M | re.S)


def every_command_is_run():
    shown = [c.strip() for c in re.findall(r"^    ([^\s#][^#\n]*)", readme(), re.M)]
    assert sorted(shown) == sorted(README), (shown, list(README))


def demo():
    """make demo, and what the README says that it shows."""
    done = subprocess.run(["make", "demo"], cwd=TOP, capture_output=True, text=True, timeout=800, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "DEMO PASSED" in said, said
    with open(os.path.join(TOP, "README.md"), encoding="utf-8") as f:
        block = re.search(r"^```\nBooting the node\n(.*?)^```", f.read(), re.M | re.S).group(1)
    for heading in re.findall(r"^(?:\d\. .*?|The VMs, .*?|What it took)(?=:|$)", block, re.M):
        assert heading in said, (heading, said)


def main():
    tap = Tap()
    if "--long" in sys.argv:
        tap.run("README: make demo shows what the README says", demo)
    else:
        tap.run("README: every command in it is run by a test", every_command_is_run)
        tap.run("make run: the commands that it shows", run, os.path.abspath(sys.argv[1]))
    tap.end()


main()

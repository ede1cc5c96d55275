#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test VM: the daemon's probes (user/usdt.h) fire, with the arguments that they are
said to have. What is run are the bpftrace commands of docs/tracing.md, as written there."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib")]

import report as rp
from fakeguest import FakeGuest
from relay import Relay, wait_for
from tap import Tap

DAEMON = "/usr/sbin/vsock-relayd"
PAGE = "/docs/tracing.md"
CID, PORT = 42, 818
PROBES = {"received", "accepted", "duplicate", "refused", "sent", "retried", "acked"}


def examples():
    """The page's bpftrace programs by the probe that they are an example of."""
    with open(PAGE, encoding="utf-8") as f:
        found = re.findall(rf"^# bpftrace -e '(usdt:{DAEMON}:vsock_relay:(\w+) .*)'$", f.read(), re.M)
    return {name: program for program, name in found}


class Bpftrace:
    def __init__(self, program):
        self.lines = []
        self.process = subprocess.Popen(["bpftrace", "-e", program], stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)  # fmt: skip
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def attached(self):
        """It says first how many it will attach: the compiler may have made several of one."""
        assert self.process.poll() is None, self.lines
        match = re.match(r"Attaching (\d+) probes?\.\.\.$", (self.lines or [""])[0])
        if not match:
            return False
        there = json.loads(subprocess.check_output(["bpftool", "-j", "perf", "show"], timeout=60))
        mine = [p for p in there if p["pid"] == self.process.pid]
        return len(mine) == int(match.group(1))

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def stop(self):
        """Waits for the end; asks again, since one SIGINT in dozens of runs came to nothing."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.where()
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        self.thread.join()
        return [line for line in self.lines[1:] if line]

    def where(self):
        """What it hangs in."""
        with open(f"/proc/{self.process.pid}/stack", encoding="ascii") as f:
            return f"bpftrace does not end: {f.read()}"

    def kill(self):
        self.process.kill()
        self.thread.join()


class Agent:
    """What an agent sends, packet by packet, so that its port is known."""

    def __init__(self, fg, relay):
        self.fg, self.relay = fg, relay

    def send(self, data, answer):
        """Sends on a new connection, gets this status; returns the port."""
        conn = self.fg.connect(CID, PORT)
        self.fg.wait(conn, "credit")
        self.fg.send(conn, data)
        got = self.fg.recv(conn, 8)
        assert got == b"VSA1" + answer.to_bytes(4, "big"), got
        self.fg.close(conn)
        return self.fg.conn(conn)["src_port"]


def play(agent):
    """Makes every probe fire. Returns what their examples must print, by probe."""
    relay, payload = agent.relay, rp.report(CID, 5000)
    wanted = {name: [] for name in PROBES}
    # A directory where the report should be: its first send fails, the retry succeeds.
    blocker = os.path.join(relay.stored_dir, f"0-{CID}.pb")
    os.makedirs(os.path.join(blocker, "x"))
    port = agent.send(rp.header(payload) + payload, rp.ACCEPTED)
    wanted["received"] += [f"VM 0:{CID} port {port}: 5000 bytes, framed 1"]
    wanted["accepted"] += [f"VM 0:{CID} port {port}: generation 1, 5000 bytes"]
    relay.wait_metric("index_report_send_attempts_total", "failure", at_least=1)
    os.rmdir(os.path.join(blocker, "x"))
    os.rmdir(blocker)
    relay.wait_stored(CID, payload)
    relay.wait_metric("contents_held", value=0)
    sends = int(relay.metric("index_report_send_attempts_total"))
    assert sends >= 2, sends
    wanted["sent"] += [f"VM 0:{CID}: generation 1, 5000 bytes"] * sends
    wanted["retried"] += [f"VM 0:{CID}: generation 1, 5000 bytes"] * (sends - 1)
    wanted["acked"] += [f"VM 0:{CID}: generation 1"]
    # The same again: an offer that is declined, and a report that was sent in vain.
    port = agent.send(rp.header(payload, b"VSR2"), rp.NOTHING_TO_DO)
    wanted["duplicate"] += [f"VM 0:{CID} port {port}: 5000 bytes, offer 1"]
    port = agent.send(rp.header(payload) + payload, rp.NOTHING_TO_DO)
    wanted["received"] += [f"VM 0:{CID} port {port}: 5000 bytes, framed 1"]
    wanted["duplicate"] += [f"VM 0:{CID} port {port}: 5000 bytes, offer 0"]
    # No report at all, and one of another VM.
    junk = b"\xff" * 100
    port = agent.send(rp.header(junk) + junk, rp.MALFORMED)
    wanted["received"] += [f"VM 0:{CID} port {port}: 100 bytes, framed 1"]
    wanted["refused"] += [f"VM 0:{CID}: malformed: "]
    other = rp.report(CID + 1, 700)
    port = agent.send(rp.header(other) + other, rp.CID_MISMATCH)
    wanted["received"] += [f"VM 0:{CID} port {port}: 700 bytes, framed 1"]
    wanted["refused"] += [f"VM 0:{CID}: cid_mismatch: it says {CID + 1}"]
    return wanted


def fire(name, shown, wanted):
    """An example of docs/tracing.md prints what has happened, and nothing else."""
    assert len(shown[name]) == len(wanted[name]) > 0, (shown[name], wanted[name])
    for is_, want in zip(shown[name], wanted[name]):
        # The words of a detail are free.
        assert is_ == want or want.endswith(": ") and is_.startswith(want), (is_, want)


def main():
    tap = Tap(sys.argv[1] if len(sys.argv) > 1 else None)
    programs, shown, wanted = examples(), {}, {}

    def documented():
        """docs/tracing.md has an example for each probe."""
        assert set(programs) == PROBES, set(programs)

    def exchange():
        """Every probe can be attached, and the relay does with them what it does without."""
        settings = {"unchanged": "suppress", "retry": {"base": "1s"},
                    "admission": {"grant_rate": 0}}  # fmt: skip
        with Relay(settings, binary=DAEMON) as relay, FakeGuest() as fg:
            fg.guest(CID)
            tracers = {name: Bpftrace(program) for name, program in programs.items()}
            try:
                for name, tracer in tracers.items():
                    wait_for(tracer.attached, 180, f"{name} is attached")
                wanted.update(play(Agent(fg, relay)))
                for tracer in tracers.values():
                    tracer.interrupt()
                shown.update({name: tracer.stop() for name, tracer in tracers.items()})
            finally:
                for tracer in tracers.values():
                    tracer.kill()
            relay.check()
        for name in sorted(shown):
            for line in shown[name]:
                print(f"# {name}: {line}")

    tap.run(f"probes: documented: {documented.__doc__}", documented)
    tap.run(f"probes: exchange: {exchange.__doc__}", exchange)
    for name in sorted(PROBES):
        tap.run(f"probes: {name}: {fire.__doc__}", fire, name, shown, wanted)
    tap.end()


main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs in the node of tests/guest/run.py: starts the guest, and has it send. What must be stored is
known byte by byte: the agent makes the same report here, from the same database and for the same
CID. The guest is asked through guestsh (tests/vm/guestsh.c), over vsock, from here to there."""

import base64
import contextlib
import glob
import os
import re
import socket
import subprocess
import sys
import threading
import time

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib")]

import report as rp
import vsock
from relay import Relay, wait_for
from tap import Tap

CID, SHELL_PORT = 42, 1024
OFFER = 16
GUEST_SECONDS = 1600
BOOT_SECONDS = 600
COMMAND_SECONDS = 300
# A VM in a VM without hardware is slow at times: only tests of a limit get a short one.
PATIENT = {
    "bpf": "required",
    "report": {"deadline": "5m", "idle": "5m"},
    "admission": {"grant_rate": 0, "wait": "2m"},
}
SMALL, MEDIUM, LARGE, LARGEST = 8, 448, 2240, 13400  # packages: 15 KB, 0.5 MB, 2.5 MB, 15 MB


# ---- the guest ----


class Guest:
    def __init__(self):
        self.output = []
        self.process = subprocess.Popen(
            ["/guest/start", str(GUEST_SECONDS)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            print(f"# guest: {line.rstrip()}", flush=True)

    def kernel_log(self):
        (log,) = glob.glob("/tmp/vsr-vm.*/kernel.log")
        with open(log, encoding="utf-8", errors="replace") as f:
            return "\n".join(f.read().splitlines()[-40:])

    def _connect(self, seconds):
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            vsock.set_connect_timeout(s, 20)
            vsock.set_timeouts(s, seconds)
            s.connect((CID, SHELL_PORT))
        except OSError:
            s.close()
            raise
        return s

    def wait_up(self):
        """Until guestsh says that it listens: nobody knocks before."""

        def up():
            assert self.process.poll() is None, "the guest ended"
            return "guestsh listens" in self.output

        try:
            wait_for(up, BOOT_SECONDS, "guest is up")
        except TimeoutError as error:
            error.detail = f"the guest's kernel:\n{self.kernel_log()}"
            raise

    def start(self, command, seconds=COMMAND_SECONDS):
        """Starts a command; finish() waits for its end."""
        s = self._connect(seconds)
        s.sendall(command.encode() + b"\n")
        return s

    def finish(self, s):
        """(exit status, output)"""
        with s:
            data = b""
            while piece := s.recv(65536):
                data += piece
        found = re.search(r"\nexit (\d+)\n$", data.decode())
        assert found, f"no exit status from the guest: {data!r}"
        return int(found.group(1)), data.decode()[: found.start()].strip()

    def run(self, command, seconds=COMMAND_SECONDS):
        return self.finish(self.start(command, seconds))

    def put(self, path, data):
        """Writes a small file."""
        text = base64.b64encode(data).decode()
        assert self.run(f"echo {text} | base64 -d >{path}") == (0, "")

    def stop(self):
        """Ends QEMU: the VM vanishes."""
        self.process.kill()
        self.process.wait()


AGENT = "vsock-agent --once --timeout 4m --retries 0 --vm-id guest"


def made_of(what, cid=CID):
    """What the agent in the guest makes of the same arguments."""
    path = "/tmp/expected"
    command = ["vsock-agent", "--cid", str(cid), "--vm-id", "guest", "--dump", path, *what.split()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with open(path, "rb") as f:
        return f.read()


def synthetic(guest, packages, seed=1):
    """A report of so many packages, made in the guest too: (arguments to send it, its bytes)."""
    what = f"--synthetic {packages} --seed {seed}"
    path = f"/tmp/{packages}-{seed}"
    made = guest.run(f"[ -e {path} ] || vsock-agent --vm-id guest {what} --dump {path} 2>/dev/null")
    assert made == (0, ""), made
    return f"--file {path}", made_of(what)


# ---- tests ----


def deliver(relay, guest, mode, what, expected):
    """The guest sends, the relay stores every byte. Returns the length of the stream."""
    status, said = guest.run(f"{AGENT} --mode {mode} {what}")
    assert status == 0, said
    assert ("relay closed" if mode == "raw" else "(answer 0)") in said, said
    relay.wait_stored(CID, expected, 60)
    relay.wait_metric("contents_held", value=0)
    return len(expected) + (0 if mode == "raw" else OFFER)


@contextlib.contextmanager
def relay_with(settings=None, limits=0):
    """A relay that at the end has kept its laws; BPF's digest equalled the daemon's throughout.
    limits: how often BPF enforced one."""
    merged = {**PATIENT, **(settings or {})}
    with Relay(merged) as relay:
        yield relay
        metrics = relay.check()
        assert metrics["bpf_mode", "kernel"] == 1
        assert metrics["bpf_limits_total"] == limits, "limits and rules that BPF enforced"


def up(guest):
    guest.wait_up()
    status, said = guest.run("uname -r; vsock-agent --print --synthetic 1 2>/dev/null")
    assert status == 0, said
    assert re.search(rf"^cid +{CID}$", said, re.M), said


def package_list(guest):
    what = "--root /machine"
    with relay_with() as relay:
        length = deliver(relay, guest, "vsr2", what, made_of(what))
        assert relay.metric("bpf_seen_bytes_total") == length


def all_modes(guest, packages):
    first, second = (synthetic(guest, packages, seed) for seed in (1, 2))
    with relay_with() as relay:
        seen = 0
        # By turns, or the third would be a repeat.
        for mode, report in zip(("raw", "vsr1", "vsr2"), (first, second, first)):
            seen += deliver(relay, guest, mode, *report)
        metrics = relay.metrics()
        assert metrics["bpf_seen_bytes_total"] == seen, "BPF did not see every byte"
        assert metrics["contents_ended_total", "acked"] == 3
        assert not relay.refused(metrics), relay.refused(metrics)


def modes_small(guest):
    all_modes(guest, SMALL)


def modes_large(guest):
    all_modes(guest, LARGE)


def largest(guest):
    what = f"--synthetic {LARGEST}"
    with relay_with() as relay:
        seen = deliver(relay, guest, "vsr2", what, made_of(what))
        assert relay.metric("bpf_seen_bytes_total") == seen, "BPF did not see every byte"


def duplicate(guest):
    first, second = (synthetic(guest, MEDIUM, seed) for seed in (1, 2))
    with relay_with() as relay:
        seen = deliver(relay, guest, "vsr2", *first)
        status, said = guest.run(f"{AGENT} {first[0]}")
        assert (status, "(answer 1)" in said) == (0, True), said
        assert relay.metric("bpf_seen_bytes_total") == seen + OFFER, "more than the offer was sent"
        # In raw mode it is sent, recognised, and goes nowhere either.
        status, said = guest.run(f"{AGENT} --mode raw {first[0]}")
        assert status == 0, said
        relay.wait_metric("reports_suppressed_total", value=2)
        assert relay.metric("index_report_send_attempts_total") == 1
        deliver(relay, guest, "vsr2", *second)
        # The first is no repeat any more.
        deliver(relay, guest, "vsr2", *first)
        assert relay.metric("index_report_send_attempts_total") == 3


def small_writes(guest):
    with relay_with() as relay:
        seen = 0
        for size, chunk, frame in ((200, 1, "raw"), (200, 1, "vsr1"), (30000, 1000, "raw")):
            content = rp.report(CID, size, seed=f"{chunk}{frame}")
            guest.put("/tmp/small", content)
            stream = size + (OFFER if frame == "vsr1" else 0)
            said = guest.run(f"guestsh send /tmp/small chunk={chunk} frame={frame}")
            assert said == (0, f"sent {stream} of {stream} bytes"), said
            relay.wait_stored(CID, content)
            seen += stream
            assert relay.metric("bpf_seen_bytes_total") == seen, "BPF did not see every byte"


def refused(guest):
    assert guest.run("truncate -s 16777217 /tmp/too-large") == (0, "")
    with relay_with(limits=1) as relay:
        status, said = guest.run(f"{AGENT} --file /tmp/too-large")
        assert (status, "(answer 3)" in said) == (65, True), said
        assert relay.metric("bpf_seen_bytes_total") == OFFER, "more than the offer was sent"
        status, said = guest.run(f"{AGENT} --synthetic 1 --cid {CID + 1}")
        assert (status, "(answer 5)" in said) == (65, True), said
        assert relay.refused() == {"too_large": 1, "cid_mismatch": 1}, relay.refused()
        assert relay.stored(CID) is None


def hold_places(relay, n):
    """Takes places from here, over loopback, as one VM that is known."""
    assert rp.send_framed((1, 818), rp.report(1, 1000)) == rp.ACCEPTED
    held = []
    for number in range(n):
        s = rp.connect((1, 818))
        s.sendall(b"VSR1")
        held.append(s)
        relay.wait_metric("sem_holding_size", value=number + 1)
    return held


def busy(guest):
    report = synthetic(guest, SMALL)
    settings = {
        "allow_reserved_cids": True,
        "admission": {"places": 2, "wait": "2s", "grant_rate": 0},
    }
    with relay_with(settings) as relay:
        held = hold_places(relay, 2)
        seen = relay.metric("bpf_seen_bytes_total")
        status, said = guest.run(f"{AGENT} {report[0]}")
        assert (status, "before it took a byte" in said) == (75, True), said
        status, said = guest.run("guestsh send /bin/busybox")
        assert status == 1 and re.match("sent 0 of .*(Broken pipe|Connection reset)", said), said
        relay.wait_metric("reports_refused_total", "wait_timeout", value=2)
        assert relay.metric("bpf_seen_bytes_total") == seen, "a refused guest got bytes through"
        # The agent comes again by itself, and is served when there is a place.
        attempt = guest.start(f"{AGENT} --retries 20 {report[0]}")
        relay.wait_metric("reports_refused_total", "wait_timeout", at_least=3, seconds=60)
        for s in held:
            s.close()
        status, said = guest.finish(attempt)
        assert status == 0 and "trying again in" in said and "(answer 0)" in said, said
        relay.wait_stored(CID, report[1])


def power_off(guest):
    """A raw report is complete but not ended, a framed one is half there."""
    report = synthetic(guest, SMALL)
    content = rp.report(CID, 30000, seed="cut")
    guest.put("/tmp/cut", content)
    with relay_with() as relay:
        seen = deliver(relay, guest, "vsr2", *report)
        sending = [
            guest.start("guestsh send /tmp/cut end=hold"),
            guest.start("guestsh send /tmp/cut frame=vsr1 limit=20000 end=hold"),
        ]
        relay.wait_metric("bpf_seen_bytes_total", value=seen + 30000 + 20000, seconds=60)
        relay.wait_metric("sem_holding_size", value=2)
        assert not relay.refused(), relay.refused()
        guest.start("poweroff -f")
        guest.process.wait(120)
        relay.wait_metric("reports_refused_total", "aborted", value=2)
        relay.wait_metric("sem_holding_size", value=0)
        assert relay.refused() == {"aborted": 2}, relay.refused()
        assert relay.stored(CID) == report[1], "a report without an end was stored"
        for s in sending:
            s.close()


TESTS = {
    "a real guest boots, its CID is 42": up,
    "a package list arrives byte by byte, read and sent by the agent (VSR2)": package_list,
    "writes of 1 byte and of 1000 bytes": small_writes,
    "no place: EPIPE or ECONNRESET at 0 bytes sent, and the agent backs off": busy,
    "too large and CID mismatch: the agent is told why, nothing is stored": refused,
    "15 KB raw, VSR1 and VSR2: BPF sees every byte, every byte is stored": modes_small,
    "2.5 MB raw, VSR1 and VSR2: BPF sees every byte, every byte is stored": modes_large,
    "a repeat costs 16 bytes; a changed report and the way back are new": duplicate,
    "15 MB (VSR2): BPF sees every byte, every byte is stored": largest,
    "the guest's kernel is powered off in mid-report: aborted, nothing is stored": power_off,
}

# What --quick leaves out: the same paths with more bytes, and what fake guests see of the relay too.
LONG = (modes_large, largest, busy, refused)


def main():
    tap = Tap()
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    quick = part == "--quick"
    guest = Guest()
    try:
        for name, test in TESTS.items():
            if test is up or (test not in LONG if quick else part in name):
                tap.run(name, test, guest)
            if tap.failed and test is up:
                break  # no other can pass
    finally:
        guest.stop()
    tap.end()


main()

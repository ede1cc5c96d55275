# SPDX-License-Identifier: Apache-2.0
"""CPU of the daemon for a distinct report over a hybrid socket and out to a real gRPC server that
only counts (python3-grpcio, plaintext), beside the floor: a program that receives the same bytes
into one buffer and sends them over TCP on the loopback. One report at a time: the next one starts
when the last one has arrived. Floor and daemon take turns, and the medians are compared.

The floor that counts, floor, receives each report into one buffer of its own: who keeps reports until
they are acknowledged cannot receive the next one into the same memory. floor_warm does just that,
with memory that never leaves the processor's cache: a lower bound on copying, and nothing that a
relay could be. daemon_late: a raw report that differs from the last one in its last bytes alone, so
that it is compared to the end, and then read from the cache after all. go_relay, if
tests/bench/go_relay.sh has built it: the same path in Go.

A part of run.py, which prints what measure() returns."""

import os
import statistics
import subprocess

from subject import TIMEOUT_S, Sink, Subject, cpu_seconds, wait_for  # first: finds tests/lib

import grpc_server as gs
import report as rp

# Packages for a report of about 0.5, 2.5 and 15 MB, and how many reports make a sample.
SIZES = {"0.5MB": (445, 60), "2.5MB": (2225, 30), "15MB": (13350, 6)}
ID = "vm-00000000"
CPU_TARGET = 1.8
FIRST_CID = 1000


class Counter(gs.Server):
    """Takes whatever is called, and counts calls."""

    def __init__(self):
        super().__init__(default=gs.succeed, keep=False)
        self.port = int(self.address.rsplit(":", 1)[1])

    def arrived(self, number, _size):
        return len(self.calls) >= number


def fields(message):
    """(number, whole field, its content) of a message that has only fields with a length."""
    at = 0
    while at < len(message):
        begin, number = at, message[at] >> 3
        assert message[at] & 0x87 == 2, "a field with a length and a small number"
        length = shift = 0
        while True:
            at += 1
            length |= (message[at] & 0x7F) << shift
            shift += 7
            if message[at] < 0x80:
                break
        at += 1 + length
        yield number, message[begin:at], message[at - length : at]


def payload(build, packages, late=False):
    """A report of the agent's. The ID that will make it differ from the others is moved before the
    packages: what is distinct shares nothing worth comparing with the last one. late: it stays at
    the end, so that all but the last bytes equal the last report's."""
    report = subprocess.run(
        [f"{build}/vsock-agent", "--synthetic", str(packages), "--cid", str(FIRST_CID),
         "--vm-id", ID, "--dump", "-"], check=True, capture_output=True).stdout  # fmt: skip
    if late:
        return report
    out = b""
    for number, whole, content in fields(report):
        if number == 1:  # index_report{vsock_cid 1, index_v4 2, vm_id 3}
            parts = {n: f for n, f, _ in fields(content)}
            assert sorted(parts) == [1, 2, 3]
            head = len(whole) - len(content)
            whole = whole[:head] + parts[1] + parts[3] + parts[2]
        out += whole
    assert len(out) == len(report)
    return out


def sample(subject, target, report, reports, mode):
    """CPU ms a report. The first one warms up and is not counted."""
    report = bytearray(report)
    at = report.index(ID.encode())
    path = f"{subject.sockets}/vm-{FIRST_CID}_818"
    before = 0
    for number in range(1, reports + 2):
        report[at + 3 : at + len(ID)] = b"%08d" % number
        if mode == "raw":
            rp.send_raw(path, report)
        else:
            assert rp.send_framed(path, bytes(report)) == rp.ACCEPTED
        wait_for(lambda n=number: subject.alive() and target.arrived(n, len(report)),
                 TIMEOUT_S, "the report")  # fmt: skip
        if number == 1:
            before = cpu_seconds(subject.process.pid)
    return (cpu_seconds(subject.process.pid) - before) * 1e3 / reports


def start_daemon(subject, target):
    subject.start_daemon({
        "hybrid": {"sockets": [{"path": f"{subject.sockets}/vm-{FIRST_CID}", "cid": FIRST_CID}]},
        "rate": {"reports_per_minute": 0},
        "upstream": {"kind": "grpc", "grpc": {
            "address": f"127.0.0.1:{target.port}", "plaintext": True, "acks": "response"}},
    })  # fmt: skip


def measure(build, top, repeats, sizes, result):
    """sizes: of SIZES, by name."""
    figures = {"target": CPU_TARGET, "sizes": {}}
    kinds = {
        "floor": (Sink, "raw", lambda s, target:
                  s.start_floor("--fresh", "--send", to=target.port)),
        "floor_warm": (Sink, "raw", lambda s, target: s.start_floor("--send", to=target.port)),
        "daemon_raw": (Counter, "raw", start_daemon),
        "daemon_framed": (Counter, "vsr1", start_daemon),
        "daemon_late": (Counter, "raw", start_daemon),
    }
    if os.path.exists(go_relay := f"{build}/tests/bench/go_relay"):
        kinds["go_relay"] = (Counter, "raw", lambda s, target: s.start(
            [go_relay, f"{s.sockets}/vm-{FIRST_CID}_818", str(target.port)],
            lambda: "ready" in s.log()))
    for name in sizes:
        packages, reports = SIZES[name]
        report, late = payload(build, packages), payload(build, packages, late=True)
        samples = {kind: [] for kind in kinds}
        for _ in range(repeats):
            for kind, (make_target, mode, start) in kinds.items():
                target, subject = make_target(), Subject(build, top, 1, FIRST_CID)
                try:
                    start(subject, target)
                    samples[kind].append(round(
                        sample(subject, target, late if kind == "daemon_late" else report,
                               reports, mode), 3))
                except Exception as e:  # noqa: BLE001: the others are still worth having
                    result["errors"].append(f"grpc {name} {kind}: {e!r}")
                finally:
                    subject.stop()
                    target.stop()
        median = {k: statistics.median(v) for k, v in samples.items() if v}
        size = {"report_bytes": len(report), "cpu_ms_per_report": median, "samples": samples}
        for kind in kinds:
            if kind.startswith("floor"):
                continue
            for floor in ("floor", "floor_warm"):
                if kind in median and median.get(floor):
                    size[f"{kind}_per_{floor}"] = round(median[kind] / median[floor], 2)
        figures["sizes"][name] = size
    ratios = [s.get(f"daemon_{mode}_per_floor") for s in figures["sizes"].values()
              for mode in ("raw", "framed")]  # fmt: skip
    figures["met"] = all(r is not None and r <= CPU_TARGET for r in ratios)
    return figures

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the relay costs, each figure beside its floor from the same run. Prints one JSON object.

CPU: user and system time of the whole daemon, from the start of a report to its being stored, for
distinct reports of 2.5 MB over hybrid sockets; the floor (floor.c) receives the same bytes from
the same sender through one buffer and writes them to the same file system; that is the floor that
counts for the target. Beside it: with a new buffer for each report, as whoever keeps reports must
have (floor_fresh), and made durable, as the `file` upstream promises (floor_durable). Floors
and daemon take turns, and the medians are compared. "one_by_one": the next report starts when the
last one is stored; "burst": when it is sent, so that reports pile up before the disk;
"one_by_one_tmpfs": stored in memory, where making a file durable costs nothing, so that the two
floors are the same and what is left is the relay's own.

Memory: resident set of the daemon with 100 reports of 2.5 MB in its cache, while they come and after
10 s of rest. They stay there because their files cannot be replaced: a directory is in the way of
each.

Matrix: load by number of VMs, size, kind and mode, over hybrid sockets (matrix.py), its table on
standard error. With --full all combinations, and over AF_VSOCK in a VM, with BPF and without
(vsock.sh). Scale: what 10000 VMs cost the core (scale.c). Verdict: its instructions, and its time for 64 KiB
(verdict.c).

Whether it works, in a minute: run.py --parts cpu grpc memory matrix --sizes 0.5MB --vms 2
--rounds 1 --repeats 1.

Never fails: what could not be measured is in "errors".
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import grpc_cost
from subject import TIMEOUT_S, Subject, cpu_seconds, status_mib, wait_for

FIRST_CID = 1000
MIB = 1024 * 1024
CPU_TARGET = 2.0
PEAK_TARGET_MIB = 330
REST_TARGET_MIB = 40
REST_S = 10
IDLE_VM_TARGET = 512  # bytes beside its content
SCALE_TARGET = 1.5
SLICE_TARGET_US = 5000
PARTS = ("cpu", "grpc", "memory", "scale", "verdict", "matrix", "validator")


class Receiver(Subject):
    """The floor or the daemon, with an upstream that stores, and what is sent to it."""

    def __init__(self, build, top, vms):
        super().__init__(build, top, vms, FIRST_CID)
        self.number = 0

    def start_storing(self):
        """The daemon."""
        self.start_daemon({"hybrid": {"sockets": [
            {"path": f"{self.sockets}/vm-{cid}", "cid": cid} for cid in self.cids()]}})

    def send(self, mode, paced=False):
        """One new report of each VM; paced: each when the one before it is stored."""
        self.number += 1
        out = subprocess.run([f"{self.build}/tests/bench/sender", mode, self.sockets,
                              str(self.first), str(self.vms), str(self.number),
                              *([self.output] if paced else [])],
                             capture_output=True, text=True, timeout=TIMEOUT_S)
        if out.returncode:
            raise RuntimeError(f"sender: {out.stderr.strip()}")
        return json.loads(out.stdout)["bytes"]

    def stored(self, cid, size):
        """Whether the newest report of the VM is there, whole."""
        path = f"{self.output}/0-{cid}.pb"
        try:
            with open(path, "rb") as f:
                return (b"vm-%08d%08d" % (self.number, cid) in f.read(64)
                        and os.fstat(f.fileno()).st_size == size)
        except FileNotFoundError:
            return False

    def round(self, mode, paced):
        size = self.send(mode, paced)
        for cid in self.cids():
            wait_for(lambda cid=cid: self.alive() and self.stored(cid, size), TIMEOUT_S,
                     "a report being stored")
        return size


def cpu_ms_per_report(receiver, mode, paced, rounds):
    receiver.round(mode, paced)  # warm: page cache, buffers, a known length for each VM
    before = cpu_seconds(receiver.process.pid)
    for _ in range(rounds):
        size = receiver.round(mode, paced)
    used = cpu_seconds(receiver.process.pid) - before
    return size, used * 1e3 / (rounds * receiver.vms)


def sample_cpu(options, top, result, paced):
    """The medians of some runs of floor and daemon in turns, and their ratios."""
    kinds = {
        "floor_durable": (lambda r: r.start_floor("--durable"), "raw"),
        "floor_fresh": (lambda r: r.start_floor("--fresh"), "raw"),
        "daemon_raw": (lambda r: r.start_storing(), "raw"),
        "daemon_framed": (lambda r: r.start_storing(), "vsr1"),
        "floor_written": (lambda r: r.start_floor(), "raw"),
    }
    samples = {kind: [] for kind in kinds}
    for _ in range(options.repeats):
        for kind, (start, mode) in kinds.items():
            receiver = Receiver(options.build, top, options.vms)
            try:
                start(receiver)
                size, ms = cpu_ms_per_report(receiver, mode, paced, options.rounds)
                result["report_bytes"] = size
                samples[kind].append(round(ms, 3))
            except Exception as e:  # the others are still worth having
                result["errors"].append(f"{kind}: {e}")
            finally:
                receiver.stop()
    median = {k: statistics.median(v) for k, v in samples.items() if v}
    cpu = {"cpu_ms_per_report": median, "samples": samples}
    for kind in ("daemon_raw", "daemon_framed"):
        for floor in ("floor_written", "floor_fresh", "floor_durable"):
            if kind in median and floor in median:
                cpu[f"{kind}_per_{floor}"] = round(median[kind] / median[floor], 2)
    return cpu


def measure_cpu(options, top, shm_top, result):
    cpu = {"one_by_one": sample_cpu(options, top, result, True),
           "burst": sample_cpu(options, top, result, False)}
    if shm_top:
        cpu["one_by_one_tmpfs"] = sample_cpu(options, shm_top, result, True)
    ratios = [cpu["one_by_one"].get(f"daemon_{mode}_per_floor_written")
              for mode in ("raw", "framed")]
    cpu["target"] = CPU_TARGET
    cpu["met"] = all(r is not None and r <= CPU_TARGET for r in ratios)
    return cpu


def measure_memory(options, top):
    receiver = Receiver(options.build, top, 100)
    try:
        receiver.keep_in_custody()
        receiver.start_storing()
        pid = receiver.process.pid
        memory = {"empty_rss_mib": status_mib(pid, "VmRSS")}
        size = receiver.send("vsr1")  # answered 0: in custody, and so in the cache
        memory["loaded_rss_mib"] = status_mib(pid, "VmRSS")
        time.sleep(REST_S)
        receiver.alive()
        memory["resting_rss_mib"] = status_mib(pid, "VmRSS")
        memory["peak_rss_mib"] = status_mib(pid, "VmHWM")
        memory["payloads_mib"] = round(100 * size / MIB, 1)
        memory["targets_mib"] = {"peak": PEAK_TARGET_MIB, "resting": REST_TARGET_MIB}
        memory["met"] = (memory["peak_rss_mib"] <= PEAK_TARGET_MIB
                         and memory["resting_rss_mib"] <= REST_TARGET_MIB)
        return memory
    finally:
        receiver.stop()


def json_of(command, seconds):
    """The JSON object that a part of the bench prints last; what it says besides is shown."""
    out = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, timeout=seconds)
    return json.loads(out.stdout.strip().splitlines()[-1])


def measure_scale(build):
    scale = json_of([f"{build}/tests/bench/scale"], 600)
    scale["targets"] = {"idle_node_ratio": SCALE_TARGET, "idle_vm_bytes": IDLE_VM_TARGET,
                        "longest_pack_slice_us": SLICE_TARGET_US}
    scale["met"] = (all(step["ratio"] <= SCALE_TARGET
                        for step in scale["per_report_ns"]["idle_node"].values())
                    and scale["idle_vm_bytes"]["with_entry"] < IDLE_VM_TARGET
                    and scale["longest_pack_slice_us"] <= SLICE_TARGET_US)
    return scale


def measure_matrix(options):
    here = os.path.dirname(os.path.abspath(__file__))
    sizes = ["--sizes", *options.sizes] if options.sizes else []
    matrix = {"hybrid": json_of([sys.executable, f"{here}/matrix.py", "--build", options.build,
                                 *(["--full"] if options.full else []), *sizes], 3600)}
    if options.full:
        matrix["vsock"] = json_of([f"{here}/vsock.sh", options.build, *sizes], 1800)
    return matrix


def main():
    parser = argparse.ArgumentParser(description="measure the relay beside its floor")
    parser.add_argument("--build", default="build", help="folder with the programs")
    parser.add_argument("--dir", default="/var/tmp", help="file system to store reports on")
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="all of the matrix, and AF_VSOCK")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=f"only these of {', '.join(PARTS)}")
    parser.add_argument("--sizes", nargs="+", choices=grpc_cost.SIZES, metavar="SIZE",
                        help="for grpc and matrix, only these of " + ", ".join(grpc_cost.SIZES))
    options = parser.parse_args()

    result = {"errors": []}
    top = tempfile.mkdtemp(prefix="vsr-bench-", dir=options.dir)
    shm_top = (tempfile.mkdtemp(prefix="vsr-bench-", dir="/dev/shm")
               if os.access("/dev/shm", os.W_OK) else None)
    try:
        measure = {
            "cpu": lambda: measure_cpu(options, top, shm_top, result),
            "grpc": lambda: grpc_cost.measure(options.build, top, options.repeats,
                                              options.sizes or grpc_cost.SIZES, result),
            "memory": lambda: measure_memory(options, top),
            "scale": lambda: measure_scale(options.build),
            "verdict": lambda: json_of([f"{options.build}/tests/bench/verdict"], 60),
            "matrix": lambda: measure_matrix(options),
            "validator": lambda: json.loads(subprocess.run(
                [f"{options.build}/tests/bench/validate"], check=True, text=True,
                capture_output=True, timeout=TIMEOUT_S).stdout),
        }
        for name in (part for part in PARTS if part in options.parts):
            begin = time.monotonic()
            try:
                result[name] = measure[name]()
            except Exception as e:  # figures are missing then, no more
                result["errors"].append(f"{name}: {e}")
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    finally:
        for folder in filter(None, (top, shm_top)):
            shutil.rmtree(folder, ignore_errors=True)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

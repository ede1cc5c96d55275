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

Never fails: what could not be measured is in "errors".
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import grpc_cost

FIRST_CID = 1000
TIMEOUT_S = 60
MIB = 1024 * 1024
CPU_TARGET = 2.0
PEAK_TARGET_MIB = 330
REST_TARGET_MIB = 40
REST_S = 10
IDLE_VM_TARGET = 512  # bytes beside its content
SCALE_TARGET = 1.5
SLICE_TARGET_US = 5000


def cpu_seconds(pid):
    """User and system time of all threads: in ns where the kernel has them, else in ticks."""
    try:
        total = 0
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/schedstat") as f:
                total += int(f.read().split()[0])
        return total / 1e9
    except FileNotFoundError:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status_mib(pid, key):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(key + ":"):
                return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(key)


def wait_for(what, condition):
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"timed out: {what}")
        time.sleep(0.02)


class Receiver:
    """The floor or the daemon, running, with its sockets and its output in a directory."""

    def __init__(self, build, top, vms):
        self.build, self.vms = build, vms
        self.dir = tempfile.mkdtemp(dir=top)
        self.sockets = os.path.join(self.dir, "s")
        self.output = os.path.join(self.dir, "out")
        os.mkdir(self.sockets)
        os.mkdir(self.output)
        self.number = 0
        self.process = None

    def start(self, command):
        with open(os.path.join(self.dir, "log"), "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        last = f"{self.sockets}/vm-{FIRST_CID + self.vms - 1}_818"
        wait_for("the start of " + command[0], lambda: self.alive() and os.path.exists(last))
        time.sleep(0.2)

    def alive(self):
        if self.process.poll() is not None:
            with open(os.path.join(self.dir, "log"), errors="replace") as log:
                raise RuntimeError(f"ended with {self.process.returncode}: {log.read()[-2000:]}")
        return True

    def start_floor(self, *options):
        self.start([f"{self.build}/tests/bench/floor", *options,
                    self.sockets, str(FIRST_CID), str(self.vms), self.output])
        return self

    def start_sending_floor(self, port, fresh=False):
        self.start([f"{self.build}/tests/bench/floor", *(["--fresh"] if fresh else []), "--send",
                    self.sockets, str(FIRST_CID), str(self.vms), str(port)])
        return self

    def start_daemon(self):
        return self.start_with(f"  kind: file\n  file:\n    directory: {self.output}\n")

    def start_grpc_daemon(self, port):
        return self.start_with(f"  kind: grpc\n  grpc:\n    address: 127.0.0.1:{port}\n"
                               "    plaintext: true\n    acks: response\n"
                               "rate:\n  reports_per_minute: 0\n")

    def start_with(self, upstream):
        config = os.path.join(self.dir, "relayd.yaml")
        sockets = "".join(f"    - {{path: {self.sockets}/vm-{cid}, cid: {cid}}}\n"
                          for cid in range(FIRST_CID, FIRST_CID + self.vms))
        with open(config, "w") as f:
            f.write("listen:\n  vsock: false\nbpf: off\n"
                    f"hybrid:\n  allowed_uids: {os.getuid()}\n  sockets:\n{sockets}"
                    "admission:\n  grant_rate: 0\n"
                    f"retry:\n  base: 1h\nrun_directory: {self.dir}\nadmin_socket: ''\n"
                    "metrics:\n  listen: off\nlog:\n  level: warning\n"
                    f"upstream:\n{upstream}")
        self.start([f"{self.build}/vsock-relayd", "--config", config])
        return self

    def send(self, mode, paced=False):
        """One new report of each VM; paced: each when the one before it is stored."""
        self.number += 1
        out = subprocess.run([f"{self.build}/tests/bench/sender", mode, self.sockets,
                              str(FIRST_CID), str(self.vms), str(self.number),
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
        for cid in range(FIRST_CID, FIRST_CID + self.vms):
            wait_for("a report being stored",
                     lambda cid=cid: self.alive() and self.stored(cid, size))
        return size

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


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
        "daemon_raw": (lambda r: r.start_daemon(), "raw"),
        "daemon_framed": (lambda r: r.start_daemon(), "vsr1"),
        "floor_written": (lambda r: r.start_floor(), "raw"),
    }
    samples = {kind: [] for kind in kinds}
    for _ in range(options.repeats):
        for kind, (start, mode) in kinds.items():
            receiver = Receiver(options.build, top, options.vms)
            try:
                size, ms = cpu_ms_per_report(start(receiver), mode, paced, options.rounds)
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
        for cid in range(FIRST_CID, FIRST_CID + 100):
            os.makedirs(f"{receiver.output}/0-{cid}.pb/in-the-way")
        receiver.start_daemon()
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
    scale = json_of([f"{build}/tests/bench/scale"], 300)
    scale["targets"] = {"bookkeeping_ratio": SCALE_TARGET, "idle_vm_bytes": IDLE_VM_TARGET,
                        "longest_pack_slice_us": SLICE_TARGET_US}
    scale["met"] = (scale["cpu_ns"]["bookkeeping"]["ratio"] <= SCALE_TARGET
                    and scale["idle_vm_bytes"]["with_entry"] < IDLE_VM_TARGET
                    and scale["longest_pack_slice_us"] <= SLICE_TARGET_US)
    return scale


def measure_matrix(options):
    here = os.path.dirname(os.path.abspath(__file__))
    matrix = {"hybrid": json_of([sys.executable, f"{here}/matrix.py", "--build", options.build,
                                 *(["--full"] if options.full else [])], 3600)}
    if options.full:
        matrix["vsock"] = json_of([f"{here}/vsock.sh", options.build], 1800)
    return matrix


def main():
    parser = argparse.ArgumentParser(description="measure the relay beside its floor")
    parser.add_argument("--build", default="build", help="folder with the programs")
    parser.add_argument("--dir", default="/var/tmp", help="file system to store reports on")
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="all of the matrix, and AF_VSOCK")
    options = parser.parse_args()

    result = {"errors": []}
    top = tempfile.mkdtemp(prefix="vsr-bench-", dir=options.dir)
    shm_top = (tempfile.mkdtemp(prefix="vsr-bench-", dir="/dev/shm")
               if os.access("/dev/shm", os.W_OK) else None)
    try:
        for name, measure in (
                ("cpu", lambda: measure_cpu(options, top, shm_top, result)),
                ("grpc", lambda: grpc_cost.measure(
                    options.build, top, options.repeats, result,
                    lambda: Receiver(options.build, top, 1), cpu_seconds, wait_for)),
                ("memory", lambda: measure_memory(options, top)),
                ("scale", lambda: measure_scale(options.build)),
                ("verdict", lambda: json_of([f"{options.build}/tests/bench/verdict"], 60)),
                ("matrix", lambda: measure_matrix(options)),
                ("validator", lambda: json.loads(subprocess.run(
                    [f"{options.build}/tests/bench/validate"], check=True, text=True,
                    capture_output=True, timeout=TIMEOUT_S).stdout))):
            try:
                result[name] = measure()
            except Exception as e:  # figures are missing then, no more
                result["errors"].append(f"{name}: {e}")
    finally:
        for folder in filter(None, (top, shm_top)):
            shutil.rmtree(folder, ignore_errors=True)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

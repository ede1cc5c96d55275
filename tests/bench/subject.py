# SPDX-License-Identifier: Apache-2.0
"""What is measured, the daemon or a floor (floor.c), as one process in a directory of its own, and
how its CPU time and memory are read. Parts of run.py, grpc_cost.py and matrix.py."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from relay import merge, process_status, scrape, wait_for  # noqa: E402

TIMEOUT_S = 90
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _ticks(pid):
    """(user, system) time of a process, in ticks."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        fields = f.read().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def cpu_seconds(pid):
    """User and system time of all threads: in ns where the kernel has them, else in ticks."""
    total = 0
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0])
        return total / 1e9
    except FileNotFoundError:
        return sum(_ticks(pid)) / TICKS_PER_S


def kernel_cpu_seconds(pid):
    """System time of all threads, in ticks."""
    return _ticks(pid)[1] / TICKS_PER_S


def machine_cpu_seconds():
    """CPU time of all processors that were not idle, in ticks."""
    with open("/proc/stat", encoding="ascii") as f:
        fields = [int(n) for n in f.readline().split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / TICKS_PER_S


def status_mib(pid, key):
    """A size of /proc/PID/status, such as VmRSS, in MiB."""
    return round(int(process_status(pid)[key].split()[0]) / 1024, 1)


class Sink:
    """Takes whatever comes into one TCP connection, and counts bytes."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        connection, _ = self.listener.accept()
        buffer = bytearray(1 << 20)
        while n := connection.recv_into(buffer):
            self.received += n

    def arrived(self, number, size):
        """Whether that many reports of that size are there."""
        return self.received >= number * size

    def stop(self):
        self.listener.close()


class Subject:
    """VMs have the CIDs from `first` on, and hybrid sockets in `sockets`, unless target (of floor
    and load) is "vsock". Reports are stored in `output`. top: where its directory is made."""

    def __init__(self, build, top, vms, first, vsock=False):
        self.build, self.vms, self.first, self.vsock = build, vms, first, vsock
        self.dir = tempfile.mkdtemp(prefix="vsr-subject-", dir=top)
        self.sockets, self.output = os.path.join(self.dir, "s"), os.path.join(self.dir, "out")
        os.mkdir(self.sockets)
        os.mkdir(self.output)
        self.target = "vsock" if vsock else self.sockets
        self.port = 0  # of the daemon's metrics; 0: it has none
        self.process = None

    def cids(self):
        return range(self.first, self.first + self.vms)

    def log(self):
        with open(os.path.join(self.dir, "log"), errors="replace", encoding="utf-8") as f:
            return f.read()

    def alive(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"ended with {self.process.returncode}: {self.log()[-2000:]}")
        return True

    def start(self, command, ready):
        with open(os.path.join(self.dir, "log"), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self.alive() and ready(), TIMEOUT_S, "the start of " + command[0])
        time.sleep(0.2)  # a socket is there before it listens; and what a start costs is over

    def start_floor(self, *how, to=None):
        """how: options of floor.c; to: its last argument, by default the output directory."""
        self.start([f"{self.build}/tests/bench/floor", *how, self.target, str(self.first),
                    str(self.vms), str(to or self.output)], lambda: "ready" in self.log())

    def start_daemon(self, settings):
        """settings: what it has besides, as nested dicts."""
        config = {
            "listen": {"vsock": self.vsock}, "bpf": "off", "admission": {"grant_rate": 0},
            "retry": {"base": "1h"}, "run_directory": self.dir, "admin_socket": "",
            "log": {"level": "warning"}, "metrics": {"listen": "off"},
            "upstream": {"kind": "file", "file": {"directory": self.output}},
        }  # fmt: skip
        if self.port:
            config["metrics"]["listen"] = f"127.0.0.1:{self.port}"
        if not self.vsock:
            config["hybrid"] = {"allowed_uids": str(os.getuid())}
        merge(config, settings)
        path = os.path.join(self.dir, "relayd.yaml")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)  # JSON is YAML
        self.start([f"{self.build}/vsock-relayd", "--config", path], self._daemon_ready)

    def _daemon_ready(self):
        last = f"{self.sockets}/vm-{self.cids()[-1]}_818"
        return ((self.vsock or os.path.exists(last))
                and (not self.port or self.metrics() is not None))

    def metrics(self):
        """All of the daemon, as of relay.parse_metrics(); None if it does not answer."""
        try:
            return scrape(self.port, timeout=10)
        except OSError:
            return None

    def keep_in_custody(self):
        """Before the start: a directory is in the way of each VM's file, so that it is never
        stored, and what is accepted stays in the cache."""
        for cid in self.cids():
            os.makedirs(f"{self.output}/0-{cid}.pb/in-the-way")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

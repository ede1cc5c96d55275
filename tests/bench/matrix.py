#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the relay does under load, by number of VMs, size, kind of report and mode, beside the floor
of the same run. Prints a table on standard error and one JSON object on standard output.

Each line is a daemon of its own and some seconds of load (load.c): VMs that report as fast as they
are served, 4 at a time. The upstream is `file` on tmpfs, so that no disk is measured.

  distinct      every report is new
  changed       the VM's last report, but for 8 bytes in its middle
  duplicate     the VM's last report, which is in custody (its file cannot be written)
  rest          100 of them, and then nothing: memory, and what compressing them makes others wait

The floor: a program that receives through a window of 64 KiB and discards, and one that receives a
report and sends it over TCP (floor.c), from the same senders. The figure to compare a duplicate
with is the first, of anything else the second.

  matrix.py --build DIR [--full]      hybrid sockets, here
  matrix.py --build DIR --vsock       AF_VSOCK over the loopback, inside a VM (vsock.sh)

Never fails: what could not be measured is in "errors".
"""
import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

FIRST_CID = 10000
TIMEOUT_S = 90
THREADS = 4
# Packages and repositories of a report: 20 KB, and 0.45, 2.5 and 15 MB.
SIZES = {"small": (22, 12), "0.5MB": (524, 12), "2.5MB": (1100, 49), "15MB": (6600, 49)}


def cpu_of(pid):
    """(all, in the kernel) CPU seconds of a process; the first in ns, the second in ticks."""
    total = 0
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as f:
            total += int(f.read().split()[0])
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        system = int(f.read().rpartition(")")[2].split()[12])
    return total / 1e9, system / os.sysconf("SC_CLK_TCK")


def machine_cpu():
    """CPU seconds of all processors that were not idle."""
    with open("/proc/stat", encoding="ascii") as f:
        fields = [int(n) for n in f.readline().split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def status_mib(pid, key):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith(key + ":"):
                return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(key)


def wait_for(what, condition, seconds=TIMEOUT_S):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"timed out: {what}")
        time.sleep(0.02)


class Sink:
    """Takes whatever comes over TCP."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        connection, _ = self.listener.accept()
        buffer = bytearray(1 << 20)
        while connection.recv_into(buffer):
            pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Subject:
    """What is under load: the daemon or a floor, with a directory of its own."""

    def __init__(self, options, vms, kind):
        self.options, self.vms, self.kind = options, vms, kind
        self.dir = tempfile.mkdtemp(prefix="vsr-matrix-", dir=options.dir)
        self.sockets, self.output = os.path.join(self.dir, "s"), os.path.join(self.dir, "out")
        os.mkdir(self.sockets)
        os.mkdir(self.output)
        self.first = 1 if options.vsock else FIRST_CID
        self.target = "vsock" if options.vsock else self.sockets
        self.port = 0
        self.process = None

    def cids(self):
        return range(self.first, self.first + self.vms)

    def start(self, command):
        with open(os.path.join(self.dir, "log"), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def log(self):
        with open(os.path.join(self.dir, "log"), errors="replace", encoding="utf-8") as f:
            return f.read()

    def alive(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"ended with {self.process.returncode}: {self.log()[-2000:]}")
        return True

    def start_floor(self, how):
        sink = Sink() if how == "send" else None
        self.start([f"{self.options.build}/tests/bench/floor", f"--{how}", self.target,
                    str(self.first), str(self.vms), str(sink.port) if sink else "-"])
        wait_for("the floor", lambda: self.alive() and "ready" in self.log())

    def start_daemon(self, bpf="off"):
        self.port = free_port()
        if self.kind == "duplicate":
            for cid in self.cids():
                os.makedirs(f"{self.output}/0-{cid}.pb/in-the-way")
        for cid in self.cids():
            open(f"{self.sockets}/vm-{cid}", "w", encoding="ascii").close()
        listen = ("listen:\n  vsock: true\nallow_reserved_cids: true\n" if self.options.vsock else
                  "listen:\n  vsock: false\n"
                  f"hybrid:\n  allowed_uids: {os.getuid()}\n  sockets:\n"
                  f"    - {{pattern: '{self.sockets}/vm-{{cid}}'}}\n")
        config = os.path.join(self.dir, "relayd.yaml")
        with open(config, "w", encoding="utf-8") as f:
            f.write(f"{listen}bpf: {bpf}\n"
                    "admission:\n  grant_rate: 0\n"
                    f"cache:\n  slots: auto\n"
                    f"retry:\n  base: 1h\nrun_directory: {self.dir}\nadmin_socket: ''\n"
                    f"metrics:\n  listen: 127.0.0.1:{self.port}\nlog:\n  level: warning\n"
                    f"upstream:\n  kind: file\n  file:\n    directory: {self.output}\n")
        self.start([f"{self.options.build}/vsock-relayd", "--config", config])
        last = f"{self.sockets}/vm-{self.first + self.vms - 1}_818"
        wait_for("the daemon", lambda: self.alive() and (
            self.options.vsock or os.path.exists(last)) and self.metrics())

    def metrics(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as r:
                lines = r.read().decode().splitlines()
        except OSError:
            return None
        return {name: float(value) for name, _, value in
                (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def load(self, size, mode, seconds):
        """Some seconds of load; what load.c says, and the CPU time of all that."""
        stored = self.port and self.kind != "duplicate"
        load = subprocess.Popen(
            [f"{self.options.build}/tests/bench/load", self.target, str(self.first),
             str(self.vms), *map(str, SIZES[size]), self.kind, mode, str(THREADS), str(seconds),
             self.output if stored else "-", str(self.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(TIMEOUT_S, load.kill)
        watchdog.start()
        try:
            if load.stdout.readline() != "ready\n":
                raise RuntimeError(f"load: {load.communicate()[1].strip()}; {self.log()[-500:]}")
            time.sleep(0.2)
            metrics = self.metrics() if self.port else None
            cpu, machine = cpu_of(self.process.pid), machine_cpu()
            out, err = load.communicate("go\n")
            after, machine_after = cpu_of(self.process.pid), machine_cpu()
            if load.returncode != 0:
                raise RuntimeError(f"load: {err.strip()}; {self.log()[-500:]}")
        finally:
            watchdog.cancel()
            if load.poll() is None:
                load.kill()
                load.wait()
        result = json.loads(out)
        n = max(result["reports"], 1)
        result["cpu_ms"] = round((after[0] - cpu[0]) * 1e3 / n, 3)
        result["cpu_kernel_ms"] = round((after[1] - cpu[1]) * 1e3 / n, 3)
        result["machine_cpu_ms"] = round((machine_after - machine) * 1e3 / n, 3)
        result["reports_per_s"] = round(result["reports"] / result["seconds"], 1)
        result["mb_per_s"] = round(result["bytes"] / result["seconds"] / 1e6, 1)
        if metrics:
            self.add_daemons(result, metrics, n)
        return result

    def add_daemons(self, result, before, n):
        now = self.metrics()
        known = 'vsock_relay_bpf_verdict_bytes_total{verdict="known"}'
        result["copied_bytes"] = round((result["bytes"] - now[known] + before[known]) / n)
        result["rss_mib"] = status_mib(self.process.pid, "VmRSS")
        result["peak_mib"] = status_mib(self.process.pid, "VmHWM")
        if now["vsock_relay_conservation_difference"] != 0:
            raise RuntimeError("conservation_difference is not 0")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Table:
    COLUMNS = ("what", "VMs", "size", "kind", "mode", "rep/s", "MB/s", "CPU ms", "kernel",
               "floor", "x", "copied", "stored p50/p99 ms", "stall p99/max ms", "RSS/peak MiB")
    WIDTHS = (13, 5, 6, 9, 5, 7, 7, 8, 7, 7, 6, 9, 18, 17, 13)

    def row(self, *cells):
        print(" ".join(str(c).rjust(w) for c, w in zip(cells, self.WIDTHS)), file=sys.stderr,
              flush=True)

    def head(self):
        self.row(*self.COLUMNS)

    def add(self, what, vms, size, kind, mode, r, floor):
        def pair(of, first, second, scale):
            return f"{of[first] / scale:.1f}/{of[second] / scale:.1f}" if of else "-"

        self.row(what, vms, size, kind, mode, r["reports_per_s"], r["mb_per_s"], r["cpu_ms"],
                 r["cpu_kernel_ms"], floor or "-",
                 round(r["cpu_ms"] / floor, 2) if floor else "-", r.get("copied_bytes", "-"),
                 pair(r["stored_us"], "p50", "p99", 1000), pair(r["http_us"], "p99", "max", 1000),
                 f"{r['rss_mib']}/{r['peak_mib']}" if "rss_mib" in r else "-")


def lines(options):
    """(VMs, size, kind, mode), and the modes of BPF."""
    if options.vsock:
        return [(1, size, kind, mode) for size in ("0.5MB", "2.5MB", "15MB")
                for kind in ("distinct", "changed", "duplicate") for mode in ("raw", "vsr2")]
    kinds = ("distinct", "changed", "duplicate")
    if options.full:
        return [(vms, size, kind, mode)
                for size in SIZES for vms in (1, 10, 100, 1000) for kind in kinds
                for mode in ("raw", "vsr1", "vsr2")
                # What fits into memory twice, as files and in the cache.
                if vms * SIZES[size][0] <= 110000]
    return ([(10, size, kind, "raw") for size in ("0.5MB", "2.5MB", "15MB") for kind in kinds]
            + [(10, "2.5MB", kind, mode) for mode in ("vsr1", "vsr2") for kind in kinds]
            + [(vms, "small", "distinct", "raw") for vms in (1, 10, 100, 1000)])


def measure_floors(options, table, sizes, result):
    """CPU ms of a report, by size and kind of floor."""
    floors = {}
    for size in sizes:
        for how in ("discard", "send"):
            subject = Subject(options, 1 if options.vsock else 10, "distinct")
            try:
                subject.start_floor(how)
                r = subject.load(size, "raw", options.seconds)
                floors[size, how] = r["cpu_ms"]
                result["floors"].append({"size": size, "floor": how, **r})
                table.add(f"floor {how}", subject.vms, size, "any", "raw", r, None)
            except Exception as e:  # pylint: disable=broad-except
                result["errors"].append(f"floor {how} {size}: {e}")
            finally:
                subject.stop()
    return floors


def measure_line(options, table, floors, line, bpf, result):
    vms, size, kind, mode = line
    what = f"bpf {bpf}" if options.vsock else "hybrid"
    subject = Subject(options, vms, kind)
    try:
        subject.start_daemon(bpf)
        r = subject.load(size, mode, options.seconds)
        floor = floors.get((size, "discard" if kind == "duplicate" else "send"))
        result["lines"].append({"what": what, "vms": vms, "size": size, "kind": kind,
                                "mode": mode, "floor_cpu_ms": floor, **r})
        table.add(what, vms, size, kind, mode, r, floor)
    except Exception as e:  # pylint: disable=broad-except
        result["errors"].append(f"{what} {line}: {e}")
    finally:
        subject.stop()


def poll(port, seconds, look):
    """Milliseconds until the event loop answers, every 5 ms for some seconds: [p50, p99, max]."""
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(b"GET /nothing HTTP/1.0\r\n\r\n")
            s.recv(1024)
        taken.append((time.monotonic() - start) * 1e3)
        look()
        time.sleep(0.005)
    taken.sort()
    return [round(taken[int(len(taken) * q)], 2) for q in (0.5, 0.99)] + [round(taken[-1], 2)]


def measure_rest(options, result):
    """100 reports of 2.5 MB in custody, and then nothing: they are compressed 5 s later, which must
    make nobody wait. The control is the same second before it begins."""
    subject = Subject(options, 100, "duplicate")
    rss = []
    try:
        subject.start_daemon()
        pid = subject.process.pid
        subject.load("2.5MB", "vsr2", 0.1)
        control = poll(subject.port, 1, lambda: None)
        during = poll(subject.port, 10, lambda: rss.append(status_mib(pid, "VmRSS")))
        metrics = subject.metrics()
        result["rest"] = {
            "peak_mib": status_mib(pid, "VmHWM"), "resting_mib": rss[-1],
            "compressed": metrics["vsock_relay_cache_compressed_contents"],
            "compressed_mib": round(metrics["vsock_relay_cache_compressed_bytes"] / 2**20, 1),
            "answer_ms": {"p50_p99_max": during, "control_p50_p99_max": control},
        }
        print(f"rest: {result['rest']}", file=sys.stderr)
    except Exception as e:  # pylint: disable=broad-except
        result["errors"].append(f"rest: {e}")
    finally:
        subject.stop()


def main():
    parser = argparse.ArgumentParser(description="load by VMs, size and kind of report")
    parser.add_argument("--build", default="build", help="folder with the programs")
    parser.add_argument("--dir", default="/dev/shm", help="for sockets and stored reports")
    parser.add_argument("--seconds", type=float, default=1.5, help="of load for a line")
    parser.add_argument("--full", action="store_true", help="every combination: 15 minutes")
    parser.add_argument("--vsock", action="store_true", help="AF_VSOCK, with BPF and without")
    options = parser.parse_args()

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    result = {"errors": [], "floors": [], "lines": []}
    table = Table()
    todo = lines(options)
    table.head()
    floors = measure_floors(options, table, dict.fromkeys(line[1] for line in todo), result)
    for bpf in ("required", "off") if options.vsock else ("off",):
        for line in todo:
            measure_line(options, table, floors, line, bpf, result)
    if not options.vsock:
        measure_rest(options, result)
    for error in result["errors"]:
        print(error, file=sys.stderr)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()

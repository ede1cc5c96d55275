#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the relay does under load, by number of VMs, size, kind of report and mode, beside the floor
of the same run. Prints a table on standard error and one JSON object on standard output.

Each line is a daemon of its own and some seconds of load (load.c): VMs that report as fast as they
are served, 4 at a time. The upstream is `file` on tmpfs, so that no disk is measured.

  distinct      every report is new
  changed       the VM's last report, but for 8 bytes in its middle
  duplicate     the VM's last report, which is in custody (its file cannot be written)
  rest          100 of them, and then nothing: memory, and what compressing them makes others wait;
                then duplicates of what is compressed ("packed")
  many          distinct small reports of 100, 1000 and 10000 VMs in turns, and the daemon's CPU time for
                one against that with 100 (10000 of 0.5 MB would take 4.5 GB twice)

The floor: a program that receives through a window of 64 KiB and discards, and one that receives a
report and sends it over TCP (floor.c), from the same senders. The figure to compare a duplicate
with is the first, of anything else the second.

  matrix.py --build DIR [--full]      hybrid sockets, here
  matrix.py --build DIR --vsock       AF_VSOCK over the loopback, inside a VM (vsock.sh)
  matrix.py --build DIR --sizes 0.5MB --seconds 0.2     whether it works, in seconds

Never fails: what could not be measured is in "errors".
"""
import argparse
import json
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time

from subject import (TIMEOUT_S, Sink, Subject, cpu_seconds, kernel_cpu_seconds,
                     machine_cpu_seconds, status_mib)  # first: finds tests/lib

from relay import free_port

FIRST_CID = 10000
THREADS = 4
# Packages and repositories of a report: 20 KB, and 0.45, 2.5 and 15 MB.
SIZES = {"small": (22, 12), "0.5MB": (524, 12), "2.5MB": (1100, 49), "15MB": (6600, 49)}

PACKAGES_MAX = 220000  # of all VMs: 240 MB
MANY = (100, 1000, 10000)
MANY_REPEATS = 3


class Loaded(Subject):
    """What is under load of that kind."""

    def __init__(self, options, vms, kind):
        super().__init__(options.build, options.dir, vms, 1 if options.vsock else FIRST_CID,
                         options.vsock)
        self.kind = kind

    def start_under_load(self, bpf="off"):
        """The daemon."""
        self.port = free_port()
        if self.kind == "duplicate":
            self.keep_in_custody()
        for cid in self.cids():
            open(f"{self.sockets}/vm-{cid}", "w", encoding="ascii").close()
        self.start_daemon({
            "bpf": bpf, "cache": {"slots": "auto"},
            **({"allow_reserved_cids": True} if self.vsock else
               {"hybrid": {"sockets": [{"pattern": f"{self.sockets}/vm-{{cid}}"}]}}),
        })  # fmt: skip

    def cpu(self):
        """CPU seconds so far, by what they become in the figures: ms a report."""
        return {"cpu_ms": cpu_seconds(self.process.pid),
                "cpu_kernel_ms": kernel_cpu_seconds(self.process.pid),
                "machine_cpu_ms": machine_cpu_seconds()}

    def load(self, size, mode, seconds):
        """Some seconds of load; what load.c says, and the CPU time of all that."""
        stored = self.port and self.kind != "duplicate"
        load = subprocess.Popen(
            [f"{self.build}/tests/bench/load", self.target, str(self.first),
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
            before = self.cpu()
            out, err = load.communicate("go\n")
            after = self.cpu()
            if load.returncode != 0:
                raise RuntimeError(f"load: {err.strip()}; {self.log()[-500:]}")
        finally:
            watchdog.cancel()
            if load.poll() is None:
                load.kill()
                load.wait()
        result = json.loads(out)
        n = max(result["reports"], 1)
        for name in before:
            result[name] = round((after[name] - before[name]) * 1e3 / n, 3)
        result["reports_per_s"] = round(result["reports"] / result["seconds"], 1)
        result["mb_per_s"] = round(result["bytes"] / result["seconds"] / 1e6, 1)
        if metrics:
            self.add_daemons(result, metrics, n)
        return result

    def add_daemons(self, result, before, n):
        now = self.metrics()
        known = ("bpf_verdict_bytes_total", "known")
        result["copied_bytes"] = round((result["bytes"] - now[known] + before[known]) / n)
        result["rss_mib"] = status_mib(self.process.pid, "VmRSS")
        result["peak_mib"] = status_mib(self.process.pid, "VmHWM")
        if now["conservation_difference"] != 0:
            raise RuntimeError("conservation_difference is not 0")


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
        return [(1, size, kind, mode) for size in ("0.5MB", "2.5MB")
                for kind in ("distinct", "changed", "duplicate") for mode in ("raw", "vsr2")]
    kinds = ("distinct", "changed", "duplicate")
    if options.full:
        return [(vms, size, kind, mode)
                for size in SIZES for vms in (1, 10, 100, 1000, 10000) for kind in kinds
                for mode in ("raw", "vsr1", "vsr2")
                # What fits into memory twice, as files and in the cache; and how many VMs there are
                # makes no difference between VSR1 and raw.
                if vms * SIZES[size][0] <= PACKAGES_MAX and (mode != "vsr1" or vms == 10)]
    return ([(10, size, kind, "raw") for size in ("0.5MB", "2.5MB", "15MB") for kind in kinds]
            + [(10, "2.5MB", kind, mode) for mode in ("vsr1", "vsr2") for kind in kinds]
            + [(vms, "small", "distinct", "raw") for vms in (1, 10, 100, 1000, 10000)])


def measure_floors(options, table, sizes, result):
    """CPU ms of a report, by size and kind of floor."""
    floors = {}
    for size in sizes:
        for how in ("discard", "send"):
            subject = Loaded(options, 1 if options.vsock else 10, "distinct")
            try:
                subject.start_floor(f"--{how}", to=Sink().port if how == "send" else "-")
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
    subject = Loaded(options, vms, kind)
    try:
        subject.start_under_load(bpf)
        r = subject.load(size, mode, options.seconds)
        floor = floors.get((size, "discard" if kind == "duplicate" else "send"))
        result["lines"].append({"what": what, "vms": vms, "size": size, "kind": kind,
                                "mode": mode, "floor_cpu_ms": floor, **r})
        table.add(what, vms, size, kind, mode, r, floor)
    except Exception as e:  # pylint: disable=broad-except
        result["errors"].append(f"{what} {line}: {e}")
    finally:
        subject.stop()


def measure_many(options, result):
    """What a report costs, and the start of the daemon takes, by number of VMs, in turns."""
    cpu = {vms: [] for vms in MANY}
    started = {vms: [] for vms in MANY}
    try:
        for _ in range(MANY_REPEATS):
            for vms in MANY:
                subject = Loaded(options, vms, "distinct")
                try:
                    before = time.monotonic()
                    subject.start_under_load()
                    started[vms].append(time.monotonic() - before)
                    r = subject.load("small", "raw", options.seconds)
                    cpu[vms].append(r["cpu_ms"])
                finally:
                    subject.stop()
        few = statistics.median(cpu[MANY[0]])
        result["many"] = {
            vms: {"cpu_ms": statistics.median(cpu[vms]),
                  "ratio": round(statistics.median(cpu[vms]) / few, 2),
                  "start_s": round(statistics.median(started[vms]), 2)} for vms in MANY}
        print(f"many: {result['many']}", file=sys.stderr)
    except Exception as e:  # pylint: disable=broad-except
        result["errors"].append(f"many: {e}")


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


def measure_rest(options, table, floors, result):
    """100 reports of 2.5 MB in custody, and then nothing: they are compressed 5 s later, which must
    make nobody wait. The control is the same second before it begins."""
    subject = Loaded(options, 100, "duplicate")
    rss = []
    try:
        subject.start_under_load()
        pid = subject.process.pid
        subject.load("2.5MB", "vsr2", 0.1)
        control = poll(subject.port, 1, lambda: None)
        during = poll(subject.port, 10, lambda: rss.append(status_mib(pid, "VmRSS")))
        metrics = subject.metrics()
        result["rest"] = {
            "peak_mib": status_mib(pid, "VmHWM"), "resting_mib": rss[-1],
            "compressed": metrics["cache_compressed_contents"],
            "compressed_mib": round(metrics["cache_compressed_bytes"] / 2**20, 1),
            "answer_ms": {"p50_p99_max": during, "control_p50_p99_max": control},
        }
        print(f"rest: {result['rest']}", file=sys.stderr)
        r = subject.load("2.5MB", "raw", options.seconds)
        floor = floors.get(("2.5MB", "discard"))
        result["rest"]["duplicate_of_packed"] = {"floor_cpu_ms": floor, **r}
        table.add("packed", 100, "2.5MB", "duplicate", "raw", r, floor)
    except Exception as e:  # pylint: disable=broad-except
        result["errors"].append(f"rest: {e}")
    finally:
        subject.stop()


def main():
    parser = argparse.ArgumentParser(description="load by VMs, size and kind of report")
    parser.add_argument("--build", default="build", help="folder with the programs")
    parser.add_argument("--dir", default="/dev/shm", help="for sockets and stored reports")
    parser.add_argument("--seconds", type=float, default=1, help="of load for a line")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, metavar="SIZE",
                        help=f"only the lines with these of {', '.join(SIZES)}; rest: with 2.5MB")
    parser.add_argument("--full", action="store_true",
                        help="all numbers of VMs, sizes, kinds and modes: 6 minutes")
    parser.add_argument("--vsock", action="store_true", help="AF_VSOCK, with BPF and without")
    options = parser.parse_args()

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    result = {"errors": [], "floors": [], "lines": []}
    table = Table()
    todo = [line for line in lines(options) if line[1] in options.sizes]
    table.head()
    floors = measure_floors(options, table, dict.fromkeys(line[1] for line in todo), result)
    for bpf in ("required", "off") if options.vsock else ("off",):
        for line in todo:
            measure_line(options, table, floors, line, bpf, result)
    if not options.vsock and "small" in options.sizes:
        measure_many(options, result)
    if not options.vsock and "2.5MB" in options.sizes:
        measure_rest(options, table, floors, result)
    for error in result["errors"]:
        print(error, file=sys.stderr)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Many VM ids over vhost-vsock, inside a VM (vsock.sh): fake guests (tests/vm/fakeguest.c), each a
device with a CID of its own that sends one report of 20 KB and vanishes. So as many ids as are wanted come
through one device after another: the daemon keeps a record of each. Prints JSON: the daemon's CPU time
for a report when it knows about 100 ids, and when it knows all (medians of blocks of 20), and what an
id took, its device's making included.

  vsock_ids.py --build DIR [--ids N]
"""
import argparse
import json
import statistics
import time

from subject import Subject, cpu_seconds, status_mib  # first: finds tests/lib

from fakeguest import FakeGuest
from relay import free_port
import report as rp

FIRST_CID = 10000
BLOCK = 20  # reports of one sample
FEW = 200  # ids, of which the first half is the warm-up


def send(guests, cid):
    guests.guest(cid)
    conn = guests.connect(cid, 818)
    guests.send(conn, rp.report(cid, 20000))
    guests.shutdown(conn)
    guests.wait(conn, "closed")
    guests.gone(cid)


def main():
    parser = argparse.ArgumentParser(description="many VM ids over AF_VSOCK")
    parser.add_argument("--build", default="/build")
    parser.add_argument("--dir", default="/tmp")
    parser.add_argument("--ids", type=int, default=1000, help=f"{FEW} at least")
    options = parser.parse_args()
    if options.ids < FEW:
        parser.error(f"--ids {options.ids}: {FEW} at least")

    relay = Subject(options.build, options.dir, options.ids, FIRST_CID, vsock=True)
    relay.port = free_port()
    samples = []
    try:
        relay.start_daemon({"bpf": "required", "cache": {"slots": "auto"}})
        pid = relay.process.pid
        begin = time.monotonic()
        with FakeGuest(tmp=options.dir) as guests:
            for block in range(options.ids // BLOCK):
                before = cpu_seconds(pid)
                for i in range(BLOCK):
                    send(guests, FIRST_CID + block * BLOCK + i)
                samples.append((cpu_seconds(pid) - before) * 1e3 / BLOCK)
        took = time.monotonic() - begin
        metrics = relay.metrics()
        few = statistics.median(samples[FEW // 2 // BLOCK:FEW // BLOCK])
        many = statistics.median(samples[-(FEW // 2 // BLOCK):])
        print(json.dumps({
            "ids": options.ids, "reports": metrics["index_reports_received_total"],
            "vms": metrics["vms"],
            "cpu_ms_with_100": round(few, 2), "cpu_ms_with_all": round(many, 2),
            "ratio": round(many / few, 2), "rss_mib": status_mib(pid, "VmRSS"),
            "ms_per_id": round(took * 1e3 / options.ids, 1)}))
    finally:
        relay.stop()


if __name__ == "__main__":
    main()

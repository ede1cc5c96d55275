#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Soak: many VMs over hybrid sockets for a while, polite and not, with reloads and a disk that fails
at times: one relay has to stand it all. At the end every report is
accounted for, what is stored is what was accepted last, and nothing has grown.

    tests/host/soak.py [--seconds 1200] [--vms 40] [--seed N]
"""

import argparse
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import report as rp
from relay import Relay, wait_for
from tap import Tap

FIRST_CID = 100
WORKERS = 6
RSS_GROWTH_MAX = 64 * 1024 * 1024
SIZES = ((60, 5_000), (25, 100_000), (12, 1_000_000), (3, 8_000_000))


class Vm:
    """One sender of a VM at a time, so that the last accepted report is known."""

    def __init__(self, number, relay, seed):
        self.cid = FIRST_CID + number
        self.path = relay.path(f"vm{number}.sock")
        self.rng = random.Random(f"{seed}/{number}")
        self.lock = threading.Lock()
        self.last = None
        self.sent = self.answered = 0

    def payload(self):
        if self.last and self.rng.random() < 0.4:
            return self.last
        size = self.rng.choices([s for _, s in SIZES], [w for w, _ in SIZES])[0]
        return rp.report(self.cid, size + self.rng.randrange(size), seed=self.rng.random())

    def act(self):
        kind = self.rng.choices(("vsr1", "vsr2", "raw", "cut", "garbage"), (40, 30, 10, 15, 5))[0]
        payload = self.payload()
        if kind == "cut":
            with rp.connect(self.path) as s:
                data = rp.header(payload) + payload
                try:
                    s.sendall(data[: self.rng.randrange(len(data))])
                except OSError:
                    pass
            return
        if kind == "garbage":
            rp.send_raw(self.path, b"\x0a" + self.rng.randbytes(self.rng.randrange(1, 2000)))
            return
        if kind == "raw":
            # Only a framed report is sure to be accepted: what a raw one became is asked for.
            rp.send_raw(self.path, payload)
            kind = "vsr1"
        status = (rp.send_framed(self.path, payload) if kind == "vsr1"
                  else rp.send_offer(self.path, payload)[0])
        self.sent += 1
        if status in (rp.ACCEPTED, rp.NOTHING_TO_DO):
            self.answered += 1
            self.last = payload
        elif status not in (rp.BUSY, None):
            raise AssertionError(f"VM {self.cid} was answered {status}")


def work(vms, rng, until, errors):
    while time.monotonic() < until and not errors:
        vm = rng.choice(vms)
        if not vm.lock.acquire(blocking=False):
            continue
        try:
            vm.act()
        except Exception as e:  # noqa: BLE001: shown by the main thread
            errors.append(e)
        finally:
            vm.lock.release()


def disturb(relay, rng, until, errors):
    """Reloads, and a disk that takes nothing for a moment."""
    while time.monotonic() < until and not errors:
        time.sleep(rng.uniform(1, 4))
        if rng.random() < 0.5:
            relay.config["log"] = {"level": rng.choice(("info", "debug"))}
            relay.write_config()
            relay.reload()
        else:
            # A directory where the temporary file should be.
            blocker = os.path.join(relay.stored_dir, f".0-{FIRST_CID}.pb.tmp")
            os.makedirs(os.path.join(blocker, "x"), exist_ok=True)
            time.sleep(rng.uniform(0.1, 1))
            os.rmdir(os.path.join(blocker, "x"))
            os.rmdir(blocker)


def settled(relay):
    m = relay.metrics()
    return m["contents_held"] == 0 and m["contents_in_flight"] == 0


def soak(options):
    rng = random.Random(options.seed)
    hybrid = {f"vm{n}.sock": FIRST_CID + n for n in range(options.vms)}
    settings = {
        "admission": {"grant_rate": 0, "wait": "60s"},
        "report": {"deadline": "60s", "idle": "60s"},
        "retry": {"base": "500ms"},
    }
    with Relay(settings, hybrid=hybrid) as relay:
        vms = [Vm(n, relay, options.seed) for n in range(options.vms)]
        errors = []
        start = time.monotonic()
        rss = None
        while time.monotonic() - start < options.seconds and not errors:
            # In rounds, so that memory is compared at rest.
            until = min(time.monotonic() + 15, start + options.seconds)
            threads = [
                threading.Thread(target=work, args=(vms, random.Random(rng.random()), until, errors))
                for _ in range(WORKERS)
            ]
            threads.append(threading.Thread(target=disturb, args=(relay, rng, until, errors)))
            for t in threads:
                t.start()
            for t in threads:
                t.join(120)
            if errors:
                raise errors[0]
            wait_for(lambda: settled(relay), 60, "everything delivered")
            relay.check()
            rss = rss or relay.rss()
            assert relay.rss() <= rss + RSS_GROWTH_MAX, f"{rss} grew to {relay.rss()} bytes"
        for vm in vms:
            assert relay.stored(vm.cid) == vm.last, f"VM {vm.cid}: not the last one accepted"
        m = relay.check()
        answered = sum(vm.answered for vm in vms)
        print(f"# {m['reports_valid_total']:.0f} valid reports, {answered} framed and accepted, "
              f"{m['duplicates_total'] + m['reports_suppressed_total']:.0f} repeats, "
              f"{m['resends_total']:.0f} resends, refused {relay.refused(m)}, "
              f"resident {relay.rss() / 1048576:.0f} MiB")
        assert answered > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--vms", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    tap = Tap()
    tap.run(f"soak: {options.seconds:.0f} s, {options.vms} VMs, seed {options.seed}", soak, options)
    tap.end()


main()

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
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from relay import Relay, wait_for
from soak import Vm, run_round
from tap import Tap

FIRST_CID = 100
WORKERS = 6
ROUND_S = 15
RSS_GROWTH_MAX = 64 * 1024 * 1024


def disturb(relay, rng, until):
    """Reloads, and a disk that takes nothing for a moment."""
    while time.monotonic() < until:
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
        vms = [Vm(FIRST_CID + n, relay.path(f"vm{n}.sock"), options.seed)
               for n in range(options.vms)]  # fmt: skip
        end = time.monotonic() + options.seconds
        rss = None
        while (left := end - time.monotonic()) > 0:
            # In rounds, so that memory is compared at rest.
            run_round(vms, rng, min(left, ROUND_S), WORKERS, lambda r, until: disturb(relay, r, until))
            wait_for(lambda: settled(relay), 60, "everything delivered")
            relay.check()
            rss = rss or relay.rss()
            assert relay.rss() <= rss + RSS_GROWTH_MAX, f"{rss} grew to {relay.rss()} bytes"
        for vm in vms:
            assert vm.agrees(relay.stored(vm.cid)), f"VM {vm.cid}: not the last one accepted"
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

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Soak: many VMs over hybrid sockets for a while, polite and not, with reloads and an upstream that
fails at random: a directory that takes nothing for a moment, then a gRPC server that refuses calls,
hangs and restarts. One relay for each has to stand it all. At the end every report is
accounted for, what is upstream is what was accepted last, and nothing has grown.

    tests/host/soak.py [--seconds 1200] [--vms 40] [--seed N] [--upstream file,grpc]

The seconds are those of all upstreams together.
"""

import argparse
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

# Calls that fail on purpose are no news.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc_server as gs
from relay import Relay, merge, wait_for
from soak import Vm, grown, run_round
from tap import Tap

FIRST_CID = 100
WORKERS = 6
ROUND_S = 15
SETTLED_S = 180  # retries of calls that failed several times in a row
OWN_MAX = 8 * 1024 * 1024  # held up to 18 MiB before a reload gave back what was free
MARGIN = {"memory": 1024 * 1024}  # beyond what allocators keep in hand


class Directory:
    """Takes nothing while a directory is where the temporary file should be."""

    settings = {}

    def __init__(self, rng):
        pass

    def stored(self, relay, cid):
        return relay.stored(cid)

    def fails(self, relay, rng):
        blocker = os.path.join(relay.stored_dir, f".0-{FIRST_CID}.pb.tmp")

        def blocks():
            try:
                os.makedirs(os.path.join(blocker, "x"), exist_ok=True)
                return True
            except NotADirectoryError:
                return False  # just being written

        wait_for(blocks, 10, "a moment without a writer")
        time.sleep(rng.uniform(0.1, 1))
        os.rmdir(os.path.join(blocker, "x"))
        os.rmdir(blocker)

    def stop(self):
        pass


class Server:
    """Three calls of four are taken."""

    FAULTS = (gs.fail(grpc.StatusCode.UNAVAILABLE), gs.fail(grpc.StatusCode.RESOURCE_EXHAUSTED),
              gs.fail(grpc.StatusCode.INTERNAL), gs.no_success, gs.hang)  # fmt: skip

    def __init__(self, rng):
        self.rng, self.taken = random.Random(rng.random()), {}
        self.server = gs.Server(default=self.answer)
        # With ACKs on a stream, which name no send, each one that is lost costs a later content one more
        # send: at this rate of faults they would wait for the 10 minutes that a send is remembered.
        grpc_settings = {"address": self.server.address, "acks": "response", "plaintext": True}
        self.settings = {"rate": {"reports_per_minute": 0},
                         "upstream": {"kind": "grpc", "grpc": grpc_settings}}  # fmt: skip

    def answer(self, server, call, context):
        with server.lock:
            server.calls.clear()
            fault = self.rng.choice(self.FAULTS) if self.rng.random() < 0.25 else None
            if context.is_active() and not fault:
                self.taken[call.cid] = call.payload
        return (fault or gs.succeed)(server, call, context)

    def stored(self, relay, cid):
        return self.taken.get(cid)

    def fails(self, relay, rng):
        self.server.stop()
        time.sleep(rng.uniform(0.1, 2))
        self.server.start()

    def stop(self):
        self.server.stop()


UPSTREAMS = {"file": Directory, "grpc": Server}


def disturb(relay, upstream, rng, until):
    """Reloads, and an upstream that is away for a moment."""
    while time.monotonic() < until:
        time.sleep(rng.uniform(1, 4))
        if rng.random() < 0.5:
            relay.config["log"] = {"level": rng.choice(("info", "debug"))}
            relay.write_config()
            relay.reload()
        else:
            upstream.fails(relay, rng)


def settled(relay):
    m = relay.metrics()
    return m["contents_held"] == 0 and m["contents_in_flight"] == 0


def soak(options, upstream, seconds):
    rng = random.Random(options.seed)
    upstream = UPSTREAMS[upstream](rng)
    try:
        soak_with(options, rng, upstream, seconds)
    finally:
        upstream.stop()


def soak_with(options, rng, upstream, seconds):
    hybrid = {f"vm{n}.sock": FIRST_CID + n for n in range(options.vms)}
    settings = {
        "admission": {"grant_rate": 0, "wait": "60s"},
        "report": {"deadline": "60s", "idle": "60s"},
        "retry": {"base": "500ms"},
    }
    merge(settings, upstream.settings)
    with Relay(settings, hybrid=hybrid) as relay:
        vms = [Vm(FIRST_CID + n, relay.path(f"vm{n}.sock"), options.seed)
               for n in range(options.vms)]  # fmt: skip
        end = time.monotonic() + seconds
        rests = []
        while (left := end - time.monotonic()) > 0:
            # In rounds, so that memory is compared at rest.
            run_round(vms, rng, min(left, ROUND_S), WORKERS,
                      lambda r, until: disturb(relay, upstream, r, until))  # fmt: skip
            wait_for(lambda: settled(relay), SETTLED_S, "everything delivered")
            relay.check()
            rests.append({"memory": relay.own_memory(), "descriptors": relay.descriptors()})
        for vm in vms:
            assert vm.agrees(upstream.stored(relay, vm.cid)), f"VM {vm.cid}: not the last one accepted"
        m = relay.check()
        answered = sum(vm.answered for vm in vms)
        print(f"# {m['reports_valid_total']:.0f} valid reports, {answered} framed and accepted, "
              f"{m['duplicates_total'] + m['reports_suppressed_total']:.0f} repeats, "
              f"{m['resends_total']:.0f} resends, refused {relay.refused(m)}, "
              f"resident {relay.rss() / 1048576:.0f} MiB")
        assert answered > 0
        # It is one process: what it holds after all rounds it held after the first half of them.
        print(f"# at rest: {rests}")
        assert rests[-1]["memory"] < OWN_MAX, "free memory is not given back"
        found = grown(rests[: (len(rests) + 1) // 2], rests[-1], MARGIN)
        assert not found, f"grown: {found}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--vms", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--upstream", default=",".join(UPSTREAMS))
    options = parser.parse_args()
    tap = Tap()
    upstreams = options.upstream.split(",")
    for name in upstreams:
        seconds = options.seconds / len(upstreams)
        tap.run(f"soak, upstream {name}: {seconds:.0f} s, {options.vms} VMs, seed {options.seed}", soak,
                options, name, seconds)  # fmt: skip
    tap.end()


main()

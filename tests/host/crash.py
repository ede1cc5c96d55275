#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The crash matrix: the daemon is killed (SIGKILL) at each labelled point of a report's way
(user/crash_point.h), with load running over hybrid sockets, and started again. Then, for each VM:

 - the last report that was answered `accepted`, or a newer one, is upstream;
 - nothing is upstream that was not sent as a valid report, and nothing older came after newer;
 - no content and no temporary file is left in the state directory, and nothing was set aside.

One relay's directories live through all rounds of an upstream, as a node's do.

    tests/host/crash.py [--rounds N] [--seed N] [PART OF A NAME]
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc_server as gs
import report as rp
from relay import BUILD, Relay, merge, wait_for
from tap import Tap

POINTS = ("received", "validated", "spooled", "answered", "sending", "sent", "acked")
BINARY = os.path.join(BUILD, "crash", "vsock-relayd")
VMS = 5
FIRST_CID = 100
# A point is passed up to so often before the kill.
PASSES = 25


class Vm:
    """What one VM has sent, in order; only its own thread touches it while there is load."""

    def __init__(self, cid, path, seed):
        self.cid, self.path = cid, path
        self.rng = random.Random(f"{seed}/{cid}")
        self.order = {}  # payload: its place in the order in which they were sent
        self.accepted = 0  # the place of the last that was answered `accepted`
        self.answers = {}
        self.last = None

    def payload(self):
        if self.last and self.rng.random() < 0.15:
            return self.last
        size = self.rng.choice((2_000, 5_000, 40_000, 400_000))
        self.last = rp.report(self.cid, size + self.rng.randrange(size), seed=self.rng.random())
        # Known before it is sent: it may be upstream at any time from then on.
        self.order[self.last] = len(self.order) + 1
        return self.last

    def act(self):
        """One report. What is no good must never be seen upstream."""
        kind = self.rng.choices(("vsr1", "vsr2", "raw", "cut", "stranger"), (50, 15, 15, 10, 10))[0]
        if kind == "cut":
            payload = rp.report(self.cid, 30_000, seed=self.rng.random())
            with rp.connect(self.path) as s:
                s.sendall((rp.header(payload) + payload)[: self.rng.randrange(30_000)])
            return
        if kind == "stranger":
            payload = rp.report(self.cid + 1, 3_000, seed=self.rng.random())
            assert rp.send_framed(self.path, payload) in (rp.CID_MISMATCH, rp.BUSY, None)
            return
        payload = self.payload()
        if kind == "raw":
            rp.send_raw(self.path, payload)
            return
        status = (rp.send_framed(self.path, payload) if kind == "vsr1"
                  else rp.send_offer(self.path, payload)[0])  # fmt: skip
        self.answers[status] = self.answers.get(status, 0) + 1
        assert status in (rp.ACCEPTED, rp.NOTHING_TO_DO, rp.BUSY, None), status
        if status in (rp.ACCEPTED, rp.NOTHING_TO_DO):
            self.accepted = self.order[payload]

    def load(self, relay, errors):
        while relay.process.poll() is None:
            try:
                self.act()
            except (OSError, TimeoutError):
                pass  # it was killed
            except Exception as e:  # noqa: BLE001: shown by the main thread
                errors.append(e)
                return


# ---- upstreams ----


class Files:
    """The newest of each VM."""

    name = "file"

    def __init__(self):
        self.seen = {}

    def settings(self):
        return {}

    def contents(self, relay, vm):
        now = relay.stored(vm.cid)
        return [now] if now is not None else []

    def close(self):
        pass


class Grpc:
    def __init__(self, acks):
        self.name = f"grpc, ACKs by {acks}"
        self.acks = acks
        self.server = gs.Server(default=gs.acknowledge if acks == "communicate" else gs.succeed)

    def settings(self):
        return {"upstream": {"kind": "grpc", "grpc": {
            "address": self.server.address, "acks": self.acks, "plaintext": True}}}  # fmt: skip

    def contents(self, _, vm):
        return self.server.payloads(vm.cid)

    def close(self):
        self.server.stop()


# ---- the rule ----


def compare(relay, upstream, vm):
    contents = upstream.contents(relay, vm)
    places = []
    for payload in contents:
        assert payload in vm.order, f"VM {vm.cid}: {len(payload)} bytes that it never sent as a report"
        places.append(vm.order[payload])
    assert places == sorted(places), f"VM {vm.cid}: older content after newer: {places[-20:]}"
    newest = places[-1] if places else 0
    assert newest >= vm.accepted, f"VM {vm.cid}: accepted {vm.accepted}, upstream is {newest}"


def drained(relay):
    """Everything is upstream, and the spool is empty."""
    m = relay.metrics()
    return m["contents_held"] == 0 and not os.listdir(os.path.join(relay.state, "spool"))


def kill_at(relay, vms, point, rng):
    """Load until the point is passed for the nth time."""
    n = rng.randrange(1, PASSES)
    relay.env["VSR_CRASH_POINT"] = f"{point}:{n}"
    relay.start(wait=False)
    errors = []
    threads = [threading.Thread(target=vm.load, args=(relay, errors)) for vm in vms]
    wait_for(lambda: os.path.exists(vms[-1].path) or relay.process.poll() is not None, 20, "sockets")
    for t in threads:
        t.start()
    try:
        status = relay.process.wait(60)
    finally:
        relay.kill()
        for t in threads:
            t.join(60)
    if errors:
        raise errors[0]
    assert status == -signal.SIGKILL, f"{point}:{n}: ended with {status}: {relay.log()[-2000:]}"


def again(relay, vms, upstream):
    """A start without a crash: everything that is owed is delivered."""
    del relay.env["VSR_CRASH_POINT"]
    relay.start()
    try:
        wait_for(lambda: drained(relay), 30, "everything delivered")
    except TimeoutError as e:
        e.detail = f"{os.listdir(os.path.join(relay.state, 'spool'))} {relay.log()[-3000:]}"
        raise
    m = relay.check()
    for vm in vms:
        compare(relay, upstream, vm)
    left = sorted(os.listdir(relay.state))
    assert set(left) <= {"damaged", "seed", "spool", "acked", "vsock-relayd.lock"}, left
    assert os.listdir(os.path.join(relay.state, "damaged")) == []
    assert m["spool_errors_total"] == 0 and m["spool_set_aside_total"] == 0
    restored = int(m["contents_restored_total"])
    assert m["contents_ended_total", "acked"] == m["contents_ended_total"] == restored
    relay.kill()
    return restored


def run_point(relay, vms, upstream, point, rounds, rng):
    restored = 0
    for _ in range(rounds):
        kill_at(relay, vms, point, rng)
        restored += again(relay, vms, upstream)
    print(f"# {point}, {upstream.name}: {restored} contents restored in {rounds} rounds")


@contextlib.contextmanager
def world(upstream, seed):
    hybrid = {f"vm{n}.sock": FIRST_CID + n for n in range(VMS)}
    settings = {"admission": {"grant_rate": 0}, "rate": {"reports_per_minute": 0},
                "retry": {"base": "300ms"}}  # fmt: skip
    merge(settings, upstream.settings())
    with Relay(settings, hybrid=hybrid, binary=BINARY, start=False) as relay:
        relay.state = relay.config["state_directory"] = os.path.join(relay.dir, "state")
        relay.write_config()
        yield relay, [Vm(cid, relay.path(name), seed) for name, cid in hybrid.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("only", nargs="?")
    options = parser.parse_args()
    tap = Tap(only=options.only)
    print(f"# seed {options.seed}")
    for make in (Files, lambda: Grpc("response"), lambda: Grpc("communicate")):
        upstream = make()
        rng = random.Random(f"{options.seed}/{upstream.name}")
        with contextlib.closing(upstream), world(upstream, options.seed) as (relay, vms):
            for point in POINTS:
                tap.run(f"killed where a report is {point}; upstream {upstream.name}", run_point,
                        relay, vms, upstream, point, options.rounds, rng)  # fmt: skip
            answers = {}
            for vm in vms:
                for status, n in vm.answers.items():
                    answers[status] = answers.get(status, 0) + n
            print(f"# {upstream.name}: answers {answers}, {sum(len(vm.order) for vm in vms)} contents")
    tap.end()


main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test VM: the scenarios over real AF_VSOCK, BPF attached, from vsock loopback and
from fake guests with their own CIDs; then what only vsock has. Arguments: --expect bpf|user, and
parts of test names. tests/vm/run.sh boots the VM."""

import argparse
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib")]

import budget
import differential
import doctor
import hostile
import matching
import netns
import scenarios
import vsockrules
from fakeguest import FakeGuest
from relay import Relay, merge
from tap import Tap

BASE_CID = 1000


class Loopback(scenarios.World):
    """The peer's CID is 1 on loopback, so there is one VM."""

    many = False

    def __init__(self, bpf, mode="auto"):
        self.bpf, self.mode = bpf, mode
        self.name = "loopback" + ("" if bpf else ", user space")

    def cid(self, n=0):
        return 1

    def address(self, relay, n=0):
        return (1, 818)

    def settings(self):
        return {"bpf": self.mode, "allow_reserved_cids": True}

    def start(self, settings, vms):
        return Relay(settings)

    def start_raw(self, settings):
        merge(settings, self.settings())
        return Relay(settings)


class VhostRelay(Relay):
    """A relay with fake guests: one bridge each, so that tests connect to a path."""

    def __init__(self, settings, vms):
        super().__init__(settings)
        self.guests = FakeGuest()
        self.vms = vms
        for n in range(vms):
            self.guests.guest(BASE_CID + n)
            self.guests.bridge(BASE_CID + n, 818, self.bridge(n))

    def bridge(self, n):
        return f"{self.dir}/guest{n}"

    def __exit__(self, *exc):
        self.guests.stop()
        super().__exit__(*exc)


class Vhost(scenarios.World):
    def __init__(self, bpf, mode="auto"):
        self.bpf, self.mode = bpf, mode
        self.name = "vhost" + ("" if bpf else ", user space")

    def cid(self, n=0):
        return BASE_CID + n

    def address(self, relay, n=0):
        return relay.bridge(n)

    def settings(self):
        return {"bpf": self.mode}

    def start(self, settings, vms):
        return VhostRelay(settings, vms)

    def start_raw(self, settings):
        merge(settings, self.settings())
        return VhostRelay(settings, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--expect", choices=("bpf", "user"), default="bpf")
    parser.add_argument("--worlds", default="rules,loopback,vhost,loopback-user,hostile")
    parser.add_argument("--rounds", type=int, default=hostile.ROUNDS, help="of hostile guests")
    parser.add_argument("--seconds", type=int, default=60, help="of attacks on the budget, of scripts")
    parser.add_argument("--seed", type=int, help="of the first differential script")
    parser.add_argument("--quick", action="store_true",
                        help="over loopback only what depends on the transport, and never 50 MB")  # fmt: skip
    parser.add_argument("only", nargs="?")
    options = parser.parse_args()
    tap = Tap(options.only)
    bpf = options.expect == "bpf"
    worlds = options.worlds.split(",")
    if "doctor" in worlds:
        doctor.run_all(tap, bpf)
    if "rules" in worlds:
        vsockrules.run_all(tap, bpf)
    if "loopback" in worlds:
        tests = scenarios.OF_THE_TRANSPORT if options.quick else None
        scenarios.run_all(tap, Loopback(bpf), tests)
    if "vhost" in worlds:
        scenarios.run_all(tap, Vhost(bpf), scenarios.WITHOUT_FIFTY_ONE if options.quick else None)
    if "loopback-user" in worlds and bpf:
        scenarios.run_all(tap, Loopback(False, "off"))
    if "vhost-user" in worlds and bpf:
        scenarios.run_all(tap, Vhost(False, "off"))
    if "match" in worlds:
        for world in (Loopback(bpf), Vhost(bpf)):
            matching.run_all(tap, world)
    if "match-user" in worlds and bpf:
        matching.run_all(tap, Loopback(False, "off"))
    if "hostile" in worlds:
        hostile.run_all(tap, bpf, options.rounds)
    if "hostile-user" in worlds and bpf:
        hostile.run_user(tap)
    if "netns" in worlds:
        netns.run_all(tap, bpf)
    if "budget" in worlds and bpf:
        budget.run_all(tap, options.seconds)
    if "differential" in worlds and bpf:
        differential.run_all(tap, options.seconds, options.seed)
    tap.end()


main()

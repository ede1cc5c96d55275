#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Host tests: the daemon over hybrid sockets, in user space. Arguments: parts of test names."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import matching
import scenarios
from relay import Relay
from tap import Tap


class Hybrid(scenarios.World):
    name, hybrid = "hybrid", True

    def cid(self, n=0):
        return 100 + n

    def address(self, relay, n=0):
        return relay.path(f"vm{n}.sock")

    def start(self, settings, vms):
        wrap = os.environ.get("VSR_WRAP", "").split()
        return Relay(settings, hybrid={f"vm{n}.sock": self.cid(n) for n in range(vms)}, wrap=wrap)

    def start_raw(self, settings):
        return self.start(settings, 1)


def main():
    tap = Tap(only=sys.argv[1] if len(sys.argv) > 1 else None)
    scenarios.run_all(tap, Hybrid())
    matching.run_all(tap, Hybrid())
    tap.end()


main()

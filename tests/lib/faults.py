# SPDX-License-Identifier: Apache-2.0
"""A program each of whose calls of the system, the allocator and libraries fails once (faults.c)."""

import errno
import os
import re
import subprocess
import tempfile

import relay

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIVES = 600
VERBOSE = "VSR_VERBOSE" in os.environ
LIBRARY = os.path.join(relay.BUILD, "tests", "lib", "faults.so")


def _names():
    """As the library numbers them."""
    with open(os.path.join(TOP, "tests/lib/faults.c"), encoding="utf-8") as f:
        by_hand = f.read().partition("#define BY_HAND(X)")[2].partition("#define")[0]
    with open(os.path.join(TOP, "tests/lib/faults.list"), encoding="utf-8") as f:
        return re.findall(r"X\((\w+)", by_hand + f.read())


class Faults:
    """env: for the program. Each run of it meets failures where no earlier one did, at most `limit`.
    spare: functions whose names begin so never fail."""

    def __init__(self, program, code=errno.EIO, limit=10**6, spare=None):
        self.program = os.path.realpath(program)
        self.names = _names()
        self.marks = tempfile.NamedTemporaryFile(prefix="vsr-faults-")
        os.chmod(self.marks.name, 0o666)
        self.seen = set()
        self.env = {
            "LD_PRELOAD": os.path.realpath(LIBRARY),
            "ASAN_OPTIONS": "verify_asan_link_order=0",
            "VSR_FAULTS_PROGRAM": self.program,
            "VSR_FAULTS_MARKS": self.marks.name,
            "VSR_FAULTS_ERRNO": str(int(code)),
            "VSR_FAULTS_LIMIT": str(limit),
        }
        if spare:
            self.env["VSR_FAULTS_SPARE"] = spare

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.marks.close()

    def new(self):
        """The places that failed since the last call."""
        self.marks.seek(0)
        data = self.marks.read()
        found = {m.start(): data[m.start()] for m in re.finditer(rb"[^\0]", data)}
        new = {at: name for at, name in found.items() if at not in self.seen}
        self.seen |= set(new)
        return new

    def where(self, places):
        """Lines for people: which call of which function."""
        if not places:
            return "none"
        try:
            done = subprocess.run(["addr2line", "-sfe", self.program, *(hex(at - 1) for at in places)],
                                  capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
        except FileNotFoundError:  # in a VM
            return "\n".join(f"{self.names[name - 1]} at {at - 1:#x}" for at, name in places.items())
        return "\n".join(f"{self.names[name - 1]} in {done[2 * i]}, {done[2 * i + 1]}"
                         for i, name in enumerate(places.values()))  # fmt: skip


def storm(faults, live):
    """Runs live(environment, number) until one of the lives meets no new failure. It returns whether
    the program did what it is there for."""
    places = 0
    for n in range(LIVES):
        try:
            done = live(faults.env, n)
        except Exception as e:
            e.detail = "\n".join([f"in life {n} failed:", faults.where(faults.new()),
                                  getattr(e, "detail", "")])  # fmt: skip
            raise
        new = faults.new()
        places += len(new)
        if VERBOSE:
            print(f"# life {n}, {done}: {faults.where(new)}", flush=True)
        if not new:
            assert done, "nothing fails, and it cannot go on"
            break
    else:
        raise AssertionError(f"{LIVES} lives are not enough")
    print(f"# {places} failures, {n + 1} lives", flush=True)

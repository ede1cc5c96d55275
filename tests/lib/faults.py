# SPDX-License-Identifier: Apache-2.0
"""A program each of whose calls of the system, the allocator and libraries fails once (faults.c)."""

import errno
import os
import re
import subprocess
import tempfile

import relay

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARY = os.path.join(relay.BUILD, "tests", "lib", "faults.so")


def _names():
    """As the library numbers them."""
    with open(os.path.join(TOP, "tests/lib/faults.c"), encoding="utf-8") as f:
        by_hand = re.search(r"#define BY_HAND\(X\)(.*)", f.read())[1]
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
        done = subprocess.run(["addr2line", "-sfe", self.program, *(hex(at - 1) for at in places)],
                              capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
        return "\n".join(f"{self.names[name - 1]} in {done[2 * i]}, {done[2 * i + 1]}"
                         for i, name in enumerate(places.values()))  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Drives tests/vm/fakeguest.c: guests with their own CID over /dev/vhost-vsock, polite or hostile.

    with FakeGuest() as fg:
        fg.guest(42)
        conn = fg.connect(42, 818)
        fg.send(conn, b"...")
        fg.close(conn)

Every method is one command of the program's line protocol, described at the top of its source,
and returns the parsed answer (a dict) unless it says otherwise. The guests run all the time, also
between commands; async_=True makes connect, send, rw, pkt and shutdown return at once. An answer {"ok": false} raises
FakeGuestError, whose .error is the program's word for it ("refused", "rst", "timeout", ...) and
whose .answer is the whole dict. Times are seconds.
"""

import functools
import itertools
import json
import os
import select
import subprocess
import time

DEFAULT_TIMEOUT = 10.0
PATTERN_PERIOD = 65521

OP_REQUEST, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW = 1, 2, 3, 4, 5
OP_CREDIT_UPDATE, OP_CREDIT_REQUEST = 6, 7
SHUTDOWN_RCV, SHUTDOWN_SEND = 1, 2


class FakeGuestError(Exception):
    def __init__(self, command, answer):
        super().__init__(f"{command!r}: {answer}")
        self.error = answer.get("error")
        self.answer = answer


@functools.lru_cache(16)
def _pattern_block(seed):
    x = (seed * 2654435761 + 1) & 0xFFFFFFFF or 1
    block = bytearray(PATTERN_PERIOD)
    for i in range(PATTERN_PERIOD):
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        block[i] = x >> 24
    return bytes(block)


def pattern(seed, length, off=0):
    """The bytes of `send pattern=SEED`: xorshift32 bytes with a period of 65521."""
    start = off % PATTERN_PERIOD
    block = _pattern_block(seed)
    return (block * ((start + length) // PATTERN_PERIOD + 1))[start : start + length]


class FakeGuest:
    """One process that holds up to 64 guests."""

    _names = itertools.count()

    def __init__(self, binary=None, tmp="/tmp"):
        self.binary = binary or os.environ.get("FAKEGUEST", "fakeguest")
        self.tmp = tmp
        self.process = subprocess.Popen(
            [self.binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._buffer = b""

    # ---- the process ----

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    @property
    def pid(self):
        return self.process.pid

    def stop(self, timeout=20.0):
        """Ends the process; all its guests are gone then."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if not self.process.stdout.closed:
            self.process.stdout.close()

    def kill(self):
        """SIGKILL: every VM vanishes at once."""
        self.process.kill()
        self.process.wait()

    def _read_line(self, command, timeout):
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise FakeGuestError(command, {"error": "no answer from fakeguest"})
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise FakeGuestError(
                    command, {"error": f"fakeguest ended with status {self.process.wait()}"}
                )
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def command(self, *words, timeout=DEFAULT_TIMEOUT, check=True, **keys):
        """Runs one command. Keys that are None are left out; async_ is the key async.
        check=False returns errors too."""
        if "async_" in keys:
            keys["async"] = keys.pop("async_")
        keys = {k: int(v) if isinstance(v, bool) else v for k, v in keys.items() if v is not None}
        parts = [str(w) for w in words] + [f"{k}={v}" for k, v in keys.items()]
        line = " ".join(parts) + f" timeout={int(timeout * 1000)}"
        self.process.stdin.write(line.encode() + b"\n")
        answer = json.loads(self._read_line(line, timeout + 30))
        if check and not answer["ok"]:
            raise FakeGuestError(line, answer)
        return answer

    # ---- guests ----

    def guest(self, cid, **keys):
        """rx=, tx= (ring sizes), answer="rst"|"nothing", clings=1: never lets go of a connection."""
        return self.command("guest", cid, **keys)

    def gone(self, cid):
        return self.command("gone", cid)

    def rxstop(self, cid, timeout=DEFAULT_TIMEOUT):
        return self.command("rxstop", cid, timeout=timeout)

    def rxstep(self, cid, n, timeout=DEFAULT_TIMEOUT):
        """Returns how many packets came."""
        return self.command("rxstep", cid, n, timeout=timeout)["received"]

    def rxstart(self, cid):
        return self.command("rxstart", cid)

    def packets(self, cid, max=None):
        """Headers received since the last call, as dicts."""
        names = ("seq", "op", "src_port", "dst_port", "len", "flags", "buf_alloc", "fwd_cnt")
        return [dict(zip(names, p)) for p in self.command("packets", cid, max=max)["packets"]]

    def stats(self, cid):
        return self.command("stats", cid)

    # ---- connections ----

    def connect(self, cid, port, **keys):
        """Returns the connection's number. Raises "refused" or "timeout"."""
        return self.command("connect", cid, port, **keys)["conn"]

    def connectmany(self, cid, port, n, **keys):
        return self.command("connectmany", cid, port, n, **keys)

    def conn(self, conn):
        return self.command("conn", conn)

    def wait(self, conn, what, timeout=DEFAULT_TIMEOUT, check=True):
        """what: open, closed, shutdown, sent, credit, data."""
        return self.command("wait", conn, what, timeout=timeout, check=check)

    def recv(self, conn, n, timeout=DEFAULT_TIMEOUT):
        """Up to n bytes: fewer at the end of the stream or after the timeout."""
        return bytes.fromhex(self.command("recv", conn, n, timeout=timeout)["data"])

    def shutdown(self, conn, flags=SHUTDOWN_RCV | SHUTDOWN_SEND, **keys):
        return self.command("shutdown", conn, flags=flags, **keys)

    def close(self, conn, timeout=DEFAULT_TIMEOUT):
        return self.command("close", conn, timeout=timeout)

    def rst(self, conn):
        return self.command("rst", conn)

    def forget(self, conn):
        return self.command("forget", conn)

    # ---- sending ----

    def send(self, conn, data=None, timeout=DEFAULT_TIMEOUT, check=True, **keys):
        """Within the peer's credit. data: bytes; or file=PATH, or pattern=SEED with len=N.
        chunk=, desc=, off=, len=, async_=True. Returns the number of bytes sent."""
        path = None
        if data is not None and len(data) <= 2048:
            keys["hex"] = data.hex()
        elif data is not None:
            path = f"{self.tmp}/fakeguest-{self.pid}-{next(self._names)}"
            with open(path, "wb") as f:
                f.write(data)
            keys["file"] = path
        try:
            answer = self.command("send", conn, timeout=timeout, check=check, **keys)
        finally:
            if path:
                os.unlink(path)  # it stays mapped
        return answer.get("sent", 0)

    def rw(self, conn, timeout=DEFAULT_TIMEOUT, check=True, **keys):
        """Raw packets, whatever the credit: len=, hdrlen=, desc= or total=, count=, op=, ..."""
        return self.command("rw", conn, timeout=timeout, check=check, **keys)

    def pkt(self, cid, timeout=DEFAULT_TIMEOUT, check=True, **keys):
        """Raw packets that belong to no connection."""
        return self.command("pkt", cid, timeout=timeout, check=check, **keys)

    def creditrequest(self, conn, n, timeout=DEFAULT_TIMEOUT):
        return self.command("creditrequest", conn, n, timeout=timeout)

    def bridge(self, cid, port, path, **keys):
        return self.command("bridge", cid, port, path, **keys)

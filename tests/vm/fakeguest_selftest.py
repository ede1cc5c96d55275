#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the fake guest against plain AF_VSOCK sockets: what tests of the relay rest on.

    make build/tests/vm/fakeguest build/tests/vm/vsockdiag
    tests/vm/boot.py --modules vhost --add tests/lib:/tests/lib \\
        --add tests/vm/fakeguest_selftest.py:/tests/vm/fakeguest_selftest.py \\
        --bin build/tests/vm/fakeguest --bin build/tests/vm/vsockdiag \\
        -- python3 /tests/vm/fakeguest_selftest.py [NAME]...

Prints TAP. Runs inside the VM; needs no relay.
"""

import errno
import os
import select
import socket
import sys
import threading
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fakeguest import OP_REQUEST, FakeGuest, FakeGuestError, pattern  # noqa: E402
from vsock import diag, grant, listener, refs, so_error, wait_for  # noqa: E402

CID, PORT = 42, 818
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def check(condition, message=""):
    if not condition:
        raise AssertionError(message)


def accept(s):
    a, (cid, _) = s.accept()
    a.settimeout(20)
    return a, cid


def read_all(sock, limit=1 << 26):
    """Until the end of the stream."""
    parts, n = [], 0
    while n < limit:
        data = sock.recv(1 << 17)
        if not data:
            break
        parts.append(data)
        n += len(data)
    return b"".join(parts)


def refused(function, *args, **keys):
    """The error of a command that must fail."""
    try:
        function(*args, **keys)
    except FakeGuestError as e:
        return e.error
    raise AssertionError("no error")


# ---- polite guests ---------------------------------------------------------------------------


@test
def every_size_arrives_byte_for_byte(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        for seed, size in enumerate((1, 10, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20)):
            for end in ("shutdown", "close"):
                conn = fg.connect(CID, PORT)
                a, cid = accept(s)
                fg.send(conn, pattern=seed, len=size, async_=True)
                if end == "shutdown":
                    fg.shutdown(conn, 2, async_=True)
                else:
                    fg.shutdown(conn, 3, async_=True)
                data = bytearray()
                while len(data) < size:
                    data += a.recv(1 << 17)
                fg.wait(conn, "sent")
                check(a.recv(1) == b"", "bytes after the end")
                check(bytes(data) == pattern(seed, size), f"{size} bytes differ")
                check(cid == CID, str(cid))
                a.close()
                fg.wait(conn, "closed")
                fg.forget(conn)


@test
def writes_of_any_size_arrive(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        for chunk, size in ((1, 5000), (1000, 100000), (65536, 200000)):
            conn = fg.connect(CID, PORT)
            a, _ = accept(s)
            reader = Reader(a)
            data = pattern(chunk, size)
            check(fg.send(conn, data, chunk=chunk, timeout=30) == size, "not all sent")
            fg.shutdown(conn)
            check(reader.result() == data, f"chunks of {chunk} differ")
            a.close()


class Reader(threading.Thread):
    def __init__(self, sock):
        super().__init__(daemon=True)
        self.sock, self.data, self.error = sock, b"", None
        self.start()

    def run(self):
        try:
            self.data = read_all(self.sock)
        except OSError as e:
            self.error = e

    def result(self, timeout=30):
        self.join(timeout)
        check(not self.is_alive(), "the stream does not end")
        if self.error:
            raise self.error
        return self.data


@test
def the_guest_receives_within_its_credit(fg):
    size = 300000
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT, buf=65536)
        a, _ = accept(s)
        writer = threading.Thread(target=a.sendall, args=(pattern(3, size),), daemon=True)
        writer.start()
        data = b"".join(fg.recv(conn, 10000) for _ in range(size // 10000))
        writer.join(10)
        check(data == pattern(3, size), "bytes differ")
        check(fg.stats(CID)["overrun"] == 0, "the host sent beyond the credit")
        a.close()
        check(fg.recv(conn, 1) == b"", "bytes after the end")
        fg.wait(conn, "closed")


@test
def a_send_waits_for_credit(fg):
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        check(fg.send(conn, b"x" * 100, timeout=0.3, check=False) == 0, "sent without credit")
        fg.send(conn, pattern=5, len=100000, async_=True)
        grant(a)
        fg.wait(conn, "sent")
        fg.shutdown(conn, 2)
        check(read_all(a) == pattern(5, 100000), "bytes differ")
        a.close()


@test
def fifty_guests_send_at_once(fg):
    n, size = 50, 100000
    with listener(PORT) as s:
        for cid in range(100, 100 + n):
            fg.guest(cid)
            conn = fg.connect(cid, PORT, async_=True)
            fg.send(conn, pattern=cid % 7, len=size, off=cid, async_=True)
            fg.shutdown(conn, 2, async_=True)
        readers = {}
        while len(readers) < n:
            a, cid = accept(s)
            readers[cid] = Reader(a)
        for cid, reader in readers.items():
            check(reader.result() == pattern(cid % 7, size, off=cid), f"bytes of {cid} differ")
            reader.sock.close()


@test
def a_thousand_connections_of_one_guest(fg):
    with listener(PORT, zero_credit=True):
        fg.guest(CID)
        many = fg.connectmany(CID, PORT, 1000, timeout=30)
        check(many["open"] == 1000, str({k: v for k, v in many.items() if k != "conns"}))
        for conn in many["conns"][:10]:
            fg.rst(conn)


@test
def a_port_without_listener_refuses(fg):
    fg.guest(CID)
    check(refused(fg.connect, CID, PORT) == "refused")
    many = fg.connectmany(CID, PORT, 5)
    check(many["refused"] == 5, str(many))


# ---- hostile guests --------------------------------------------------------------------------


@test
def empty_packets_and_tiny_ones_carry_only_their_bytes(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        reader = Reader(a)
        fg.rw(conn, len=0, count=5, desc=4096)
        fg.send(conn, b"ab")
        fg.rw(conn, len=0, count=5)
        fg.rw(conn, len=1, count=2000, fill=ord("c"))
        fg.rw(conn, len=1, count=20, fill=ord("d"), desc=65536)
        fg.shutdown(conn, 2)
        check(reader.result() == b"ab" + b"c" * 2000 + b"d" * 20, "bytes differ")
        a.close()


@test
def a_packet_beyond_the_credit_ends_the_connection(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        fg.rw(conn, len=65536, count=5)
        fg.wait(conn, "closed")
        check(fg.conn(conn)["reason"] == "rst", fg.conn(conn)["reason"])
        check(so_error(a) == errno.ENOBUFS, "the host saw no overrun")
        a.close()


@test
def a_packet_longer_than_its_descriptor_does_not_stop_the_ring(fg):
    with listener(PORT) as s:
        fg.guest(CID, tx=16)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        check(fg.rw(conn, len=10, hdrlen=100, count=200)["drained"], "stuck")
        check(fg.rw(conn, len=10, total=20, count=200)["drained"], "stuck")
        fg.send(conn, b"still here")
        check(a.recv(100) == b"still here", "bytes differ")
        a.close()


@test
def any_header_can_be_sent(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        for op in (0, 3000, 7, 6):
            fg.pkt(CID, op=op, dst_port=PORT, src_port=7, type=9)
        fg.pkt(CID, op=OP_REQUEST, src_cid=7, dst_cid=1, dst_port=PORT, src_port=7)
        fg.rw(conn, len=4, op=77)
        fg.send(conn, b"fine")
        check(a.recv(100) == b"fine", "bytes differ")
        stats = fg.stats(CID)
        check(stats["malformed"] == 0 and stats["rx"]["rst"] >= 4, str(stats["rx"]))
        a.close()


@test
def a_guest_that_does_not_read_receives_nothing(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        fg.rxstop(CID)
        a.sendall(b"hello")
        check(fg.recv(conn, 5, timeout=0.5) == b"", "it reads")
        check(fg.rxstep(CID, 1) == 1, "no packet waits")
        check(fg.recv(conn, 5) == b"hello", "bytes differ")
        fg.rxstart(CID)
        a.sendall(b"world")
        check(fg.recv(conn, 5) == b"world", "bytes differ")
        a.close()


@test
def a_vm_that_vanishes_resets_its_connections(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        fg.send(conn, b"half")
        check(a.recv(100) == b"half", "bytes differ")
        fg.gone(CID)
        check(wait_for(lambda: so_error(a) == errno.ECONNRESET, 5), "not noticed")
        check(refused(fg.connect, CID, PORT) == "Invalid argument")
        fg.guest(CID)  # the CID is free again
        a.close()


@test
def a_reset_ends_the_connection_at_both_ends(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a, _ = accept(s)
        fg.rst(conn)
        check(a.recv(1) == b"", "no end")
        a.close()
        check(refused(fg.wait, conn, "credit") == "reset")


# ---- the program -----------------------------------------------------------------------------


@test
def nonsense_is_answered_by_an_error(fg):
    fg.guest(CID)
    for line in (
        ["nonsense"], ["connect"], ["connect", "x", "y"], ["connect", CID, PORT, "src=x"],
        ["guest", 2], ["guest", CID], ["guest", 43, "rx=3"], ["send", 999], ["rw", 1, "len=99999999"],
        ["wait", 1, "nothing"], ["recv", 1], ["bridge", CID, PORT], ["gone", 77], ["rxstep", CID, 1],
        ["connectmany", CID, PORT, 0], ["a"] * 100, ["conn", "1", "what=2"],
    ):  # fmt: skip
        check(not fg.command(*line, check=False)["ok"], str(line))
    check(fg.stats(CID)["ok"])


# ---- the bridge ------------------------------------------------------------------------------


class Echo(threading.Thread):
    """A host that reads a whole stream, then sends it back; n times."""

    def __init__(self, s, n):
        super().__init__(daemon=True)
        self.s, self.n, self.cids = s, n, []
        self.start()

    def run(self):
        for _ in range(self.n):
            a, cid = accept(self.s)
            self.cids.append(cid)
            with a:
                a.sendall(read_all(a))


class Served:
    """The fake guest serving a bridge by itself, as `fakeguest -s -c ...` does for the demo."""

    def __init__(self, cid, path):
        import subprocess

        self.process = subprocess.Popen(
            ["fakeguest", "-c", f"guest {cid}", "-c", f"bridge {cid} {PORT} {path}", "-s"],
            stdout=subprocess.PIPE,
        )
        for _ in range(2):
            check(b'"ok":true' in self.process.stdout.readline(), "the bridge does not start")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        check(self.process.wait(10) == 0, "the bridge ends badly")
        self.process.stdout.close()


def unix_client(path):
    c = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    c.settimeout(30)
    c.connect(path)
    return c


@test
def a_bridge_carries_both_directions_and_half_close(fg):
    path = "/tmp/bridge.sock"
    with listener(PORT) as s, Served(CID, path):
        echo = Echo(s, 3)
        for size in (1, 65536, 600000):
            with unix_client(path) as c:
                reader = Reader(c)
                c.sendall(pattern(9, size))
                c.shutdown(socket.SHUT_WR)
                check(reader.result() == pattern(9, size), f"{size} bytes differ")
        check(echo.cids == [CID] * 3, str(echo.cids))
    check(not os.path.exists(path), "the socket's file stays")


@test
def a_bridge_carries_many_at_once(fg):
    path = "/tmp/bridge.sock"
    with listener(PORT) as s, Served(CID, path):
        for _ in range(4):
            Echo(s, 3)
        clients = [unix_client(path) for _ in range(12)]
        readers = [Reader(c) for c in clients]
        for i, c in enumerate(clients):
            c.sendall(pattern(1, 50000, off=i))
            c.shutdown(socket.SHUT_WR)
        for i, r in enumerate(readers):
            check(r.result() == pattern(1, 50000, off=i), f"bytes of {i} differ")
        for c in clients:
            c.close()


@test
def a_bridge_ends_what_the_other_side_ends(fg):
    path = "/tmp/bridge.sock"
    with listener(PORT, zero_credit=True) as s, Served(CID, path):
        # The host refuses at zero credit.
        with unix_client(path) as c:
            a, _ = accept(s)
            a.close()
            check(c.recv(1) == b"", "no end")
        # The client gives up while it waits for credit.
        c = unix_client(path)
        a, _ = accept(s)
        c.close()
        check(a.recv(1) == b"", "the host sees no end")
        a.close()
        # The client closes with bytes on their way: they arrive all the same.
        c = unix_client(path)
        a, _ = accept(s)
        c.sendall(b"last words")
        c.close()
        time.sleep(0.2)
        grant(a)
        check(read_all(a) == b"last words", "bytes differ")
        a.close()
        # The host answers and closes before it has read everything.
        with unix_client(path) as c:
            a, _ = accept(s)
            grant(a, 65536)
            c.sendall(b"question")
            check(a.recv(100) == b"question", "bytes differ")
            a.sendall(b"answer")
            a.close()
            check(read_all(c) == b"answer", "bytes differ")
    # Nobody listens.
    with Served(CID, path), unix_client(path) as c:
        try:
            check(c.recv(1) == b"", "no end")
        except ConnectionResetError:
            pass


@test
def a_vanished_bridge_resets_the_host(fg):
    path = "/tmp/bridge.sock"
    with listener(PORT) as s:
        served = Served(CID, path)
        c = unix_client(path)
        a, _ = accept(s)
        c.sendall(b"x")
        check(a.recv(1) == b"x")
        served.process.kill()
        served.process.wait()
        served.process.stdout.close()
        check(wait_for(lambda: so_error(a) == errno.ECONNRESET, 5), "not noticed")
        poll = select.poll()
        poll.register(c, select.POLLIN)
        check(poll.poll(5000), "the client sees nothing")
        a.close()
        c.close()


# ---- running them ----------------------------------------------------------------------------


def run(number, function, idle_refs):
    name = function.__name__
    start = time.monotonic()
    try:
        with FakeGuest() as fg:
            function(fg)
            # A guest that lives answers the last closes; one that vanished makes them wait 8 s.
            wait_for(lambda: refs() == idle_refs, 2)
        check(wait_for(lambda: refs() == idle_refs, 12), f"left behind: {diag()}")
        print(f"ok {number} - {name} # {time.monotonic() - start:.1f} s", flush=True)
        return True
    except Exception:  # a test that cannot go on has failed, whatever the reason
        print(f"not ok {number} - {name}")
        print("".join(f"# {line}\n" for line in traceback.format_exc().splitlines()), flush=True)
        return False


def main():
    wanted = sys.argv[1:]
    tests = [t for t in TESTS if not wanted or t.__name__ in wanted]
    print(f"1..{len(tests)}", flush=True)
    idle_refs = refs()
    passed = [run(i, t, idle_refs) for i, t in enumerate(tests, 1)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

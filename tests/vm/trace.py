#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test VM: `vsock-relayctl trace` shows exactly what was done. The fake guest plays a
script, to a listener of this test or to the relay, and says itself which packets it has sent and
got. Arguments: --quick, part of a test's name. tests/vm/trace.sh boots the VM."""

import argparse
import contextlib
import ctypes
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib")]

import report as rp
import vsock
from faults import Faults, storm
from fakeguest import OP_REQUEST, SHUTDOWN_SEND, FakeGuest, FakeGuestError
from relay import BUILD, Relay, wait_for
from tap import Tap

CTL = os.path.join(BUILD, "vsock-relayctl")
CID, OTHER = 42, 43
PORT, RELAY_PORT = 900, 818
OPS = {1: "REQUEST", 2: "RESPONSE", 3: "RST", 4: "SHUTDOWN", 5: "RW", 6: "CREDIT_UPDATE",
       7: "CREDIT_REQUEST"}  # fmt: skip
SYS_PIDFD_GETFD = 438


class Trace:
    """One `vsock-relayctl -j trace ...`; attached when the constructor returns."""

    def __init__(self, *words, json_=True, env=None, options=()):
        self.json = json_
        self.lines, self.said = [], []
        self.attached = threading.Event()
        self.process = subprocess.Popen(
            [CTL, *(["-j"] if json_ else []), *options, "trace", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, TZ="UTC", **(env or {})),
        )  # fmt: skip
        self.threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.said)),
        ]
        for thread in self.threads:
            thread.start()
        if not self.attached.wait(60):
            raise TimeoutError(f"trace {words} is not attached: {self.said}")

    def _read(self, stream, into):
        for line in stream:
            into.append(line.rstrip("\n"))
            if line.startswith("tracing "):
                self.attached.set()
        self.attached.set()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.join()

    def join(self):
        status = self.process.wait(60)
        for thread in self.threads:
            thread.join()
        return status

    def stop(self):
        """Ctrl-C; what it has printed: JSON objects, or lines of text."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self):
        assert self.join() == 0, self.said
        return [json.loads(line) for line in self.lines] if self.json else self.lines

    def wait_lines(self, n):
        wait_for(lambda: len(self.lines) >= n, 20, f"{n} lines of trace")


def of(objects, event):
    return [o for o in objects if o["event"] == event]


def total(objects):
    """Flows and so on are exact only if nothing was lost."""
    assert not of(objects, "lost"), objects


@contextlib.contextmanager
def guest(*cids, **keys):
    with FakeGuest() as fg:
        for cid in cids or (CID,):
            fg.guest(cid, **keys)
        yield fg


# ---- packets ----


def exchange(fg, server, cid=CID, bytes_=3000, answer=b"x" * 20):
    """One connection, to its end. Returns the guest's port."""
    conn = fg.connect(cid, server.getsockname()[1])
    with server.accept()[0] as s:
        fg.send(conn, pattern_seed(bytes_), chunk=1000)
        got = 0
        while got < bytes_:
            got += len(s.recv(bytes_))
        s.send(answer)
        assert fg.recv(conn, len(answer)) == answer
        fg.close(conn)
        assert s.recv(1) == b""
    return fg.conn(conn)["src_port"]


def pattern_seed(n):
    return bytes(i % 251 for i in range(n))


def packets_exact():
    """What goes out is what the guest got, header by header, and what comes in is what it sent."""
    with guest() as fg, vsock.listener(PORT) as server, Trace("packets") as t:
        port = exchange(fg, server)
        time.sleep(0.3)
        got = fg.packets(CID)
        sent = fg.stats(CID)
        packets = t.stop()
    total(packets)
    out = [p for p in packets if p["direction"] == "out"]
    into = [p for p in packets if p["direction"] == "in"]
    assert len(out) + len(into) == len(packets), packets
    assert [(p["op"], p["src_port"], p["dst_port"], p["length"], p["flags"], p["buf_alloc"],
             p["fwd_cnt"]) for p in out] == [
        (OPS[p["op"]], p["src_port"], p["dst_port"], p["len"], p["flags"], p["buf_alloc"],
         p["fwd_cnt"]) for p in got], (out, got)  # fmt: skip
    assert {(p["src_cid"], p["dst_cid"]) for p in out} == {(2, CID)}, out
    assert {(p["src_cid"], p["src_port"], p["dst_cid"], p["dst_port"]) for p in into} == {
        (CID, port, 2, PORT)}, into  # fmt: skip
    assert [p["length"] for p in into if p["op"] == "RW"] == [1000, 1000, 1000], into
    count = {name: sum(p["op"] == name for p in into) for name in OPS.values()}
    assert {k: v for k, v in count.items() if v} == {
        k.upper(): v for k, v in sent["tx"].items() if v}, (count, sent)  # fmt: skip
    assert (into[0]["op"], into[-1]["op"], into[-1]["flags"]) == ("REQUEST", "SHUTDOWN", 3), into
    times = [p["time_usec"] for p in packets]
    assert abs(times[0] / 1e6 - time.time()) < 60, times[0]
    assert max(times) - min(times) < 30e6, times


def packets_hostile():
    """Every field of a header that a guest makes up is shown as it was sent."""
    fields = {"src_port": 77, "dst_port": 4000000001, "op": 5, "flags": 0x80000001,
              "buf_alloc": 4294967295, "fwd_cnt": 4294967290}  # fmt: skip
    with guest() as fg, Trace("packets", "--port", 77) as t:
        fg.pkt(CID, len=11, **fields)
        fg.pkt(CID, **{**fields, "op": 99, "type": 7})
        fg.pkt(CID, **{**fields, "op": 4, "flags": 2, "type": 2})
        t.wait_lines(3)
        packets = [p for p in t.stop() if p["direction"] == "in"]
    wanted = {"event": "packet", "direction": "in", "src_cid": CID, "src_name": None, "dst_cid": 2,
              "dst_name": None, "type": 1, "op": "RW", "length": 11, **{k: v for k, v in fields.items() if k != "op"}}  # fmt: skip
    first, second, third = ({k: v for k, v in p.items() if k != "time_usec"} for p in packets)
    assert first == wanted, first
    assert second == {**wanted, "op": 99, "length": 0, "type": 7}, second
    assert third == {**wanted, "op": "SHUTDOWN", "flags": 2, "length": 0, "type": 2}, third


def packets_text():
    """A line of text for each, as tcpdump prints it."""
    with guest() as fg, vsock.listener(PORT) as server, Trace("packets", json_=False) as t:
        port = exchange(fg, server)
        time.sleep(0.3)
        n = len(fg.packets(CID)) + sum(fg.stats(CID)["tx"].values())
        lines = t.stop()
        said = t.said
    assert len(lines) == n, lines
    end = r", buf_alloc \d+, fwd_cnt \d+$"
    stamp = r"^\d\d:\d\d:\d\d\.\d{6} "
    for pattern in (
        rf"{stamp}{CID}:{port} > 2:{PORT}: REQUEST, length 0, buf_alloc 262144, fwd_cnt 0$",
        rf"{stamp}2:{PORT} > {CID}:{port}: RESPONSE, length 0{end}",
        rf"{stamp}{CID}:{port} > 2:{PORT}: RW, length 1000{end}",
        rf"{stamp}2:{PORT} > {CID}:{port}: RW, length 20{end}",
        rf"{stamp}{CID}:{port} > 2:{PORT}: SHUTDOWN \[rcv,send\], length 0{end}",
        rf"{stamp}2:{PORT} > {CID}:{port}: RST, length 0{end}",
    ):
        assert any(re.search(pattern, line) for line in lines), (pattern, lines)
    assert said[-1] == f"{n} events seen, 0 lost", said


@contextlib.contextmanager
def qemu(cid, name):
    """A process with the command line of a QEMU."""
    args = ["qemu-system-x86_64", "-name", f"guest={name}", "-device", f"vhost-vsock-pci,guest-cid={cid}"]
    waits = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    process = subprocess.Popen([*waits, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate(timeout=30)


def play_named(fg, server):
    """A connection of each guest, and one that nobody listens to."""
    for cid in (CID, OTHER):
        exchange(fg, server, cid)
        with contextlib.suppress(FakeGuestError):
            fg.connect(cid, PORT + 50)


def names():
    """Names stand beside the CIDs, from the mapping file and from the command line of a QEMU, also of
    one that is started later; --cid takes a name."""
    path = "/tmp/names"
    with open(path, "w", encoding="ascii") as f:
        f.write(f"{CID} web-1\n")
    options = ("--names", path)
    with contextlib.ExitStack() as stack:
        fg = stack.enter_context(guest(CID, OTHER))
        server = stack.enter_context(vsock.listener(PORT))
        kinds = ("packets", "flows", "alarms")
        traces = {k: stack.enter_context(Trace(k, options=options)) for k in kinds}
        texts = {k: stack.enter_context(Trace(k, options=options, json_=False)) for k in kinds}
        only = stack.enter_context(Trace("packets", "--cid", "web-1", options=options))
        time.sleep(2.1)  # as old as names become
        stack.enter_context(qemu(OTHER, "db-2"))
        play_named(fg, server)
        time.sleep(0.5)
        shown = {k: t.stop() for k, t in traces.items()}
        lines = {k: t.stop() for k, t in texts.items()}
        few = only.stop()
    known = {2: None, CID: "web-1", OTHER: "db-2"}
    for o in (*shown["packets"], *shown["alarms"]):
        assert o["src_name"] == known[o["src_cid"]] and o["dst_name"] == known[o["dst_cid"]], o
    for flow in shown["flows"]:
        for side in (flow["client"], flow["server"]):
            assert side["name"] == known[side["cid"]], flow
    assert {o["dst_cid"] for o in shown["alarms"]} == {CID, OTHER}, shown["alarms"]
    for kind, all_lines in lines.items():
        assert len(all_lines) == len(shown[kind]) > 0, (kind, all_lines)
        for cid, name in ((CID, "web-1"), (OTHER, "db-2")):
            there = rf"\b{cid}\({name}\):\d+"
            assert any(re.search(there, line) for line in all_lines), (kind, name, all_lines)
            assert not any(re.search(rf" {cid}:\d", line) for line in all_lines), all_lines
    assert few and all(CID in (p["src_cid"], p["dst_cid"]) for p in few), few
    os.unlink(path)


def packets_loopback():
    """On loopback each packet is shown once."""
    with vsock.listener(PORT) as server, Trace("packets") as t:
        with rp.connect((1, PORT)) as client, server.accept()[0] as s:
            client.sendall(b"y" * 100)
            assert s.recv(1000) == b"y" * 100
            client.close()
            assert s.recv(1) == b""
        t.wait_lines(5)
        time.sleep(0.3)
        packets = t.stop()
    ops = [p["op"] for p in packets]
    assert ops[:3] == ["REQUEST", "RESPONSE", "RW"], ops
    assert ops.count("SHUTDOWN") == 1 and ops.count("RW") == 1, ops


def filters():
    """--cid, --port and --op leave out everything else, in the kernel."""
    with guest(CID, OTHER) as fg, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(vsock.listener(port)) for port in (PORT, PORT + 1)]
        traces = {
            name: stack.enter_context(Trace("packets", *words))
            for name, words in {
                "all": (),
                "cid": ("--cid", CID),
                "port": ("--port", PORT),
                "op": ("--op", "request,Rst"),
                "each": ("--cid", OTHER, "--port", PORT + 1, "--op", "rw"),
                "none": ("--cid", 7),
            }.items()
        }
        for cid in (CID, OTHER):
            for server in servers:
                exchange(fg, server, cid)
        time.sleep(0.5)
        shown = {name: t.stop() for name, t in traces.items()}

    def only(condition):
        return [p for p in shown["all"] if condition(p)]

    def cids(p):
        return (p["src_cid"], p["dst_cid"])

    def ports(p):
        return (p["src_port"], p["dst_port"])

    def strip(packets):
        # Each trace has taken the time itself.
        return [{k: v for k, v in p.items() if k != "time_usec"} for p in packets]

    assert strip(shown["cid"]) == strip(only(lambda p: CID in cids(p)))
    assert strip(shown["port"]) == strip(only(lambda p: PORT in ports(p)))
    assert strip(shown["op"]) == strip(only(lambda p: p["op"] in ("REQUEST", "RST")))
    assert strip(shown["each"]) == strip(
        only(lambda p: OTHER in cids(p) and PORT + 1 in ports(p) and p["op"] == "RW"))  # fmt: skip
    assert len(shown["each"]) == 4 and shown["none"] == [], shown["each"]
    assert len(shown["cid"]) * 2 == len(shown["all"]), "two guests did the same"


def count_and_duration():
    """--count ends after so many lines, --duration after that time."""
    with guest() as fg, vsock.listener(PORT) as server, Trace("packets", "--count", 3) as t:
        exchange(fg, server)
        assert [p["op"] for p in t.end()] == ["REQUEST", "RESPONSE", "RW"]
    start = time.monotonic()
    with Trace("packets", "--duration", "300ms") as t:
        assert t.end() == []
    assert time.monotonic() - start < 30


def lost():
    """What finds no room in the ring buffer is counted, and shown plus lost is all there was."""
    n = 400
    with guest() as fg, Trace("packets", "--buffer", 4, "--port", 77, "--op", "rw") as t:
        t.process.send_signal(signal.SIGSTOP)
        fg.pkt(CID, src_port=77, dst_port=78, op=5, len=1, count=n)
        time.sleep(0.5)
        t.process.send_signal(signal.SIGCONT)
        wait_for(lambda: any('"lost"' in line for line in t.lines), 20, "losses are said")
        objects = t.stop()
    gone = sum(o["count"] for o in of(objects, "lost"))
    assert gone > 0 and gone + len(of(objects, "packet")) == n, (gone, len(objects))
    with guest() as fg, Trace("packets", "--buffer", 4, "--port", 77, "--op", "rw", json_=False) as t:
        t.process.send_signal(signal.SIGSTOP)
        fg.pkt(CID, src_port=77, dst_port=78, op=5, len=1, count=n)
        time.sleep(0.5)
        t.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        lines = t.stop()
        said = t.said
    assert said[-1] == f"{n} events seen, {n - len(lines)} lost", said
    assert any("events lost: a larger --buffer" in line for line in said), said


# ---- flows ----


def drain(s, n):
    got = 0
    while got < n:
        data = s.recv(n - got)
        assert data, got
        got += len(data)


def play_all_ends(fg, server):
    """A connection for each way to end. Returns what flows must say of it, by the guest's port."""
    wanted = {}

    def note(conn, end, by, sent=0, received=0, **more):
        port = conn if isinstance(conn, int) and conn > 100000 else fg.conn(conn)["src_port"]
        wanted[port] = {"end": end, "ended_by": by, "sent": sent, "received": received, **more}

    def opened(buf=262144):
        conn = fg.connect(CID, PORT, buf=buf)
        return conn, server.accept()[0]

    # The guest closes.
    conn, s = opened()
    fg.send(conn, b"a" * 1000)
    drain(s, 1000)
    note(conn, "shutdown", "client", 1000)
    fg.close(conn)
    s.close()
    # The host closes, after an answer.
    conn, s = opened()
    fg.send(conn, b"b" * 500)
    drain(s, 500)
    s.send(b"c" * 70)
    assert len(fg.recv(conn, 70)) == 70
    note(conn, "shutdown", "server", 500, 70)
    s.close()
    fg.wait(conn, "shutdown")
    fg.close(conn)
    # A half-close by the guest is no end: the host closes then.
    conn, s = opened()
    fg.send(conn, b"d" * 10)
    fg.shutdown(conn, SHUTDOWN_SEND)
    drain(s, 10)
    assert s.recv(1) == b""
    note(conn, "shutdown", "server", 10)
    s.close()
    fg.wait(conn, "shutdown")
    fg.close(conn)
    # The guest resets.
    conn, s = opened()
    fg.send(conn, b"e" * 300)
    note(conn, "reset", "client", 300)
    fg.rst(conn)
    s.close()
    # Nobody listens.
    try:
        fg.connect(CID, PORT + 50, src=200001)
        raise AssertionError("somebody listens")
    except FakeGuestError as e:
        assert e.error == "refused", e
    note(200001, "refused", "server")
    # The sender uses up its credit, twice, and waits for more.
    with vsock.listener(PORT + 2) as small:
        vsock.set_u64(small, vsock.BUFFER_SIZE, 65536)
        conn = fg.connect(CID, PORT + 2)
        s = small.accept()[0]
        fg.send(conn, b"f" * 65536, chunk=4096)
        time.sleep(0.1)
        drain(s, 65536)
        fg.wait(conn, "credit")
        fg.send(conn, b"g" * 65536, chunk=4096)
        time.sleep(0.1)
        drain(s, 65536)
        fg.wait(conn, "credit")
        note(conn, "shutdown", "client", 131072, stalls=2)
        fg.close(conn)
        s.close()
    return wanted


def flows_exact():
    """A line for each connection: bytes, packets, stalls, its end, and who ended it."""
    with guest(CID) as fg, vsock.listener(PORT) as server, Trace("flows") as t:
        wanted = play_all_ends(fg, server)
        # The VM ends while it has a connection.
        fg.guest(OTHER)
        conn = fg.connect(OTHER, PORT)
        vanishing = server.accept()[0]
        fg.send(conn, b"h" * 40)
        port = fg.conn(conn)["src_port"]
        wanted[port] = {"end": "vanished", "ended_by": "client", "sent": 40, "received": 0}
        fg.gone(OTHER)
        t.wait_lines(len(wanted))
        vanishing.close()
        # And one is open still.
        conn = fg.connect(CID, PORT)
        open_ = server.accept()[0]
        fg.send(conn, b"i" * 5)
        wanted[fg.conn(conn)["src_port"]] = {"end": "open", "ended_by": None, "sent": 5,
                                             "received": 0}  # fmt: skip
        drain(open_, 5)
        sent = fg.stats(CID)
        flows = t.stop()
        open_.close()
    total(flows)
    assert len(flows) == len(wanted), flows
    for flow in flows:
        want = wanted[flow["client"]["port"]]
        assert flow["begun"] and flow["event"] == "flow", flow
        assert (flow["end"], flow["ended_by"]) == (want["end"], want["ended_by"]), (flow, want)
        assert flow["client"]["bytes"] == want["sent"], (flow, want)
        assert flow["server"]["bytes"] == want["received"], (flow, want)
        assert flow["client"]["stalls"] == want.get("stalls", 0), (flow, want)
        assert (flow["client"]["stalled_usec"] > 50000) == ("stalls" in want), (flow, want)
        refused = want["end"] == "refused"
        assert (flow["response_usec"] is None) == refused, flow
        assert (flow["accept_usec"] is None) == refused, flow
        if not refused:
            assert 0 < flow["response_usec"] <= flow["duration_usec"], flow
    # Every packet of this guest's is in one of them, but for what follows an end.
    seen = sum(f["client"]["packets"] for f in flows if f["client"]["cid"] == CID)
    assert 0 <= sum(sent["tx"].values()) - seen <= 4, (sent, seen)


def flows_text():
    """The same as text."""
    with guest() as fg, vsock.listener(PORT) as server, Trace("flows", json_=False) as t:
        wanted = play_all_ends(fg, server)
        t.wait_lines(len(wanted))
        lines = t.stop()
    assert len(lines) == len(wanted), lines
    for port, want in wanted.items():
        line = next(line for line in lines if f" {CID}:{port} > " in line)
        by = {"client": f"{CID}:{port}", "server": r"2:\d+"}[want["ended_by"]]
        assert re.search(rf"sent {want['sent']} bytes in \d+ packets?", line), line
        assert re.search(rf", {want['end']} by {by}$", line), line
        assert ("2 stalls" in line) == ("stalls" in want), line


def flows_vanish():
    """A VM that ends while the relay receives from it is no reset, however fast the relay closes,
    and raises no alarm."""
    with Relay({}) as relay, guest() as fg, Trace("flows") as t, Trace("alarms") as alarms:
        for _ in range(4):
            conn = fg.connect(CID, RELAY_PORT)
            fg.wait(conn, "credit")
            fg.send(conn, b"\n\x10" + b"x" * 500)
            fg.gone(CID)
            fg.guest(CID)
            relay.wait_metric("sem_holding_size", value=0)
        t.wait_lines(4)
        flows = t.stop()
        assert alarms.stop() == []
        relay.check()
    total(flows)
    assert [(f["end"], f["ended_by"], f["client"]["bytes"]) for f in flows] == [
        ("vanished", "client", 502)] * 4, flows  # fmt: skip


# ---- alarms ----


def strip_alarm(a):
    keys = ("alarm", "cause", "src_cid", "src_port", "bytes", "allowed", "counter", "grown", "peek",
            "comm")  # fmt: skip
    return {k: a[k] for k in keys if k in a}


def alarms_exact():
    """Of a script with every fault, each is shown once; of all the rest nothing."""
    with guest(CID, OTHER) as fg, vsock.listener(PORT) as server, Trace("alarms") as t:
        # Nothing is wrong with these.
        exchange(fg, server)
        conn = fg.connect(CID, PORT)
        with server.accept()[0]:
            pass
        fg.wait(conn, "shutdown")
        fg.close(conn)
        wanted = []
        # An RW without payload.
        conn = fg.connect(CID, PORT)
        s = server.accept()[0]
        fg.rw(conn, len=0)
        port = fg.conn(conn)["src_port"]
        wanted += [{"alarm": "zero_length_rw", "src_cid": CID, "src_port": port}]
        fg.close(conn)
        s.close()
        # More than the credit.
        vsock.set_u64(server, vsock.BUFFER_SIZE, 65536)
        conn = fg.connect(CID, PORT)
        s = server.accept()[0]
        port = fg.conn(conn)["src_port"]
        fg.send(conn, b"a" * 60000, chunk=4000)
        fg.rw(conn, len=10000, check=False)
        fg.wait(conn, "closed", check=False)
        wanted += [{"alarm": "credit_violation", "src_cid": CID, "src_port": port, "bytes": 70000,
                    "allowed": 65536},
                   {"alarm": "reset", "cause": "overrun", "src_cid": 2, "src_port": PORT}]  # fmt: skip
        s.close()
        # Resets that are no usual end.
        try:
            fg.connect(CID, PORT + 50)
        except FakeGuestError:
            pass
        wanted += [{"alarm": "reset", "cause": "refused", "src_cid": 2, "src_port": PORT + 50}]
        conn = fg.connect(CID, PORT)
        s = server.accept()[0]
        port = fg.conn(conn)["src_port"]
        fg.rst(conn)
        s.close()
        wanted += [{"alarm": "reset", "cause": "abort", "src_cid": CID, "src_port": port}]
        fg.pkt(CID, src_port=300003, dst_port=PORT, op=5, len=10)
        wanted += [{"alarm": "reset", "cause": "no_connection", "src_cid": 2, "src_port": PORT}]
        time.sleep(0.5)
        alarms = t.stop()
    total(alarms)
    assert [strip_alarm(a) for a in alarms] == wanted, alarms


def alarms_unanswered():
    """A guest that does not answer a close is told by the kernel's reset 8 s later."""
    with guest(CID, answer="nothing") as fg, vsock.listener(PORT) as server, Trace("alarms") as t:
        fg.pkt(CID, src_port=300004, dst_port=PORT, op=OP_REQUEST, buf_alloc=65536)
        server.accept()[0].close()
        wait_for(lambda: t.lines, 20, "an alarm")
        alarms = t.stop()
    assert [strip_alarm(a) for a in alarms] == [
        {"alarm": "reset", "cause": "unanswered", "src_cid": 2, "src_port": PORT}], alarms  # fmt: skip


def pidfd_getfd(pid, wanted):
    """A copy of the one descriptor of the process that `wanted` says yes to."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(name), 0)
            if fd < 0:
                continue
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.close(fd)
                continue
            s = socket.socket(fileno=fd)
            if wanted(s):
                return s
            s.close()
    finally:
        os.close(pidfd)
    raise AssertionError("no such descriptor")


def alarms_of_the_relay():
    """Bytes that pass the verdict by and are read nevertheless, and what the verdict itself counts.
    (The relay never reads them: it is stopped, and this test reads in its place.)"""
    with Relay({}) as relay, guest() as fg, Trace("alarms") as t:
        conn = fg.connect(CID, RELAY_PORT)
        fg.wait(conn, "credit")
        port = fg.conn(conn)["src_port"]
        relay.signal(signal.SIGSTOP)

        def is_peer(s):
            try:
                return s.family == socket.AF_VSOCK and s.getpeername() == (CID, port)
            except OSError:
                return False

        with pidfd_getfd(relay.process.pid, is_peer) as s:
            # The verdict is shown the empty packet in place of the full one.
            fg.rw(conn, len=0, desc=65536)
            fg.rw(conn, len=5000)
            assert len(s.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT)) == 100
            assert len(s.recv(10000, socket.MSG_DONTWAIT)) == 5000
        relay.signal(signal.SIGCONT)
        wait_for(lambda: relay.refused().get("zero_length"), 10, "the relay has refused it")
        wait_for(lambda: any("verdict_error" in line for line in t.lines), 10, "verdict error")
        fg.close(conn)
        alarms = t.stop()
        relay.check()
    total(alarms)
    raw = {"alarm": "raw_read", "src_cid": CID, "src_port": port, "comm": "python3"}
    wanted = [
        {"alarm": "zero_length_rw", "src_cid": CID, "src_port": port},
        {**raw, "bytes": 100, "peek": True},
        {**raw, "bytes": 5000, "peek": False},
        {"alarm": "verdict_error", "counter": "zero_length", "grown": 1},
    ]
    got = [strip_alarm(a) for a in alarms]
    by_name = lambda a: json.dumps(a, sort_keys=True)  # noqa: E731
    assert sorted(got, key=by_name) == sorted(wanted, key=by_name), alarms


def alarms_none():
    """Of reports that are received there is no alarm, and no reader of a socket of its own raises
    one."""
    with Relay({"unchanged": "forward"}) as relay, guest() as fg, Trace("alarms") as t:
        for seed in range(3):
            payload = rp.report(CID, 100000, seed=seed)
            conn = fg.connect(CID, RELAY_PORT)
            fg.wait(conn, "credit")
            fg.send(conn, rp.header(payload) + payload)
            assert fg.recv(conn, 8) == b"VSA1\0\0\0\0"
            fg.close(conn)
        with vsock.listener(PORT) as server:
            exchange(fg, server)
        time.sleep(0.7)
        assert t.stop() == []
        relay.check()


# ---- latency, and many reports ----


def latency():
    """Every report is in each of the histograms."""
    n = 10
    settings = {"unchanged": "forward", "admission": {"grant_rate": 0}}
    with Relay(settings) as relay, guest() as fg, Trace("latency") as t:
        text = Trace("latency", json_=False)
        with text:
            for seed in range(n):
                payload = rp.report(CID, 2000, seed=seed)
                conn = fg.connect(CID, RELAY_PORT)
                fg.wait(conn, "credit")
                if seed % 2:
                    fg.send(conn, rp.header(payload) + payload)
                    assert fg.recv(conn, 8) == b"VSA1\0\0\0\0"
                    fg.close(conn)
                else:
                    fg.send(conn, payload)
                    fg.close(conn)
                    relay.wait_stored(CID, payload)
            time.sleep(0.5)
            lines = text.stop()
        histograms = {h["name"]: h for h in of(t.stop(), "histogram")}
        relay.check()
    assert list(histograms) == ["request_to_response", "request_to_accept", "request_to_credit",
                                "last_byte_to_accepted"], histograms  # fmt: skip
    for h in histograms.values():
        assert h["count"] == sum(b["count"] for b in h["buckets"]) == n, h
        assert h["unseen"] is None and 0 < h["max"] < 10e6 and h["sum"] >= h["max"], h
        for b in h["buckets"]:
            assert b["to"] == max(1, 2 * b["from"] - 1), b
    sums = [h["sum"] for h in histograms.values()]
    assert sums[0] <= sums[2], sums
    for title in ("REQUEST to RESPONSE", "REQUEST to accept()", "REQUEST to the first credit",
                  "last byte to accepted"):  # fmt: skip
        assert any(line.startswith(f"{title}: {n}, average ") for line in lines), lines
    assert any(re.match(r" +\d+ - \d+ +: \d+ +\|\*+ *\|$", line) for line in lines), lines


def send_from(fg, directory, vms, each):
    """Framed reports from this many guests at a time; the answers."""
    answers = []

    def send(cid):
        for seed in range(each):
            payload = rp.report(cid, 1000, seed=seed)
            answers.append(rp.send_framed(f"{directory}/guest{cid}", payload))

    for v in range(vms):
        fg.bridge(1000 + v, RELAY_PORT, f"{directory}/guest{1000 + v}")
    threads = [threading.Thread(target=send, args=(1000 + v,)) for v in range(vms)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        fg.stats(1000)  # bridges are served between commands, and this is quick
        time.sleep(0.05)
    return answers


def thousand_reports():
    """With everything traced at once, 1000 reports are received as without, and every one of them
    is a flow."""
    n, vms = 1000, 10
    settings = {"unchanged": "forward", "admission": {"grant_rate": 0}}
    results = []
    for traced in (False, True):
        with contextlib.ExitStack() as stack:
            relay = stack.enter_context(Relay(settings))
            fg = stack.enter_context(guest(*range(1000, 1000 + vms)))
            traces = {}
            if traced:
                for name in ("packets", "flows", "latency", "alarms"):
                    traces[name] = stack.enter_context(Trace(name, "--buffer", 65536))
            start = time.monotonic()
            answers = send_from(fg, relay.dir, vms, n // vms)
            print(f"# {n} reports, traced {traced}: {time.monotonic() - start:.1f} s")
            assert answers == [rp.ACCEPTED] * n, answers
            relay.wait_metric("contents_held", value=0)
            metrics = relay.check()
            stored = [relay.stored(1000 + v) for v in range(vms)]
            keys = ("index_reports_received_total", "connections_accepted_total",
                    "reports_refused_total", "index_acks_from_sensor_total",
                    "bpf_seen_bytes_total")  # fmt: skip
            results.append(({k: metrics[k] for k in keys if k in metrics}, stored))
            time.sleep(0.5)
            shown = {name: t.stop() for name, t in traces.items()}
    assert results[0] == results[1], results
    assert results[1][0]["index_reports_received_total"] == n, results[1][0]
    for objects in shown.values():
        total(objects)
    assert len(shown["flows"]) == n and shown["alarms"] == [], (len(shown["flows"]), shown["alarms"])
    assert {(f["end"], f["client"]["bytes"], f["server"]["bytes"]) for f in shown["flows"]} <= {
        ("shutdown", 1016, 8)}, shown["flows"][:3]  # fmt: skip
    assert all(h["count"] == n for h in shown["latency"]), shown["latency"]
    requests = sum(p["op"] == "REQUEST" for p in shown["packets"])
    assert requests == n, requests


# ---- what is missing ----


def modules_missing():
    """Without the modules it says which, and how to load them."""
    files = sorted(glob.glob("/lib/modules/[0-9]*.ko"))
    names = [os.path.basename(f)[3:-3] for f in files]
    unloaded = []
    try:
        for name in reversed(names):
            if "vsock" in name:
                subprocess.run(["rmmod", name], check=True, timeout=30)
                unloaded.insert(0, name)
        for words in (["packets"], ["-j", "alarms"]):
            options = [w for w in words if w.startswith("-")]
            r = subprocess.run([CTL, *options, "trace", words[-1]], capture_output=True, text=True,
                               check=False, timeout=60)  # fmt: skip
            assert r.returncode == 1, r
            said = json.loads(r.stdout)["error"] if options else r.stderr
            assert "vmw_vsock_virtio_transport_common is not loaded" in said, said
            assert "modprobe vhost_vsock" in said, said
        while unloaded and "vhost_vsock" not in unloaded[0]:
            insert(files, names, unloaded.pop(0))
        with Trace("packets") as t:
            t.stop()
            assert any("only loopback is seen" in line and "modprobe vhost_vsock" in line
                       for line in t.said), t.said  # fmt: skip
    finally:
        for name in unloaded:
            insert(files, names, name)


def insert(files, names, name):
    subprocess.run(["insmod", files[names.index(name)]], check=True, timeout=30)


def not_root():
    """Without privileges it says so."""
    r = subprocess.run([CTL, "trace", "packets"], user=65534, capture_output=True, text=True,
                       check=False, timeout=60)  # fmt: skip
    assert r.returncode == 1 and "not allowed: tracing needs root" in r.stderr, r


def usage():
    """What makes no sense is refused at once, with the reason; in JSON too."""
    for words, wanted in {
        ("packets", "--op", "rw,foo"): "--op foo: no such operation; there are request, response",
        ("packets", "--op"): "--op needs an argument",
        ("packets", "--cid", "4294967296"): "--cid 4294967296: not a number from 0 to 4294967295",
        ("packets", "--cid", "no-such-vm"): "no-such-vm: expected CID, NAMESPACE:CID or a name",
        ("packets", "--port", "-1"): "--port -1: not a number",
        ("flows", "--op", "rw"): "--op: no such option of trace flows",
        ("latency", "--count", "1"): "--count: no such option of trace latency",
        ("alarms", "--duration", "5"): "--duration 5: not a duration such as 10s",
        ("alarms", "--buffer", "2000000"): "--buffer 2000000: not a number from 0 to 1048576",
        ("alarms", "42"): "42: trace alarms takes options only",
        ("nothing",): "nothing: no such command",
    }.items():
        for options in ([], ["-j"]):
            r = subprocess.run([CTL, *options, "trace", *words], capture_output=True, text=True,
                               check=False, timeout=60)  # fmt: skip
            said = json.loads(r.stdout)["error"] if options else r.stderr
            assert r.returncode == 2 and wanted in said, (words, r)


def no_daemon():
    """Without a daemon latency and alarms say what they cannot see."""
    with Trace("latency", json_=False) as t:
        assert any("no vsock-relayd with probes runs" in line for line in t.stop()), t.lines
    with Trace("alarms") as t:
        t.stop()
        assert any("verdict errors cannot be seen" in line for line in t.said), t.said


def failures():
    """Each call of the system, the allocator and libbpf fails once: a trace goes on, or says why it
    cannot."""
    # What jansson cannot allocate ends the program by itself.
    with Relay({}) as relay, Faults(CTL, spare="json_") as faults:
        for kind in ("packets", "flows", "latency", "alarms"):
            for options in ([], ["-j"]):
                command = [CTL, "-c", relay.config_path, *options, "trace", kind, "--duration", "50ms"]

                def live(env, _n, command=command):
                    r = subprocess.run(command, env={**os.environ, **env}, capture_output=True,
                                       text=True, check=False, timeout=60)  # fmt: skip
                    assert r.returncode in range(5), r
                    assert r.returncode == 0 or "vsock-relayctl: " in r.stderr or '"error"' in r.stdout, r
                    return r.returncode == 0

                storm(faults, live)
        relay.check()


QUICK = (packets_exact, names, lost, flows_exact, alarms_exact, latency)
TESTS = (modules_missing, not_root, usage, no_daemon, packets_exact, packets_hostile, packets_text,
         names, packets_loopback, filters, count_and_duration, lost, flows_exact, flows_text,
         flows_vanish, alarms_exact, alarms_unanswered, alarms_of_the_relay, alarms_none, latency,
         failures, thousand_reports)  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the main things only")
    parser.add_argument("--without", action="append", default=[], metavar="TEST")
    parser.add_argument("only", nargs="?")
    options = parser.parse_args()
    tap = Tap(options.only)
    for test in QUICK if options.quick else TESTS:
        if test.__name__ not in options.without:
            tap.run(f"trace: {test.__name__}: {' '.join(test.__doc__.split())}", test)
    tap.end()


main()

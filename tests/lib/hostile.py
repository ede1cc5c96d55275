# SPDX-License-Identifier: Apache-2.0
"""Hostile guests against one relay, over /dev/vhost-vsock (tests/vm/fakeguest.c).

Every attack comes from a guest with a CID of its own, and is one test. After each of them: the
refusals are exactly those expected, and every connection came to exactly one end; what is stored
is what was accepted, to the byte; polite VMs are served; the counters that must stay 0 did; and
nothing is left behind: no socket, no queued byte, no map entry, no reservation, no debt. All
attacks are run three times against the same relay: then neither the machine nor the daemon may
have less memory than after the first round."""

import contextlib
import ctypes
import gc
import hashlib
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time

import report as rp
import vsock
from fakeguest import SHUTDOWN_RCV, SHUTDOWN_SEND, FakeGuest, FakeGuestError
from relay import Relay, wait_for
from tap import Skip

KIB, MIB = 1024, 1024 * 1024
PORT = 818
ROUNDS = 3
POLITE = range(901, 905)  # four: the grant rate of one alone would hold up the tests
FIRST_CID = 2000
SYS_PIDFD_GETFD = 438
# Memory of a credit update in a guest's queue (docs/kernel-facts.md, "updates_after_close").
UPDATE_BYTES = 932
# What a guest that reads nothing leaves grows until the relay gets to run, and closes: 0.6 to 1.6 MiB; 5.3 were
# seen where four busy virtual processors shared two. The whole flood would be 18 MiB.
DEBT_LIMIT = 8 * MIB
SLACK = 2 * MIB
# Packets without payload: credit that the kernel takes for one, what one costs (user/unseen.h).
UNSEEN_CREDIT, UNSEEN_COST = 576, 66 * KIB
# An answer, or a few credit updates that a polite guest had not read yet at the close.
DEBT_OF_A_MOMENT = 4 * KIB
# A connection that its peer does not answer any more stays in the kernel's tables for 8 s.
LINGER_S = 8
# How connections end that never were a report.
NO_REPORT = {"vm_connections", "waiter_gone", "wait_timeout", "aborted", "cid_mismatch"}

# ... and how those of a guest that does not read its ring.
UNREAD = NO_REPORT | {"unread_updates", "debt"}

# virtio_transport_alloc_skb() sets the owner of a packet since 6.3.
SEND_QUEUE_IS_CHARGED = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 3)

_libc = ctypes.CDLL(None, use_errno=True)


# ---- what is left of a relay's sockets and of the kernel's memory ----


def relay_sockets(pid):
    """SO_MEMINFO of every AF_VSOCK socket that the process has open."""
    found = []
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            fd = _libc.syscall(SYS_PIDFD_GETFD, pidfd, int(name), 0)
            if fd < 0:
                continue  # closed meanwhile
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.close(fd)
                continue
            with socket.socket(fileno=fd) as s:
                if s.family == socket.AF_VSOCK:
                    found.append(vsock.meminfo(s))
    finally:
        os.close(pidfd)
    return found


def open_map(name, directory="/sys/fs/bpf/vsock_relay"):
    """The entries of a pinned map, as bpftool prints them with the names of BTF."""
    out = subprocess.check_output(
        ["bpftool", "-j", "map", "dump", "pinned", f"{directory}/{name}"], timeout=30
    )
    return [entry.get("formatted", entry) for entry in json.loads(out)]


def meminfo(field):
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) * KIB for line in f if line.startswith(field + ":"))


def on_free_lists():
    """Free pages on the processors' own lists, which MemFree and MemAvailable do not count."""
    with open("/proc/zoneinfo", encoding="ascii") as f:
        pages = sum(int(line.split()[1]) for line in f if line.lstrip().startswith("count:"))
    return pages * os.sysconf("SC_PAGE_SIZE")


def of_tests(relay):
    """Memory of all processes but the relay, and of files in memory: the tests' own."""
    total = meminfo("Shmem")
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != relay:
            with contextlib.suppress(OSError), open(f"/proc/{name}/status", encoding="ascii") as f:
                for line in f:
                    if line.startswith("RssAnon"):
                        total += int(line.split()[1]) * KIB
    return total


def settled_memory(relay):
    """MemAvailable once all that can be given back is, as if the tests took none: the best of a
    few looks."""
    gc.collect()
    best = 0
    for _ in range(5):
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3")
        time.sleep(0.2)
        best = max(best, meminfo("MemAvailable") + on_free_lists() + of_tests(relay))
    return best


# ---- one attacker ----


class Guest:
    """A guest with a CID, in a process of its own."""

    def __init__(self, cid, **keys):
        self.cid = cid
        self.keys = keys
        self.fg = FakeGuest()
        self.fg.guest(cid, **keys)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.fg.stop()

    def reborn(self):
        """The VM is gone, and another one has its CID."""
        self.fg.gone(self.cid)
        self.fg.guest(self.cid, **self.keys)

    def open(self):
        """A connection that has been granted its place."""
        conn = self.fg.connect(self.cid, PORT)
        self.fg.wait(conn, "credit", timeout=20)
        return conn

    def report(self, size=20000, seed=0):
        return rp.report(self.cid, size, seed=seed)

    def answer(self, conn):
        """The status of a framed answer, None if the connection ended without one."""
        data = self.fg.recv(conn, 8)
        if len(data) < 8:
            return None
        magic, status = struct.unpack(">4sI", data)
        assert magic == b"VSA1", data
        return status

    def framed(self, payload, conn=None, timeout=30, **keys):
        """VSR1; the answer's status."""
        conn = conn or self.open()
        self.fg.send(conn, rp.header(payload) + payload, timeout=timeout, check=False, **keys)
        return self.answer(conn)

    def raw(self, payload, conn=None, **keys):
        conn = conn or self.open()
        self.fg.send(conn, payload, check=False, timeout=30, **keys)
        self.fg.close(conn)

    def hold(self, n):
        """n connections that are in the middle of a report."""
        conns = [self.open() for _ in range(n)]
        for conn in conns:
            self.fg.send(conn, rp.header(b"x" * 1000)[:16] + b"x")
        return conns


class Expect:
    """What an attack must lead to. refused: exactly these; some: any of these reasons, once for
    each connection that is left; stored: the attacker's report upstream, or {CID: report}; with
    either, also what was stored before will do."""

    def __init__(self, some=(), stored=None, either=False, **refused):
        self.some, self.stored, self.either, self.refused = set(some), stored, either, refused


# ---- attacks on the read rule: packets without payload ----


def zero_before(s, g):
    """A packet without payload before the data: a violation where BPF looks."""
    payload = g.report()
    conn = g.open()
    g.fg.rw(conn, len=0)
    g.raw(payload, conn)
    return s.bpf_only("zero_length", payload)


def zero_before_in_big_descriptor(s, g):
    """The same, in a descriptor of 64 KiB."""
    payload = g.report()
    conn = g.open()
    g.fg.rw(conn, len=0, desc=65536)
    g.raw(payload, conn)
    return s.bpf_only("zero_length", payload)


def zero_amid(s, g):
    """A packet without payload in the middle of a framed report: answered as a violation."""
    payload = g.report()
    conn = g.open()
    data = rp.header(payload) + payload
    g.fg.send(conn, data[:5000])
    g.fg.rw(conn, len=0)
    g.fg.send(conn, data[5000:], check=False)
    status = g.answer(conn)
    assert status == (rp.REFUSED if s.bpf else rp.ACCEPTED), status
    return s.bpf_only("zero_length", payload)


def zeros_then_many(s, g):
    """The bypass: packets without payload, then as much data as BPF would never be shown."""
    conn = g.open()
    g.fg.rw(conn, len=0, desc=65536, count=100)
    g.fg.rw(conn, len=100, fill=255, count=2000, check=False)
    g.fg.close(conn)
    # Without BPF what is thrown at a socket without a look at its credit may also reset it.
    return Expect(zero_length=1) if s.bpf else Expect(some={"malformed", "aborted"})


def zeros_after_many(s, g):
    """Packets without payload after the data, then data again: nothing of it is taken."""
    conn = g.open()
    g.fg.send(conn, g.report())
    g.fg.rw(conn, len=0, desc=65536, count=100)
    g.fg.rw(conn, len=1000, fill=255, count=100, check=False)
    g.fg.close(conn)
    # Without BPF what is thrown at a socket without a look at its credit may also reset it.
    return Expect(zero_length=1) if s.bpf else Expect(some={"malformed", "aborted"})


def zeros_merged(s, g):
    """The kernel appends small packets to the one before, if its descriptor has room: then there
    is no packet without payload to be seen, and nothing that BPF misses."""
    payload = g.report(5000)
    conn = g.open()
    g.fg.rw(conn, len=0, count=1000)
    g.raw(payload, conn, chunk=100)
    return Expect(stored=payload)


def park(g, conn, size=0):
    """As many packets in descriptors of 64 KiB as the credit lets the kernel keep; their number."""
    count = g.fg.conn(conn)["peer_buf_alloc"] // UNSEEN_CREDIT - 1
    g.fg.rw(conn, len=size, fill=255, desc=65536, count=count, check=False)
    return count


def zeros_alone(s, g):
    """Without data behind them BPF is not woken up, and what they hold is charged to nobody: it is
    at most what credit was paid for, and the daemon finds it at its next look."""
    conn = g.open()
    drawn, refused = s.relay.metric("memory_shared_reserve_drawn_bytes"), s.refusals()
    before = meminfo("MemAvailable")
    with Lowest() as lowest:
        count = park(g, conn)
    fell = before - lowest.value
    s.note(f"{count} packets: MemAvailable fell by {fell / MIB:.1f} MiB, {drawn / MIB:.1f} were drawn")
    assert drawn >= count * 64 * KIB, f"{drawn} drawn for {count} packets"
    assert fell < count * UNSEEN_COST + 4 * MIB, fell
    if s.bpf:
        s.wait_refused(refused, zero_length=1)
        return Expect(zero_length=1)
    g.fg.close(conn)
    return Expect(cid_mismatch=1)


def zeros_kept(s, g):
    """The same from a guest that does not let go of its connection: what the kernel keeps for 8 s
    behind the close is the VM's debt, and it gets no place as long."""
    if not s.bpf:
        raise Skip("only with BPF is it seen")
    refused, debts = s.refusals(), s.relay.metric("memory_debt_bytes")
    parked = g.open()
    count = park(g, parked)
    s.wait_refused(refused, zero_length=1)
    debt = s.relay.metric("memory_debt_bytes") - debts
    assert debt <= count * UNSEEN_COST + DEBT_OF_A_MOMENT, f"debt {debt} for {count} packets"
    if g.fg.conn(parked)["state"] != "open":
        s.note("it was found while it parked, and its next packet has reset it: nothing is kept")
        s.wait_no_debt()
        return Expect(zero_length=1)
    assert debt >= count * 64 * KIB, f"debt {debt} for {count} packets"
    start = time.monotonic()
    conn = g.fg.connect(g.cid, PORT)
    g.fg.wait(conn, "shutdown", check=False)  # after 5 s
    s.wait_refused(refused, zero_length=1, debt=1)
    g.fg.wait(g.fg.connect(g.cid, PORT), "credit", timeout=20)
    s.note(f"debt {debt / MIB:.1f} MiB for {time.monotonic() - start:.1f} s")
    g.fg.gone(g.cid)
    s.wait_idle()
    s.wait_no_debt()
    return Expect(zero_length=1, debt=1, aborted=1)


def behind_the_close(s, g):
    """Packets for a connection that the relay has closed, of a guest that does not let go of it,
    with payload and without: the kernel keeps none."""
    for size in (1, 0):
        payload = g.report(seed=size)
        conn = g.open()
        credit = g.fg.conn(conn)["peer_buf_alloc"]
        g.fg.send(conn, rp.header(payload) + payload)
        assert g.answer(conn) == rp.ACCEPTED
        g.fg.wait(conn, "shutdown")
        before = meminfo("MemAvailable")
        g.fg.rw(conn, len=size, desc=65536, count=credit // UNSEEN_CREDIT - 1, check=False)
        fell = before - meminfo("MemAvailable")
        assert fell < 2 * MIB, f"{fell} bytes are kept"
    return Expect(stored=payload)


def too_many_zeros(s, g):
    """More of them than the credit allows: the kernel resets the connection, or (6.1) merges them
    into nothing. There is no report either way."""
    conn = g.open()
    g.fg.rw(conn, len=0, desc=65536, count=1000, check=False)
    g.fg.close(conn)
    return Expect(some={"aborted", "zero_length" if s.bpf else "cid_mismatch"})


def zeros_at_the_end(s, g):
    """Behind the last byte they carry nothing, and change nothing."""
    payload = g.report()
    conn = g.open()
    g.fg.send(conn, payload)
    g.fg.rw(conn, len=0, count=3)
    g.fg.close(conn)
    return Expect(stored=payload)


# ---- attacks by packets that cost more than they carry ----


def one_byte_packets(s, g):
    """A report in ten thousand packets of one byte is a report; garbage is garbage."""
    payload = g.report(10000)
    status = g.framed(payload, chunk=1, timeout=60)
    assert status == rp.ACCEPTED, status
    conn = g.open()
    g.fg.rw(conn, len=1, fill=255, count=10000, timeout=60)
    g.fg.close(conn)
    return Expect(malformed=1, stored=payload)


def one_byte_in_big_descriptors(s, g):
    """Each byte costs the kernel 66 KB: read in time or refused, never more than the budget."""
    payload = g.report(2500)
    before = meminfo("MemAvailable")
    with Lowest() as lowest:
        status = g.framed(payload, chunk=1, desc=65536, timeout=60)
    s.note(f"MemAvailable fell by {(before - lowest.value) // MIB} MiB, answer {status}")
    assert before - lowest.value < 256 * MIB, "the budget was exceeded"
    if status == rp.ACCEPTED:
        return Expect(stored=payload)
    return Expect(some={"over_budget", "unread_updates"}, stored=payload, either=True)


def big_descriptors(s, g):
    """A descriptor larger than its length: the report arrives as it is."""
    payload = g.report(100 * 1000)
    status = g.framed(payload, chunk=1000, desc=65536, timeout=60)
    assert status == rp.ACCEPTED, status
    return Expect(stored=payload)


def lying_headers(s, g):
    """A header's length beyond its descriptor, a packet shorter than a header, unknown operations,
    somebody else's addresses: the kernel throws them away, the report beside them is accepted."""
    payload = g.report()
    conn = g.open()
    data = rp.header(payload) + payload
    g.fg.send(conn, data[:10000])
    for keys in (
        {"len": 100, "hdrlen": 1000},
        {"len": 100, "hdrlen": 0xFFFFFFFF},
        {"len": 0, "total": 20},
        {"len": 100, "op": 0},
        {"len": 100, "op": 200},
        {"len": 100, "src_cid": POLITE[0]},
        {"len": 100, "dst_cid": POLITE[0]},
    ):
        g.fg.rw(conn, check=False, timeout=1, **keys)
    g.fg.send(conn, data[10000:])
    status = g.answer(conn)
    assert status == rp.ACCEPTED, status
    return Expect(stored=payload)


def beyond_no_grant(s, g):
    """Data from a connection that waits at zero credit: the kernel resets it, nothing arrives."""
    held = g.hold(2)
    third = g.fg.connect(g.cid, PORT)
    s.relay.wait_metric("sem_queue_size", value=1)
    g.fg.rw(third, len=1000, count=10, check=False)
    g.fg.wait(third, "closed")
    s.relay.wait_metric("sem_queue_size", value=0)
    for conn in held:
        g.fg.rst(conn)
    return Expect(waiter_gone=1, aborted=2)


def beyond_the_grant(s, g):
    """20 MB without a look at the credit: bounded by the report limit and the budget."""
    conn = g.open()
    before = meminfo("MemAvailable")
    with Lowest() as lowest:
        g.fg.rw(conn, len=65536, count=320, check=False, timeout=60)
        g.fg.close(conn)
    s.note(f"MemAvailable fell by {(before - lowest.value) // MIB} MiB")
    assert before - lowest.value < 256 * MIB, "the budget was exceeded"
    return Expect(some={"too_large"} if s.bpf else {"too_large", "aborted"})


# ---- attacks by guests that do not read their ring ----


def blind_connections(g, n):
    """Connections of a guest that sees no answer at all, and sends all the same."""
    conns = []
    for _ in range(n):
        conn = g.fg.connect(g.cid, PORT, async_=True)
        time.sleep(0.5)  # let it be granted: earlier data would only reset it
        g.fg.rw(conn, len=1, count=5000, async_=True)
        conns.append(conn)
    return conns


def never_reads(s, g):
    """What the guest does not read is bounded (DEBT_LIMIT), and counted as its debt: first of one
    connection, with data long after its end, then of more. Returns the connections."""
    conn = g.open()
    g.fg.rxstop(g.cid)
    before, slab, debts = s.refusals(), meminfo("SUnreclaim"), s.relay.metric("memory_debt_bytes")
    g.fg.rw(conn, len=1, count=20000, async_=True)
    s.wait_refused(before, unread_updates=1)
    first = s.relay.metric("memory_debt_bytes") - debts
    conns = blind_connections(g, 4)
    s.wait_idle()
    debt = s.relay.metric("memory_debt_bytes") - debts
    slab = meminfo("SUnreclaim") - slab
    s.note(
        f"debt {first / MIB:.2f} MiB of one connection, {debt / MIB:.2f} MiB of all; unreclaimable "
        f"slab {slab / MIB:+.2f} MiB; refused {s.refusals_since(before)}"
    )
    assert 512 * KIB <= first <= debt <= DEBT_LIMIT, f"debt {first}, {debt}"
    return [conn, *conns]


def unread_then_read(s, g):
    """A guest that does not read its ring leaves a bounded amount, counted as its debt; it ends
    when it has read all."""
    conns = never_reads(s, g)
    before = g.fg.stats(g.cid)["rx"]["credit_update"]
    g.fg.rxstart(g.cid)
    for conn in conns:
        g.fg.forget(conn)
    wait_for(lambda: g.fg.stats(g.cid)["tx_outstanding"] == 0, 20, "the flood is over")
    queued = (g.fg.stats(g.cid)["rx"]["credit_update"] - before) * UPDATE_BYTES
    s.note(f"{queued / MIB:.2f} MiB were queued for the guest")
    s.wait_idle()
    s.redeem_as(g)
    s.wait_no_debt()
    return Expect(some=UNREAD)


def unread_then_gone(s, g):
    """Once the VM is gone nothing is left of it: the next one with its CID pays for nothing."""
    refs = vsock.refs()
    never_reads(s, g)
    g.reborn()
    assert vsock.wait_for(lambda: vsock.refs() <= refs, LINGER_S + 4), "sockets are held"
    s.wait_idle()
    s.redeem_as(g)
    s.wait_no_debt()
    return Expect(some=UNREAD)


def credit_requests(s, g):
    """Twenty thousand requests for credit of a guest that reads the answers: nothing comes of it."""
    payload = g.report()
    conn = g.open()
    g.fg.send(conn, rp.header(payload))
    g.fg.creditrequest(conn, 20000, timeout=60)
    g.fg.send(conn, payload)
    status = g.answer(conn)
    assert status == rp.ACCEPTED, status
    return Expect(stored=payload)


def credit_requests_unread(s, g):
    """The same from one that does not read: refused at the next look, and its debt ends."""
    if not SEND_QUEUE_IS_CHARGED:
        raise Skip("this kernel charges no packet to its socket")
    conn = g.open()
    g.fg.rxstop(g.cid)
    before, debts = s.refusals(), s.relay.metric("memory_debt_bytes")
    g.fg.creditrequest(conn, 2000, timeout=60)
    s.wait_refused(before, unread_updates=1)
    debt = s.relay.metric("memory_debt_bytes") - debts
    assert 512 * KIB <= debt <= DEBT_LIMIT, debt
    g.fg.rxstart(g.cid)
    s.redeem_as(g)
    s.wait_no_debt()
    return Expect(unread_updates=1)


# ---- attacks by leaving ----


def connect_and_close(s, g):
    """Hundreds of connections that are closed as soon as they are open."""
    for _ in range(2):
        conns = g.fg.connectmany(g.cid, PORT, 100, async_=True)["conns"]
        for conn in conns:
            g.fg.shutdown(conn, async_=True)
        for conn in conns:
            g.fg.wait(conn, "closed", timeout=20)
    return Expect(some=NO_REPORT)


def connect_and_reset(s, g):
    """The same by resets."""
    for _ in range(2):
        for conn in g.fg.connectmany(g.cid, PORT, 100, async_=True)["conns"]:
            g.fg.forget(conn)
    return Expect(some=NO_REPORT)


def connect_and_vanish(s, g):
    """The same by VMs that are gone a moment later."""
    for _ in range(3):
        g.fg.connectmany(g.cid, PORT, 100, async_=True)
        g.reborn()
    s.wait_accepted()
    return Expect(some=NO_REPORT)


def gone_in_mid_report(s, g):
    """The VM vanishes within a report, raw or framed, or before its first byte, or while it
    waits: no report."""
    g.fg.send(g.open(), g.report()[:10000])
    g.hold(1)
    g.fg.connect(g.cid, PORT)
    s.relay.wait_metric("sem_queue_size", value=1)
    g.reborn()
    s.wait_idle()
    g.open()
    g.reborn()
    return Expect(aborted=3, waiter_gone=1)


def reset_in_mid_report(s, g):
    """A framed report that is reset in its middle is none. In raw mode the kernel does not tell a
    reset from a close: what came is judged."""
    payload = g.report()
    conn = g.open()
    g.fg.send(conn, (rp.header(payload) + payload)[:10000])
    g.fg.rst(conn)
    s.wait_idle()
    conn = g.open()
    g.fg.send(conn, payload[:10000])
    g.fg.rst(conn)
    return Expect(aborted=1, malformed=1)


def goes_on_after_its_end(s, g):
    """Data after the guest's own half-close: what is stored is a whole report or nothing, and the
    digests that BPF and the daemon compare never differ."""
    payload = g.report(6000)
    for _ in range(4):
        conn = g.open()
        g.fg.send(conn, payload)
        g.fg.shutdown(conn, flags=SHUTDOWN_SEND, async_=True)
        g.fg.rw(conn, len=3000, fill=255, count=300, check=False)
        g.fg.close(conn)
        s.wait_idle()
    # Where the daemon looks late, all of it is the stream. Without BPF the packets are also more than
    # the credit allows, when nobody reads any more.
    some = {"malformed", "after_end" if s.bpf else "aborted"}
    return Expect(some=some, stored=payload, either=True)


def deaf(s, g):
    """A guest that says it receives no more gets no answer; its report counts."""
    payload = g.report()
    conn = g.open()
    g.fg.shutdown(conn, flags=SHUTDOWN_RCV)
    g.fg.send(conn, rp.header(payload) + payload, check=False)
    s.relay.wait_stored(g.cid, payload)
    g.fg.close(conn)
    return Expect(stored=payload)


# ---- attacks by numbers ----


def thousand_connections(s, g):
    """1000 connections of one CID at once: other VMs' reports are all accepted, none waits 5 s
    (who waits as long is refused)."""
    failed = []

    def connect():
        try:
            g.fg.connectmany(g.cid, PORT, 1000, timeout=60)
        except FakeGuestError as e:
            failed.append(e)

    thread = threading.Thread(target=connect)
    before = s.relay.metric("connections_accepted_total")
    thread.start()
    times = []
    while len(times) < 12 or thread.is_alive():
        start = time.monotonic()
        s.polite_report()
        times.append(time.monotonic() - start)
    thread.join()
    assert not failed, failed
    accepted = s.relay.metric("connections_accepted_total") - before - len(times)
    s.note(f"{accepted:.0f} connections; {len(times)} polite reports took {max(times):.2f} s at most")
    assert accepted == 1000, accepted
    refused = s.relay.refused()
    assert "waiting_full" not in refused, refused
    # The two that are served, and the one that waits.
    g.fg.gone(g.cid)
    return Expect(some=NO_REPORT)


# ---- attacks by content ----


def repeated_fields(s, g):
    """Two index_report fields, two vsock_cid fields, as a CID of another VM beside its own:
    protobuf would merge them, so they are malformed."""
    other = str(POLITE[0])
    for payload in (
        rp.report(g.cid) + rp.report(g.cid, seed=1),
        rp.field(1, rp.field(1, other)) + rp.report(g.cid),
        rp.report(g.cid) + rp.field(1, rp.field(1, other)),
        rp.field(1, rp.field(1, str(g.cid)) + rp.field(1, other)),
    ):
        status = g.framed(payload)
        assert status == rp.MALFORMED, status
    g.raw(rp.field(1, rp.field(1, str(g.cid)) + rp.field(1, str(g.cid))))
    return Expect(malformed=5)


def claims_another_cid(s, g):
    """A report in the name of another VM."""
    status = g.framed(rp.report(POLITE[0], 20000))
    assert status == rp.CID_MISMATCH, status
    return Expect(cid_mismatch=1)


ATTACKS = (
    zero_before, zero_before_in_big_descriptor, zero_amid, zeros_then_many, zeros_after_many,
    zeros_merged, zeros_alone, too_many_zeros, zeros_at_the_end, one_byte_packets, one_byte_in_big_descriptors, big_descriptors,
    lying_headers, beyond_no_grant, beyond_the_grant, credit_requests, connect_and_close,
    connect_and_reset, reset_in_mid_report, goes_on_after_its_end, deaf, thousand_connections,
    repeated_fields, claims_another_cid, gone_in_mid_report, connect_and_vanish,
    behind_the_close, zeros_kept,
    credit_requests_unread, unread_then_read, unread_then_gone,
)  # fmt: skip
# In user-space mode the kernel sends an update only when credit runs low: none pile up.
BPF_ONLY = {unread_then_read, unread_then_gone}
# These leave sockets that the kernel holds for LINGER_S. They come last, and their remains are
# looked for at the end of the round.
LINGERING = {
    gone_in_mid_report, connect_and_vanish, behind_the_close, zeros_kept, credit_requests_unread,
    unread_then_read, unread_then_gone,
}  # fmt: skip
# Of these the kernel may keep packets for as long, which is their VM's debt meanwhile: they are
# redeemed later.
KEPT_S = 10
KEPT = {zeros_then_many, zeros_after_many, zeros_alone, too_many_zeros}
GUESTS = {
    # Rings large enough that updates do not pile up without the guest's fault.
    **dict.fromkeys(
        (one_byte_packets, one_byte_in_big_descriptors, credit_requests), {"rx": 1024, "tx": 256}
    ),
    **dict.fromkeys((behind_the_close, zeros_kept), {"clings": 1}),
}


# ---- the relay under attack ----


class Lowest:
    """The lowest MemAvailable while the block runs."""

    def __enter__(self):
        self.value = meminfo("MemAvailable")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._end.wait(0.01):
            self.value = min(self.value, meminfo("MemAvailable"))

    def __exit__(self, *exc):
        self._end.set()
        self._thread.join()


class Suite:
    """A relay with default limits, but for the time that a slow machine may need for a report."""

    def __init__(self, bpf, mode):
        self.bpf = bpf
        self.seeds = itertools.count()
        self.expected = {}  # CID: report upstream
        self.notes = []
        self.after_round = []
        self.unredeemed = []  # CIDs, and from when on they can be
        self.relay = Relay({"bpf": mode, "report": {"deadline": "60s", "idle": "30s"}})
        self.neighbours = FakeGuest()
        for cid in POLITE:
            self.neighbours.guest(cid)
            self.neighbours.bridge(cid, PORT, self.bridge(cid))
            self.polite_report(cid)  # known from now on
        self.wait_idle()
        self.sockets = vsock.diag()
        self.fds = self.open_fds()

    def stop(self):
        self.neighbours.stop()
        self.relay.__exit__(None, None, None)

    def bridge(self, cid):
        return f"{self.relay.dir}/polite{cid}"

    def open_fds(self):
        return len(os.listdir(f"/proc/{self.relay.process.pid}/fd"))

    def note(self, text):
        self.notes.append(text)

    def bpf_only(self, reason, payload):
        """A rule that needs BPF: without it the packet has no effect, and the report counts."""
        return Expect(**{reason: 1}) if self.bpf else Expect(stored=payload)

    # ---- polite VMs ----

    def polite_report(self, cid=None):
        seed = next(self.seeds)
        cid = cid or POLITE[seed % len(POLITE)]
        payload = rp.report(cid, 20000, seed=seed)
        status = rp.send_framed(self.bridge(cid), payload, timeout=60)
        assert status == rp.ACCEPTED, f"polite VM {cid} was answered {status}"
        self.expected[cid] = payload

    # ---- what the relay says ----

    def refusals(self):
        return self.relay.refused()

    def refusals_since(self, before):
        now = self.refusals()
        return {r: n - before.get(r, 0) for r, n in now.items() if n != before.get(r, 0)}

    def wait_refused(self, before, **reasons):
        try:
            wait_for(lambda: self.refusals_since(before) == reasons, 20)
        except TimeoutError as e:
            raise AssertionError(f"refused {self.refusals_since(before)}, not {reasons}") from e

    def wait_no_debt(self):
        """None but what the last moment of a polite connection leaves."""
        try:
            wait_for(lambda: not self.owed(), 20)
        except TimeoutError as e:
            raise AssertionError(self.owed()) from e

    def owed(self):
        m = self.relay.metrics()
        debt, vms = m["memory_debt_bytes"], m["vms_with_debt"]
        return f"debt {debt:.0f} of {vms:.0f} VMs" if debt > vms * DEBT_OF_A_MOMENT else ""

    def idle(self):
        m = self.relay.metrics()
        names = ("sem_holding_size", "sem_queue_size", "contents_held")
        return all(m[name] == 0 for name in names) and m

    def wait_idle(self):
        """Every connection has come to its end."""
        return wait_for(self.idle, 30, "relay is idle")

    def wait_accepted(self):
        """The backlog is empty, as far as can be told: what is in it is refused later, and a debt."""
        before = -1
        while before != (now := self.relay.metric("connections_accepted_total")):
            before = now
            time.sleep(0.5)

    # ---- after an attack ----

    def check_refusals(self, expect, refused):
        exact = {r: n for r, n in refused.items() if r not in expect.some}
        assert exact == expect.refused, f"refused {refused}, not {expect.refused}"

    def check_ends(self, before, now, refused):
        """Every connection was a valid report or was refused for one reason."""
        names = ("connections_accepted_total", "reports_valid_total")
        connections, valid = (now[n] - before[n] for n in names)
        ends = valid + sum(refused.values())
        assert connections == ends, f"{connections} connections, {valid} valid, refused {refused}"

    def check_stored(self, expect, cid):
        """Upstream has what was accepted, and nothing else."""
        if expect.stored is not None:
            if not expect.either or self.relay.stored(cid) == expect.stored:
                self.expected[cid] = expect.stored
        wait_for(lambda: self.stored() == self.wanted(), 20, "only what was accepted is stored")

    def stored_cids(self):
        return [int(name[2:-3]) for name in os.listdir(self.relay.stored_dir)]

    def wanted(self):
        return {f"0-{cid}.pb": hashlib.sha256(p).digest() for cid, p in self.expected.items()}

    def stored(self):
        found = {}
        for entry in os.scandir(self.relay.stored_dir):
            with open(entry.path, "rb") as f:
                found[entry.name] = hashlib.sha256(f.read()).digest()
        return found

    def remains(self):
        """What is left behind, in words; empty: nothing."""
        found = []
        m = self.relay.metrics()
        for name in ("memory_reserved_bytes", "memory_shared_reserve_drawn_bytes",
                     "contents_held"):
            if m[name] != 0:
                found.append(f"{name} {m[name]:.0f}")
        if not self.unredeemed and self.owed():
            found.append(self.owed())
        if self.bpf:
            conns = open_map("vsr_conns")
            if conns:
                found.append(f"{len(conns)} entries of vsr_conns: {conns}")
        sockets = relay_sockets(self.relay.process.pid)
        rmem, wmem = (sum(s[key] for s in sockets) for key in ("rmem", "wmem"))
        if len(sockets) != 1 or rmem or wmem:
            found.append(f"{len(sockets)} sockets of the relay, rmem {rmem}, wmem {wmem}")
        if self.open_fds() > self.fds:
            found.append(f"{self.open_fds()} descriptors, {self.fds} before")
        return found

    def kernel_remains(self):
        now = vsock.diag()
        if now["total"] > self.sockets["total"]:
            return [f"{now['total']} sockets: {now['counts']}"]
        over = now["refs"]["vsock"] - self.sockets["refs"]["vsock"]
        return [f"{over} references on vsock"] if over > 0 else []

    def check_nothing_left(self, linger=False):
        def left():
            return self.remains() + ([] if linger else self.kernel_remains())

        deadline = time.monotonic() + LINGER_S + 7
        while left():
            assert time.monotonic() < deadline, f"left behind: {left()}"
            time.sleep(0.1)

    def redeem_as(self, guest):
        """The attacker is a polite VM from now on: it is served as any other, and pays its debt."""
        payload = guest.report(seed=next(self.seeds))
        conn = guest.open()
        time.sleep(0.3)  # the relay looks every 250 ms whether all is read
        status = guest.framed(payload, conn)
        assert status == rp.ACCEPTED, f"the attacker, polite, was answered {status}"
        self.expected[guest.cid] = payload
        self.wait_idle()

    def redeem(self, cid):
        with Guest(cid) as guest:
            self.redeem_as(guest)

    def attack(self, index, function):
        try:
            self.attacked(FIRST_CID + index, function)
        except Exception:
            # What comes next is judged by itself.
            with contextlib.suppress(Exception):
                self.redeem(FIRST_CID + index)
            self.expected = {cid: self.relay.stored(cid) for cid in self.stored_cids()}
            raise

    def attacked(self, cid, function):
        if function in LINGERING:  # some of them measure debt
            self.redeem_all()
        before = self.wait_idle()
        refusals = self.relay.refused(before)
        with Guest(cid, **GUESTS.get(function, {})) as guest:
            expect = function(self, guest)
            now = self.wait_idle()
        refused = self.refusals_since(refusals)
        self.check_refusals(expect, refused)
        self.check_ends(before, now, refused)
        self.check_stored(expect, cid)
        if function in KEPT:
            self.unredeemed.append((cid, time.monotonic() + KEPT_S))
        else:
            self.redeem(cid)
        self.polite_report()
        self.wait_idle()
        self.check_stored(Expect(), None)
        self.relay.check()
        self.check_nothing_left(linger=function in LINGERING)

    def redeem_all(self):
        while self.unredeemed:
            cid, when = self.unredeemed.pop(0)
            time.sleep(max(0, when - time.monotonic()))
            self.redeem(cid)

    def end_round(self):
        self.redeem_all()
        self.check_nothing_left()
        pid = self.relay.process.pid
        self.after_round.append((settled_memory(pid), self.relay.rss(), meminfo("SUnreclaim")))
        self.note(f"the tests' own memory: {of_tests(pid) / KIB:.0f} KiB")

    def check_memory(self):
        """After the third round nothing takes more than after the first."""
        (free, rss, slab), (free_3, rss_3, slab_3) = self.after_round[0], self.after_round[-1]
        self.note(
            f"MemAvailable {(free_3 - free) / KIB:+.0f} KiB, the daemon's memory "
            f"{(rss_3 - rss) / KIB:+.0f} KiB of {rss / KIB:.0f}, unreclaimable slab "
            f"{(slab_3 - slab) / KIB:+.0f} KiB"
        )
        assert len(self.after_round) == ROUNDS
        assert free_3 >= free - SLACK, f"MemAvailable {free} after round 1, {free_3} after 3"
        assert rss_3 <= rss + SLACK, f"daemon has {rss} after round 1, {rss_3} after 3"
        log = self.relay.log()
        assert not re.search(r"Assertion|Sanitizer|cannot ", log), log[-2000:]


def run_suite(tap, bpf, mode, rounds):
    suites = []  # made by the first test that is wanted

    def suite():
        if not suites:
            suites.append(Suite(bpf, mode))
        return suites[0]

    def show_notes(function, *args):
        try:
            function(*args)
        finally:
            for text in suites[0].notes if suites else ():
                print(f"# {text}", flush=True)
            if suites:
                suites[0].notes.clear()

    name = "hostile" + ("" if bpf else ", user space")
    try:
        for number in range(1, rounds + 1):
            for index, function in enumerate(ATTACKS):
                if function in BPF_ONLY and not bpf:
                    continue
                summary = " ".join(function.__doc__.split())
                tap.run(
                    f"{name}: {function.__name__}, round {number}: {summary}",
                    lambda i=index, f=function: show_notes(lambda: suite().attack(i, f)),
                )
            tap.run(
                f"{name}: nothing left, round {number}: no socket, byte or entry after all",
                lambda: show_notes(lambda: suite().end_round()),
            )
        if rounds == ROUNDS:
            tap.run(
                f"{name}: memory: after the third round as after the first, within 2 MiB",
                lambda: show_notes(lambda: suite().check_memory()),
            )
    finally:
        for s in suites:
            s.stop()


def run_all(tap, bpf, rounds=ROUNDS):
    """All rounds say what is left after the third; fewer only that every attack is refused."""
    run_suite(tap, bpf, "auto", rounds)


def run_user(tap):
    """The same in user-space mode, on a kernel that has BPF."""
    run_suite(tap, False, "off", 1)

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Shows what docs/kernel-facts.md says about the kernel, on the kernel that it runs on.

    make build/tests/vm/fakeguest build/tests/vm/vsockdiag
    tests/vm/boot.py --modules vhost --add tests/lib:/tests/lib \\
        --add tests/vm/kernel_facts.py:/tests/vm/kernel_facts.py \\
        --bin build/tests/vm/fakeguest --bin build/tests/vm/vsockdiag \\
        -- python3 /tests/vm/kernel_facts.py [NAME]...

Prints TAP: a line a fact, with the figures that were measured behind it. A fact that no longer
holds fails. The relay is not involved: plain sockets on one side, the fake guest on the other.
"""

import errno
import json
import os
import select
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fakeguest import (  # noqa: E402
    OP_CREDIT_UPDATE,
    OP_REQUEST,
    OP_RESPONSE,
    OP_RST,
    FakeGuest,
    FakeGuestError,
)
from vsock import (  # noqa: E402
    BUFFER_SIZE,
    diag,
    grant,
    listener,
    mem_available,
    meminfo,
    refs,
    set_connect_timeout,
    set_u64,
    so_error,
    wait_for,
    wmem,
)

CID, PORT = 42, 818
CREDIT = 262144

FACTS = []


# Since 6.3 vsock packets are sk_buffs (71dc9ec9ac7d), charged to their socket.
SKB = (6, 3)
RELEASE = tuple(int(n) for n in os.uname().release.split(".")[:2])


def fact(text, since=(0, 0), before=(99, 0)):
    def register(function):
        FACTS.append((function.__name__, text, function, since <= RELEASE < before))
        return function

    return register


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def accept(s):
    a, _ = s.accept()
    a.settimeout(10)
    return a


def granted(fg, s, credit=CREDIT):
    """A connection with credit: its number, and our socket."""
    conn = fg.connect(CID, PORT)
    a = accept(s)
    grant(a, credit)
    fg.wait(conn, "credit")
    return conn, a


def error_of(sock):
    return errno.errorcode.get(so_error(sock), "0")


def connecting(cid, timeout_sec=None):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    if timeout_sec:
        set_connect_timeout(s, timeout_sec)
    s.setblocking(False)
    return s, errno.errorcode.get(s.connect_ex((cid, 9)), "0")


# ---- (a) the order of the queue to a guest ---------------------------------------------------


@fact("the queue to a guest is first in, first out over all connections", since=SKB)
def fifo(fg):
    n = 300
    with listener(PORT) as s:
        fg.guest(CID)
        first = fg.connect(CID, PORT)
        a = accept(s)
        src_port = fg.conn(first)["src_port"]
        fg.rxstop(CID)
        fg.packets(CID)
        fg.creditrequest(first, n)
        queued = wmem(a)
        a.close()
        fg.connect(CID, PORT, async_=True)
        b = accept(s)
        fg.rxstep(CID, 100)
        half = wmem(b)
        fg.rxstep(CID, 100)
        fg.rxstep(CID, 100)
        before = fg.packets(CID)
        still = wmem(b)
        # The SHUTDOWN of the close, then the RESPONSE.
        fg.rxstep(CID, 1)
        shutdown = fg.packets(CID)
        last = wmem(b)
        fg.rxstep(CID, 1)
        response = fg.packets(CID)
        check(wait_for(lambda: wmem(b) == 0, 2), "the RESPONSE stays charged")
        check(queued >= n * 256, f"updates are charged to their connection: {queued}")
        check(half > 0 and still > 0 and last > 0, f"{half}, {still}, {last}")
        check(
            len(before) == n
            and all(p["op"] == OP_CREDIT_UPDATE and p["dst_port"] == src_port for p in before),
            f"{len(before)} packets before the RESPONSE",
        )
        check(response[0]["op"] == OP_RESPONSE, str(response))
        b.close()
        return {
            "updates": n,
            "wmem_of_closed": queued,
            "wmem_per_update": queued // n,
            "op_before_response": shutdown[0]["op"],
            "wmem_of_later": [half, still, last, 0],
        }


@fact("a connection accepted after a close may have been answered before it: WMEM 0 proves nothing", since=SKB)
def accepted_later_is_not_later(fg):
    n = 300
    with listener(PORT) as s:
        fg.guest(CID)
        first = fg.connect(CID, PORT)
        a = accept(s)
        waiting = fg.connect(CID, PORT)  # answered and read now, accepted only later
        fg.rxstop(CID)
        fg.creditrequest(first, n)
        debt = wmem(a)
        a.close()
        b = accept(s)
        seen = wmem(b)
        check(debt > 0 and seen == 0, f"debt {debt}, wmem of the one accepted later {seen}")
        # Once accept() has said EAGAIN after the close, later ones are truly later.
        s.setblocking(False)
        try:
            s.accept()
            raise AssertionError("a third connection?")
        except BlockingIOError:
            pass
        s.settimeout(10)
        fg.connect(CID, PORT, async_=True)
        c = accept(s)
        truly = wmem(c)
        check(truly > 0, "a connection answered after the close shows WMEM 0")
        fg.rxstart(CID)
        check(wait_for(lambda: wmem(c) == 0, 5), "it is read, and still charged")
        fg.conn(waiting)
        b.close()
        c.close()
        return {"debt": debt, "wmem_of_accepted_later": seen, "wmem_of_answered_later": truly}


@fact("a connect() from the host is answered after all that was queued for the guest before it")
def probe_is_in_order(fg):
    n = 200
    with listener(PORT) as s:
        fg.guest(CID)
        first = fg.connect(CID, PORT)
        a = accept(s)
        fg.rxstop(CID)
        fg.packets(CID)
        fg.creditrequest(first, n)
        a.close()
        probe, _ = connecting(CID, 20)
        poll = select.poll()
        poll.register(probe, select.POLLOUT)
        got = fg.rxstep(CID, 100) + fg.rxstep(CID, 101)  # with the SHUTDOWN of the close
        early = poll.poll(200)
        fg.rxstep(CID, 1)
        last = fg.packets(CID)[-1]
        check(got == n + 1 and not early and last["op"] == OP_REQUEST, f"{got}, {early}, {last}")
        check(poll.poll(5000) and error_of(probe) == "ECONNRESET", "no answer")
        probe.close()
        return {"packets_before_the_request": got}


# ---- (b) who is charged for a RESPONSE -------------------------------------------------------


@fact("a RESPONSE is charged to the accepted socket until the guest has read it", since=SKB)
def response_owner(fg):
    figures = {}
    for zero in (False, True):
        with listener(PORT, zero_credit=zero) as s:
            fg.guest(CID)
            fg.rxstop(CID)
            fg.connect(CID, PORT, async_=True)
            a = accept(s)
            time.sleep(0.3)
            waiting, listening = wmem(a), wmem(s)
            fg.rxstart(CID)
            check(waiting > 0, f"zero credit {zero}: WMEM {waiting} while it waits")
            check(wait_for(lambda a=a: wmem(a) == 0, 5), "charged for ever")
            figures["zero_credit" if zero else "usual"] = {"child": waiting, "listener": listening}
            a.close()
            fg.gone(CID)
    return figures


@fact("a reset that answers a full backlog is charged to the listener, one for no socket to nobody", since=SKB)
def reset_owner(fg):
    n = 64
    with listener(PORT, backlog=1) as s:
        fg.guest(CID)
        fg.connect(CID, PORT)
        fg.connect(CID, PORT)
        fg.rxstop(CID)
        fg.pkt(CID, op=OP_REQUEST, dst_port=PORT, src_port=5000, count=n, step=1)
        check(wait_for(lambda: wmem(s) > 0, 3), "the listener is charged nothing")
        full = wmem(s)
        fg.pkt(CID, op=OP_REQUEST, dst_port=PORT + 1, src_port=5000, count=n, step=1)
        nobody = wmem(s)
        check(full == nobody, f"{full}, then {nobody}")
        return {"resets": n, "listener_wmem": full}


@fact("vhost stops reading from a guest that has as many unread replies as its ring is long")
def replies_stall(fg):
    fg.guest(CID, tx=128)
    fg.rxstop(CID)
    answer = fg.pkt(
        CID, op=OP_REQUEST, dst_port=PORT + 1, src_port=5000, count=1000, step=1,
        timeout=1, check=False,
    )  # fmt: skip
    outstanding = fg.stats(CID)["tx_outstanding"]
    check(not answer["ok"] and outstanding > 0, str(answer))
    fg.rxstart(CID)
    check(wait_for(lambda: fg.stats(CID)["tx_outstanding"] == 0, 5), "it never goes on")
    return {"ring": 128, "sent": answer["sent"], "not_read": outstanding}


# ---- (c) connect() from the host -------------------------------------------------------------


@fact("connect() to a CID that is gone says ENODEV at once, also without blocking")
def connect_gone(fg):
    figures = {}
    for blocking in (True, False):
        fg.guest(CID)
        fg.gone(CID)
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.setblocking(blocking)
        start = time.monotonic()
        result = errno.errorcode.get(s.connect_ex((CID, 9)), "0")
        figures["blocking" if blocking else "nonblocking"] = [
            result, round(time.monotonic() - start, 3),
        ]  # fmt: skip
        check(result == "ENODEV", result)
        s.close()
    return figures


@fact("connect() to a guest that answers says ECONNRESET; to one that does not, ETIMEDOUT after 2 s")
def connect_silent(fg):
    figures = {}
    fg.guest(CID)
    fg.guest(CID + 1, answer="nothing")
    fg.guest(CID + 2)
    fg.rxstop(CID + 2)
    for name, cid, seconds, expected in (
        ("answers", CID, None, "ECONNRESET"),
        ("silent", CID + 1, None, "ETIMEDOUT"),
        ("does_not_read", CID + 2, None, "ETIMEDOUT"),
        ("does_not_read_1s", CID + 2, 1, "ETIMEDOUT"),
    ):
        s, first = connecting(cid, seconds)
        charged = wmem(s)
        start = time.monotonic()
        poll = select.poll()
        poll.register(s, select.POLLOUT)
        poll.poll(5000)
        waited = time.monotonic() - start
        result = error_of(s)
        after = wmem(s)
        figures[name] = {
            "connect": first, "SO_ERROR": result, "after_s": round(waited, 2),
            "wmem_at_first": charged, "wmem_after": after,
        }  # fmt: skip
        check(first == "EINPROGRESS" and result == expected, f"{name}: {first}, {result}")
        check(after == 0, f"{name}: the request stays queued: {after}")
        s.close()
    return figures


@fact("a pending connect() shows by its WMEM whether the guest reads; closed early it leaves its request", since=SKB)
def connect_as_probe(fg):
    fg.guest(CID, answer="nothing")
    fg.rxstop(CID)
    before = refs()
    s, _ = connecting(CID)
    time.sleep(0.2)
    unread = wmem(s)
    fg.rxstart(CID)
    check(wait_for(lambda: wmem(s) == 0, 2), "read, and still charged")
    s.close()
    fg.rxstop(CID)
    left, _ = connecting(CID)
    left.close()
    time.sleep(3)
    held = refs()
    fg.gone(CID)
    freed = refs()
    check(unread > 0 and held > before >= freed, f"{unread}: {before}, {held}, {freed}")
    return {"wmem_unread": unread, "refs": {"before": before, "closed_early": held, "gone": freed}}


# ---- (d) SO_MEMINFO --------------------------------------------------------------------------


@fact("SO_MEMINFO does not show unread bytes of a plain vsock socket: RMEM stays 0")
def meminfo_plain(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a = accept(s)
        idle = meminfo(a)
        fg.send(conn, pattern=1, len=200000)
        full = meminfo(a)
        check(full["rmem"] == 0 and idle["wmem"] == 0, str(full))
        left = 200000
        while left:
            left -= len(a.recv(65536))
        a.close()
        return {"idle": idle, "with_200000_unread": full}


@fact("unread bytes of a plain vsock socket cost what their descriptors hold, not their credit", since=SKB)
def unread_cost(fg):
    figures = {}
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        for name, credit, keys in (
            ("1_byte_packets", 262144, {"len": 1, "count": 450}),
            ("1_byte_in_64k_descriptors", 262144, {"len": 1, "count": 450, "desc": 65536}),
            ("the_same_at_64k_credit", 65536, {"len": 1, "count": 112, "desc": 65536}),
            ("64k_packets", 262144, {"len": 65536, "count": 4}),
        ):
            conn = fg.connect(CID, PORT)
            a = accept(s)
            grant(a, credit)
            before = mem_available()
            fg.rw(conn, **keys)
            time.sleep(0.2)
            figures[name] = {
                "credit": credit,
                "packets": keys["count"],
                "bytes": keys["count"] * keys["len"],
                "MemAvailable_less": before - mem_available(),
                "rmem": meminfo(a)["rmem"],
                "state": fg.conn(conn)["state"],
            }
            a.close()
            fg.forget(conn)
    big = figures["1_byte_in_64k_descriptors"]
    check(big["state"] == "open" and big["MemAvailable_less"] > 16 << 20, str(big))
    check(figures["the_same_at_64k_credit"]["MemAvailable_less"] < 10 << 20, str(figures))
    return figures


@fact("packets without payload are kept, up to credit / 576 of them, and charged to nobody", since=SKB)
def unseen_packets(fg):
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        conn, a = granted(fg, s)
        before = mem_available()
        fg.rw(conn, len=0, desc=65536, count=CREDIT // 576 - 5)
        taken = before - mem_available()
        mem = meminfo(a)
        open_before = fg.conn(conn)["state"]
        fg.rw(conn, len=0, desc=65536, count=10, check=False)
        check(wait_for(lambda: fg.conn(conn)["state"] == "closed"), "more than that are taken")
        a.close()
        check(open_before == "open" and taken > 24 << 20, f"{open_before}, {taken}")
        check(mem["rmem"] == 0 and mem["backlog"] == 0, str(mem))
        return {"packets": CREDIT // 576 - 5, "MemAvailable_less": taken, "rmem": mem["rmem"]}


@fact("behind a close() that the guest does not confirm the socket goes on to take packets for 8 s", since=SKB)
def kept_behind_the_close(fg):
    figures = {}
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID, clings=1)
        for size in (0, 1):
            conn, a = granted(fg, s)
            a.close()
            before, start = mem_available(), time.monotonic()
            fg.rw(conn, len=size, desc=65536, count=400)
            taken = before - mem_available()
            check(taken > 20 << 20, f"{taken} bytes are kept")
            check(wait_for(lambda: fg.conn(conn)["state"] == "closed", 12), "kept for ever")
            figures[f"{size}_bytes"] = {
                "MemAvailable_less": taken,
                "seconds": round(time.monotonic() - start, 1),
            }
    return figures


@fact("credit taken back before the close(): the next packet resets the connection, nothing is kept", since=SKB)
def credit_taken_back(fg):
    figures = {}
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID, clings=1)
        for size in (0, 1):
            conn, a = granted(fg, s)
            set_u64(a, BUFFER_SIZE, 0)
            a.close()
            before = mem_available()
            fg.rw(conn, len=size, desc=65536, count=400, check=False)
            check(wait_for(lambda: fg.conn(conn)["state"] == "closed", 2), "it is open")
            # What was on its way is freed at once; what is kept, is for 8 s.
            check(
                wait_for(lambda: before - mem_available() < 4 << 20, 2),
                f"{before - mem_available()} bytes are kept",
            )
            figures[f"{size}_bytes"] = {"MemAvailable_less": before - mem_available()}
    return figures


@fact("little credit costs its round trips and nothing else: 8 KiB eight times those of 64")
def small_credit(fg):
    seconds = {}
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID, rx=1024)
        for credit in (CREDIT, 4096, 8192, 16384, 65536):
            conn, a = granted(fg, s, credit)
            start = time.monotonic()
            fg.send(conn, pattern=1, len=4 << 20, async_=True)
            left = 4 << 20
            while left:
                left -= len(a.recv(65536))
            seconds[credit] = round(time.monotonic() - start, 2)
            a.close()
            fg.forget(conn)
    check(seconds[8192] <= 3 * 8 * max(seconds[65536], 0.05), str(seconds))
    return {"seconds_for_4_MiB": seconds}


# ---- (e) what a close leaves -----------------------------------------------------------------


@fact("updates that a guest does not read outlive close() until the device is closed", since=SKB)
def updates_after_close(fg):
    n = 12000
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a = accept(s)
        refs_open = refs()
        fg.rxstop(CID)
        before = unreclaimable_slab()
        fg.creditrequest(conn, n, timeout=30)
        charged = wmem(a)
        full = unreclaimable_slab() - before
        a.close()
        time.sleep(10)  # longer than the 8 s that a close waits for the peer's reset
        closed = unreclaimable_slab() - before
        refs_closed = refs()
        fg.gone(CID)
        gone = unreclaimable_slab() - before
        refs_gone = refs()
        # The file of an open socket holds one reference, the socket itself another one.
        held = [refs_open - refs_gone, refs_closed - refs_gone]
        check(held == [2, 1], f"{refs_open}, {refs_closed}, {refs_gone}")
        check(charged == n * 896, f"wmem {charged}")
        check(closed > charged // 2 > gone, f"wmem {charged}, memory {full}, {closed}, {gone}")
        return {
            "updates": n, "wmem": charged, "wmem_per_update": charged // n,
            "memory": {"open": full, "closed_10s": closed, "vm_gone": gone},
            "refs": [refs_open, refs_closed, refs_gone],
        }  # fmt: skip


@fact("a close that the guest does not answer keeps the socket for 8 s, even if the VM is gone by then")
def close_lingers(fg):
    figures = {}
    with listener(PORT) as s:
        for vanishes in (False, True):
            fg.guest(CID, answer="nothing")
            base = refs()
            fg.connect(CID, PORT)
            a = accept(s)
            fg.rxstop(CID)
            a.close()
            start = time.monotonic()
            if vanishes:
                fg.gone(CID)
            check(diag_established() == 1, "it is gone at once")
            check(wait_for(lambda: not diag_established(), 12), "it never ends")
            lingered = time.monotonic() - start
            held = refs() - base
            if not vanishes:
                fg.gone(CID)
            check(6 < lingered < 11 and refs() <= base, f"{lingered}, {held}")
            check(held == (0 if vanishes else 1), f"{held} held by the queue")
            figures["vm_gone" if vanishes else "vm_alive"] = {
                "in_tables_s": round(lingered, 1), "held_by_the_queue_then": held,
            }  # fmt: skip
    return figures


def diag_established():
    counts = diag()["counts"]
    return sum(c["n"] for c in counts if c["state"] != "LISTEN")


@fact("reading a plain socket sends at most one update for each recv() that empties it")
def updates_of_reading(fg):
    figures = {}
    with listener(PORT) as s:
        fg.guest(CID)
        for chunk, size in ((65536, 1 << 20), (1, 3000)):
            conn = fg.connect(CID, PORT)
            a = accept(s)
            before = fg.stats(CID)["rx"]["credit_update"]
            fg.send(conn, pattern=1, len=size, chunk=chunk, async_=True)
            left, reads = size, 0
            while left:
                left -= len(a.recv(65536))
                reads += 1
            fg.wait(conn, "sent")
            time.sleep(0.2)
            updates = fg.stats(CID)["rx"]["credit_update"] - before
            check(updates <= reads, f"{updates} updates, {reads} reads")
            figures[f"{size} bytes by {chunk}"] = {"reads": reads, "updates": updates}
            a.close()
    return figures


@fact("before 6.3 no packet is charged to a socket: WMEM is always 0", before=SKB)
def old_nothing_is_charged(fg):
    n = 12000
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a = accept(s)
        refs_open = refs()
        fg.rxstop(CID)
        before = unreclaimable_slab()
        fg.creditrequest(conn, n, timeout=30)
        charged = wmem(a)
        a.close()
        time.sleep(10)
        closed = unreclaimable_slab() - before
        held = refs() - refs_open + 2
        fg.gone(CID)
        gone = unreclaimable_slab() - before
        check(charged == 0 and closed > 64 * n > gone, f"{charged}, {closed}, {gone}")
        return {"updates": n, "wmem": charged, "memory_each": closed // n, "socket_held": held}


@fact("before 6.3 unread bytes cost what their packets say, not what their descriptors hold", before=SKB)
def old_unread_cost(fg):
    figures = {}
    with listener(PORT) as s:
        fg.guest(CID)
        for name, keys in (
            ("1_byte_in_64k_descriptors", {"len": 1, "count": 5000, "desc": 65536}),
            ("empty_packets", {"len": 0, "count": 30000}),
            ("empty_in_64k_descriptors", {"len": 0, "count": 5000, "desc": 65536}),
        ):
            conn = fg.connect(CID, PORT)
            a = accept(s)
            before, available = unreclaimable_slab(), mem_available()
            fg.rw(conn, timeout=60, **keys)
            time.sleep(0.2)
            figures[name] = {
                "packets": keys["count"],
                "slab_each": (unreclaimable_slab() - before) // keys["count"],
                "MemAvailable_less": available - mem_available(),
                "state": fg.conn(conn)["state"],
            }
            a.close()
            fg.forget(conn)
            time.sleep(1)
    check(figures["empty_packets"]["state"] == "open", str(figures))
    return figures


@fact("before 6.3 empty packets pass at zero credit, and the first byte is dropped or resets", before=SKB)
def old_zero_credit_edges(fg):
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a = accept(s)
        fg.rw(conn, len=0, count=3)
        time.sleep(0.3)
        empty = fg.conn(conn)["state"]
        fg.rw(conn, len=1)
        time.sleep(0.5)
        byte = fg.conn(conn)
        error = error_of(a)
        a.setblocking(False)
        try:
            data = a.recv(10)
        except OSError as e:
            data = errno.errorcode[e.errno]
        check(empty == "open", empty)
        return {"after_3_empty": empty, "after_1_byte": byte["state"], "SO_ERROR": error,
                "recv": str(data)}  # fmt: skip


# ---- (f) zero-credit accept ------------------------------------------------------------------


@fact("zero-credit accept: the RESPONSE grants 0, the raise sends one credit update")
def zero_credit(fg):
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        fg.packets(CID)
        conn = fg.connect(CID, PORT)
        a = accept(s)
        answer = fg.send(conn, pattern=1, len=100000, timeout=0.5, check=False)
        check(fg.conn(conn)["free"] == 0, "there is credit before the raise")
        grant(a)
        fg.wait(conn, "credit")
        sent = fg.send(conn, pattern=1, len=100000)
        packets = fg.packets(CID)
        ops = [(p["op"], p["buf_alloc"]) for p in packets]
        check(answer == 0 and sent == 100000, f"{answer}, {sent}")
        check(ops[:2] == [(OP_RESPONSE, 0), (OP_CREDIT_UPDATE, 262144)], str(ops))
        a.close()
        return {"packets": ops[:2], "sent_before": answer, "sent_after": sent}


@fact("a guest refused at zero credit has sent 0 bytes and sees the shutdown of both directions")
def zero_credit_refused(fg):
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        fg.send(conn, pattern=1, len=1000, async_=True)
        fg.packets(CID)
        a = accept(s)
        a.close()
        fg.wait(conn, "closed")
        state = fg.conn(conn)
        ops = [(p["op"], p["flags"]) for p in fg.packets(CID)]
        check(state["sent"] == 0 and state["reason"] == "shutdown", str(state))
        return {"sent": state["sent"], "reason": state["reason"], "op_flags": ops}


@fact("at zero credit even an empty packet resets; setting the same buffer size again sends nothing", since=SKB)
def zero_credit_edges(fg):
    figures = {}
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID)
        for name, length in (("empty", 0), ("one_byte", 1)):
            conn = fg.connect(CID, PORT)
            a = accept(s)
            fg.packets(CID)
            set_u64(a, BUFFER_SIZE, 0)
            time.sleep(0.2)
            again = len(fg.packets(CID))
            fg.rw(conn, len=length)
            reason = fg.wait(conn, "closed")["reason"]
            error = error_of(a)
            figures[name] = {"packets_after_same_size": again, "guest": reason, "SO_ERROR": error}
            check(again == 0 and error == "ENOBUFS", str(figures[name]))
            a.close()
    return figures


# ---- others ----------------------------------------------------------------------------------


@fact("a packet longer than its descriptor is dropped unseen, never answered, never marked used")
def bad_descriptors(fg):
    with listener(PORT) as s:
        fg.guest(CID)
        conn = fg.connect(CID, PORT)
        a = accept(s)
        fg.rw(conn, len=10, hdrlen=100)
        fg.rw(conn, len=10, total=20)
        fg.rw(conn, len=65536, desc=65537, hdrlen=65536)
        fg.rw(conn, len=5, fill=ord("y"))
        data = a.recv(100)
        check(data == b"yyyyy", str(data))
        stats = fg.stats(CID)
        check(stats["rx"]["rst"] == 0, str(stats))
        a.close()
        return {"received": data.decode(), "resets": stats["rx"]["rst"]}


@fact("a connection that waits at zero credit costs the kernel its socket, about 2 KB")
def waiting_cost(fg):
    n = 4000
    with listener(PORT, zero_credit=True) as s:
        fg.guest(CID, tx=1024)
        fg.connectmany(CID, PORT, 50)
        before = unreclaimable_slab()
        many = fg.connectmany(CID, PORT, n, timeout=60)
        cost = unreclaimable_slab() - before
        check(many["open"] == n, f"{many['open']} open, {many['refused']} refused")
        check(1024 < cost // n < 4096, f"{cost // n} bytes each")
        return {"connections": n, "bytes_each": cost // n}


def unreclaimable_slab():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("SUnreclaim"))


# ---- running them ----------------------------------------------------------------------------


def run(number, name, text, function, applies, idle_refs):
    if not applies:
        print(f"ok {number} - {name}: {text} # SKIP another kernel's", flush=True)
        return True
    # What the last fact left lingers for 8 s at most.
    wait_for(lambda: refs() == idle_refs, 12)
    with FakeGuest() as fg:
        try:
            figures = function(fg)
            wait_for(lambda: refs() == idle_refs, 1)
            print(f"ok {number} - {name}: {text}")
            print(f"# {json.dumps(figures)}", flush=True)
            return True
        except (AssertionError, FakeGuestError, OSError) as e:
            print(f"not ok {number} - {name}: {text}")
            print(f"# {type(e).__name__}: {e}", flush=True)
            return False


def main():
    wanted = sys.argv[1:]
    facts = [f for f in FACTS if not wanted or f[0] in wanted]
    print(f"# Linux {os.uname().release}")
    print(f"1..{len(facts)}", flush=True)
    idle_refs = refs()
    held = [run(i, *f, idle_refs) for i, f in enumerate(facts, 1)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

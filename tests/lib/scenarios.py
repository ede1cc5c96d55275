# SPDX-License-Identifier: Apache-2.0
"""What the relay must do, whatever carries the bytes: run over hybrid sockets on the host, over
vsock loopback and from guests with their own CID in a VM, with BPF and without.

A world says how to start a relay and where VM number n of the test connects; see tests/host/run.py
and tests/vm/inside.py."""

import contextlib
import itertools
import os
import signal
import socket
import tempfile
import threading
import time

import report as rp
from relay import merge, wait_for

KIB, MIB = 1024, 1024 * 1024
MEGABYTES_S = 180  # patience for many of them, in a VM on a busy machine
SIZES = (10, 4095, 4096, 4097, 65535, 65536, 65537, 1000 * 1000)
# Machines are slow at times: only tests of a limit get a short one.
PATIENT = {
    "report": {"deadline": "5m", "idle": "5m"},
    "admission": {"grant_rate": 0, "wait": "2m"},
}
# Held in custody: the first report takes the only token of a day.
ONE_SEND = {"rate": {"reports_per_minute": 0.0007}, "unchanged": "forward"}


class World:
    """name: for the tests' names. bpf: whether the verdict is expected to look at the streams.
    many: whether there can be more than one VM."""

    name, bpf, many, hybrid = "", False, True, False
    edit_size = 2 * MIB  # of contents that are edited everywhere (tests/lib/matching.py)

    def cid(self, n=0):
        raise NotImplementedError

    def address(self, relay, n=0):
        raise NotImplementedError

    def settings(self):
        return {}

    @contextlib.contextmanager
    def relay(self, *settings, vms=4):
        merged = {}
        for s in (PATIENT, self.settings(), *settings):
            merge(merged, s)
        with self.start(merged, vms) as relay:
            yield relay
            metrics = relay.check()
            assert metrics["bpf_mode", "kernel"] == (1 if self.bpf else 0), "BPF mode"
            # Sanitizers and valgrind say at the end what was left behind.
            assert relay.stop() == 0, relay.log()

    def start(self, settings, vms):
        raise NotImplementedError


def expect_refused(relay, **reasons):
    """Exactly these refusals, within a moment."""
    wait_for(lambda: relay.refused() == reasons, 10, f"refusals {reasons}, are {relay.refused()}")


# ---- transport ----


def sizes(world):
    """Every size, in every mode, byte for byte."""
    # The smallest ones have no room to differ: each is to be stored nevertheless.
    with world.relay({"unchanged": "forward"}) as r:
        address, cid = world.address(r), world.cid()
        sent = n = 0
        for size in SIZES:
            for mode in ("half", "close", "vsr1", "vsr2"):
                payload = rp.report(cid, size, seed=mode)
                if mode in ("half", "close"):
                    assert rp.send_raw(address, payload, end=mode)
                elif mode == "vsr1":
                    assert rp.send_framed(address, payload) == rp.ACCEPTED
                else:
                    assert rp.send_offer(address, payload) == (rp.ACCEPTED, size)
                n += 1
                # One that does not differ is stored before it has come.
                r.wait_metric("reports_valid_total", value=n)
                r.wait_stored(cid, payload)
                r.wait_metric("contents_held", value=0)
                sent += size
        m = r.metrics()
        assert m["reports_valid_total"] == 4 * len(SIZES), m["reports_valid_total"]
        assert m["report_bytes_total", "accepted"] == sent
        if world.bpf:
            framed = 2 * len(SIZES) * 16
            assert m["bpf_seen_bytes_total"] == sent + framed, "BPF did not see every byte"
        assert not r.refused(m), r.refused(m)


def largest(world):
    """16 MiB exactly is accepted, one byte more refused, in every mode."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        for mode in ("raw", "vsr1", "vsr2"):
            payload = rp.report(cid, rp.LIMIT, seed=mode)
            if mode == "raw":
                assert rp.send_raw(address, payload, timeout=MEGABYTES_S)
            elif mode == "vsr1":
                assert rp.send_framed(address, payload, timeout=MEGABYTES_S) == rp.ACCEPTED
            else:
                assert rp.send_offer(address, payload, timeout=MEGABYTES_S)[0] == rp.ACCEPTED
            r.wait_stored(cid, payload, MEGABYTES_S)
        stored = r.stored(cid)
        payload = rp.report(cid, rp.LIMIT + 1)
        rp.send_raw(address, payload, timeout=MEGABYTES_S)
        expect_refused(r, too_large=1)
        assert rp.send_framed(address, payload, timeout=MEGABYTES_S) == rp.TOO_LARGE
        assert rp.send_offer(address, payload, timeout=MEGABYTES_S) == (rp.TOO_LARGE, 0)
        expect_refused(r, too_large=3)
        assert r.stored(cid) == stored


def small_writes(world):
    """Writes of 1 byte, 1000 bytes and 64 KiB make the same report."""
    # 500 bytes: on loopback one worker carries packets and credit updates, a batch of either at a
    # time, so that more unread updates than 512 KiB would pile up without anybody's fault.
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        for chunk, size in ((1, 500), (1000, 300 * 1000), (65536, 1000 * 1000)):
            for mode in ("raw", "vsr1"):
                payload = rp.report(cid, size, seed=f"{chunk}{mode}")
                if mode == "raw":
                    assert rp.send_raw(address, payload, chunk=chunk)
                else:
                    assert rp.send_framed(address, payload, chunk=chunk) == rp.ACCEPTED
                r.wait_stored(cid, payload)


def split_header(world):
    """The header may come byte by byte, and the payload with it."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 5000)
        with rp.connect(address) as s:
            for byte in rp.header(payload, b"VSR1"):
                s.sendall(bytes([byte]))
            s.sendall(payload)
            assert rp.read_answer(s) == rp.ACCEPTED
        r.wait_stored(cid, payload)


def later_bytes(world):
    """Bytes after the frame only close the connection."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 5000)
        with rp.connect(address) as s:
            s.sendall(rp.header(payload) + payload + b"x" * 1000)
            assert rp.read_answer(s) == rp.ACCEPTED
        r.wait_stored(cid, payload)
        assert not r.refused()


# ---- what is refused ----


def malformed(world):
    """Not a VMReport: answered 4, nothing stored, counted; the next good one is accepted."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        good = rp.report(cid, 1000)
        bad = {
            "one byte": b"\x0a",
            "cut": good[:-1],
            "text": b"hello, this is no protobuf",
            "two index_reports": rp.report(cid) + rp.report(cid),
            "two vsock_cids": rp.field(1, rp.field(1, str(cid)) + rp.field(1, str(cid))),
            "vsock_cid as a varint": rp.field(1, b"\x08\x2a"),
            "index_report as a varint": b"\x08\x01" + rp.report(cid),
            "not UTF-8": rp.field(1, rp.field(1, str(cid)) + rp.field(3, b"\xff\xfe")),
        }
        for n, (name, payload) in enumerate(bad.items(), 1):
            assert rp.send_framed(address, payload) == rp.MALFORMED, name
            expect_refused(r, malformed=n)
        assert rp.send_raw(address, b"\x0a")
        expect_refused(r, malformed=len(bad) + 1)
        assert r.stored(cid) is None
        assert rp.send_framed(address, good) == rp.ACCEPTED
        r.wait_stored(cid, good)


def cid_mismatch(world):
    """vsock_cid is the peer's CID in canonical decimal, or the report is refused."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        others = (str(cid + 1), f"0{cid}", f"+{cid}", f"{cid} ", f"{cid}.0", "")
        payloads = [rp.field(1, rp.field(1, o)) for o in others]
        payloads += [rp.field(1, b""), rp.field(2, rp.field(2, "9"))]
        for n, payload in enumerate(payloads, 1):
            assert rp.send_framed(address, payload) == rp.CID_MISMATCH, payload
            expect_refused(r, cid_mismatch=n)
        # Nothing at all is an empty message.
        assert rp.send_framed(address, b"") == rp.CID_MISMATCH
        assert r.metric("index_reports_mismatching_vsock_cid_total") == len(payloads) + 1
        assert r.stored(cid) is None


def digest_mismatch(world):
    """A header that does not name this payload: answered 6."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 1000)
        assert rp.send_framed(address, payload, digest=1) == rp.DIGEST_MISMATCH
        assert rp.send_offer(address, payload, digest=1)[0] == rp.DIGEST_MISMATCH
        expect_refused(r, digest_mismatch=2)
        assert r.stored(cid) is None


def bad_header(world):
    """Begins with V and is no frame: refused at the first byte that says so."""
    with world.relay() as r:
        address = world.address(r)
        for n, data in enumerate((b"VSR3" + bytes(12), b"VX", b"VSRx"), 1):
            with rp.connect(address) as s:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    s.sendall(data)
                rp.closed_by_peer(s)
            expect_refused(r, bad_header=n)


def aborted(world):
    """A framed stream that ends early yields no report."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 100000)
        for n, cut in enumerate((20, 50000, len(payload) + 15), 1):
            with rp.connect(address) as s:
                s.sendall((rp.header(payload) + payload)[:cut])
            expect_refused(r, aborted=n)
        assert r.stored(cid) is None


def deadline(world):
    """A guest that is slow is cut at the deadline, one that stops at the idle limit: answered 9."""
    limits = {"report": {"deadline": "4s", "idle": "2s"}}
    with world.relay(limits) as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 100000)
        data = rp.header(payload) + payload
        start = time.monotonic()
        with rp.connect(address) as s:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for i in range(0, 80):
                    s.sendall(data[i : i + 1])
                    time.sleep(0.1)
            assert rp.read_answer(s) in (rp.DEADLINE, None)
        assert time.monotonic() - start >= 3.9
        expect_refused(r, deadline=1)
        with rp.connect(address) as s:
            s.sendall(data[:1000])
            assert rp.read_answer(s) == rp.DEADLINE
        expect_refused(r, deadline=1, idle=1)
        assert r.stored(cid) is None
        assert rp.send_framed(address, payload) == rp.ACCEPTED


# ---- duplicates ----


def duplicate_in_custody(world):
    """While content is in custody a repeat adds nothing: answered 1, not sent again."""
    with world.relay(ONE_SEND) as r:
        address, cid = world.address(r), world.cid()
        first, second = (rp.report(cid, 200 * 1000, seed=i) for i in range(2))
        assert rp.send_framed(address, first) == rp.ACCEPTED
        r.wait_stored(cid, first)
        r.wait_metric("contents_held", value=0)  # its ACK comes a moment later
        assert rp.send_framed(address, second) == rp.ACCEPTED
        assert rp.send_framed(address, second) == rp.NOTHING_TO_DO
        assert rp.send_raw(address, second)
        r.wait_metric("duplicates_total", value=2)
        # The offer of a repeat costs 16 bytes.
        assert rp.send_offer(address, second) == (rp.NOTHING_TO_DO, 0)
        m = r.metrics()
        assert m["duplicates_total"] == 3 and m["contents_held"] == 1, m["duplicates_total"]
        assert m["reports_rate_limited_total", "normal"] == 1
        assert m["index_report_cache_slots_used"] == 1
        # Any other content is no duplicate, also of the same length.
        third = rp.report(cid, 200 * 1000, seed=3)
        assert rp.send_offer(address, third)[0] == rp.ACCEPTED
        m = r.metrics()
        assert m["contents_ended_total", "superseded"] == 1 and m["contents_held"] == 1
        assert r.stored(cid) == first


def duplicate_small(world):
    """A small repeat in raw mode is recognised before it is read where BPF has hashed it."""
    with world.relay(ONE_SEND) as r:
        address, cid = world.address(r), world.cid()
        first, second = (rp.report(cid, 20000, seed=i) for i in range(2))
        assert rp.send_raw(address, first)
        r.wait_metric("contents_ended_total", "acked", value=1)
        for _ in range(3):
            assert rp.send_raw(address, second)
        r.wait_metric("duplicates_total", value=2)
        place = "kernel" if world.bpf else "daemon"
        assert r.metric("duplicates_total", place) == 2


def unchanged(world):
    """ACKed and unchanged: suppressed by default with the file upstream, forwarded on demand."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 50000)
        assert rp.send_framed(address, payload) == rp.ACCEPTED
        r.wait_metric("contents_ended_total", "acked", value=1)
        assert rp.send_framed(address, payload) == rp.NOTHING_TO_DO
        assert rp.send_offer(address, payload) == (rp.NOTHING_TO_DO, 0)
        assert r.metric("reports_suppressed_total") == 2
    with world.relay({"unchanged": "forward"}) as r:
        address = world.address(r)
        for n in range(1, 4):
            assert rp.send_framed(address, payload) == rp.ACCEPTED
            r.wait_metric("contents_ended_total", "acked", value=n)
        assert r.metric("duplicates_total") == 0


def kept_after_ack(world):
    """What was ACKed is kept beside the cache's slots, to compare with, until it is turned off."""
    with world.relay({"dedup": "bytes"}) as r:
        address, cid = world.address(r), world.cid()
        payload, changed = rp.report(cid, 50000), rp.report(cid, 50000, seed=1)
        assert rp.send_framed(address, payload) == rp.ACCEPTED
        r.wait_metric("contents_ended_total", "acked", value=1)
        assert r.metric("cache_kept_contents") == 1
        assert r.metric("cache_kept_bytes") == r.metric("cache_bytes") > 50000
        assert r.metric("index_report_cache_slots_used") == 0
        assert rp.send_framed(address, payload) == rp.NOTHING_TO_DO
        assert rp.send_framed(address, changed) == rp.ACCEPTED
        r.wait_stored(cid, changed)
        r.wait_metric("contents_ended_total", "acked", value=2)
        assert r.metric("cache_kept_contents") == 1
        r.config.setdefault("cache", {})["keep_acked"] = False
        r.write_config()
        assert "reloaded" in r.reload()
        assert r.metric("cache_kept_contents") == r.metric("cache_bytes") == 0
        assert r.metric("cache_kept_removals_total", "off") == 1
        # Nothing to compare with: it is new.
        assert rp.send_framed(address, changed) == rp.ACCEPTED


def rate_limit(world):
    """A limited report is not lost: the newest content goes out with the next token."""
    with world.relay({"rate": {"reports_per_minute": 6}}) as r:
        address, cid = world.address(r), world.cid()
        first, second, third = (rp.report(cid, 5000, seed=i) for i in range(3))
        assert rp.send_framed(address, first) == rp.ACCEPTED
        r.wait_stored(cid, first)
        r.wait_metric("contents_held", value=0)  # its ACK comes a moment later
        assert rp.send_framed(address, second) == rp.ACCEPTED
        # Or the third may be there before anybody has asked for the second one's token.
        r.wait_metric("reports_rate_limited_total", "normal", value=1)
        assert rp.send_framed(address, third) == rp.ACCEPTED
        assert r.stored(cid) == first
        r.wait_stored(cid, third)
        r.wait_metric("contents_held", value=0)
        m = r.metrics()
        assert m["reports_rate_limited_total", "normal"] == 2
        assert m["contents_ended_total", "superseded"] == 1
        assert m["index_report_send_attempts_total", "success"] == 2


def failed_send(world):
    """A failed first send is retried; content that cannot be written stays in custody."""
    with world.relay({"retry": {"base": "1s"}}) as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 5000)
        # A directory where the report should be: rename() fails.
        blocker = os.path.join(r.stored_dir, f"0-{cid}.pb")
        os.makedirs(os.path.join(blocker, "x"))
        assert rp.send_framed(address, payload) == rp.ACCEPTED
        r.wait_metric("index_report_send_attempts_total", "failure", at_least=1)
        assert r.metric("contents_held") == 1
        os.rmdir(os.path.join(blocker, "x"))
        os.rmdir(blocker)
        r.wait_stored(cid, payload)
        r.wait_metric("contents_held", value=0)
        assert r.metric("resends_total") >= 1


# ---- the cache ----


def compressed(world):
    """Content that stays is compressed, still known, and resent as it was."""
    with world.relay({"retry": {"base": "1s"}, "cache": {"compress_after": "100ms"}}) as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, packages=8000)
        blocker = os.path.join(r.stored_dir, f"0-{cid}.pb")
        os.makedirs(os.path.join(blocker, "x"))
        assert rp.send_framed(address, payload) == rp.ACCEPTED
        r.wait_metric("cache_compressed_contents", value=1)
        m = r.metrics()
        assert m["cache_compressed_payload_bytes"] == len(payload)
        assert m["cache_bytes"] == m["cache_compressed_bytes"] < len(payload), m["cache_bytes"]
        assert rp.send_framed(address, payload) == rp.NOTHING_TO_DO
        assert rp.send_offer(address, payload) == (rp.NOTHING_TO_DO, 0)
        assert r.metric("contents_held") == 1
        os.rmdir(os.path.join(blocker, "x"))
        os.rmdir(blocker)
        r.wait_stored(cid, payload)
        r.wait_metric("contents_ended_total", "acked", value=1)
        assert r.metric("cache_compressed_contents") == 1  # kept as it is
        changed = rp.report(cid, seed=1)
        assert rp.send_raw(address, changed)
        r.wait_stored(cid, changed)


def cache_full(world):
    """Without a state directory: a framed report that would push out held content of another VM is
    answered 2, a raw one pushes out the oldest that came raw."""
    with world.relay(ONE_SEND, {"cache": {"slots": 2}}) as r:
        for n in range(2):
            address, cid = world.address(r, n), world.cid(n)
            assert rp.send_framed(address, rp.report(cid, 1000, seed=0)) == rp.ACCEPTED
            r.wait_metric("contents_ended_total", "acked", value=n + 1)
            send = rp.send_framed if n else rp.send_raw
            send(address, rp.report(cid, 1000, seed=1))
            r.wait_metric("contents_held", value=n + 1)
        # VM 0 came raw, VM 1 framed; the third VM is told to come again ...
        address, cid = world.address(r, 2), world.cid(2)
        assert rp.send_framed(address, rp.report(cid, 1000, seed=0)) == rp.BUSY
        expect_refused(r, no_cache=1)
        # ... or, raw, takes the place of VM 0.
        assert rp.send_raw(address, rp.report(cid, 1000, seed=1))
        r.wait_metric("contents_ended_total", "slots", value=1)
        r.wait_stored(cid, rp.report(cid, 1000, seed=1))


def no_cache(world):
    """0 slots: a framed report is answered after its send, a raw one is sent at once or dropped."""
    with world.relay(ONE_SEND, {"cache": {"slots": 0}}) as r:
        address, cid = world.address(r), world.cid()
        first, second = (rp.report(cid, 1000, seed=i) for i in range(2))
        assert rp.send_framed(address, first) == rp.ACCEPTED
        assert r.stored(cid) == first
        assert rp.send_framed(address, second) == rp.BUSY
        assert rp.send_raw(address, second)
        r.wait_metric("reports_dropped_total", "no_cache", value=2)
        assert r.stored(cid) == first


def cache_expiry(world):
    """Content that is not sent leaves with its time to live, counted."""
    with world.relay(ONE_SEND, {"cache": {"ttl": "1s"}}) as r:
        address, cid = world.address(r), world.cid()
        assert rp.send_framed(address, rp.report(cid, 1000, seed=0)) == rp.ACCEPTED
        # Newer content that came before it was sent would go in its place.
        r.wait_metric("contents_ended_total", "acked", value=1)
        assert rp.send_framed(address, rp.report(cid, 1000, seed=1)) == rp.ACCEPTED
        r.wait_metric("contents_ended_total", "ttl", value=1)
        # Its digest is no record any more: the same report is new.
        assert rp.send_framed(address, rp.report(cid, 1000, seed=1)) == rp.ACCEPTED


# ---- places and memory ----


def fifty_one(world):
    """50 known guests send 1 MB each at once within the default budget; the 51st waits its turn."""
    guests = 51
    with world.relay(vms=guests) as r:
        for n in range(guests):
            known = rp.report(world.cid(n), 1000)  # what its next one needs its header says
            assert rp.send_framed(world.address(r, n), known, timeout=MEGABYTES_S) == rp.ACCEPTED
        r.wait_metric("contents_held", value=0, seconds=MEGABYTES_S)
        socks, payloads = [], []
        for n in range(50):
            payload = rp.report(world.cid(n), 1000 * 1000, seed="new")
            s = rp.connect(world.address(r, n), MEGABYTES_S)
            s.sendall(rp.header(payload) + payload[:1000])
            socks.append(s)
            payloads.append(payload)
        r.wait_metric("sem_holding_size", value=50)
        last = rp.report(world.cid(50), 1000 * 1000, seed="new")
        result = []
        thread = threading.Thread(
            target=lambda: result.append(
                rp.send_framed(world.address(r, 50), last, timeout=MEGABYTES_S)
            )
        )
        thread.start()
        r.wait_metric("sem_queue_size", value=1)
        assert not result
        for s, payload in zip(socks, payloads):
            s.sendall(payload[1000:])
            assert rp.read_answer(s) == rp.ACCEPTED
            s.close()
        thread.join(MEGABYTES_S)
        assert result == [rp.ACCEPTED]
        r.wait_metric("contents_held", value=0, seconds=MEGABYTES_S)
        for n, payload in enumerate(payloads):
            assert r.stored(world.cid(n)) == payload, n
        assert r.stored(world.cid(50)) == last
        assert not r.refused()


def connections_of_a_vm(world):
    """2 connections of a VM are served, a third waits, a fourth is closed at once."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        payloads = [rp.report(cid, 5000, seed=i) for i in range(4)]
        assert rp.send_framed(address, payloads[3]) == rp.ACCEPTED
        socks = []
        for n in range(2):
            s = rp.connect(address)
            s.sendall((rp.header(payloads[n]) + payloads[n])[:100])
            socks.append(s)
            r.wait_metric("sem_holding_size", value=n + 1)
        third = rp.connect(address)
        r.wait_metric("sem_queue_size", value=1)
        with rp.connect(address) as fourth:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                fourth.sendall(b"x")
            assert rp.closed_by_peer(fourth)
        expect_refused(r, vm_connections=1)
        for n in range(2):
            socks[n].sendall((rp.header(payloads[n]) + payloads[n])[100:])
            assert rp.read_answer(socks[n]) == rp.ACCEPTED
            socks[n].close()
        third.sendall(rp.header(payloads[2]) + payloads[2])
        assert rp.read_answer(third) == rp.ACCEPTED
        third.close()
        r.wait_stored(cid, payloads[2])


def wait_timeout(world):
    """Who gets no place in time is refused, and nothing of it is stored."""
    with world.relay({"admission": {"places": 2, "wait": "1s"}}) as r:
        known = [rp.report(world.cid(n), 1000, seed="known") for n in range(3)]
        for n in range(3):
            assert rp.send_framed(world.address(r, n), known[n]) == rp.ACCEPTED
        held = []
        for n in range(2):
            s = rp.connect(world.address(r, n))
            s.sendall(rp.header(known[n])[:8])
            held.append(s)
        r.wait_metric("sem_holding_size", value=2)
        with rp.connect(world.address(r, 2)) as s:
            if world.hybrid:
                # A hybrid socket has no credit: what was sent is answered.
                s.sendall(rp.header(known[2]))
                assert rp.read_answer(s) == rp.BUSY
            else:
                start = time.monotonic()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    s.sendall(rp.header(known[2]))
                assert rp.read_answer(s) is None
                assert time.monotonic() - start >= 0.5
        expect_refused(r, wait_timeout=1)
        assert r.metric("sem_acquisition_failures_total", "concurrency_limit") == 1
        for s in held:
            s.close()


def outgrown(world):
    """A report that outgrows its reservation grows with the budget; beyond it it is refused as
    over_budget, and nobody else suffers."""
    with world.relay({"memory": {"budget": "34MiB"}, "admission": {"places": 2}}) as r:
        cids = [world.cid(n) for n in range(2)]
        for n in range(2):
            assert rp.send_framed(world.address(r, n), rp.report(cids[n], 1000)) == rp.ACCEPTED
        big = rp.report(cids[0], 12 * MIB, seed="big")
        reserved = itertools.count(MIB, MIB)
        with rp.connect(world.address(r, 0), MEGABYTES_S) as s:
            # A MiB at a time: if the daemon did not get to run, more than BPF may draw would be refused.
            rp.send_all(
                s, big, MIB,
                lambda: r.wait_metric(
                    "memory_reserved_bytes", at_least=next(reserved), seconds=MEGABYTES_S
                ),
            )  # fmt: skip
            s.shutdown(socket.SHUT_WR)
            assert rp.closed_by_peer(s)
        r.wait_stored(cids[0], big, MEGABYTES_S)
        assert not r.refused(), r.refused()
        # Both at once do not fit; whoever is refused is refused as busy, the other is stored.
        bigs = [rp.report(cids[n], 15 * MIB, seed="both") for n in range(2)]
        results = [None, None]

        def send(n):
            results[n] = rp.send_framed(
                world.address(r, n), bigs[n], chunk=65536, timeout=MEGABYTES_S
            )

        threads = [threading.Thread(target=send, args=(n,)) for n in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(MEGABYTES_S)
        assert rp.ACCEPTED in results, results
        assert all(status in (rp.ACCEPTED, rp.BUSY, None) for status in results), results
        for n in range(2):
            if results[n] == rp.ACCEPTED:
                r.wait_stored(cids[n], bigs[n], MEGABYTES_S)
        assert set(r.refused()) <= {"over_budget", "wait_timeout"}, r.refused()


def offer_busy(world):
    """An offer that the budget has no room for is answered 2, and costs 16 bytes."""
    with world.relay({"memory": {"budget": "34MiB"}, "admission": {"places": 3}}) as r:
        cids = [world.cid(n) for n in range(2)]
        for n in range(2):
            assert rp.send_framed(world.address(r, n), rp.report(cids[n], 1000)) == rp.ACCEPTED
        bigs = [rp.report(cids[n], 15 * MIB) for n in range(2)]
        with rp.connect(world.address(r, 0), MEGABYTES_S) as s:
            s.sendall(rp.header(bigs[0], b"VSR2"))
            assert rp.read_answer(s) == rp.GO_ON
            assert rp.send_offer(world.address(r, 1), bigs[1]) == (rp.BUSY, 0)
            expect_refused(r, offer_busy=1)
            s.sendall(bigs[0])
            assert rp.read_answer(s) == rp.ACCEPTED
        assert rp.send_offer(world.address(r, 1), bigs[1], timeout=MEGABYTES_S)[0] == rp.ACCEPTED


# ---- stop and reload ----


def killed(world):
    """With a state directory: what was answered 0 survives SIGKILL, and is still known after it."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("VSR_TMP")) as directory:
        state = os.path.join(directory, "state")
        vms = 2 if world.many else 1
        with world.relay({"retry": {"base": "1s"}, "state_directory": state}, vms=vms) as r:
            payloads = {world.cid(n): rp.report(world.cid(n), 300_000) for n in range(vms)}
            blockers = [os.path.join(r.stored_dir, f"0-{cid}.pb") for cid in payloads]
            for path in blockers:
                os.makedirs(os.path.join(path, "x"))
            for n, payload in enumerate(payloads.values()):
                assert rp.send_framed(world.address(r, n), payload) == rp.ACCEPTED
            r.kill()
            assert len(os.listdir(os.path.join(state, "spool"))) == vms
            r.start()
            assert r.metric("contents_restored_total") == vms
            for n, payload in enumerate(payloads.values()):
                # Known by its digest alone, where BPF hashes it.
                assert rp.send_framed(world.address(r, n), payload) == rp.NOTHING_TO_DO
                assert rp.send_raw(world.address(r, n), payload)
            r.wait_metric("duplicates_total", value=2 * vms)
            for path in blockers:
                os.rmdir(os.path.join(path, "x"))
                os.rmdir(path)
            for cid, payload in payloads.items():
                r.wait_stored(cid, payload)
            r.wait_metric("contents_held", value=0)
            wait_for(lambda: os.listdir(os.path.join(state, "spool")) == [], 10, "empty spool")


def stop(world):
    """SIGTERM: who waits is refused, who sends is finished, exit 0."""
    with world.start_raw({}) as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 100000)
        with rp.connect(address) as s:
            s.sendall(rp.header(payload) + payload[:50000])
            r.wait_metric("sem_holding_size", value=1)
            r.signal(signal.SIGTERM)
            time.sleep(0.3)
            s.sendall(payload[50000:])
            assert rp.read_answer(s) == rp.ACCEPTED
        assert r.process.wait(30) == 0, r.log()
        assert r.stored(cid) == payload


def stop_grace(world):
    """A guest that never ends does not keep the relay from stopping."""
    with world.start_raw({"shutdown_grace": "1s"}) as r:
        address, cid = world.address(r), world.cid()
        payload = rp.report(cid, 100000)
        with rp.connect(address) as s:
            s.sendall(rp.header(payload) + payload[:50000])
            r.wait_metric("sem_holding_size", value=1)
            assert r.stop(20) == 0
        assert r.stored(cid) is None


def reload(world):
    """SIGHUP applies what it may, and refuses the rest whole and by name."""
    with world.relay() as r:
        address, cid = world.address(r), world.cid()
        r.config["report"] = {"max_kib": 8}
        r.config["log"] = {"level": "debug"}
        r.write_config()
        log = r.reload()
        assert "report.max_kib" in log and "refused" in log, log
        assert rp.send_framed(address, rp.report(cid, 20000)) == rp.ACCEPTED
        r.wait_metric("contents_held", value=0)
        del r.config["report"]
        r.config["unchanged"] = "forward"
        r.write_config()
        assert "reloaded" in r.reload()
        for _ in range(2):
            status = rp.send_framed(address, rp.report(cid, 20000))
            assert status == rp.ACCEPTED, status
            r.wait_metric("contents_held", value=0)
        with open(r.config_path, "a", encoding="utf-8") as f:
            f.write("\nnonsense: [\n")
        assert "refused" in r.reload()
        assert rp.send_framed(address, rp.report(cid, 20000)) == rp.ACCEPTED


# How the bytes come, end and are answered: the same rules by another transport may be others.
OF_THE_TRANSPORT = (
    sizes, small_writes, split_header, later_bytes, bad_header, aborted, deadline,
    duplicate_in_custody, duplicate_small, connections_of_a_vm,
)
ALL = (
    *OF_THE_TRANSPORT, largest, malformed, cid_mismatch, digest_mismatch,
    unchanged, kept_after_ack, compressed, rate_limit, failed_send, cache_expiry, no_cache,
    killed, stop, stop_grace, reload,
)
# These need several VMs.
MANY = (cache_full, wait_timeout, outgrown, offer_busy, fifty_one)
# 50 MB through a VM take it as long as a fifth of all the rest; over hybrid sockets they are nothing.
WITHOUT_FIFTY_ONE = (*ALL, *(test for test in MANY if test is not fifty_one))


def run_all(tap, world, tests=None):
    for test in tests or ALL + (MANY if world.many else ()):
        summary = " ".join(test.__doc__.split())
        tap.run(f"{world.name}: {test.__name__}: {summary}", test, world)

# SPDX-License-Identifier: Apache-2.0
"""Comparison with what the cache has of a VM, byte for byte and count for count: run over hybrid
sockets on the host and over AF_VSOCK in a VM, with BPF and without."""

import contextlib
import ctypes
import os
import random
import socket
import threading
import time

import report as rp

KIB, MIB = 1024, 1024 * 1024
BLOCK, PACKET = 4096, 64 * KIB
# What was ACKed stays to compare with, and comes again as new.
KEEP = {"cache": {"keep_acked": True}, "unchanged": "forward"}
SUPPRESS = {"cache": {"keep_acked": True}, "unchanged": "suppress"}

_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438
SO_MEMINFO = 55


class SocketMemory(threading.Thread):
    """Samples SO_MEMINFO of the connections of another process, by borrowing their descriptors for
    a moment: the most that one of them had queued in the kernel, to it (rmem) and from it (wmem).
    What was open before it began does not count."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.pidfd = pid, os.pidfd_open(pid)
        self.before = self.sockets()
        self.most = self.samples = 0
        self.going = True

    def sockets(self):
        """{number of the descriptor: inode} of its sockets."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{self.pid}/fd/{name}")
                if target.startswith("socket:"):
                    found[int(name)] = target
        return found

    def sample(self, number):
        fd = _libc.syscall(_PIDFD_GETFD, self.pidfd, number, 0)
        if fd < 0:
            return
        # Python's own getsockopt() knows only 8 bytes on AF_VSOCK.
        info, size = (ctypes.c_uint32 * 9)(), ctypes.c_uint32(36)
        r = _libc.getsockopt(fd, socket.SOL_SOCKET, SO_MEMINFO, info, ctypes.byref(size))
        os.close(fd)
        if r < 0:
            return
        rmem, wmem = info[0], info[2]
        self.most = max(self.most, rmem + wmem)
        self.samples += 1

    def run(self):
        while self.going:
            for number, inode in self.sockets().items():
                if self.before.get(number) != inode:
                    self.sample(number)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.going = False
        self.join()
        os.close(self.pidfd)


def send(address, payload, mode, chunk=None):
    if mode == "raw":
        assert rp.send_raw(address, payload, chunk=chunk, timeout=120)
        return None
    return rp.send_framed(address, payload, chunk=chunk, timeout=120)


def deliver(relay, address, cid, payload, mode="vsr1", chunk=None):
    """Sends it, and waits until it is stored and its ACK has come. Returns the bytes that the daemon
    read of it, and those that were known."""
    before = relay.metrics()
    status = send(address, payload, mode, chunk)
    assert status in (None, rp.ACCEPTED), status
    relay.wait_stored(cid, payload, 60)
    relay.wait_metric("contents_ended_total", "acked", at_least=before["contents_ended_total", "acked"] + 1)
    relay.wait_metric("contents_held", value=0)
    after = relay.metrics()
    return tuple(after[m] - before[m] for m in ("read_bytes_total", "known_bytes_total"))


# ---- contents that can be changed anywhere ----


def content(cid, size, tail=5, period=None):
    """A report of `size` bytes that stays valid whichever of its bytes edits() changes:
    an unknown field of random bytes, again and again the same `period` of them if it shall pack well, three bytes that mean the same if the field before them takes
    the first one in, the report itself, and a last unknown field of `tail` bytes."""
    rest = b"\x80\x78\x01" + rp.field(1, rp.field(1, str(cid)))
    rng = random.Random(f"{cid}/{size}")
    last = rp.field(15, rng.randbytes(tail))
    for width in range(1, 6):
        filler = size - len(rest) - len(last) - 1 - width
        if filler % 2 == 0 and len(rp.varint(filler)) == width:
            once = rng.randbytes(period or filler or 1)
            return rp.field(15, (once * (filler // len(once) + 1))[:filler]) + rest + last
    return content(cid, size, tail + 1, period)


def changed_at(payload, k, bit=1):
    return payload[:k] + bytes([payload[k] ^ bit]) + payload[k + 1 :]


def edits(payload):
    """(name, what comes instead, first byte that differs)."""
    size = len(payload)
    yield "the same", payload, size
    yield "byte 0", changed_at(payload, 0, 8), 0  # another number of the field
    yield "byte 1", changed_at(payload, 1), 1  # its length
    for k in (4095, 4096, 65535, 65536, size // 2):
        yield f"byte {k}", changed_at(payload, k), k
    yield "the last byte", changed_at(payload, size - 1), size - 1
    last = payload.rindex(b"\x7a", 0, size - 4)
    tail = payload[last + 2 :]
    yield "one byte shorter", payload[:last] + rp.field(15, tail[:-1]), last + 1
    yield "one byte longer", payload[:last] + rp.field(15, tail + b"x"), last + 1
    yield "equal, and more behind it", payload + b"\x78\x01", size


# ---- what must hold ----


def unread(k):
    """Bytes that need not be copied of a stream that differs at byte k: all whole blocks before it
    but those in the packet with the difference."""
    return max(k // BLOCK * BLOCK - PACKET, 0)


def repeat_once(world, r, payload, mode):
    """Returns the sampler of the socket memory that it took."""
    before = r.metrics()
    with SocketMemory(r.process.pid) as memory:
        status = send(world.address(r), payload, mode)
        r.wait_metric("reports_suppressed_total", value=before["reports_suppressed_total"] + 1)
    assert status in (None, rp.NOTHING_TO_DO), status
    after = r.metrics()
    read, known = (after[m] - before[m] for m in ("read_bytes_total", "known_bytes_total"))
    size = len(payload) + (16 if mode == "vsr1" else 0)
    assert known == size, (mode, known)
    assert read == (0 if world.bpf else size), (mode, read)
    assert after["cache_bytes"] == before["cache_bytes"]
    return memory


def repeat(world):
    """A repeat of 16 MiB: nothing of it is kept, and in the kernel nothing is copied or queued."""
    payload = content(world.cid(), 16 * MIB)
    with world.relay(SUPPRESS, {"cache": {"bytes": "64MiB"}}) as r:
        deliver(r, world.address(r), world.cid(), payload)
        for mode in ("raw", "vsr1"):
            samples = most = times = 0
            # One may be over before a busy machine has let us look often enough.
            while times == 0 or (world.bpf and samples <= 20 and times < 20):
                memory = repeat_once(world, r, payload, mode)
                samples += memory.samples
                most = max(most, memory.most)
                times += 1
            if world.bpf:
                print(f"# {mode}: most socket memory in {samples} samples: {most}")
                assert samples > 20, samples
                assert most <= 64 * KIB, most
        assert r.stored(world.cid()) == payload


def check_edits(world, before, period, *settings):
    with world.relay(KEEP, *settings) as r:
        address, cid = world.address(r), world.cid()
        payload = content(cid, world.edit_size, period=period)
        for name, other, k in edits(payload):
            for mode in ("raw", "vsr1"):
                deliver(r, address, cid, payload)
                before(r)
                read, known = deliver(r, address, cid, other, mode)
                header = 16 if mode == "vsr1" else 0
                what = f"{name}, {mode}: {read} bytes read, {known} known of {len(other)}"
                assert known >= unread(k), what
                # BPF believes what does not fill a block yet.
                assert known < (k // BLOCK + 1) * BLOCK + header, what
                if world.bpf:
                    assert read + known == len(other) + header, what


def every_edit(world):
    """One byte changed at every edge of a block, shorter, longer: stored to the byte, and what was
    equal was not copied."""
    check_edits(world, lambda r: None, None)


def every_edit_of_packed(world):
    """The same, with content that the cache has compressed."""
    check_edits(world, lambda r: r.wait_metric("cache_compressed_contents", value=1),
                10007, {"cache": {"compress_after": "10ms"}})  # fmt: skip


def small_pieces(world):
    """The same for streams that come in pieces of odd sizes, and for small contents."""
    with world.relay(KEEP) as r:
        address, cid = world.address(r), world.cid()
        for size in (300, 4095, 4096, 4097, 8192, 20000, 100000):
            payload = content(cid, size)
            other = changed_at(payload, size - 1)
            for chunk in (977, 4096, 5000):
                deliver(r, address, cid, payload, "raw", chunk)
                read, known = deliver(r, address, cid, payload, "raw", chunk)
                assert known == size, (size, chunk, known)
                assert read == (0 if world.bpf else size), (size, chunk, read)
                deliver(r, address, cid, other, "vsr1", chunk)
                deliver(r, address, cid, payload, "vsr1", chunk)


def content_leaves(world):
    """Content that is replaced or dropped in mid-stream stays for the stream that is compared with
    it; what is stored is the stream."""
    with world.relay(KEEP) as r:
        address, cid = world.address(r), world.cid()
        payload = content(cid, 600 * 1000)
        for how in ("replaced", "dropped"):
            for same in (True, False):
                deliver(r, address, cid, payload)
                after = payload if same else changed_at(payload, 400 * 1000)
                with rp.connect(address) as s:
                    s.sendall(rp.header(after) + after[: 300 * 1000])
                    if how == "replaced":
                        deliver(r, address, cid, content(cid, 5000))
                    else:
                        r.config["cache"]["keep_acked"] = False
                        r.write_config()
                        assert "reloaded" in r.reload()
                    assert r.metric("memory_pinned_bytes") >= 600 * 1000, how
                    s.sendall(after[300 * 1000 :])
                    assert rp.read_answer(s) == rp.ACCEPTED
                r.wait_stored(cid, after)
                r.wait_metric("contents_held", value=0)
                r.wait_metric("memory_pinned_bytes", value=0)
                r.config["cache"]["keep_acked"] = True
                r.write_config()
                assert "reloaded" in r.reload()


def dedup_by_bytes(world):
    """`dedup: bytes`: nothing is compared by digests, all is read."""
    with world.relay(KEEP, {"dedup": "bytes"}) as r:
        address, cid = world.address(r), world.cid()
        payload = content(cid, 200 * 1000)
        for _ in range(2):
            read, known = deliver(r, address, cid, payload)
            assert (read, known) == (len(payload) + 16, 0)


ALL = (repeat, every_edit, every_edit_of_packed, small_pieces, content_leaves, dedup_by_bytes)


def run_all(tap, world):
    for test in ALL:
        summary = " ".join(test.__doc__.split())
        tap.run(f"{world.name}: {test.__name__}: {summary}", test, world)

# SPDX-License-Identifier: Apache-2.0
"""VMReports for tests, built by hand so that every byte is chosen here, and the two ways to send
them. Needs nothing but Python's library and libxxhash."""

import ctypes
import random
import socket
import struct

import vsock

_xxhash = ctypes.CDLL("libxxhash.so.0")
_xxhash.XXH64.restype = ctypes.c_uint64
_xxhash.XXH64.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64)

LIMIT = 16384 * 1024

ACCEPTED, NOTHING_TO_DO, BUSY, TOO_LARGE, MALFORMED, CID_MISMATCH = range(6)
DIGEST_MISMATCH, INTERNAL, REFUSED, DEADLINE = range(6, 10)
GO_ON = 100


def xxh64(data, seed=0):
    return _xxhash.XXH64(bytes(data), len(data), seed)


# ---- protobuf ----


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """A length-delimited field."""
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def package(number, rng):
    name = f"package-{number}-{rng.getrandbits(32):x}"
    body = field(1, str(number)) + field(2, name) + field(3, f"1.{rng.getrandbits(16)}")
    body += field(6, "binary") + field(8, "var/lib/dpkg/status") + field(11, "amd64")
    return field(5, field(1, str(number)) + field(2, body))


def report(cid, size=None, seed=0, packages=4, vm_id="vm"):
    """A valid report of the VM with this CID; with `size`, of exactly that many bytes. Reports of
    different seeds differ; of the same seed and size they are equal."""
    rng = random.Random(f"{cid}/{size}/{seed}")
    head = field(1, str(cid))
    if size is None or size > 600:
        contents = b"".join(package(i, rng) for i in range(packages))
        head += field(2, field(1, f"hash-{seed}") + field(5, contents)) + field(3, vm_id)
    message = field(1, head)
    return message if size is None else pad(message, size, rng)


def pad(message, size, rng):
    """Makes the message exactly `size` bytes long with an unknown field (number 15) of its own."""
    room = size - len(message)
    if room == 0:
        return message
    for width in range(1, 6):
        filler = room - 1 - width
        if filler >= 0 and len(varint(filler)) == width:
            return message + b"\x7a" + varint(filler) + rng.randbytes(filler)
    # No length fits: one more unknown field of two bytes (number 15, a varint) before it.
    if room >= 2:
        return pad(message + b"\x78" + bytes([rng.randrange(128)]), size, rng)
    raise ValueError(f"a report of {size} bytes cannot be built from {len(message)}")


def header(payload, magic=b"VSR1", digest=None, length=None):
    digest = xxh64(payload) if digest is None else digest
    length = len(payload) if length is None else length
    return magic + struct.pack(">IQ", length, digest)


# ---- sending ----


def connect(address, timeout=30):
    """address: a path, or (CID, port)."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_VSOCK
    s = socket.socket(family, socket.SOCK_STREAM)
    vsock.set_timeouts(s, timeout)
    s.connect(address)
    return s


def send_all(s, data, chunk=None, pause=None):
    view = memoryview(data)
    step = chunk or len(data) or 1
    for off in range(0, len(data), step):
        s.sendall(view[off : off + step])
        if pause:
            pause()


def read_answer(s):
    """The status of a framed answer; None if the connection ended without one."""
    data = b""
    while len(data) < 8:
        try:
            got = s.recv(8 - len(data))
        except (ConnectionResetError, BrokenPipeError):
            return None
        if not got:
            return None
        data += got
    magic, status = struct.unpack(">4sI", data)
    assert magic == b"VSA1", data
    return status


def closed_by_peer(s):
    """Waits until the relay closes; True if it sent nothing before."""
    try:
        return s.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True


def send_raw(address, payload, chunk=None, end="half", timeout=30):
    """Raw mode. end: "half" (half-close, then wait for the relay) or "close" (do not wait)."""
    with connect(address, timeout) as s:
        try:
            send_all(s, payload, chunk)
            if end == "half":
                s.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            return False
        if end == "half":
            assert closed_by_peer(s), "the relay answered in raw mode"
    return True


def send_framed(address, payload, chunk=None, timeout=30, **header_keys):
    """VSR1. Returns the answer's status; None: closed without one."""
    with connect(address, timeout) as s:
        try:
            send_all(s, header(payload, b"VSR1", **header_keys) + payload, chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return read_answer(s)


def send_offer(address, payload, chunk=None, timeout=30, **header_keys):
    """VSR2. Returns (final status, payload bytes sent)."""
    with connect(address, timeout) as s:
        try:
            s.sendall(header(payload, b"VSR2", **header_keys))
            status = read_answer(s)
            if status != GO_ON:
                return status, 0
            send_all(s, payload, chunk)
        except (BrokenPipeError, ConnectionResetError):
            return None, 0
        return read_answer(s), len(payload)

# SPDX-License-Identifier: Apache-2.0
"""What Python's socket module does not know of AF_VSOCK: options, SO_MEMINFO, what is left."""

import json
import socket
import struct
import subprocess
import time

# linux/vm_sockets.h, asm-generic/socket.h, linux/sock_diag.h
SOL_VSOCK, BUFFER_SIZE, BUFFER_MIN_SIZE, BUFFER_MAX_SIZE, CONNECT_TIMEOUT = 40, 0, 1, 2, 6
SO_MEMINFO = 55
MEMINFO = ("rmem", "rcvbuf", "wmem", "sndbuf", "fwd", "wmem_queued", "optmem", "backlog", "drops")


class _Options:
    """The same socket under a family for which Python passes option buffers on unchanged."""

    def __init__(self, sock):
        self.fd = sock.fileno()

    def __enter__(self):
        self.alias = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self.fd)
        return self.alias

    def __exit__(self, *exc):
        self.alias.detach()


def set_u64(sock, option, value):
    with _Options(sock) as o:
        o.setsockopt(SOL_VSOCK, option, struct.pack("Q", value))


def set_connect_timeout(sock, seconds):
    with _Options(sock) as o:
        o.setsockopt(SOL_VSOCK, CONNECT_TIMEOUT, struct.pack("qq", seconds, 0))


def set_timeouts(sock, seconds):
    """Blocking sends and receives that give up (EAGAIN) in time. Python's own settimeout() polls
    for POLLOUT alone, and a vsock socket without credit whose peer has closed never shows it."""
    with _Options(sock) as o:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            o.setsockopt(socket.SOL_SOCKET, option, struct.pack("qq", seconds, 0))


def meminfo(sock):
    """SO_MEMINFO as a dict: what the kernel charges the socket, in bytes."""
    with _Options(sock) as o:
        raw = o.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
    return dict(zip(MEMINFO, struct.unpack(f"{len(raw) // 4}I", raw)))


def wmem(sock):
    return meminfo(sock)["wmem"]


def so_error(sock):
    with _Options(sock) as o:
        return o.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def listener(port, zero_credit=False, backlog=4096, timeout=10):
    """zero_credit: accepted sockets advertise no credit until grant()."""
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    if zero_credit:
        set_u64(s, BUFFER_MIN_SIZE, 0)
        set_u64(s, BUFFER_SIZE, 0)
    s.bind((socket.VMADDR_CID_ANY, port))
    s.listen(backlog)
    s.settimeout(timeout)
    return s


def grant(sock, size=262144):
    set_u64(sock, BUFFER_MAX_SIZE, size)
    set_u64(sock, BUFFER_SIZE, size)


def diag():
    """tests/vm/vsockdiag.c: sockets by state and port, and the modules' reference counts."""
    return json.loads(subprocess.check_output(["vsockdiag"]))


def refs():
    """References on the module vsock: two for an open socket, one for a closed one that the
    kernel still holds, and a constant for the modules that need it."""
    return diag()["refs"]["vsock"]


def mem_available():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()

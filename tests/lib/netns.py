# SPDX-License-Identifier: Apache-2.0
"""Listeners inside other network namespaces: vsock knows these from Linux 7.0 on, and what the relay
says and does on kernels that do not."""

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import subprocess

import report as rp
from fakeguest import FakeGuest, FakeGuestError
from hostile import open_map
from relay import BUILD, Relay, process_status, wait_for

PORT = 818
CID = 3  # KubeVirt gives it to every guest
CLONE_NEWNET = 0x40000000
SYSCTL = "/proc/sys/net/vsock"
_libc = ctypes.CDLL(None, use_errno=True)


def known():
    return os.path.exists(f"{SYSCTL}/ns_mode")


def _checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter(path):
    """For a child: goes into that namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _checked(_libc.setns(fd, CLONE_NEWNET))
    os.close(fd)


def in_child(function):
    """Runs it in a process of its own; returns what it printed, raises if it raised."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            os.write(write, json.dumps(function()).encode())
            status = 0
        except BaseException as e:  # noqa: BLE001: the parent says it
            os.write(write, json.dumps(repr(e)).encode())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        result = json.loads(f.read() or b"null")
    assert os.waitpid(pid, 0)[1] == 0, result
    return result


class Namespace:
    """A network namespace that a sleeping process holds. mode: which one vsock shall have there, if
    it knows any. New namespaces get what their parent says, and may say it but once, so each of
    ours is made by a parent of its own."""

    def __init__(self, mode=None):
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if mode and known():
                    _checked(_libc.unshare(CLONE_NEWNET))
                    with open(f"{SYSCTL}/child_ns_mode", "w", encoding="ascii") as f:
                        f.write(mode)
                _checked(_libc.unshare(CLONE_NEWNET))
                os.write(tell, b"ok")
                while True:
                    signal.pause()
            except BaseException as e:  # noqa: BLE001
                os.write(tell, repr(e).encode())
            finally:
                os._exit(1)
        os.close(tell)
        with os.fdopen(ready, "rb", buffering=0) as f:
            said = f.read(1000)
        assert said == b"ok", said
        self.path = f"/proc/{self.pid}/ns/net"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def mode(self):
        def read():
            enter(self.path)
            with open(f"{SYSCTL}/ns_mode", encoding="ascii") as f:
                return f.read().strip()

        return in_child(read)


class GuestInside(FakeGuest):
    """A VMM whose /dev/vhost-vsock was opened inside a namespace: that one is its guests'."""

    def __init__(self, namespace):
        with in_namespace(namespace):
            super().__init__()


@contextlib.contextmanager
def in_namespace(namespace):
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(namespace.path)
    try:
        yield
    finally:
        _checked(_libc.setns(home, CLONE_NEWNET))
        os.close(home)


def stored(relay, ns, cid):
    try:
        with open(os.path.join(relay.stored_dir, f"{ns}-{cid}.pb"), "rb") as f:
            return f.read()
    except FileNotFoundError:
        return None


def send(relay, guests, ns, cid, payload, port=PORT):
    conn = guests.connect(cid, port)
    guests.wait(conn, "credit")
    guests.send(conn, payload)
    guests.close(conn)
    wait_for(lambda: stored(relay, ns, cid) == payload, 30, f"the report of VM {ns}:{cid}")


def status(relay):
    command = [os.path.join(BUILD, "vsock-relayctl"), "-c", relay.config_path, "-j", "status"]
    return json.loads(subprocess.check_output(command, timeout=60))["daemon"]


def doctor(relay):
    command = [os.path.join(BUILD, "vsock-relayctl"), "-c", relay.config_path, "-j", "doctor"]
    out = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, check=False).stdout
    return {c["name"]: c for c in json.loads(out)["checks"]}


def fails(settings, *words):
    """The relay refuses to start, and says so in these words."""
    with Relay(settings, start=False) as relay:
        relay.start(wait=False)
        assert relay.process.wait(60) not in (0, 75)
        for word in words:
            assert word in relay.log(), relay.log()


def mode_is_said(bpf):
    """One line of the log, the status and doctor say which ns_mode the relay is in."""
    with Relay({"bpf": bpf}) as relay:
        said = [line for line in relay.log().splitlines() if "namespaces" in line or "ns_mode" in line]
        assert len(said) == 1, said
        listen = status(relay)["listen"]
        assert listen["listeners"] == []
        if known():
            assert "ns_mode of the relay's network namespace is global" in said[0], said
            assert listen["ns_mode"] == "global", listen
            assert "global" in doctor(relay)["namespaces"]["says"]
        else:
            assert "no vsock network namespaces" in said[0], said
            assert listen["ns_mode"] == "none", listen
            assert "no vsock network namespaces" in doctor(relay)["namespaces"]["says"]


def same_cid(bpf):
    """Guests of CID 3 in two local namespaces and in the relay's own are three VMs: reports, map
    entries and repeats of each are its own."""
    with Namespace("local") as a, Namespace("local") as b:
        assert (a.mode(), b.mode()) == ("local", "local")
        listeners = [{"netns": a.path, "namespace": 7}, {"netns": b.path, "namespace": 8}]
        with Relay({"bpf": bpf, "listeners": listeners}) as relay:
            with FakeGuest() as here, GuestInside(a) as in_a, GuestInside(b) as in_b:
                guests = {0: here, 7: in_a, 8: in_b}
                payload = {ns: rp.report(CID, 300_000 + ns, seed=ns) for ns in guests}
                for ns, fake in guests.items():
                    fake.guest(CID)
                    send(relay, fake, ns, CID, payload[ns])
                relay.wait_metric("contents_held", value=0)
                # What one has sent is no repeat from another one, and a repeat from itself is.
                send(relay, in_b, 8, CID, payload[7])
                send(relay, in_b, 8, CID, payload[8])
                assert relay.metric("reports_suppressed_total") == 0
                conn = in_b.connect(CID, PORT)
                in_b.wait(conn, "credit")
                in_b.send(conn, payload[8])
                in_b.close(conn)
                relay.wait_metric("reports_suppressed_total", value=1)
                assert stored(relay, 0, CID) == payload[0] and stored(relay, 7, CID) == payload[7]
                if bpf != "off":
                    seen = {(e["key"]["ns"], e["key"]["cid"]): e["value"]["connections"]
                            for e in open_map("vsr_vms")}  # fmt: skip
                    assert seen[7, CID] >= 1 and seen[8, CID] >= 4, seen
                said = status(relay)
                assert [(x["namespace"], x["port"], x["ns_mode"]) for x in said["listen"]["listeners"]] == [
                    (7, PORT, "local"), (8, PORT, "local")], said  # fmt: skip
                assert relay.metric("listeners", "vsock") == 3
                checks = doctor(relay)
                for name in ("listener 7", "listener 8"):
                    assert checks[name]["result"] == "ok", checks[name]
                assert checks["ready: listening"]["says"] == (
                    f"vsock port {PORT}, 2 network namespaces"), checks["ready: listening"]
                relay.check()
            # The namespaces were entered before privileges were dropped, and left again.
            pid = relay.process.pid
            assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
            proc = process_status(pid)
            assert int(proc["CapEff"], 16) == 0 and proc["NoNewPrivs"] == "1", proc


def local_is_apart(bpf):
    """A guest in a local namespace reaches no listener outside of it, and one outside none in it."""
    with Namespace("local") as a, Namespace("local") as b:
        with Relay({"bpf": bpf, "listen": {"vsock": False},
                    "listeners": [{"netns": a.path, "namespace": 7}]}) as relay:  # fmt: skip
            with FakeGuest() as here, GuestInside(a) as in_a, GuestInside(b) as in_b:
                for fake in (here, in_a, in_b):
                    fake.guest(CID)
                for fake in (here, in_b):
                    try:
                        fake.connect(CID, PORT)
                        raise AssertionError("connected")
                    except FakeGuestError as e:
                        assert e.error in ("refused", "rst"), e
                send(relay, in_a, 7, CID, rp.report(CID, 5000, seed=1))
                assert os.listdir(relay.stored_dir) == [f"7-{CID}.pb"]
                relay.check()


def loopback_inside(bpf):
    """Loopback inside a local namespace is a listener's there, by its own kernel's send()."""
    with Namespace("local") as a:
        with Relay({"bpf": bpf, "allow_reserved_cids": True,
                    "listeners": [{"netns": a.path, "namespace": 7}]}) as relay:  # fmt: skip
            payload = rp.report(1, 200_000, seed=2)

            def inside():
                enter(a.path)
                return rp.send_framed((1, PORT), payload)

            assert in_child(inside) == rp.ACCEPTED
            wait_for(lambda: stored(relay, 7, 1) == payload, 30, "the report")
            assert stored(relay, 0, 1) is None
            relay.check()


def global_is_shared(bpf):
    """A listener inside a global namespace shares ports and CIDs with all other global ones: it needs
    a port of its own, says so, and VMs of the relay's namespace that connect there are its VMs."""
    with Namespace() as g:
        assert g.mode() == "global"
        inside = {"netns": g.path, "namespace": 9}
        fails({"bpf": bpf, "listeners": [inside]}, "ns_mode global", f"vsock port {PORT} inside {g.path}")
        with Relay({"bpf": bpf, "listeners": [dict(inside, port=819)]}) as relay, FakeGuest() as here:
            assert f"listeners: {g.path} is in ns_mode global" in relay.log(), relay.log()
            here.guest(CID)
            send(relay, here, 0, CID, rp.report(CID, 5000, seed=1))
            send(relay, here, 9, CID, rp.report(CID, 5000, seed=2), port=819)
            with GuestInside(g) as in_g:
                in_g.guest(CID + 1)
                send(relay, in_g, 0, CID + 1, rp.report(CID + 1, 5000, seed=3))
            relay.check()


def bad_namespaces(bpf):
    """What is no network namespace, is not there, or may not be entered is fatal, and named."""
    for path, why in (("/run/netns/none", "No such file"), ("/etc/passwd", "it is not a network namespace"),
                      ("/proc/self/ns/mnt", "it is not a network namespace")):  # fmt: skip
        fails({"bpf": bpf, "listeners": [{"netns": path, "namespace": 7}]},
              f"network namespace {path}: {why}", "take it out of listeners")  # fmt: skip


def privileges(bpf):
    """What docs/kernel-facts.md says: a socket that was made inside binds there from outside and
    without CAP_SYS_ADMIN, but a port below 1024 still wants its capability; child_ns_mode is chosen
    once."""
    del bpf
    with Namespace("local") as a:
        def try_it():
            with in_namespace(a):
                s, t = (socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) for _ in range(2))
            there = os.open(a.path, os.O_RDONLY)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                s.bind((socket.VMADDR_CID_ANY, PORT))
                return "bound"
            except OSError as e:
                first = errno.errorcode[e.errno]
            t.bind((socket.VMADDR_CID_ANY, 5000))
            t.listen()
            entered = _libc.setns(there, CLONE_NEWNET)
            return [first, "entered" if entered == 0 else errno.errorcode[ctypes.get_errno()]]

        said = in_child(try_it)
        assert said == ["EACCES", "EPERM"], said

    def choose():
        _checked(_libc.unshare(CLONE_NEWNET))
        said = []
        for mode in ("local", "local", "global"):
            try:
                with open(f"{SYSCTL}/child_ns_mode", "w", encoding="ascii") as f:
                    f.write(mode)
                said.append("written")
            except OSError as e:
                said.append(errno.errorcode[e.errno])
        return said

    said = in_child(choose)
    assert said == ["written", "written", "EBUSY"], said


def left_out(bpf):
    """A kernel without vsock namespaces: the listeners are left out with a warning, as every VM
    reaches listen.port; alone they are fatal."""
    with Namespace() as a:
        inside = [{"netns": a.path, "namespace": 7}]
        with Relay({"bpf": bpf, "listeners": inside}) as relay, GuestInside(a) as fake:
            assert "listeners are left out" in relay.log(), relay.log()
            assert status(relay)["listen"]["listeners"] == []
            fake.guest(CID)
            send(relay, fake, 0, CID, rp.report(CID, 5000, seed=1))
            checks = doctor(relay)
            assert checks["listener 7"]["result"] == "note", checks["listener 7"]
            relay.check()
        fails({"bpf": bpf, "listen": {"vsock": False}, "listeners": inside},
              "no vsock network namespaces", "listen.vsock: true")  # fmt: skip


def run_all(tap, bpf):
    tests = (mode_is_said, same_cid, local_is_apart, loopback_inside, global_is_shared,
             bad_namespaces, privileges) if known() else (mode_is_said, left_out)  # fmt: skip
    for function in tests:
        summary = " ".join(function.__doc__.split())
        tap.run(f"netns: {function.__name__}: {summary}", function, "auto")
    if bpf and known():
        tap.run("netns, user space: same_cid", same_cid, "off")

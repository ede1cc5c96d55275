#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Custody with a state directory, as an operator meets it: restarts, disks that fail, and what the
agents are told meanwhile. Arguments: a part of the tests' names."""

import contextlib
import ctypes
import os
import pwd
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc_server as gs
import report as rp
from relay import Relay, free_port, merge, wait_for
from tap import Skip, Tap

WRAP = os.environ.get("VSR_WRAP", "").split()
VMS = 6
HEADER = 4096


def settings(**more):
    s = {"admission": {"grant_rate": 0}, "retry": {"base": "1s"}, "shutdown_grace": "5s"}
    merge(s, more)
    return s


def grpc_to(address, acks="response"):
    return {"kind": "grpc", "grpc": {"address": address, "acks": acks, "plaintext": True}}


@contextlib.contextmanager
def relay(start=True, **more):
    """Its state directory is `state` in the relay's own."""
    hybrid = {f"vm{n}.sock": 100 + n for n in range(VMS)}
    with Relay(settings(**more), hybrid=hybrid, wrap=WRAP, start=False) as r:
        r.state = r.config["state_directory"] = os.path.join(r.dir, "state")
        r.write_config()
        if start:
            r.start()
        yield r
        if r.process and r.process.poll() is None:
            r.check()


def spooled(r):
    """Contents and temporary files in the state directory."""
    return sorted(os.listdir(os.path.join(r.state, "spool")))


def send(r, cid=100, seed=0, size=5000, raw=False):
    payload = rp.report(cid, size, seed=seed)
    address = r.path(f"vm{cid - 100}.sock")
    if raw:
        assert rp.send_raw(address, payload)
        return payload
    return rp.send_framed(address, payload), payload


def accept(r, cid=100, seed=0, size=5000):
    status, payload = send(r, cid, seed, size)
    assert status == rp.ACCEPTED, status
    return payload


def drained(r):
    r.wait_metric("contents_held", value=0)
    wait_for(lambda: spooled(r) == [], 10, "empty spool")


def down():
    """An address where no server is."""
    return f"127.0.0.1:{free_port()}"


# ---- restarts ----


def delivered_and_removed():
    """What is delivered leaves nothing in the state directory but the seed."""
    with relay() as r:
        for cid in range(100, 103):
            r.wait_stored(cid, accept(r, cid))
        drained(r)
        assert sorted(os.listdir(r.state)) == ["damaged", "seed", "spool", "vsock-relayd.lock"]
        assert os.listdir(os.path.join(r.state, "damaged")) == []
        assert r.metric("spool_files") == r.metric("spool_bytes") == 0
        assert r.metric("spool_state", "ok") == 1
        assert r.stop() == 0


def stopped_with_the_upstream_down():
    """SIGTERM with the upstream down, then a start with it up: all that was accepted is delivered,
    the newest content of each VM, the same bytes."""
    address = down()
    with relay(upstream=grpc_to(address)) as r:
        payloads = {}
        for cid in range(100, 104):
            accept(r, cid, seed="old")
            payloads[cid] = accept(r, cid, seed="new")
        send(r, 104, raw=True)
        r.wait_metric("contents_held", value=5)
        wait_for(lambda: len(spooled(r)) == 5, 10, "the older ones are removed")
        r.check()
        assert r.stop() == 0
        assert "5 reports are in the state directory" in r.log()
        assert len(spooled(r)) == 5
        with gs.Server(address=address, default=gs.succeed) as server:
            r.start()
            drained(r)
            for cid, payload in payloads.items():
                assert server.payloads(cid) == [payload], cid
            assert len(server.payloads(104)) == 1
            m = r.check()
            assert m["contents_restored_total"] == 5 and m["spool_reads_total"] == 5
            assert m["contents_ended_total", "acked"] == 5
            # Restored content is that of record.
            assert r.stop() == 0


def killed_with_the_upstream_down():
    """The same with SIGKILL, and a repeat after it is known."""
    address = down()
    with relay(upstream=grpc_to(address, acks="communicate")) as r:
        payload = accept(r, 100, size=2_000_000)
        r.kill()
        r.start()
        assert r.metric("contents_restored_total") == 1
        assert send(r, 100, size=2_000_000)[0] == rp.NOTHING_TO_DO
        assert rp.send_offer(r.path("vm0.sock"), payload) == (rp.NOTHING_TO_DO, 0)
        newer = accept(r, 100, seed=1)
        wait_for(lambda: len(spooled(r)) == 1, 10, "the older one is removed")
        r.kill()
        with gs.Server(address=address) as server:
            r.start()
            drained(r)
            assert server.payloads(100) == [newer]


def killed_again_and_again():
    """A start that is killed in turn loses nothing either."""
    address = down()
    with relay(upstream=grpc_to(address)) as r:
        payloads = {cid: accept(r, cid, size=300_000) for cid in range(100, 100 + VMS)}
        for n in range(5):
            r.kill()
            r.start(wait=False)
            time.sleep(0.02 * n)
        r.kill()
        r.start()
        assert r.metric("contents_restored_total") == VMS
        with gs.Server(address=address, default=gs.succeed) as server:
            drained(r)
            assert {cid: server.payloads(cid) for cid in payloads} == {
                cid: [p] for cid, p in payloads.items()
            }


def damaged_file():
    """A file that was damaged meanwhile is set aside and said so; the others are delivered."""
    address = down()
    with relay(upstream=grpc_to(address)) as r:
        accept(r, 100)
        payload = accept(r, 101)
        r.kill()
        victim = os.path.join(r.state, "spool", "0-100-1.vsr")
        with open(victim, "r+b") as f:
            f.seek(HEADER + 100)
            f.write(b"damage")
        with open(os.path.join(r.state, "spool", "README"), "w", encoding="ascii") as f:
            f.write("not ours")
        with gs.Server(address=address, default=gs.succeed) as server:
            r.start()
            drained(r)
            assert server.payloads(100) == [] and server.payloads(101) == [payload]
            assert r.metric("spool_set_aside_total") == 2
            assert sorted(os.listdir(os.path.join(r.state, "damaged"))) == ["0-100-1.vsr", "README"]
            assert "0-100-1.vsr: the checksum of its payload is wrong" in r.log()
            accept(r, 100)
            drained(r)


def seed_lost():
    """Without the seed file contents are hashed again: a repeat is still known."""
    with relay(upstream=grpc_to(down())) as r:
        accept(r)
        r.kill()
        os.remove(os.path.join(r.state, "seed"))
        r.start()
        assert send(r)[0] == rp.NOTHING_TO_DO


def too_old():
    """Content older than custody_max_age by wall time is given up at the start, and counted."""
    with relay(upstream=grpc_to(down()), custody_max_age="3s") as r:
        accept(r)
        r.kill()
        time.sleep(3.2)
        r.start()
        r.wait_metric("contents_ended_total", "max_age", value=1)
        wait_for(lambda: spooled(r) == [], 10, "empty spool")


# ---- memory ----


def no_cache():
    """Without cache slots payloads are read from the state directory, and framed agents are
    answered when they are durable."""
    with relay(cache={"slots": 0}) as r:
        r.wait_stored(100, accept(r, 100))
        raw = send(r, 101, raw=True)
        r.wait_stored(101, raw)
        drained(r)
        m = r.check()
        assert m["spool_reads_total"] == 2 and m["index_report_cache_slots_used"] == 0


def misses_memory():
    """A retry that misses memory reads the state directory: a miss of the reference's metric."""
    actions = [gs.no_success] * 4
    with gs.Server(actions=actions, default=gs.succeed) as server:
        with relay(upstream=grpc_to(server.address), cache={"slots": 1},
                   retry={"base": "300ms"}, rate={"reports_per_minute": 0}) as r:  # fmt: skip
            payloads = {cid: accept(r, cid) for cid in (100, 101, 102, 103)}
            drained(r)
            for cid, payload in payloads.items():
                assert server.payloads(cid) == [payload] * 2, cid
            m = r.check()
            assert m["index_report_cache_lookups_total", "miss"] == 3, m
            assert m["spool_reads_total"] == 3
            assert m["cache_removals_total", "slots"] == 3


# ---- disks ----


@contextlib.contextmanager
def small_disk(r, size):
    """The state directory is a file system of its own."""
    if os.geteuid() != 0:
        raise Skip("needs root")
    os.makedirs(r.state, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", r.state],
                          check=False)  # fmt: skip
    if done.returncode:
        raise Skip("no tmpfs can be mounted here")
    r.give(r.state)
    try:
        yield lambda options: subprocess.run(["mount", "-o", "remount," + options, r.state],
                                             check=True)  # fmt: skip
    finally:
        r.kill()
        subprocess.run(["umount", "-l", r.state], check=True)


def full_disk():
    """A full disk: framed reports are answered 2, raw ones held in memory and counted; nothing that
    was accepted is evicted; when there is room again, what is held goes to the disk."""
    with relay(start=False, upstream=grpc_to(down())) as r, small_disk(r, "400k") as remount:
        r.start()
        accept(r, 100, size=250_000)
        status, _ = send(r, 101, size=300_000)
        assert status == rp.BUSY, status
        r.wait_metric("spool_state", "failed", value=1)
        assert r.refused() == {"no_spool": 1}
        assert r.metric("reports_dropped_total", "no_spool") == 1
        assert send(r, 102)[0] == rp.BUSY
        raw = send(r, 103, raw=True, size=200_000)
        r.wait_metric("contents_unspooled", value=1)
        # That it is in custody is not said to who would take it for durable.
        assert rp.send_framed(r.path("vm3.sock"), raw) == rp.BUSY
        assert r.metric("contents_held") == 2
        r.check()
        remount("size=4m")
        r.wait_metric("spool_state", "ok", value=1)
        r.wait_metric("contents_unspooled", value=0)
        assert rp.send_framed(r.path("vm3.sock"), raw) == rp.NOTHING_TO_DO
        accept(r, 101, size=300_000)
        assert len(spooled(r)) == 3
        r.check()
        r.kill()
        r.start()
        assert r.metric("contents_restored_total") == 3


def accept_without_disk():
    """accept_without_disk: answered 0 nevertheless, in memory, until the disk takes it."""
    with relay(start=False, upstream=grpc_to(down()), accept_without_disk=True) as r, \
            small_disk(r, "400k"):  # fmt: skip
        r.start()
        filler = os.path.join(r.state, "filler")
        with contextlib.suppress(OSError), open(filler, "wb") as f:
            f.write(bytes(400 << 10))
        accept(r, 100)
        assert send(r, 100)[0] == rp.NOTHING_TO_DO
        accept(r, 101)
        assert r.metric("contents_unspooled_total") == 2
        assert spooled(r) == []
        os.remove(filler)
        r.wait_metric("contents_unspooled", value=0)
        assert len(spooled(r)) == 2
        r.check()


def limits():
    """spool.max_files and spool.max_bytes refuse new VMs, and not the next content of one that has
    some; a reload with more room is enough."""
    with relay(upstream=grpc_to(down()), spool={"max_files": 2}) as r:
        accept(r, 100)
        accept(r, 101)
        assert send(r, 102)[0] == rp.BUSY
        r.wait_metric("spool_state", "full", value=1)
        accept(r, 101, seed=1)
        r.config["spool"]["max_files"] = 3
        r.write_config()
        assert "reloaded" in r.reload()
        # The older file of 101 goes when the newer one is on disk, and so after the answer.
        r.wait_metric("spool_files", value=2)
        accept(r, 102)
        assert r.metric("contents_held") == 3
        assert r.metric("spool_files") == 3


def read_only_start():
    """A start on a read-only disk delivers what is there."""
    address = down()
    with relay(start=False, upstream=grpc_to(address)) as r, small_disk(r, "1m") as remount:
        r.start()
        payload = accept(r)
        r.kill()
        remount("ro")
        with gs.Server(address=address, default=gs.succeed) as server:
            r.start()
            r.wait_metric("contents_held", value=0)
            assert server.payloads(100) == [payload]
            r.wait_metric("spool_state", "failed", value=1)
            remount("rw")
            drained(r)


def directory_vanishes():
    """The directory vanishes while it runs: said so, what memory has goes to a new one."""
    with relay(upstream=grpc_to(down())) as r:
        accept(r, 100)
        shutil.rmtree(r.state)
        assert send(r, 101)[0] == rp.BUSY
        r.wait_metric("spool_state", "ok", value=1)
        assert "No such file or directory" in r.log()
        r.wait_metric("contents_unspooled", value=0)
        accept(r, 101)
        assert spooled(r) == ["0-100-1.vsr", "0-101-1.vsr"], spooled(r)
        r.kill()
        r.start()
        assert r.metric("contents_restored_total") == 2


def file_vanishes():
    """A content whose file vanished and that is not in memory is lost, counted, and then new."""
    with relay(upstream=grpc_to(down()), cache={"slots": 0}) as r:
        accept(r)
        os.remove(os.path.join(r.state, "spool", "0-100-1.vsr"))
        r.kill()
        r.start()
        accept(r)
        os.remove(os.path.join(r.state, "spool", spooled(r)[0]))
        with gs.Server(address=r.config["upstream"]["grpc"]["address"]):
            r.wait_metric("contents_ended_total", "lost", value=1)
            accept(r)
            drained(r)


# ---- the start ----


def owners():
    """Another user's directory is a clear error; one that is made is the service user's."""
    if os.geteuid() != 0 or WRAP:
        raise Skip("needs root, without a wrapper")
    nobody = pwd.getpwnam("nobody")
    with relay(start=False) as r:
        r.config.update(user="", group="")
        r.write_config()
        os.mkdir(r.state)
        os.chown(r.state, nobody.pw_uid, nobody.pw_gid)
        r.start(wait=False)
        assert r.process.wait(60) == 1
        assert f"{r.state}: it, spool/ and damaged/ in it must belong to user 0" in r.log()
        os.chown(r.state, 0, 0)
        os.chmod(r.state, 0o777)
        r.start(wait=False)
        assert r.process.wait(60) == 1
    with relay(start=False) as r:
        r.config.update(user="nobody", group="nogroup")
        r.config["hybrid"]["allowed_uids"] = "any"
        r.write_config()
        os.chmod(r.dir, 0o755)
        os.chown(r.stored_dir, nobody.pw_uid, nobody.pw_gid)
        r.start()
        assert os.stat(r.state).st_uid == nobody.pw_uid
        r.wait_stored(100, accept(r))
        drained(r)
        assert r.stop() == 0
        r.start()
        r.wait_stored(100, accept(r, seed=1))


def one_relay_per_directory():
    """A second relay on the same state directory exits 75 and names the first."""
    with relay() as first, relay(start=False) as second:
        second.config["state_directory"] = first.state
        second.write_config()
        second.start(wait=False)
        assert second.process.wait(60) == 75
        assert str(first.process.pid) in second.log() and first.state in second.log()
        accept(first)


PTRACE_DETACH, PTRACE_SYSCALL, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 24, 0x4206, 0x4207
PTRACE_GET_SYSCALL_INFO, PTRACE_O_TRACESYSGOOD, WALL = 0x420E, 1, 0x40000000
UNLINKAT = {"x86_64": 263, "aarch64": 35}.get(os.uname().machine)


class HangingDisk(threading.Thread):
    """Stops the relay's disk worker at the first system call of its next job, as a disk does that does
    not answer: the thread alone, with ptrace, since no file system here can be made to hang."""

    def __init__(self, relay):
        super().__init__(daemon=True)
        tasks = [int(t) for t in os.listdir(f"/proc/{relay.process.pid}/task")]
        # A sanitizer may have a thread of its own, from the beginning.
        assert len(tasks) in (2, 3), tasks
        self.worker = max(tasks)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self.libc.ptrace.restype = ctypes.c_long
        self.ready, self.go_on = threading.Event(), threading.Event()
        self.failed = None
        self.start()
        self.ready.wait(20)
        if self.failed:
            raise Skip(f"ptrace: {self.failed}")

    def ptrace(self, request, address=0, data=0):
        if self.libc.ptrace(request, self.worker, address, data) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def run(self):
        # All of it in one thread: only the one that seized may go on.
        try:
            self.ptrace(PTRACE_SEIZE, data=PTRACE_O_TRACESYSGOOD)
            self.ptrace(PTRACE_INTERRUPT)
        except OSError as e:
            self.failed = e
            self.ready.set()
            return
        info = ctypes.create_string_buffer(128)
        while True:
            os.waitpid(self.worker, WALL)
            self.libc.ptrace(PTRACE_GET_SYSCALL_INFO, self.worker, len(info), info)
            # op 1: entry; the system call's number lies behind op, arch, ip and sp
            if info.raw[0] == 1 and int.from_bytes(info.raw[24:32], "little") == UNLINKAT:
                break
            self.ptrace(PTRACE_SYSCALL)
            self.ready.set()
        self.go_on.wait(120)
        self.ptrace(PTRACE_DETACH)

    def answers_again(self):
        self.go_on.set()
        self.join(20)


def hangs():
    """A disk that hangs: who waits is answered 2 after 10 s, others at once; raw reports are held in
    memory. What was being written and is wanted by nobody is removed when it goes on."""
    if WRAP or not UNLINKAT:
        raise Skip("needs ptrace")
    with relay(upstream=grpc_to(down())) as r:
        accept(r, 100)
        disk = HangingDisk(r)
        answers = {}

        def ask(cid):
            answers[cid] = send(r, cid)[0]

        def ask_raw(cid):
            answers[cid] = bool(send(r, cid, raw=True))

        start = time.monotonic()
        threads = [threading.Thread(target=ask, args=(101,)),
                   threading.Thread(target=ask_raw, args=(102,))]  # fmt: skip
        for t in threads:
            t.start()
        wait_for(lambda: r.metric("contents_held") == 3, 10, "both wait")
        r.check()
        for t in threads:
            t.join(30)
        assert answers[101] == rp.BUSY, answers
        assert time.monotonic() - start > 9, time.monotonic() - start
        r.wait_metric("spool_state", "hangs", value=1)
        # Others are not kept waiting.
        before = time.monotonic()
        assert send(r, 103)[0] == rp.BUSY
        assert time.monotonic() - before < 5
        assert r.metric("contents_unspooled") == 1 and r.metric("contents_held") == 2
        r.check()
        disk.answers_again()
        r.wait_metric("spool_state", "ok", value=1)
        r.wait_metric("contents_unspooled", value=0)
        wait_for(lambda: spooled(r) == ["0-100-1.vsr", "0-102-1.vsr"], 10, "spool")
        accept(r, 101)
        r.check()


TESTS = (
    delivered_and_removed, stopped_with_the_upstream_down, killed_with_the_upstream_down,
    killed_again_and_again, damaged_file, seed_lost, too_old, no_cache, misses_memory, full_disk,
    accept_without_disk, limits, read_only_start, directory_vanishes, file_vanishes, owners,
    one_relay_per_directory, hangs,
)  # fmt: skip


def main():
    tap = Tap(only=sys.argv[1] if len(sys.argv) > 1 else None)
    for test in TESTS:
        tap.run(f"{test.__name__}: {' '.join(test.__doc__.split())}", test)
    tap.end()


main()

# SPDX-License-Identifier: Apache-2.0
"""Twenty hostile guests at once against a relay with a small memory budget, a polite VM beside them.

The attacks are those of tests/lib/hostile.py, as moves that each of the twenty makes again and
again, beginning with another one each, without waiting for anything but its own connection. While
they last two things are measured:

Memory: what the kernel has allocated since before the attack, for whatever (all memory that is
neither free, nor of a process, nor of a file), and the daemon's resident memory. That is more than
sockets take, and misses nothing: SO_MEMINFO would show only what the kernel charges to a socket,
which is just what hostile guests avoid. The sum of SO_MEMINFO is shown beside it.

Waiting: what the polite VM waits from the answer to its connect() to its credit, told by its own
clock, compared with a control run in which the twenty send as much, politely."""

import collections
import contextlib
import json
import os
import statistics
import threading
import time

import report as rp
from fakeguest import SHUTDOWN_SEND, FakeGuest, FakeGuestError
from hostile import KIB, MIB, PORT, Guest, on_free_lists, park, relay_sockets
from relay import Relay, wait_for

BUDGET = 64 * MIB
SLACK = 16 * MIB
ATTACKERS = 20
FIRST_CID = 3000
PROCESSES = 2
WAVE_S = 2
WHOLE_S = 60  # in which every move is made by all at once
LARGE = 4 * MIB
POLITE = 950
POLITE_SIZE = 300 * 1000
WAIT_S = 5  # admission.wait, at which a waiter is refused
# Below this a median says more about the clock of a busy test VM than about the relay.
CLOCK_S = 0.002


# ---- what each attacker does, one connection or a few at a time ----


def parked(g):
    """Packets without payload as far as the credit goes, and no more."""
    conn = g.open()
    park(g, conn)
    g.fg.wait(conn, "closed", timeout=8, check=False)


def parked_behind_a_report(g):
    """The same on two connections that have a whole report before."""
    payload = g.report(30000)
    conns = [g.open(), g.open()]
    for conn in conns:
        g.fg.send(conn, rp.header(payload) + payload, check=False)
        park(g, conn)
        g.fg.rw(conn, len=1, desc=65536, count=50, check=False)


def bytes_in_big_descriptors(g):
    """A byte that costs 66 KB, again and again, on two connections."""
    conns = [g.open(), g.open()]
    for conn in conns:
        g.fg.send(conn, b"\x0a" * 3000, chunk=1, desc=65536, timeout=4, check=False)


def too_much_at_once(g):
    """20 MB without a look at the credit."""
    conn = g.open()
    g.fg.rw(conn, len=65536, count=320, check=False, timeout=20)


def as_much_as_there_is(g):
    """A report that outgrows everything, within the credit."""
    conn = g.open()
    g.fg.send(conn, pattern=1, len=17 * MIB, check=False, timeout=15)


def large_reports(g):
    """Two valid reports: no offence, but what is taken is missing elsewhere."""
    for seed in range(2):
        conn = g.open()
        g.fg.send(conn, file=framed_file(g.cid, LARGE, seed), timeout=15, check=False)
        g.fg.recv(conn, 8)


def one_byte_packets(g):
    conn = g.open()
    g.fg.rw(conn, len=1, fill=255, count=5000, timeout=20, check=False)


def never_reads(g):
    """Updates pile up unread; then the VM is gone."""
    conn = g.open()
    g.fg.rxstop(g.cid)
    g.fg.rw(conn, len=1, count=5000, async_=True)
    time.sleep(1)
    g.reborn()


def credit_requests(g):
    conn = g.open()
    g.fg.rxstop(g.cid)
    g.fg.creditrequest(conn, 1000, timeout=20)
    g.reborn()


def connections(g):
    g.fg.connectmany(g.cid, PORT, 200, timeout=20)


def gone_in_mid_report(g):
    g.fg.send(g.open(), g.report()[:10000])
    g.hold(1)
    g.reborn()


def holds_on(g):
    """Keeps its places until the idle limit."""
    for conn in g.hold(2):
        g.fg.wait(conn, "closed", timeout=8, check=False)


def goes_on_after_its_end(g):
    conn = g.open()
    g.fg.send(conn, g.report(6000))
    g.fg.shutdown(conn, flags=SHUTDOWN_SEND, async_=True)
    g.fg.rw(conn, len=3000, fill=255, count=300, check=False)


MOVES = (
    parked, parked_behind_a_report, bytes_in_big_descriptors, too_much_at_once,
    as_much_as_there_is, large_reports, one_byte_packets, never_reads, credit_requests,
    connections, gone_in_mid_report, holds_on, goes_on_after_its_end,
)  # fmt: skip


class Crowd:
    """Twenty guests in two processes that do what `turn` says until the block ends. What they do
    costs the test VM's two processors more than it would cost a node that has some for every VM,
    so their processes come last there: the relay and the polite VM run as on a node of their own."""

    def __init__(self, turn, **keys):
        self.turn, self.keys = turn, keys
        self.made = {}  # name of a move: how often it was tried
        self.broken = []

    def __enter__(self):
        cids = range(FIRST_CID, FIRST_CID + ATTACKERS)
        self.children = [self._fork(cids[n::PROCESSES]) for n in range(PROCESSES)]
        for child in self.children:
            child.says.readline()  # its guests are there
        return self

    def _fork(self, cids):
        (said, says), (told, tells) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid:
            os.close(says)
            os.close(told)
            return Child(pid, os.fdopen(said), os.fdopen(tells, "w"))
        status = 1
        try:
            os.close(said)
            os.close(tells)
            for child in getattr(self, "children", ()):  # its end must be its parent's
                child.tells.close()
            os.nice(10)
            Attackers(self.turn, cids, self.keys).run(os.fdopen(told), os.fdopen(says, "w"))
            status = 0
        except BaseException as e:  # noqa: BLE001
            print(f"# attackers: {e!r}", flush=True)
        os._exit(status)

    def start(self):
        for child in self.children:
            child.tells.write("go\n")
            child.tells.flush()

    def __exit__(self, *exc):
        for child in self.children:
            child.tells.close()
        for child in self.children:
            made, broken = json.loads(child.says.readline() or '[{}, ["no word of it"]]')
            self.broken += broken
            for name, n in made.items():
                self.made[name] = self.made.get(name, 0) + n
            os.waitpid(child.pid, 0)


Child = collections.namedtuple("Child", "pid says tells")


class Attackers:
    """Some of the guests, a thread each."""

    def __init__(self, turn, cids, keys):
        self.turn = turn
        self.end = threading.Event()
        self.made, self.broken = {}, []
        self.guests = [Guest(cid, **keys) for cid in cids]

    def run(self, told, says):
        threads = []
        says.write("ready\n")
        says.flush()
        if told.readline():
            since = time.monotonic()
            for guest in self.guests:
                threads.append(threading.Thread(target=self._run, args=(guest, since)))
                threads[-1].start()
            told.readline()
            self.end.set()
            for thread in threads:
                thread.join()
        for guest in self.guests:
            guest.fg.stop()
        says.write(json.dumps([self.made, self.broken]) + "\n")
        says.flush()

    def _run(self, guest, since):
        step = guest.cid
        while not self.end.is_set():
            try:
                self.turn(guest, step, since, self.made)
            except FakeGuestError:
                time.sleep(0.1)  # refused: that is the point
            except Exception as e:  # noqa: BLE001: a broken test must not look like a passed one
                self.broken.append(repr(e))
                return
            step += 1


def attack(guest, step, since, made):
    """For a while all make the same move, for a while each another one."""
    wave = int((time.monotonic() - since) / WAVE_S)
    move = MOVES[(wave // 2 if wave % 2 == 0 else step) % len(MOVES)]
    made[move.__name__] = made.get(move.__name__, 0) + 1
    try:
        move(guest)
    except FakeGuestError:
        # Whatever it was refused for: let all go, and come as a new machine now and then.
        if step % 3 == 0:
            guest.reborn()
        raise


# ---- reports, made before anything is measured ----


def framed_file(cid, size, seed):
    """A whole frame in a file: building it would take the time of those that wait."""
    path = f"/tmp/frame-{cid}-{size}-{seed}"
    if not os.path.exists(path):
        payload = rp.report(cid, size, seed=seed)
        with open(path, "wb") as f:
            f.write(rp.header(payload) + payload)
    return path


# ---- what is measured ----


def kernel_memory():
    """Bytes that the kernel has for itself: not free, of no process and of no file."""
    names = ("MemTotal", "MemFree", "Buffers", "Cached", "AnonPages")
    with open("/proc/meminfo", encoding="ascii") as f:
        m = {line.split(":")[0]: int(line.split()[1]) * KIB for line in f}
    total, *others = (m[name] for name in names)
    return total - sum(others) - on_free_lists()


class Memory:
    """Samples what the kernel and the daemon take, until the block ends."""

    def __init__(self, relay):
        self.relay = relay
        self.base = kernel_memory()
        self.most = self.kernel = self.daemon = self.charged = 0
        self.samples = 0
        self.end = threading.Event()

    def __enter__(self):
        self.threads = [threading.Thread(target=f) for f in (self._watch, self._watch_sockets)]
        for thread in self.threads:
            thread.start()
        return self

    def _watch(self):
        while not self.end.wait(0.05):
            kernel, daemon = kernel_memory() - self.base, self.relay.rss()
            self.samples += 1
            self.kernel = max(self.kernel, kernel)
            self.daemon = max(self.daemon, daemon)
            self.most = max(self.most, kernel + daemon)

    def _watch_sockets(self):
        while not self.end.wait(0.25):
            sockets = relay_sockets(self.relay.process.pid)
            self.charged = max(self.charged, sum(s["rmem"] + s["wmem"] for s in sockets))

    def __exit__(self, *exc):
        self.end.set()
        for thread in self.threads:
            thread.join()

    def __str__(self):
        return (
            f"at most {self.most / MIB:.1f} MiB together; kernel {self.kernel / MIB:.1f}, daemon "
            f"{self.daemon / MIB:.1f}, charged to sockets {self.charged / MIB:.1f}; "
            f"{self.samples} samples"
        )


class PoliteVm:
    """Sends one report after the other, a second between them, and says what it waited."""

    def __init__(self, relay):
        self.relay = relay
        self.fg = FakeGuest()
        self.fg.guest(POLITE, rx=1024)
        self.seed = 0
        self.report()
        self.waited = []

    def report(self):
        self.seed += 1
        payload = rp.report(POLITE, POLITE_SIZE, seed=self.seed)
        data = rp.header(payload) + payload
        conn = self.fg.connect(POLITE, PORT, timeout=20)
        self.fg.wait(conn, "credit", timeout=20)
        self.fg.send(conn, data, timeout=30)
        state = self.fg.conn(conn)
        answer = self.fg.recv(conn, 8, timeout=30)
        self.fg.forget(conn)
        assert answer == b"VSA1" + bytes(4), f"report {self.seed} was answered {answer}"
        wait_for(lambda: self.relay.stored(POLITE) == payload, 20, "its report is stored")
        return (state["granted"] - state["opened"]) / 1e6

    def send_for(self, seconds):
        self.waited = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.monotonic()
            self.waited.append(self.report())
            time.sleep(max(0, start + 1 - time.monotonic()))

    def median(self):
        return statistics.median(self.waited)

    def __str__(self):
        return (
            f"{len(self.waited)} reports, all accepted; from answer to grant "
            f"{self.median() * 1000:.1f} ms (median), {max(self.waited) * 1000:.0f} ms at most"
        )


def settled(relay):
    wait_for(lambda: relay.metric("sem_holding_size") == 0, 30, "no connection is left")


def traffic(relay):
    m = relay.metrics()
    return m["bpf_seen_bytes_total"], m["connections_accepted_total"]


def run(seconds):
    settings = {"memory": {"budget": "64MiB"}, "report": {"deadline": "20s", "idle": "10s"}}
    with Relay(settings) as relay, contextlib.ExitStack() as stack:
        polite = PoliteVm(relay)
        stack.callback(polite.fg.stop)
        for cid in range(FIRST_CID, FIRST_CID + ATTACKERS):
            for seed in range(2):
                framed_file(cid, LARGE, seed)
        seen, opened = traffic(relay)
        with Crowd(attack, rx=512) as crowd, Memory(relay) as memory:
            crowd.start()
            polite.send_for(seconds)
        settled(relay)
        assert not crowd.broken, crowd.broken
        seen_after, opened_after = traffic(relay)
        per_second = (seen_after - seen) / seconds
        refused = relay.refused()
        print(f"# moves {crowd.made}")
        print(f"# {opened_after - opened:.0f} connections, {per_second / MIB:.1f} MiB/s; {refused}")
        print(f"# memory: {memory}")
        print(f"# polite VM under attack: {polite}", flush=True)
        if seconds >= WHOLE_S:
            assert set(crowd.made) >= {m.__name__ for m in MOVES}, f"moves made: {crowd.made}"
        assert memory.most <= BUDGET + SLACK, f"{memory.most} bytes of {BUDGET + SLACK}"
        worst, attacked = max(polite.waited), polite.median()
        assert worst < WAIT_S, f"waited {worst} s"

        # As many bytes in all: about ten reports a second is what this test VM gets through.
        size = max(1000, min(int(per_second / 10), LARGE))

        def politely(guest, step, _since, made):
            conn = guest.open()
            guest.fg.send(conn, file=framed_file(guest.cid, size, step % 2), timeout=20)
            assert guest.answer(conn) == rp.ACCEPTED, "a polite report was refused"
            made["reports"] = made.get("reports", 0) + 1

        for cid in range(FIRST_CID, FIRST_CID + ATTACKERS):
            for seed in range(2):
                framed_file(cid, size, seed)

        seen, opened = traffic(relay)
        with Crowd(politely, rx=1024) as crowd:
            crowd.start()
            start = time.monotonic()
            polite.send_for(max(seconds / 2, 15))
            elapsed = time.monotonic() - start
        settled(relay)
        assert not crowd.broken, crowd.broken
        control_per_second = (traffic(relay)[0] - seen) / elapsed
        print(f"# control: {crowd.made}, {control_per_second / MIB:.1f} MiB/s")
        print(f"# polite VM among polite ones: {polite}", flush=True)
        control = max(polite.median(), CLOCK_S)
        assert attacked <= 3 * control, f"{attacked} s under attack, {control} s among polite VMs"
        relay.check()


def run_all(tap, seconds):
    tap.run(
        f"budget: {ATTACKERS} hostile guests at once, {seconds} s: memory within the budget of 64 MiB "
        "+ 16 MiB, a polite VM is served, waits less than 5 s and at most three times as long as "
        "among polite ones",
        run, seconds,
    )  # fmt: skip

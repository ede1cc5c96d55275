# SPDX-License-Identifier: Apache-2.0
"""The same guests, seen by BPF and in user space: random scripts run over AF_VSOCK against two relays
at once, one with `bpf: required` and one with `bpf: off`, and must come out the same (SPEC 5).

A script is a list of steps, made from its seed alone: connections that begin, send a part, crash,
come to their end; guests that vanish; an upstream that takes no reports, so that they stay in
custody, and takes them again; entries of the cache that are dropped. After each step what the relays
say is compared: answers, what became of the VM's reports, generation, custody, what is stored."""

import json
import os
import random
import shutil
import socket
import time

import matching
import report as rp
from fakeguest import FakeGuest
from relay import MUST_STAY_ZERO, Relay, merge, wait_for
from scenarios import PATIENT

STEPS = 14
GUESTS, CONNS, SERVED_PER_VM = 3, 3, 2
SIZES = (60, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 131072)
REPORT_MAX = 150000
PIECES = (1000, 4096, 20000, 65536)
PORTS = {"required": 818, "off": 819}
FIRST_CID = 5000
# Compared at the end of a script, as sums over their labels where not said.
TOTALS = ("reports_valid_total", "reports_suppressed_total", "contents_ended_total",
          "reports_refused_total", "report_bytes_total", "duplicates_total",
          "cache_evictions_total")  # fmt: skip
VM_KEYS = ("received", "accepted", "duplicates", "refused", "record_length", "generation", "custody")


# ---- scripts --------------------------------------------------------------------------------------


class Script:
    """steps: tuples that Side.step() runs. settings: to be reloaded before."""

    def __init__(self, seed):
        self.seed, self.rng = seed, random.Random(seed)
        rng = self.rng
        self.cids = [FIRST_CID + seed % 1000000 * GUESTS + n for n in range(GUESTS)]
        # The same for ten in a row: a reload takes as long as a script.
        of_ten = random.Random(seed // 10)
        self.settings = {
            "cache": {"slots": of_ten.choice((2, 100)), "keep_acked": of_ten.random() < 0.7},
            "unchanged": of_ten.choice(("suppress", "forward")),
        }
        self.last = {}  # what each guest began to send last
        self.open = {}  # number of the connection: [guest, bytes, position]
        self.steps = []
        for _ in range(STEPS):
            self.step()
        for conn in list(self.open):
            self.finish(conn)

    def report(self, guest):
        """As before, as it was edited, or something else."""
        rng, last, how = self.rng, self.last.get(guest), self.rng.random()
        if last is None or how > 0.85:
            size = rng.choice(SIZES) if rng.random() < 0.5 else 60 + rng.randrange(REPORT_MAX)
            last = matching.content(self.cids[guest], size, 5 + rng.randrange(3))
        elif how > 0.5:
            last = rng.choice(self.edits(last))(last)
        self.last[guest] = last
        return last

    def edits(self, payload):
        """Ways to change a report; not all of them leave it valid."""
        rng, size = self.rng, len(payload)
        edge = size // 4096 * 4096
        at = rng.choice((rng.randrange(size), edge - 1, edge, size - 1, size // 2, 12))
        at = min(max(at, 0), size - 1)
        return (
            lambda p: matching.changed_at(p, at, rng.choice((1, 2, 3))),
            lambda p: matching.changed_at(p, min(20, size - 1)),
            lambda p: p + b"\x78\x01",  # more behind it
            lambda p: rp.field(15, rng.randbytes(rng.randrange(40))) + p,  # all of it moves
            lambda p: p[: -len(p) // 3 or None],
        )

    def begin(self, conn):
        rng = self.rng
        busy = [c[0] for c in self.open.values()]
        guest = rng.choice([g for g in range(GUESTS) if busy.count(g) < SERVED_PER_VM])
        payload = self.report(guest)
        mode = rng.choice(("raw", "vsr1", "vsr2"))
        digest = rp.xxh64(payload) ^ (rng.random() < 0.05)
        self.open[conn] = [guest, 0, len(payload) + (16 if mode == "vsr1" else 0)]
        self.steps.append(("begin", conn, guest, mode, payload, digest))

    def some(self, conn, n):
        """A part of what is left; all of it would be the end of a framed report."""
        _, at, size = self.open[conn]
        self.pieces(conn, min(n, size - 1 - at))

    def pieces(self, conn, n):
        guest, at, size = self.open[conn]
        piece = self.rng.choice(PIECES)
        end = at + n
        while at < end:
            step = min(end - at, max(1 + self.rng.randrange(piece), size // 20))
            self.steps.append(("send", conn, step))
            at += step
        self.open[conn] = [guest, at, size]

    def finish(self, conn):
        _, at, size = self.open[conn]
        self.pieces(conn, size - at)
        self.steps.append(("finish", conn))
        del self.open[conn]

    def step(self):
        rng = self.rng
        conn, what, guest = rng.randrange(CONNS), rng.randrange(16), rng.randrange(GUESTS)
        if what < 3:
            self.steps.append((("block", "unblock", "unblock")[what], guest))
        elif what == 3:
            self.steps.append(("drop", guest, rng.random() < 0.3))
        elif what == 4 and rng.random() < 0.3:
            self.steps.append(("vanish", guest))
            self.open = {n: c for n, c in self.open.items() if c[0] != guest}
        elif conn not in self.open:
            self.begin(conn)
            if rng.random() < 0.5:
                self.finish(conn)
        elif what < 7:
            self.some(conn, 1 + rng.randrange(REPORT_MAX // 3))
        elif what == 7:
            # Not before a byte is on its way: whether a guest that leaves without one has had its grant
            # already is a matter of time, and counted as what it was.
            if self.open[conn][1] == 0:
                self.pieces(conn, 1)
            self.steps.append(("crash", conn))
            del self.open[conn]
        else:
            self.finish(conn)

    def __str__(self):
        def show(step):
            return " ".join(f"<{len(x)} bytes {rp.xxh64(x):x}>" if isinstance(x, bytes) else str(x)
                            for x in step)  # fmt: skip

        return "\n".join([str(self.settings), *map(show, self.steps)])


# ---- one of the two relays --------------------------------------------------------------------------


class Side:
    def __init__(self, bpf, guests):
        self.guests, self.bpf = guests, bpf
        settings = {
            "bpf": bpf,
            "listen": {"port": PORTS[bpf]},
            "pin_directory": f"/sys/fs/bpf/differential_{bpf}",
            "retry": {"base": "1h"},
            "log": {"level": "warning"},
        }
        merge(settings, PATIENT)
        self.relay = Relay(settings)
        self.before = self.relay.metrics()

    def request(self, method, page):
        """The JSON of a page of the admin socket."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.relay.config["admin_socket"])
            s.sendall(f"{method} {page} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while part := s.recv(1 << 16):
                answer += part
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def path(self, guest):
        return f"{self.relay.dir}/guest{guest}"

    def bridge(self, guest):
        self.guests.bridge(self.script.cids[guest], PORTS[self.bpf], self.path(guest))

    def start(self, script):
        self.script, self.log = script, []
        self.open = {}  # number: [guest, socket, mode, bytes, position]
        self.blocked = set()
        if any(self.relay.config.get(k) != v for k, v in script.settings.items()):
            self.relay.config.update(script.settings)
            self.relay.write_config()
            self.request("POST", "/reload")
        for guest in range(GUESTS):
            self.bridge(guest)

    # ---- what it says ----

    def vm(self, guest):
        vms = self.request("GET", f"/vms.json?cid={self.script.cids[guest]}")
        return vms[0] if vms else None

    def settled(self, guest):
        """The VM, when nothing is left to be done for it now."""
        vm = self.vm(guest)
        served = sum(c[0] == guest for c in self.open.values())
        if vm is None:
            return {"daemon": None} if not served else None
        now, custody = vm["now"], vm["daemon"]["custody"]
        if now["connections"] != served or now["waiting"] or now["in_flight"]:
            return None
        if custody and guest not in self.blocked:
            return None
        # In custody, and its send has failed.
        return vm if not custody or (now["next_retry_in"] or 0) > 60 else None

    def settle(self, guest, *more):
        end = time.monotonic() + 60
        while not (vm := self.settled(guest)):
            assert time.monotonic() < end, (self.bpf, guest, self.vm(guest), self.log[-5:])
        daemon = vm["daemon"] and [vm["daemon"][key] for key in VM_KEYS]
        self.log.append((guest, *more, daemon, self.stored(guest)))

    def file(self, guest):
        return f"{self.relay.stored_dir}/0-{self.script.cids[guest]}.pb"

    def stored(self, guest):
        if guest in self.blocked:
            return "blocked"
        payload = self.relay.stored(self.script.cids[guest])
        return payload and (len(payload), rp.xxh64(payload))

    # ---- steps ----

    def step(self, step):
        getattr(self, step[0])(*step[1:])

    def begin(self, conn, guest, mode, payload, digest):
        s = rp.connect(self.path(guest), 60)
        data = payload if mode == "raw" else rp.header(payload, mode.upper().encode(), digest)
        if mode == "vsr1":
            data += payload
        if mode == "vsr2":
            s.sendall(data)
            status = rp.read_answer(s)
            if status != rp.GO_ON:
                s.close()
                self.settle(guest, "offered", status)
                return
            data = payload
        self.open[conn] = [guest, s, mode, data, 0]

    def send(self, conn, n):
        if conn in self.open:
            _, s, _, data, at = self.open[conn]
            self.open[conn][4] += n
            try:
                s.sendall(memoryview(data)[at : at + n])
            except (BrokenPipeError, ConnectionResetError):
                pass  # the relay has closed it: the end tells

    def finish(self, conn):
        if conn not in self.open:
            return
        guest, s, mode, _, _ = self.open.pop(conn)
        with s:
            if mode == "raw":
                try:
                    s.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # as above
                assert rp.closed_by_peer(s), "an answer in raw mode"
                answer = None
            else:
                answer = rp.read_answer(s)
        self.settle(guest, "end", answer)

    def crash(self, conn):
        if conn in self.open:
            self.settle(self.open[conn][0], "crashes")  # the relay has accepted it
            guest, s = self.open.pop(conn)[:2]
            s.close()
            self.settle(guest, "crash")

    def vanish(self, guest):
        """Both sides' connections end; Pair.vanish() took the guest away before."""
        for conn in [n for n, c in self.open.items() if c[0] == guest]:
            self.open.pop(conn)[1].close()
        self.bridge(guest)
        self.settle(guest, "vanished")

    def block(self, guest):
        if guest not in self.blocked:
            self.blocked.add(guest)
            if os.path.exists(self.file(guest)):
                os.unlink(self.file(guest))
            os.makedirs(f"{self.file(guest)}/in-the-way")

    def unblock(self, guest):
        if guest in self.blocked:
            self.blocked.remove(guest)
            shutil.rmtree(self.file(guest))
            said = self.request("POST", f"/retry?cid={self.script.cids[guest]}")
            self.settle(guest, "retry", "error" in said)

    def drop(self, guest, lose):
        said = self.request("POST", f"/drop?cid={self.script.cids[guest]}{'&lose=1' if lose else ''}")
        # Whether a VM of which nothing was accepted is known depends on when its connection was seen.
        nothing = said.get("error") in ("no such VM", "the cache has nothing of this VM")
        self.settle(guest, "drop", "nothing" if nothing else said)

    # ---- the end ----

    def end(self):
        for guest in range(GUESTS):
            self.unblock(guest)
            self.settle(guest)
            self.request("POST", f"/drop?cid={self.script.cids[guest]}&lose=1")
        now = self.relay.metrics()
        for name in MUST_STAY_ZERO:
            assert now[name] == 0, (self.bpf, name, now[name])
        assert now["memory_pinned_bytes"] == 0, (self.bpf, now["memory_pinned_bytes"])
        for key in sorted(now, key=str):
            name = key if isinstance(key, str) else key[0]
            # By place, duplicates differ: that is what BPF is for.
            if name in TOTALS and (isinstance(key, str) or name != "duplicates_total"):
                if now[key] != self.before.get(key, 0):
                    self.log.append((key, now[key] - self.before.get(key, 0)))
        known = now["known_bytes_total"] - self.before["known_bytes_total"]
        self.before = now
        for guest in range(GUESTS):
            if os.path.exists(self.file(guest)):
                os.unlink(self.file(guest))
        return known


class Pair:
    """The two relays, and the guests of both."""

    def __init__(self):
        self.guests = FakeGuest()
        self.sides = []
        self.known = [0, 0]
        for bpf in PORTS:
            self.sides.append(Side(bpf, self.guests))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.guests.stop()
        for side in self.sides:
            side.relay.__exit__(*exc)

    def compare(self, script):
        a, b = (side.log for side in self.sides)
        if a != b:
            n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            raise AssertionError(
                f"DIFFERENTIAL_SEED={script.seed}\nwith BPF:    {a[n : n + 1]}\n"
                f"in user space: {b[n : n + 1]}\nafter: {a[:n]}\nscript: {script}")

    def run(self, seed):
        script = Script(seed)
        for cid in script.cids:
            self.guests.guest(cid)
        for side in self.sides:
            side.start(script)
        try:
            for step in script.steps:
                if step[0] == "vanish":
                    for side in self.sides:
                        side.settle(step[1], "vanishes")  # all its connections have their grants
                    self.guests.gone(script.cids[step[1]])
                    self.guests.guest(script.cids[step[1]])
                for side in self.sides:
                    side.step(step)
                self.compare(script)
            for n, side in enumerate(self.sides):
                self.known[n] += side.end()
            self.compare(script)
        except (AssertionError, OSError) as e:
            if "DIFFERENTIAL_SEED" not in str(e):
                raise AssertionError(f"DIFFERENTIAL_SEED={seed}: {e}\nscript: {script}") from e
            raise
        for cid in script.cids:
            self.guests.gone(cid)


def scripts(seconds, seed):
    with Pair() as pair:
        end, first = time.monotonic() + seconds, seed
        print(f"# DIFFERENTIAL_SEED={first} and those after it", flush=True)
        while time.monotonic() < end:
            pair.run(seed)
            seed += 1
        print(f"# {seed - first} scripts; known: {pair.known[0]:.0f} bytes with BPF, "
              f"{pair.known[1]:.0f} in user space", flush=True)
        assert all(known > 0 for known in pair.known), pair.known
        for side, kernel in zip(pair.sides, (1, 0)):
            metrics = side.relay.check()
            assert metrics["bpf_mode", "kernel"] == kernel
            assert side.relay.stop() == 0, side.relay.log()


def run_all(tap, seconds, seed=None):
    """A seed runs that script alone, unless there are seconds."""
    seed = int(time.time()) if seed is None else seed
    tap.run("differential: random scripts end the same with BPF and in user space",
            scripts, seconds, seed)

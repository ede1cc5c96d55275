#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test VM: one relay over real AF_VSOCK with BPF attached and a state directory, 200
VMs that come and go, and whatever may happen to a node: reloads, signals, restarts and crashes, a
disk that is full, an upstream that takes nothing, too little memory, a clock that jumps, maps that
somebody deletes, vsock transports that go and come. In rounds; after each of them everything is
delivered and accounted for, and what is upstream is what was accepted last. tests/vm/boot.py fails the
run if the kernel complained.

Whether anything grows can be seen only of one process: in the first half of the time the relay is ended
and killed as well, the second half is one life of it. At rest nothing is cached, so what it holds
after all of the life's rounds has to be what it held after the first ones. --leak makes the relay
leak (tests/vm/leak.c): the run passes if it finds that, and nothing else.

    soak.py [--seconds 1200] [--vms 200] [--seed N] [--leak]
"""

import argparse
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import report as rp
from fakeguest import FakeGuest, FakeGuestError
from relay import Relay, wait_for
from soak import Vm, grown, run_round
from tap import Tap

FIRST_CID = 1000
GUESTS_A_PROCESS = 50
WORKERS = 4
ROUND_S = 60
LIFE_ROUNDS = 4  # at least, in half of the time
MIB = 1024 * 1024
# A report has up to twice as many: 16 MiB at most.
SIZES = ((60, 5_000), (27, 100_000), (12, 1_000_000), (1, 8 * MIB))
DISK_MIB = 900
# From here on all that may happen does; the machine may be slow.
COMPLETE_S = 600
PINS = "/sys/fs/bpf/vsock_relay"
CGROUP = "/sys/fs/cgroup/soak"
LOOPBACK, VHOST = "vsock_loopback", "vhost_vsock"
LEAK = "/build/leak.so"
# In one life of the relay, beyond what allocators keep in hand.
RSS_GROWTH_MAX = MIB
# Over all of it; the guests' own side of vsock is in the same kernel.
SLAB_GROWTH_MAX = 8 * MIB


def sh(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)


def meminfo(field):
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field + ":"))


def write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


def bpftool(*command):
    return json.loads(subprocess.check_output(["bpftool", "-j", *command], timeout=60))


def map_id(name):
    """Of the newest map with that name, as an argument of bpftool's."""
    return "id", str(max(m["id"] for m in bpftool("map", "show") if m.get("name") == name))


def entries(name):
    return bpftool("map", "dump", *map_id(name))


def delete_entries(name, some):
    """Some may be gone already."""
    which = map_id(name)
    for entry in some:
        subprocess.run(["bpftool", "map", "delete", *which, "key", "hex",
                        *(b.removeprefix("0x") for b in entry["key"])],
                       check=False, stderr=subprocess.DEVNULL)  # fmt: skip


def insmod(name):
    module = next(n for n in sorted(os.listdir("/lib/modules")) if n.endswith(f"-{name}.ko"))
    sh("insmod", f"/lib/modules/{module}")


def sockets():
    """Of all families, in the whole VM."""
    with open("/proc/net/sockstat", encoding="ascii") as f:
        return int(f.readline().split()[2])


class Node:
    """The relay, its disks, and the guests."""

    def __init__(self, options):
        self.fakes = [FakeGuest() for _ in range(0, options.vms, GUESTS_A_PROCESS)]
        self.disk, self.out = "/run/soak-disk", "/run/soak-out"
        for path in (self.disk, self.out):
            os.makedirs(path)
            sh("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", path)
        self.relay = Relay({
            "bpf": "required",
            "admission": {"grant_rate": 0, "wait": "60s"},
            "report": {"deadline": "120s", "idle": "60s"},
            "retry": {"base": "500ms"},
            "state_directory": self.disk + "/state",
            "upstream": {"kind": "file", "file": {"directory": self.out}},
            "shutdown_grace": "5s",
        }, env={"LD_PRELOAD": LEAK} if options.leak else None)  # fmt: skip
        self.relay.stored_dir = self.out
        write(os.path.dirname(CGROUP) + "/cgroup.subtree_control", "+memory")
        os.makedirs(CGROUP, exist_ok=True)
        self.coming = []
        self.vms = []
        for n in range(options.vms):
            # A connection whose entry somebody deletes is answered 7.
            self.vms.append(Vm(FIRST_CID + n, f"{self.relay.dir}/guest{n}", options.seed, SIZES,
                               also=(rp.INTERNAL,)))  # fmt: skip
            self.comes(self.vms[n])

    def fake(self, vm):
        return self.fakes[(vm.cid - FIRST_CID) // GUESTS_A_PROCESS]

    def comes(self, vm):
        self.fake(vm).guest(vm.cid)
        self.fake(vm).bridge(vm.cid, 818, vm.path)

    def goes(self, vm):
        self.fake(vm).gone(vm.cid)

    def stop(self):
        for fake in self.fakes:
            fake.stop()

    # ---- what may happen; each leaves the node as it was ----

    def reload(self, rng):
        self.relay.config["log"] = {"level": rng.choice(("info", "debug"))}
        self.relay.write_config()
        self.relay.reload()

    def paused(self, rng):
        self.relay.signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 1))
        self.relay.signal(signal.SIGCONT)

    def terminated(self, rng):
        assert self.relay.stop(60) == 0
        time.sleep(rng.uniform(0, 0.5))
        self.relay.start()

    def killed(self, rng):
        self.relay.kill()
        time.sleep(rng.uniform(0, 0.5))
        self.relay.start()

    def disk_full(self, rng):
        path = f"{self.disk}/filler"
        with open(path, "wb") as f:
            try:
                while True:
                    f.write(bytes(MIB))
                    f.flush()
            except OSError:
                pass
        time.sleep(rng.uniform(0.2, 2))
        os.unlink(path)

    def upstream_fails(self, rng):
        # Busy while a report is just being written.
        wait_for(lambda: not subprocess.run(
            ["mount", "-o", "remount,ro", "none", self.out], check=False,
            stderr=subprocess.DEVNULL, timeout=60).returncode, 20, "a moment without a writer")  # fmt: skip
        time.sleep(rng.uniform(0.2, 2))
        sh("mount", "-o", "remount,rw", "none", self.out)

    def little_memory(self, rng):
        write(f"{CGROUP}/cgroup.procs", str(self.relay.process.pid))
        write(f"{CGROUP}/memory.high", str(self.relay.rss() // 2))
        time.sleep(rng.uniform(0.5, 2))
        write(f"{CGROUP}/memory.high", "max")

    def clock_jumps(self, rng):
        hours = rng.choice((-30, -1, 1, 30))
        time.clock_settime(time.CLOCK_REALTIME, max(time.time() + hours * 3600, 86400))

    def entries_deleted(self, rng):
        """Maps that people read are not what decides."""
        name = rng.choice(("vsr_vms", "vsr_vm_state"))
        dump = entries(name)
        delete_entries(name, rng.sample(dump, min(len(dump), 5)))

    def connections_deleted(self, rng):
        """Entries of the map that the verdict and the daemon do decide by: these connections end, and no
        other one."""
        for _ in range(5):
            delete_entries("vsr_conns", entries("vsr_conns"))
            time.sleep(0.1)

    def unpinned(self, rng):
        for name in os.listdir(PINS):
            if name.startswith("vsr_") and rng.random() < 0.5:
                os.unlink(f"{PINS}/{name}")

    def guest_reborn(self, rng):
        """A VM that vanishes, in mid-report or not, and another one with its CID."""
        for _ in range(5):
            vm = rng.choice(self.vms)
            self.goes(vm)
            self.comes(vm)

    def loopback_goes(self, rng):
        sh("rmmod", LOOPBACK)
        time.sleep(rng.uniform(0.1, 0.5))
        insmod(LOOPBACK)

    def vhost_goes(self, rng):
        """Its VMs hold the module, and so do their connections: all end first."""
        for vm in self.vms:
            self.goes(vm)
        wait_for(lambda: not subprocess.run(["rmmod", VHOST], check=False, stderr=subprocess.DEVNULL,
                                            timeout=60).returncode, 60, "vhost_vsock is unused")  # fmt: skip
        time.sleep(rng.uniform(0.1, 0.5))
        insmod(VHOST)
        for vm in self.vms:
            self.comes(vm)

    RESTARTS = (terminated, killed)
    OTHERS = (reload, paused, disk_full, upstream_fails, little_memory, clock_jumps, entries_deleted,
              connections_deleted, unpinned, guest_reborn, guest_reborn, loopback_goes, vhost_goes)  # fmt: skip

    def disturbed(self, rng, seconds, happenings, counts):
        """A round in which these happen, everything once, in any order, before anything twice."""

        def disturb(rng, until):
            while time.monotonic() < until:
                time.sleep(rng.uniform(0.5, 3))
                if not set(self.coming) <= set(happenings):
                    self.coming = []
                if not self.coming:
                    self.coming = rng.sample(happenings, len(happenings))
                happening = self.coming.pop()
                counts[happening.__name__] = counts.get(happening.__name__, 0) + 1
                try:
                    happening(self, rng)
                except FakeGuestError as e:
                    raise AssertionError(f"{happening.__name__}: {e}") from e

        run_round(self.vms, rng, seconds, WORKERS, disturb)

    # ---- what must hold at rest ----

    def settled(self):
        m = self.relay.metrics()
        return m["contents_held"] == 0 and m["contents_in_flight"] == 0

    def at_rest(self):
        wait_for(self.settled, 180, "everything delivered")
        self.relay.check()
        for vm in self.vms:
            stored = self.relay.stored(vm.cid)
            assert vm.agrees(stored), (
                f"VM {vm.cid}: {stored and len(stored)} bytes upstream, accepted "
                f"{vm.last and len(vm.last)}, {len(vm.unsure)} unsure")
        names = os.listdir(self.out)
        assert all(n.endswith(".pb") for n in names), names
        assert sum(m.get("name") == "vsr_conns" for m in bpftool("map", "show")) == 1
        for name in ("vsr_vms", "vsr_vm_state"):
            assert len(entries(name)) <= len(self.vms), f"{name} has entries of no VM"

    def rest(self):
        """Figures at rest, without contents, after the kernel has let go of closed sockets."""
        self.at_rest()
        own = self.relay.own_memory()
        time.sleep(4)
        gc.collect()
        write("/proc/sys/vm/drop_caches", "3")
        maps = bpftool("map", "show")
        figures = {
            "memory": own,
            "slab": meminfo("SUnreclaim"),
            "descriptors": self.relay.descriptors(),
            "sockets": sockets(),
            "maps": sum(m.get("name", "").startswith("vsr_") for m in maps),
            "programs": len(bpftool("prog", "show")),
            "entries": len(entries("vsr_conns")) + len(entries("vsr_socks")),
            "spool": sum(n.endswith((".report", ".tmp")) for _, _, names in os.walk(self.disk)
                         for n in names),
        }  # fmt: skip
        print(f"# at rest: {figures}", flush=True)
        return figures


MARGIN = {"memory": RSS_GROWTH_MAX, "slab": SLAB_GROWTH_MAX}


def soak(options):
    rng = random.Random(options.seed)
    node = Node(options)
    counts, life = {}, []
    half = options.seconds / 2
    try:
        with node.relay as relay:
            # The first round is undisturbed: what a node needs that had no trouble.
            run_round(node.vms, rng, min(half, ROUND_S), WORKERS, lambda *_: None)
            calm = node.rest()
            assert calm["entries"] == calm["spool"] == 0, calm
            end = time.monotonic() + half
            while (left := end - time.monotonic()) > 0:
                node.disturbed(rng, min(left, ROUND_S), node.RESTARTS + node.OTHERS, counts)
                node.at_rest()
            node.terminated(rng)
            end = time.monotonic() + half
            while (left := end - time.monotonic()) > 0:
                node.disturbed(rng, min(left, ROUND_S, half / LIFE_ROUNDS), node.OTHERS, counts)
                life.append(node.rest())
            # Whoever was unlucky until now: a node that has seen all this still serves each VM.
            for vm in node.vms:
                vm.send_one()
            life.append(node.rest())
            m = relay.check()
            print(f"# {sum(vm.answered for vm in node.vms)} accepted of "
                  f"{sum(vm.sent for vm in node.vms)} sent; {sum(counts.values())} happenings: {counts}; "
                  f"refused since the last start {relay.refused(m)}")  # fmt: skip
    finally:
        node.stop()
    found = grown(life[: len(life) // 2], life[-1], MARGIN)
    # What survives a process: the kernel's part, and the disk's.
    found.update({f"{name} of the node": change for name, change in grown([calm], life[-1], MARGIN).items()
                  if name not in ("memory", "descriptors", "sockets")})  # fmt: skip
    print(f"# more than before: {found or 'nothing'}")
    if options.leak:
        assert {"memory", "descriptors"} == set(found), f"the leaks are not what was found: {found}"
    else:
        assert not found, f"grown: {found}"
    missing = {h.__name__ for h in node.RESTARTS + node.OTHERS} - set(counts)
    assert options.seconds < COMPLETE_S or not missing, f"never happened: {missing}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--leak", action="store_true")
    options = parser.parse_args()
    tap = Tap()
    what = "soak of a relay that leaks" if options.leak else "soak"
    tap.run(f"{what}: {options.seconds:.0f} s, {options.vms} VMs, seed {options.seed}", soak, options)
    tap.end()


main()

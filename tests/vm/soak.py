#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test VM: one relay over real AF_VSOCK with BPF attached and a state directory, 200
VMs that come and go, and whatever may happen to a node: reloads, signals, restarts and crashes, a
disk that is full, an upstream that takes nothing, too little memory, a clock that jumps, maps that
somebody deletes, a vsock transport that goes and comes. In rounds; after each of them everything is
delivered and accounted for, and what is upstream is what was accepted last. At the end nothing has
grown. tests/vm/boot.py fails the run if the kernel complained.

    soak.py [--seconds 1200] [--vms 200] [--seed N]
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
from soak import Vm, run_round
from tap import Tap

FIRST_CID = 1000
GUESTS_A_PROCESS = 50
WORKERS = 4
ROUND_S = 60
MIB = 1024 * 1024
SIZES = ((60, 5_000), (27, 100_000), (12, 1_000_000), (1, 8_000_000))
DISK_MIB = 900
# From here on all that may happen does; the machine may be slow.
COMPLETE_S = 600
PINS = "/sys/fs/bpf/vsock_relay"
CGROUP = "/sys/fs/cgroup/soak"
LOOPBACK = "vsock_loopback"
# Beyond what the allocators keep in hand.
RSS_GROWTH_MAX = 48 * MIB
SLAB_GROWTH_MAX = 24 * MIB


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


def delete_entries(entries, *which):
    """Some may be gone already."""
    for entry in entries:
        subprocess.run(["bpftool", "map", "delete", *which, "key", "hex",
                        *(b.removeprefix("0x") for b in entry["key"])],
                       check=False, stderr=subprocess.DEVNULL)  # fmt: skip


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
        })  # fmt: skip
        self.relay.stored_dir = self.out
        write(os.path.dirname(CGROUP) + "/cgroup.subtree_control", "+memory")
        os.makedirs(CGROUP, exist_ok=True)
        self.coming = []
        self.vms = []
        for n in range(options.vms):
            cid = FIRST_CID + n
            path = f"{self.relay.dir}/guest{n}"
            self.fake(cid).guest(cid)
            self.fake(cid).bridge(cid, 818, path)
            # A connection whose entry somebody deletes is answered 7.
            self.vms.append(Vm(cid, path, options.seed, SIZES, also=(rp.INTERNAL,)))

    def fake(self, cid):
        return self.fakes[(cid - FIRST_CID) // GUESTS_A_PROCESS]

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
        path = f"{PINS}/{name}"
        if not os.path.exists(path):
            return  # unpinned before
        dump = bpftool("map", "dump", "pinned", path)
        delete_entries(rng.sample(dump, min(len(dump), 5)), "pinned", path)

    def connections_deleted(self, rng):
        """Entries of the map that the verdict and the daemon do decide by: these connections end, and no
        other one."""
        number = str(max(m["id"] for m in bpftool("map", "show") if m.get("name") == "vsr_conns"))
        for _ in range(5):
            delete_entries(bpftool("map", "dump", "id", number), "id", number)
            time.sleep(0.1)

    def unpinned(self, rng):
        for name in os.listdir(PINS):
            if name.startswith("vsr_") and rng.random() < 0.5:
                os.unlink(f"{PINS}/{name}")

    def guest_reborn(self, rng):
        """A VM that vanishes, in mid-report or not, and another one with its CID."""
        for _ in range(5):
            cid = rng.choice(self.vms).cid
            try:
                self.fake(cid).gone(cid)
                self.fake(cid).guest(cid)
                self.fake(cid).bridge(cid, 818, self.vms[cid - FIRST_CID].path)
            except FakeGuestError as e:
                raise AssertionError(f"guest {cid}: {e}") from e

    def transport_goes(self, rng):
        """Loopback alone can go: vhost is held by its guests."""
        sh("rmmod", LOOPBACK)
        time.sleep(rng.uniform(0.1, 0.5))
        module = next(n for n in sorted(os.listdir("/lib/modules")) if LOOPBACK in n)
        sh("insmod", f"/lib/modules/{module}")

    HAPPENINGS = (reload, paused, terminated, killed, disk_full, upstream_fails, little_memory,
                  clock_jumps, entries_deleted, connections_deleted, unpinned, guest_reborn, guest_reborn,
                  transport_goes)  # fmt: skip

    def disturb(self, rng, until, counts):
        """Everything once, in any order, before anything twice."""
        while time.monotonic() < until:
            time.sleep(rng.uniform(0.5, 3))
            if not self.coming:
                self.coming = rng.sample(self.HAPPENINGS, len(self.HAPPENINGS))
            happening = self.coming.pop()
            counts[happening.__name__] = counts.get(happening.__name__, 0) + 1
            happening(self, rng)

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
        # Descriptors of the daemon alone: no connection is left. Nor is any map or program of a
        # daemon that is gone, and no connection in those of this one.
        maps = bpftool("map", "show")
        conns = [m["id"] for m in maps if m.get("name") == "vsr_conns"]
        assert len(conns) == 1, conns
        return {
            "maps": sum(m.get("name", "").startswith("vsr_") for m in maps),
            "programs": len(bpftool("prog", "show")),
            "conns": len(bpftool("map", "dump", "id", str(conns[0]))),
            "rss": self.relay.rss(),
            "slab": meminfo("SUnreclaim"),
            "fds": len(os.listdir(f"/proc/{self.relay.process.pid}/fd")),
            "spool": [n for _, _, names in os.walk(self.disk) for n in names
                      if n.endswith((".report", ".tmp"))],
        }  # fmt: skip

    def rest(self):
        """Figures at rest, after the kernel has let go of closed sockets."""
        time.sleep(9)
        gc.collect()
        write("/proc/sys/vm/drop_caches", "3")
        return self.at_rest()


def soak(options):
    rng = random.Random(options.seed)
    node = Node(options)
    counts, first = {}, None
    try:
        with node.relay as relay:
            # The first round is undisturbed: what a relay at rest needs after its work.
            run_round(node.vms, rng, min(options.seconds, ROUND_S), WORKERS, lambda *_: None)
            first = node.rest()
            end = time.monotonic() + options.seconds
            while (left := end - time.monotonic()) > 0:
                run_round(node.vms, rng, min(left, ROUND_S), WORKERS,
                          lambda r, until: node.disturb(r, until, counts))  # fmt: skip
                node.at_rest()
            # Whoever was unlucky until now: a node that has seen all this still serves each VM.
            for vm in node.vms:
                vm.send_one()
            last = node.rest()
            m = relay.check()
            print(f"# {sum(vm.answered for vm in node.vms)} accepted of "
                  f"{sum(vm.sent for vm in node.vms)} sent; happenings {counts}; refused since the "
                  f"last start {relay.refused(m)}; at rest before {first}, after {last}")  # fmt: skip
            assert last["rss"] <= first["rss"] + RSS_GROWTH_MAX, "the daemon has grown"
            assert last["slab"] <= first["slab"] + SLAB_GROWTH_MAX, "the kernel has grown"
            assert last["fds"] <= first["fds"], "descriptors are left"
            assert not last["spool"], "files are left in the spool"
            assert last["conns"] == 0, "entries of connections are left"
            assert (last["maps"], last["programs"]) == (first["maps"], first["programs"]), (
                "maps or programs of an earlier start are left")
            missing = {h.__name__ for h in node.HAPPENINGS} - set(counts)
            assert options.seconds < COMPLETE_S or not missing, f"never happened: {missing}"
    finally:
        node.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    tap = Tap()
    tap.run(f"soak: {options.seconds:.0f} s, {options.vms} VMs, seed {options.seed}", soak, options)
    tap.end()


main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The part of scripts/demo that runs in the VM: tells the story, and checks every number it tells.

The argument is the guest's root: a folder with the package database of the machine that the demo
was started on. The guests are tests/vm/fakeguest.c: each is a /dev/vhost-vsock device with its own
CID, so that the node's kernel, BPF and the relay see packets of a VM. The agent is the real one; a
bridge (a unix socket) carries its connection to the guest's device.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))

from fakeguest import FakeGuest
from relay import MUST_STAY_ZERO, parse_metrics, wait_for

CID, LIAR = 42, 43
OFFER = 16  # bytes
WIDTH = 96
PINS = "/sys/fs/bpf/vsock_relay"
REPORTS = "/var/lib/vsock-relay/reports"
LOG = "/var/log/vsock-relayd"
SETTINGS = f"""\
bpf: required          # no falling back to user space
user: vsock-relay      # no root and no capabilities once BPF is loaded
upstream:
  kind: file           # the newest report of each VM
  file: {{directory: {REPORTS}}}
"""
# A package that most machines have, and whose update is worth a report.
UPDATED = ("openssl", "libssl3", "bash")


class Failed(Exception):
    """The demo does not show what it says."""


def expect(condition, claim):
    if not condition:
        raise Failed(claim)


# ---- the page ----


def title(text):
    print(f"\n{text}", flush=True)


def say(who, text):
    lines = textwrap.wrap(text, WIDTH - 11, break_on_hyphens=False, break_long_words=False)
    for n, line in enumerate(lines):
        print(f"   {'' if n else who:7} {line}", flush=True)


# ---- the relay ----


class Relay:
    def __init__(self):
        os.makedirs(REPORTS)
        shutil.chown(REPORTS, "vsock-relay", "vsock-relay")
        with open("/etc/vsock-relayd.yaml", "w", encoding="ascii") as f:
            f.write(SETTINGS)
        with open(LOG, "ab") as log:
            command = ["vsock-relayd", "--config", "/etc/vsock-relayd.yaml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._ready, 60, "relay is ready")

    def _ready(self):
        expect(self.process.poll() is None, "the relay runs")
        try:
            return self.metrics()
        except OSError:
            return None

    def metrics(self):
        with urllib.request.urlopen("http://127.0.0.1:9818/metrics", timeout=30) as response:
            return parse_metrics(response.read().decode())

    def log(self):
        with open(LOG, encoding="utf-8") as f:
            return f.read().splitlines()

    def status(self, key):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return re.search(rf"^{key}:\s*(.*)$", f.read(), re.M).group(1)

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


def stored(cid=CID):
    """The bytes of the VM's report upstream, None if there is none."""
    try:
        with open(f"{REPORTS}/0-{cid}.pb", "rb") as f:
            return f.read()
    except FileNotFoundError:
        return None


def pinned(name):
    """A pinned map as bpftool prints it: {CID: {field: value}}."""
    command = ["bpftool", "-j", "map", "dump", "pinned", f"{PINS}/{name}"]
    entries = json.loads(subprocess.check_output(command))
    entries = [entry.get("formatted", entry) for entry in entries]
    return {entry["key"]["cid"]: entry["value"] for entry in entries}


def bpf_saw(cid):
    seen = pinned("vsr_vms").get(cid, {"bytes": 0, "packets": 0})
    return seen["bytes"], seen["packets"]


# ---- the guest ----


def agent(*arguments, status=0, quiet=False):
    """Runs the agent, shows what it says. Returns its standard output."""
    command = ["vsock-agent", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if not quiet or done.returncode != status:
        for line in done.stderr.splitlines():
            say("agent", line)
    expect(done.returncode == status, f"the agent ends with status {status}, not {done.returncode}")
    return done.stdout


class Guest:
    def __init__(self, guests, cid, root):
        self.cid = cid
        self.bridge = f"/run/guest-{cid}"
        self.root = root
        guests.guest(cid)
        guests.bridge(cid, 818, self.bridge)

    def payload(self):
        """What the agent is going to send."""
        agent("--root", self.root, "--cid", str(self.cid), "--dump", "/tmp/report", quiet=True)
        with open("/tmp/report", "rb") as f:
            return f.read()

    def send(self, *arguments, status=0):
        """Returns how many bytes, in how many packets, BPF saw of it."""
        before = bpf_saw(self.cid)
        arguments = arguments or ("--root", self.root, "--cid", str(self.cid))
        agent("--once", "--retries", "0", "--unix", self.bridge, *arguments, status=status)
        return [after - earlier for after, earlier in zip(bpf_saw(self.cid), before)]

    def send_report(self):
        """Sends the report; it must be stored upstream as it is, byte for byte. Returns it."""
        payload = self.payload()
        seen, packets = self.send()
        expect(seen == OFFER + len(payload), f"BPF saw every byte, once (it saw {seen})")
        say("BPF", f"saw {seen} bytes in {packets} packets: {OFFER} of the offer, {len(payload)} of "
                   "the report")  # fmt: skip
        wait_for(lambda: stored(self.cid) == payload, 20, "report is stored as it was sent")
        return payload


# ---- package lists ----


def installed(root):
    """What dpkg's own file says, read without the agent: {(name, architecture): version}."""
    with open(f"{root}/var/lib/dpkg/status", encoding="utf-8", errors="replace") as f:
        paragraphs = f.read().split("\n\n")
    found = {}
    for paragraph in paragraphs:
        fields = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", paragraph, re.M))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"], fields["Architecture"]] = fields["Version"]
    return found


def update_package(root):
    """Changes one package's version in dpkg's file. Returns its name, old and new version."""
    names = [name for name, _ in installed(root)]
    name = next(name for name in (*UPDATED, *names) if name in names)
    path = f"{root}/var/lib/dpkg/status"
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        before, mark, rest = f.read().partition(f"Package: {name}\n")
    old = re.search(r"^Version: (.*)$", rest, re.M).group(1)
    new = f"{old}+update1"
    rest = rest.replace(f"\nVersion: {old}\n", f"\nVersion: {new}\n", 1)
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as f:
        f.write(before + mark + rest)
    return name, old, new


def decoded(cid=CID):
    """A stored report through the agent's printer: its fields, and its packages as installed()."""
    text = agent("--print", "--file", f"{REPORTS}/0-{cid}.pb", quiet=True)
    packages = {(name, arch): version for name, version, arch
                in re.findall(r"^  (\S+) +(\S+) +(\S+)$", text, re.M)}  # fmt: skip
    return re.findall(r"^(\S.*?)  +(\S.*)$", text, re.M), packages


# ---- the story ----


class Story:
    def __init__(self, root, guests):
        self.root = root
        self.guests = guests
        self.relay = None

    def tell(self):
        self.begin()
        self.guest = Guest(self.guests, CID, self.root)
        self.report()
        self.duplicate()
        self.change()
        self.liar()
        self.maps()
        self.end()

    def begin(self):
        print(f"The node: a VM with Linux {platform.release()}. Settings of its relay:\n")
        print(textwrap.indent(SETTINGS, "   "))
        self.relay = Relay()
        expect(self.relay.metrics()["bpf_mode", "kernel"] == 1, "BPF looks at the streams")
        expect(int(self.relay.status("CapEff"), 16) == 0, "the relay has no capabilities")
        expect(self.relay.status("Uid").split()[1] != "0", "the relay is not root")
        for line in self.relay.log():
            say("relay", line)

    def report(self):
        title(f"1. The guest with CID {CID} sends the package list of your machine over AF_VSOCK")
        expect(stored() is None, "nothing is stored before the first report")
        payload = self.guest.send_report()
        fields, packages = decoded()
        expect(packages == installed(self.root), "what is stored are dpkg's packages and versions")
        distribution = dict(fields)["distribution"]
        repositories = sum(key == "repository" for key, _ in fields)
        say("stored", f"{REPORTS}/0-{CID}.pb, {len(payload)} bytes, equal to what was sent. "
                      f"Decoded: {distribution}, {len(packages)} packages, name for name and "
                      f"version for version those of dpkg, {repositories} repositories")  # fmt: skip

    def settled(self):
        """The metrics when nothing is on its way."""
        wait_for(lambda: self.relay.metrics()["contents_held"] == 0, 20, "custody has ended")
        return self.relay.metrics()

    def duplicate(self):
        title("2. The same again")
        self.settled()
        path = f"{REPORTS}/0-{CID}.pb"
        before = os.stat(path)
        seen, _ = self.guest.send()
        expect(seen == OFFER, f"only the offer of {OFFER} bytes was sent, not {seen} bytes")
        say("BPF", f"saw {seen} bytes: the offer, and not one byte of the report")
        metrics = self.settled()
        expect(metrics["reports_suppressed_total"] == 1, "the repeat is counted")
        expect(metrics["index_report_send_attempts_total"] == 1, "the repeat was not sent upstream")
        after = os.stat(path)
        expect((before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns),
               "the stored file was left alone")  # fmt: skip
        say("stored", "untouched; counted in vsock_relay_reports_suppressed_total: 1")

    def change(self):
        name, old, new = update_package(self.root)
        title(f"3. One package is updated: {name} {old} -> {new}")
        _, before = decoded()
        payload = self.guest.send_report()
        _, after = decoded()
        changed = {key: after.get(key) for key in before.keys() | after.keys()
                   if before.get(key) != after.get(key)}  # fmt: skip
        expect({key[0]: version for key, version in changed.items()} == {name: new},
               f"exactly {name} has changed, not {changed}")  # fmt: skip
        expect(self.settled()["index_report_send_attempts_total"] == 2, "it was sent upstream")
        say("stored", f"{len(payload)} bytes, equal to what was sent; compared with the "
                      f"report before, {name} alone has changed: {new}")  # fmt: skip

    def liar(self):
        title(f"4. Another guest, CID {LIAR}, sends a report that says it comes from CID {CID}")
        before = stored()
        payload = self.guest.payload()
        with open("/tmp/lie", "wb") as f:
            f.write(payload + b"\x7a\x03lie")  # a field of its own: no copy of what is stored
        lines = len(self.relay.log())
        Guest(self.guests, LIAR, self.root).send("--file", "/tmp/lie", status=65)
        for line in self.relay.log()[lines:]:
            say("relay", line)
        metrics = self.settled()
        expect(metrics["reports_refused_total", "cid_mismatch"] == 1, "the lie was refused")
        expect(metrics["reports_refused_total"] == 1, "nothing else was refused")
        expect(stored(LIAR) is None and stored() == before, "the lie changed nothing that is stored")
        say("stored", f"nothing of CID {LIAR}, and CID {CID}'s report is as it was")

    def maps(self):
        title("The VMs, as anybody with bpftool sees them")
        seen = self.show_map("vsr_vms", "what BPF saw and counted")
        state = self.show_map("vsr_vm_state", "what the relay made of it")
        expect(sorted(seen) == sorted(state) == [CID, LIAR], "both maps know both VMs")
        mine, liar = state[CID], state[LIAR]
        expect(seen[CID]["connections"] == 3, "BPF counted three connections")
        expect((mine["accepted"], mine["duplicates"], mine["refused"]) == (2, 1, 0),
               "two reports accepted, one recognised as a repeat")  # fmt: skip
        expect((liar["accepted"], liar["refused"]) == (0, 1), "the lie is on its sender's account")
        expect(mine["record_length"] == len(stored()), "the length on record is that of the file")

    def show_map(self, name, meaning):
        """All fields, a column for each VM; those that are 0 for all on one line."""
        table = pinned(name)
        cids = sorted(table)
        expect(cids, f"{name} has entries")
        print(f"\n   $ bpftool map dump pinned {PINS}/{name}    # {meaning}")
        print(f"   {'cid':17}" + "".join(f"{cid:>22}" for cid in cids))
        zero = []
        for field in table[cids[0]]:
            values = [table[cid][field] for cid in cids]
            if any(values):
                print(f"   {field:17}" + "".join(f"{value:>22}" for value in values))
            elif field != "pad":
                zero.append(field)
        for n, line in enumerate(textwrap.wrap(", ".join(zero), WIDTH - 8)):
            print(f"   {'' if n else '0:':2} {line}", flush=True)
        return table

    def end(self):
        metrics = self.settled()
        seen = sum(vm["bytes"] for vm in pinned("vsr_vms").values())
        expect(metrics["bpf_seen_bytes_total"] == seen, "the map's and the metrics' bytes agree")
        for name in MUST_STAY_ZERO:
            expect(metrics[name] == 0, f"{name} is 0")
        budget = metrics["memory_budget_bytes"]
        expect(budget == 256 << 20, "the budget is the default one")
        expect(metrics["memory_reserved_bytes"] == 0, "nothing is reserved when all is done")
        title("What it took")
        resident = metrics["process_resident_memory_bytes"] / (1 << 20)
        say("memory", f"budget for reports being received {int(budget) >> 20} MiB, reserved now 0, "
                      f"left queued for guests {int(metrics['memory_debt_bytes'])} bytes; the "
                      f"relay's resident memory {resident:.0f} MiB")  # fmt: skip
        say("digest", "BPF hashed every stream and the relay hashed every report: "
                      "digest_mismatch_bpf_total 0, bpf_errors_total 0")  # fmt: skip
        status = self.relay.stop()
        expect(status == 0, f"the relay ends with status 0, not {status}")
        say("relay", "SIGTERM: finished and gone, status 0")


def main():
    with FakeGuest() as guests:
        story = Story(sys.argv[1], guests)
        try:
            story.tell()
        except (Failed, TimeoutError) as failure:
            print(f"\nNot so: {failure}")
            if story.relay:
                print(textwrap.indent("\n".join(story.relay.log()[-30:]), "   relay   "))
            sys.exit(1)


main()

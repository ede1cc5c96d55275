# SPDX-License-Identifier: Apache-2.0
"""Rules that only AF_VSOCK and the BPF file system have: reserved CIDs, zero credit, the pinned
maps and what becomes of them when the relay is stopped, killed, or started twice."""

import json
import os
import signal
import subprocess

import report as rp
import vsock
from fakeguest import FakeGuest
from hostile import open_map
from relay import BUILD, Relay, wait_for

PORT = 818
CID = 1500
CID_LOCAL = 1  # VMADDR_CID_LOCAL; Python 3.11 has no name for it
PIN_DIRECTORY = "/sys/fs/bpf/vsock_relay"
PINNED = {"vsr_conns", "vsr_grants", "vsr_bufs", "vsr_pool", "vsr_blocks", "vsr_vms",
          "vsr_vm_state", "vsr_stats", "vsr_socks", "vsr_events", "vsr_abi"}  # fmt: skip
KEPT = {"vsr_vms", "vsr_vm_state", "vsr_abi"}


def send_nothing(s):
    """Tries to send; what the agent learns, and that not one byte went out."""
    try:
        n = s.send(b"x" * 65536)
    except (BrokenPipeError, ConnectionResetError) as e:
        return e.errno
    raise AssertionError(f"{n} bytes were sent without a grant")


def reserved_cids(bpf):
    """CID 0, 1 and 2 are refused unless it is allowed: not one byte is sent."""
    with Relay({"bpf": bpf}) as relay:
        with rp.connect((CID_LOCAL, PORT)) as s:
            send_nothing(s)
        wait_for(lambda: relay.refused() == {"reserved_cid": 1}, 10, "reserved_cid is counted")
        metrics = relay.check()
        assert metrics["bpf_seen_bytes_total"] == 0
        assert os.listdir(relay.stored_dir) == []


def zero_credit(bpf):
    """An agent that is refused before its grant has sent nothing, and is not answered: on
    loopback by a real kernel's send(), and from a VM of its own."""
    with Relay({"bpf": bpf, "allow_reserved_cids": True}) as relay, FakeGuest() as fg:
        held = [rp.connect((CID_LOCAL, PORT)) for _ in range(3)]
        relay.wait_metric("sem_holding_size", value=2)
        with rp.connect((CID_LOCAL, PORT)) as fourth:
            send_nothing(fourth)
            assert rp.closed_by_peer(fourth), "the relay answered"
        for s in held:
            s.close()
        relay.wait_metric("sem_holding_size", value=0)
        fg.guest(CID)
        conns = [fg.connect(CID, PORT) for _ in range(3)]
        relay.wait_metric("sem_queue_size", value=1)
        # Not to be waited for: its refusal may be there as soon as its response.
        fourth = fg.connect(CID, PORT, async_=True)
        fg.wait(fourth, "shutdown", check=False)
        assert fg.send(fourth, b"x" * 1000, check=False) == 0
        assert fg.recv(fourth, 1) == b""
        assert relay.refused()["vm_connections"] == 2
        third = fg.conn(conns[2])
        assert third["peer_buf_alloc"] == 0, "it waits, and has credit"
        assert fg.conn(conns[0])["peer_buf_alloc"] >= 65536
        relay.check()


def vms_map():
    """vsr_vms as bpftool prints it, by CID."""
    return {e["key"]["cid"]: e["value"] for e in open_map("vsr_vms")}


def state_map():
    """vsr_vm_state, likewise."""
    return {e["key"]["cid"]: e["value"] for e in open_map("vsr_vm_state")}


def maps_have_names(bpf):
    """bpftool prints the pinned maps with field names, and vsr_vms has exactly what was sent."""
    # Nothing is kept to compare with, or a short report would be dropped as known so far.
    settings = {"bpf": bpf, "unchanged": "forward", "cache": {"keep_acked": False}}
    with Relay(settings) as relay, FakeGuest() as fg:
        assert set(os.listdir(PIN_DIRECTORY)) == PINNED, os.listdir(PIN_DIRECTORY)
        fg.guest(CID)
        before = vms_map().get(CID, {})
        accepted = state_map().get(CID, {"accepted": 0})["accepted"]
        sizes, packets = (1000, 100000, 20), 0
        for size in sizes:
            payload = rp.report(CID, size)
            conn = fg.connect(CID, PORT)
            fg.wait(conn, "credit")
            fg.send(conn, payload, chunk=4096)
            fg.close(conn)
            packets += -(-size // 4096)
            relay.wait_stored(CID, payload)
        after = vms_map()[CID]
        delta = {k: v - before.get(k, 0) for k, v in after.items() if not k.endswith("_ns")}
        wanted = {"connections": len(sizes), "packets": packets, "bytes": sum(sizes)}
        assert {k: v for k, v in delta.items() if v} == wanted, delta
        assert after["first_seen_ns"] <= after["last_seen_ns"]
        state = state_map()[CID]
        assert state["accepted"] == accepted + len(sizes), (accepted, state)
        assert state["record_length"] == sizes[-1], state
        assert open_map("vsr_abi")[0]["value"]["version"] >= 1
        text = subprocess.check_output(
            ["bpftool", "map", "dump", "pinned", f"{PIN_DIRECTORY}/vsr_vms"], timeout=30, text=True
        )
        assert '"unread_updates": 0' in text, text[:400]
        relay.check()


def send_one(relay, seed):
    payload = rp.report(1, 5000, seed=seed)
    assert rp.send_framed((CID_LOCAL, PORT), payload) == rp.ACCEPTED
    relay.wait_stored(1, payload)
    relay.wait_metric("contents_held", value=0)


def restart(bpf):
    """What people read survives a stop, all other pins go with the relay, and a stopped relay's
    socket is free at once."""
    with Relay({"bpf": bpf, "allow_reserved_cids": True}) as relay:
        send_one(relay, 1)
        before, state = vms_map()[1], state_map()[1]
        assert relay.stop() == 0
        assert set(os.listdir(PIN_DIRECTORY)) == KEPT, os.listdir(PIN_DIRECTORY)
        assert vms_map()[1] == before
        relay.start()
        send_one(relay, 2)
        after = vms_map()[1]
        assert after["first_seen_ns"] == before["first_seen_ns"]
        assert after["connections"] == before["connections"] + 1
        assert after["bytes"] == before["bytes"] + 5000 + 16
        assert state_map()[1]["accepted"] == state["accepted"] + 1, "the daemon's counters go on too"
        relay.check()


def killed(bpf):
    """SIGKILL in mid-report: the next start replaces the pins, keeps what people read, takes no
    half report, and serves."""
    with Relay({"bpf": bpf, "allow_reserved_cids": True}) as relay:
        send_one(relay, 1)
        payload = rp.report(1, 5000, seed=2)
        with rp.connect((CID_LOCAL, PORT)) as s:
            s.sendall((rp.header(payload) + payload)[:3000])
            relay.wait_metric("sem_holding_size", value=1)
            relay.signal(signal.SIGKILL)
            relay.process.wait()
            assert rp.closed_by_peer(s)
        assert set(os.listdir(PIN_DIRECTORY)) == PINNED, "SIGKILL leaves the pins"
        old = map_id("vsr_conns")
        kept = map_id("vsr_vms")
        relay.start()
        assert map_id("vsr_conns") != old and map_id("vsr_vms") == kept
        assert open_map("vsr_conns") == []
        assert relay.stored(1) == rp.report(1, 5000, seed=1)
        send_one(relay, 3)
        relay.check()


def map_id(name):
    out = subprocess.check_output(
        ["bpftool", "map", "show", "pinned", f"{PIN_DIRECTORY}/{name}"], timeout=30, text=True
    )
    return int(out.split(":")[0])


def second_instance(bpf):
    """A second relay with the same pin directory ends with status 75 and names the first."""
    with Relay({"bpf": bpf, "allow_reserved_cids": True}) as relay:
        with Relay({"bpf": bpf, "listen": {"port": 819}}, start=False) as second:
            second.start(wait=False)
            assert second.process.wait(60) == 75, second.log()
            log = second.log()
            assert str(relay.process.pid) in log and PIN_DIRECTORY in log, log
        send_one(relay, 1)
        relay.check()


def port_in_use(bpf):
    """A port that another program listens on is fatal, and named."""
    with vsock.listener(PORT), Relay({"bpf": bpf}, start=False) as relay:
        relay.start(wait=False)
        assert relay.process.wait(60) not in (0, 75)
        assert f"port {PORT}" in relay.log(), relay.log()


# A field of each map's value, as bpftool prints it; of vsr_blocks, whose value is a number, the value.
FIELDS = {"vsr_conns": "passed", "vsr_grants": "reservation", "vsr_bufs": "block", "vsr_pool": "limit",
          "vsr_blocks": "value", "vsr_vms": "first_seen_ns", "vsr_vm_state": "record_digest",
          "vsr_stats": "bytes_passed", "vsr_abi": "version"}  # fmt: skip


def ctl(relay, *args):
    """What vsock-relayctl says, as JSON."""
    command = [os.path.join(BUILD, "vsock-relayctl"), "-c", relay.config_path, "-j", *args]
    return json.loads(subprocess.check_output(command, timeout=60))


def every_map_has_field_names(bpf):
    """bpftool map dump pinned prints the field names of each map but vsr_socks and vsr_events, and
    vsock-relayctl the same figures, with a relay and without."""
    assert set(FIELDS) == PINNED - {"vsr_socks", "vsr_events"}
    small = {"admission": {"places": 2}, "cache": {"bytes": "2MiB"},
             "report": {"max_kib": 1024, "deadline": "5m", "idle": "5m"}}  # fmt: skip
    with Relay({"bpf": bpf, **small}) as relay, FakeGuest() as fg:
        fg.guest(CID)
        # The counters go on from those of other relays that this map has seen.
        accepted = state_map().get(CID, {"accepted": 0})["accepted"]
        payload = rp.report(CID, 9000)
        conn = fg.connect(CID, PORT)
        fg.wait(conn, "credit")
        fg.send(conn, payload[:5000])
        wait_for(lambda: [c for c in open_map("vsr_conns") if c["value"]["passed"] == 5000], 20,
                 "half a report")  # fmt: skip
        for name, field in FIELDS.items():
            command = ["bpftool", "map", "dump", "pinned", f"{PIN_DIRECTORY}/{name}"]
            text = subprocess.check_output(command, timeout=120, text=True)
            assert f'"{field}": ' in text, (name, text[:400])
        assert ctl(relay, "vm", "show", str(CID))["state"] == "receiving"
        fg.send(conn, payload[5000:])
        fg.close(conn)
        relay.wait_stored(CID, payload)
        relay.wait_metric("contents_held", value=0)
        for _ in range(2):  # live, then from the maps
            seen = vms_map()[CID]
            vm = ctl(relay, "vm", "show", str(CID))
            for key, value in vm["kernel"].items():
                assert key.endswith("_age") or value == seen[key], (key, value, seen)
            assert vm["daemon"]["accepted"] == accepted + 1 and vm["state"] == "acked", vm
            pins = {m["name"] for m in ctl(relay, "maps")["maps"]}
            assert pins == set(os.listdir(PIN_DIRECTORY)), pins
            if relay.process.poll() is None:
                relay.check()
                relay.kill()


# They need the verdict, or maps that only a kernel with BPF has.
WITH_BPF = (maps_have_names, every_map_has_field_names, restart, killed, second_instance)


def run_all(tap, bpf):
    for function in (reserved_cids, zero_credit, port_in_use) + (WITH_BPF if bpf else ()):
        summary = " ".join(function.__doc__.split())
        tap.run(f"vsock: {function.__name__}: {summary}", function, "auto")
    if bpf:
        for function in (reserved_cids, zero_credit):
            tap.run(f"vsock, user space: {function.__name__}", function, "off")

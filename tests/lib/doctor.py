# SPDX-License-Identifier: Apache-2.0
"""vsock-relayctl doctor on a node with vsock, BPF and an initial network namespace of its own: each
thing that can be wrong there is made so, and named with what to do about it."""

import contextlib
import ctypes
import json
import os
import socket
import subprocess

from netns import known as knows_namespaces
from relay import BUILD, SERVICE, Relay

PORT = 818
CTL = os.path.join(BUILD, "vsock-relayctl")
DEFAULT_FILE = "/etc/vsock-relay/vsock-relayd.yaml"
NONE = os.path.join("/nonexistent", "reports")
PR_CAPBSET_DROP = 24
CAP_BPF, CAP_NET_ADMIN = 39, 12
_libc = ctypes.CDLL(None, use_errno=True)


class Checks(dict):
    """What doctor found, by name: said(name) is "result: says -> advice"."""

    def said(self, name):
        check = self[name]
        return f"{check['result']}: {check['says']} -> {check['advice']}"


def doctor(relay, **keys):
    """What it finds; without a relay: with the settings of the node. The exit status and the number of
    problems fit to that."""
    config = ["-c", relay.config_path] if relay else []
    done = subprocess.run([CTL, *config, "-j", "doctor"], capture_output=True, text=True, timeout=120,
                          check=False, **keys)  # fmt: skip
    value = json.loads(done.stdout)
    problems = [c["name"] for c in value["checks"] if c["result"] == "problem"]
    assert value["problems"] == len(problems), value
    assert done.returncode == (1 if problems else 0), (done, problems)
    return Checks((c["name"], c) for c in value["checks"])


def with_config(relay, **settings):
    """What doctor finds with other settings than the relay was started with."""
    config = dict(relay.config)
    relay.config.update(settings)
    relay.write_config()
    try:
        return doctor(relay)
    finally:
        relay.config = config
        relay.write_config()


def off(**settings):
    """A relay that is not started: its settings alone."""
    return Relay(settings, start=False)


def healthy(bpf):
    """A relay that is well: nobody has a problem, and each check names what is there."""
    with Relay({"bpf": "auto" if bpf else "off"}) as relay:
        checks = doctor(relay)
        text = subprocess.run([CTL, "-c", relay.config_path, "doctor"], capture_output=True,
                              text=True, timeout=120, check=True).stdout  # fmt: skip
        relay.check()
    assert not [c for c in checks.values() if c["result"] == "problem"], checks
    for name, words in {
        "settings": f"ok: {relay.config_path} is good",
        "daemon": "ok: version ",
        "ready: listening": "ok: ",
        "AF_VSOCK": "ok: there",
        "vhost-vsock": "ok: /dev/vhost-vsock is there",
        "port": f"ok: the daemon listens on vsock port {PORT}",
        "privileges": f"ok: user {SERVICE}; effective, permitted",
        "sandbox": "ok: seccomp filter" if bpf else "",
        "capabilities": "ok: all that a start needs",
        "BTF": "ok: ",
        "BPF file system": "ok: mounted at /sys/fs/bpf",
        "pinned maps": "ok: layout ",
        "BPF program": "ok: this kernel takes it" if bpf else "skipped: bpf: off",
        "upstream": f"ok: directory {relay.stored_dir}, of user {SERVICE}",
    }.items():
        assert checks.said(name).startswith(words), (name, checks.said(name))
        line = next(line for line in text.splitlines() if line.split()[1:2] == name.split()[:1])
        assert line.startswith(checks[name]["result"]), (name, line)
    assert ("vsock and sockmap are expected" if bpf else "in user space") in checks.said("kernel")
    # Linux before 7.0 says that it knows none.
    assert ("ns_mode is global" in checks.said("namespaces")) == knows_namespaces(), checks


def ports(_bpf):
    """A port that is free, that somebody else has, and that the running relay should have."""
    with off() as relay:
        assert doctor(relay).said("port").startswith(f"ok: vsock port {PORT} is free")
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as taken:
            taken.bind((socket.VMADDR_CID_ANY, PORT))
            said = doctor(relay).said("port")
        assert said.startswith(f"problem: vsock port {PORT} is taken -> ss --vsock"), said
        sockets = [{"path": os.path.join(relay.dir, "vm.sock"), "cid": 42}]
        checks = with_config(relay, listen={"vsock": False}, hybrid={"sockets": sockets})
        assert checks.said("AF_VSOCK").startswith("skipped: listen.vsock: false"), checks
        said = checks.said("port")
        assert said.startswith("skipped: listen.vsock: false"), said
    with Relay({}) as relay:
        checks = with_config(relay, listen={"vsock": True, "port": PORT + 1})
        assert checks.said("port").startswith("problem: the daemon runs, but nobody listens"), checks
        relay.check()


def as_service_user():
    os.setresgid(SERVICE, SERVICE, SERVICE)
    os.setresuid(SERVICE, SERVICE, SERVICE)


def without_bpf():
    for capability in (CAP_BPF, CAP_NET_ADMIN):
        assert _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


def few_rights(bpf):
    """Who is not root is told what root would see; capabilities that no start can have are named."""
    with off() as relay:
        os.chmod(relay.config_path, 0o644)
        checks = doctor(relay, preexec_fn=as_service_user)
        assert checks.said("capabilities") == (
            f"note: this is user {SERVICE} -> run doctor as root to look at what the daemon may do")
        said = checks.said("port")
        assert said.startswith(f"note: vsock port {PORT} needs CAP_NET_BIND_SERVICE"), said
        if bpf:
            said = checks.said("BPF program")
            assert said.startswith("problem: not permitted: ") and "run doctor as root" in said, said
        said = doctor(relay, preexec_fn=without_bpf).said("capabilities")
        assert said.startswith("problem: cannot be had: CAP_BPF, CAP_NET_ADMIN -> add them"), said


@contextlib.contextmanager
def moved(path):
    """Somebody took it away for a while."""
    os.rename(path, path + ".away")
    try:
        yield
    finally:
        os.rename(path + ".away", path)


def devices(_bpf):
    """Without /dev/vhost-vsock no guest can connect: which module makes it."""
    with off() as relay, moved("/dev/vhost-vsock"):
        said = doctor(relay).said("vhost-vsock")
        assert said.startswith("problem: no /dev/vhost-vsock: ") and "modprobe vhost_vsock" in said, said


def settings_file(_bpf):
    """A mistake in the settings of the node is a problem, with file, line and column, and the rest is
    looked at nevertheless; no file is no mistake."""
    with off() as relay:
        os.makedirs(os.path.dirname(DEFAULT_FILE), exist_ok=True)
        assert doctor(None).said("settings") == "ok: no file, all defaults -> None"
        with open(DEFAULT_FILE, "w", encoding="ascii") as f:
            f.write("rate:\n  nope: 1\n")
        try:
            checks = doctor(None)
        finally:
            os.remove(DEFAULT_FILE)
        said = checks.said("settings")
        assert said.startswith(f"problem: {DEFAULT_FILE}:2:3: ") and "--check-config" in said, said
        assert checks.said("daemon").startswith("note: no daemon runs: there is no "), checks
        assert "port" in checks and "upstream" in checks
        # Who names a file means that file.
        with open(relay.config_path, "a", encoding="ascii") as f:
            f.write("\nnope: 1\n")
        done = subprocess.run([CTL, "-c", relay.config_path, "doctor"], capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 2 and relay.config_path in done.stderr, done


def rights_of_the_daemon(_bpf):
    """sandbox: off and a daemon that stays root are said."""
    with Relay({"sandbox": "off"}) as relay:
        assert doctor(relay).said("sandbox") == "note: sandbox: off -> set sandbox: auto"
        relay.check()
    with Relay({"user": "", "group": ""}, start=False) as relay:
        for path in (relay.dir, relay.stored_dir):
            os.chown(path, 0, 0)
        relay.start()
        said = doctor(relay).said("privileges")
    assert said.startswith("problem: the daemon has no capabilities, but is root"), said


def pins(bpf):
    """A pin directory elsewhere than in a BPF file system, and maps of another layout."""
    with off(pin_directory="/tmp/vsock_relay") as relay:
        said = doctor(relay).said("BPF file system")
        assert said == "problem: /tmp is none -> mount -t bpf bpf /sys/fs/bpf", said
    with off(pin_directory="/sys/fs/bpf/doctor") as relay:
        assert doctor(relay).said("pinned maps") == "ok: none yet -> None"
        relay.start()
        relay.stop()
        abi = f"{relay.pins}/vsr_abi".replace("vsock_relay", "doctor")
        subprocess.run(["bpftool", "map", "update", "pinned", abi, "key", *"0000", "value", "99",
                        *"0000000"], check=True, timeout=60)  # fmt: skip
        said = doctor(relay).said("pinned maps")
        assert said.startswith("note: layout 99, this program knows "), said
        assert "replaces them" in said, said
        relay.start()
        assert doctor(relay).said("pinned maps").startswith("ok: layout "), "replaced"
        relay.check()
        relay.stop()


def file_upstream(_bpf):
    """The directory of the upstream: not there yet, a file, on a disk that cannot be written."""
    with off() as relay:

        def said(path):
            return with_config(relay, upstream={"kind": "file", "file": {"directory": path}}).said("upstream")

        assert said(NONE).startswith(f"note: {NONE}: No such file"), said(NONE)
        assert said(CTL) == f"problem: {CTL} is no directory -> set upstream.file.directory"
        disk = os.path.join(relay.dir, "disk")
        os.mkdir(disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "disk", disk], check=True, timeout=60)
        try:
            assert said(disk) == f"problem: {disk}: Read-only file system -> see to the disk"
        finally:
            subprocess.run(["umount", disk], check=True, timeout=60)


def grpc_upstream(_bpf):
    """The upstream is dialled by whatever address it has: who takes connections, and who does not."""
    with off() as relay, contextlib.ExitStack() as stack:

        def said(address, name="upstream", **more):
            grpc = {"address": address, "plaintext": True, "acks": "response", **more}
            return with_config(relay, upstream={"kind": "grpc", "grpc": grpc}).said(name)

        path = os.path.join(relay.dir, "upstream")
        for family, where, shown in (
            (socket.AF_INET, ("127.0.0.1", 0), "127.0.0.1:{}"),
            (socket.AF_INET, ("127.0.0.1", 0), "localhost:{}"),
            (socket.AF_INET6, ("::1", 0), "[::1]:{}"),
            (socket.AF_UNIX, path, f"unix:{path}"),
        ):
            s = stack.enter_context(socket.socket(family))
            s.bind(where)
            address = shown if family == socket.AF_UNIX else shown.format(s.getsockname()[1])
            assert said(address).startswith(f"problem: cannot connect to {address}: Connection refused")
            s.listen()
            assert said(address).startswith(f"ok: {address} takes connections"), said(address)
        other = said(f"unix:{path}.none")
        assert other.startswith(f"problem: cannot connect to unix:{path}.none: No such file"), other
        other = said("no.such.name.invalid:1")
        assert other.startswith("problem: cannot connect to no.such.name.invalid:1: "), other
        assert "firewall" in other, other
        # 192.0.2.0/24 is for documents (RFC 5737), and this machine has no way out.
        other = said("192.0.2.1:1")
        assert other.startswith("problem: cannot connect to 192.0.2.1:1: Network is unreachable"), other
        files = {name: os.path.join(relay.dir, f"{name}.pem") for name in ("ca", "certificate", "key")}
        other = said("127.0.0.1:1", "upstream TLS", plaintext=False, **files)
        assert other.startswith("problem: ") and "ca.pem" in other, other


TESTS = (healthy, ports, few_rights, devices, settings_file, rights_of_the_daemon, pins, file_upstream,
         grpc_upstream)  # fmt: skip


def run_all(tap, bpf):
    for function in TESTS:
        tap.run(f"doctor: {function.__name__}: {' '.join(function.__doc__.split())}", function, bpf)

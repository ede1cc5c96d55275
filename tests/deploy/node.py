#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs on the node of tests/deploy/systemd.py, as root, once, in this order: the tests are the life of
an installation, with the commands of docs/operating.md as they stand there. Arguments: the version to
install, and the one to upgrade to."""

import grp
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path[:0] = ["/run/vsr/lib"]

os.environ["FAKEGUEST"] = "/run/vsr/fakeguest"

import report as rp
from fakeguest import FakeGuest
from netns import GuestInside, known
from relay import scrape, wait_for
from tap import Tap

UNIT = "vsock-relayd"
CONFIG = "/etc/vsock-relay/vsock-relayd.yaml"
STATE = "/var/lib/vsock-relay"
REPORTS = f"{STATE}/reports"
PINS = "/sys/fs/bpf/vsock_relay"
EXPOSURE_MAX = 2.5
CID = 42


def sh(*command, status=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    if status is not None:
        assert done.returncode == status, (command, done.returncode, said)
    return said


def page_commands(heading, page="operating"):
    """The commands of that part of docs/operating.md or docs/agent.md, in their order."""
    with open(f"/run/vsr/{page}.md", encoding="utf-8") as f:
        part = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", f.read(), re.M | re.S).group(1)
    found = re.findall(r"^    (\S.*)$", part, re.M)
    assert found, heading
    return found


def readme_commands():
    with open("/run/vsr/README.md", encoding="utf-8") as f:
        return re.findall(r"^    (apt install .*)$", f.read(), re.M)


def type_in(command, status=0):
    """As somebody types it, who says yes when he is asked."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300, input="y\n",
                          cwd="/run/vsr", check=False)  # fmt: skip
    assert done.returncode == status, (command, done.returncode, done.stdout + done.stderr)
    return done.stdout + done.stderr


def show(name, unit=UNIT):
    return sh("systemctl", "show", "-P", name, unit).strip()


def journal(since=None, unit=UNIT):
    since = ["--since", f"@{since}"] if since else []
    return sh("journalctl", "-q", "-o", "cat", "-u", unit, *since)


def metrics():
    return scrape(9818)


def is_active():
    return show("ActiveState") == "active"


def write(settings=""):
    """The file as it was installed, and these lines."""
    with open(CONFIG, "w", encoding="utf-8") as f:
        f.write(INSTALLED + settings)


def send(payload, cid=CID):
    """The answer to a report of the guest with that CID."""
    with FakeGuest() as fg:
        return send_from(fg, payload, cid)


def send_from(fg, payload, cid):
    fg.guest(cid)
    path = f"/tmp/guest{cid}"
    fg.bridge(cid, 818, path)
    return rp.send_framed(path, payload)


def map_of(name, cid=CID):
    """What a pinned map says of the VM, None if it has nothing."""
    for entry in json.loads(sh("bpftool", "-j", "map", "dump", "pinned", f"{PINS}/{name}")):
        entry = entry.get("formatted", entry)
        if entry["key"]["cid"] == cid:
            return entry["value"]
    return None


def files():
    """All paths of the system that packages and services leave something in."""
    found = set()
    for top in ("/etc", "/usr", "/lib", "/var", "/run", "/opt", "/root", "/home", "/tmp", PINS):
        for folder, dirs, names in os.walk(top):
            dirs[:] = [d for d in dirs if os.path.join(folder, d) not in ("/run/vsr", "/run/systemd", "/run/log")]
            found |= {os.path.join(folder, name) for name in (*dirs, *names)}
    return found


# ---- install ----


def installs_and_starts():
    (install,) = [c for c in page_commands("Install") if c.startswith("apt ")]
    assert install in readme_commands()
    type_in(install)
    global INSTALLED
    INSTALLED = open(CONFIG, encoding="utf-8").read()
    assert is_active(), sh("systemctl", "status", UNIT, status=None) + journal()
    assert show("UnitFileState") == "enabled"
    assert "BPF looks at vsock streams" in journal(), journal()
    assert show("StatusText").startswith("listening on vsock; BPF"), show("StatusText")
    assert "the settings are good" in journal(), "checked before the start"


def runs_without_rights():
    status = open(f"/proc/{show('MainPID')}/status", encoding="ascii").read()
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.M))
    uid = pwd.getpwnam("vsock-relay").pw_uid
    assert fields["Uid"].split() == [str(uid)] * 4, fields["Uid"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[name], 16) == 0, (name, fields[name])
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2", fields
    assert os.stat(STATE).st_uid == uid and os.stat(STATE).st_mode & 0o777 == 0o750
    assert os.stat(PINS).st_uid == uid and os.stat(PINS).st_mode & 0o777 == 0o700


def is_not_exposed():
    said = sh("systemd-analyze", "security", "--no-pager", UNIT)
    print("#", said.strip().splitlines()[-1], flush=True)
    level = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said).group(1))
    bad = [line for line in said.splitlines() if line.startswith("\u2717")]
    assert level <= EXPOSURE_MAX, "\n".join([str(level), *bad])


def unit_is_valid(unit=f"{UNIT}.service"):
    said = sh("systemd-analyze", "verify", "--man=no", unit)
    assert unit not in said, said


def report_arrives():
    assert send(FIRST) == rp.ACCEPTED
    stored = f"{REPORTS}/0-{CID}.pb"
    wait_for(lambda: os.path.exists(stored), 20, "report is stored")
    assert open(stored, "rb").read() == FIRST
    assert map_of("vsr_vms")["bytes"] >= len(FIRST)
    assert map_of("vsr_vm_state")["accepted"] == 1
    assert metrics()["bpf_mode", "kernel"] == 1


def commands_that_look_show_it():
    """What the page says to type, in both cases."""
    said = {command: type_in(command) for part in ("See that it works", "See why it does not")
            for command in page_commands(part)}  # fmt: skip
    whole = "\n".join(said.values())
    for expected in ("active (running)", "listening on vsock; BPF", "ready\n[+] listening: vsock port 818", "*:818", f"0-{CID}.pb",
                     '"cid": 42', "the settings are good"):  # fmt: skip
        assert expected in whole, (expected, said)


# ---- settings ----


def broken_file_keeps_the_service():
    before, began = show("MainPID"), int(time.time())
    write("cache:\n  ttl: 4\n")
    sh("systemctl", "reload", UNIT, status=1)
    assert f"{CONFIG}:{INSTALLED.count(chr(10)) + 2}:8: cache.ttl: '4'; expected a duration" in journal(began), journal(began)
    assert is_active() and show("MainPID") == before
    assert send(FIRST) == rp.NOTHING_TO_DO, "it serves as before"
    write()


def reload_applies():
    began = int(time.time())
    write("cache: {ttl: 2h}\nallow_reserved_cids: true\n")
    sh("systemctl", "reload", UNIT)
    wait_for(lambda: "reloaded" in journal(began), 20, "reload")
    assert "reload: cache.ttl: 4h -> 2h" in journal(began), journal(began)


def key_that_needs_a_restart_fails_the_reload():
    """It is named, in what systemctl shows too; nothing of the file is applied."""
    before, began = show("MainPID"), int(time.time())
    write("cache: {ttl: 3h}\nallow_reserved_cids: true\nadmission: {places: 60}\n")
    sh("systemctl", "reload", UNIT, status=1)
    said = journal(began)
    assert "reload: admission.places needs a restart (50 -> 60)" in said, said
    assert "vsock-relayctl: reload refused" in said and "cache.ttl: 2h -> 3h" not in said, said
    assert "reload refused" in sh("systemctl", "status", UNIT), "what systemctl points to"
    assert is_active() and show("MainPID") == before
    assert send(FIRST) == rp.NOTHING_TO_DO, "it serves as before"
    # The socket that it would be asked at is another one in the file: refused as well.
    began = int(time.time())
    write("allow_reserved_cids: true\nadmin_socket: /run/vsock-relay/other.sock\n")
    sh("systemctl", "reload", UNIT, status=1)
    wait_for(lambda: "reload: admin_socket needs a restart" in journal(began), 20, "the daemon says so")
    assert "nobody answers at /run/vsock-relay/other.sock" in journal(began), journal(began)
    # Without one nobody can be asked: the signal alone.
    write("allow_reserved_cids: true\nadmin_socket: ''\n")
    sh("systemctl", "restart", UNIT)
    began = int(time.time())
    write("allow_reserved_cids: true\nadmin_socket: ''\ncache: {ttl: 90m}\n")
    sh("systemctl", "reload", UNIT)
    wait_for(lambda: "reload: cache.ttl: 4h -> 1h30m" in journal(began), 20, "reload by a signal")
    write("allow_reserved_cids: true\n")
    sh("systemctl", "restart", UNIT)
    assert send(FIRST) == rp.ACCEPTED, "a new start knows no digest"


def journal_has_fields():
    """Entries of the real journal, with fields of their own: which VM, why, which generation;
    journalctl finds them by these, with the commands of the page."""

    def entries(*match):
        shown = sh("journalctl", "-q", "-o", "json", "-u", UNIT, *match)
        return [json.loads(line) for line in shown.splitlines()]

    def entry(reason):
        wait_for(lambda: entries(f"VSR_REASON={reason}"), 20, f"an entry with the reason {reason}")
        found = entries(f"VSR_REASON={reason}", f"VSR_CID={CID}")[0]
        print("#", {k: v for k, v in found.items() if k.startswith("VSR_")}, flush=True)
        assert found["VSR_VM"] == f"0:{CID}" and found["VSR_NS"] == "0", found
        assert found["SYSLOG_IDENTIFIER"] == "vsock-relayd" and found["_TRANSPORT"] == "journal", found
        assert found["_SYSTEMD_UNIT"] == f"{UNIT}.service", found
        assert not found["MESSAGE"].startswith("<"), "no prefix for what has a priority"
        return found

    # A claim is not what a VM is found by.
    assert send(rp.report(CID + 1)) == rp.CID_MISMATCH
    assert entry("cid_mismatch")["MESSAGE"].startswith(f"refused VM 0:{CID}: ")
    assert not entries(f"VSR_CID={CID + 1}")
    with FakeGuest("/run/vsr/fakeguest") as fg:
        fg.guest(CID)
        conn = fg.connect(CID, 818)
        fg.wait(conn, "credit")
        fg.rw(conn, len=0, desc=65536)
        fg.rw(conn, len=5000)
        assert entry("zero_length")["PRIORITY"] == "5"
    # A generation that cannot be stored.
    os.chmod(REPORTS, 0)
    assert send(SECOND) == rp.ACCEPTED
    failed = entry("write")
    assert failed["PRIORITY"] == "3" and int(failed["VSR_GENERATION"]) >= 1, failed
    os.chmod(REPORTS, 0o750)
    stored = f"{REPORTS}/0-{CID}.pb"
    wait_for(lambda: open(stored, "rb").read() == SECOND, 120, "report is stored")
    for command in page_commands("Watch"):
        if command.startswith("journalctl"):
            assert "refused VM 0:42: packet without payload (zero_length)" in type_in(command), command


def broken_file_at_start():
    """Says where it is wrong, does not try for ever, and starts when it is right."""
    began, restarts = int(time.time()), show("NRestarts")
    write("cach: {ttl: 2h}\n")
    sh("systemctl", "restart", UNIT, status=1)
    time.sleep(7)
    assert show("ActiveState") == "failed" and show("NRestarts") == restarts, journal(began)
    assert show("ExecMainStatus") == "78"
    assert f"{CONFIG}:{INSTALLED.count(chr(10)) + 1}:1: unknown key 'cach'" in journal(began), journal(began)
    write("allow_reserved_cids: true\n")
    sh("systemctl", "restart", UNIT)
    assert is_active()


def hybrid_sockets_with_a_drop_in():
    """As the page says: the directory, and the group that may write there."""
    sh("groupadd", "vmm")
    os.makedirs("/run/vms/50")
    for path in ("/run/vms", "/run/vms/50"):
        shutil.chown(path, "root", "vmm")
        os.chmod(path, 0o2775)
    folder = f"/etc/systemd/system/{UNIT}.service.d"
    os.mkdir(folder)
    with open(f"{folder}/vms.conf", "w", encoding="ascii") as f:
        f.write("[Service]\nReadWritePaths=/run/vms\nSupplementaryGroups=vmm\n")
    write('hybrid: {sockets: [{pattern: "/run/vms/{cid}/vsock.sock"}], group: vmm}\n')
    sh("systemctl", "daemon-reload")
    sh("systemctl", "restart", UNIT)
    assert rp.send_framed("/run/vms/50/vsock.sock_818", rp.report(50)) == rp.ACCEPTED
    assert grp.getgrgid(os.stat("/run/vms/50/vsock.sock_818").st_gid).gr_name == "vmm"
    # A VM that comes later.
    os.mkdir("/run/vms/51")
    os.chmod("/run/vms/51", 0o2775)
    wait_for(lambda: os.path.exists("/run/vms/51/vsock.sock_818"), 20, "socket of a new VM")
    shutil.rmtree(folder)
    shutil.rmtree("/run/vms")
    sh("groupdel", "vmm")
    write("allow_reserved_cids: true\n")
    sh("systemctl", "daemon-reload")
    sh("systemctl", "restart", UNIT)


class Named:
    """A network namespace that `ip netns add` has made."""

    def __init__(self, name):
        self.path = f"/run/netns/{name}"


def listeners_with_a_drop_in():
    """As the page says, whose drop-in and list these are, in namespaces of mode local; without the
    drop-in the unit fails, and says what it lacks."""
    assert known() and "ns_mode of the relay's network namespace is global" in journal(), journal()
    with open("/run/vsr/operating.md", encoding="utf-8") as f:
        part = re.search(r"^## Network namespaces\n(.*?)^## ", f.read(), re.M | re.S).group(1)
    settings = re.search(r"^```yaml\n(.*?)^```", part, re.M | re.S).group(1)
    drop_in = "\n".join(re.findall(r"^      (\S.*)$", part, re.M)) + "\n"
    assert drop_in.startswith("[Service]\n") and "CAP_SYS_ADMIN" in drop_in, drop_in
    inside = re.findall(r"netns: /run/netns/(\w+), namespace: (\d+)", settings)
    assert len(inside) == 2, settings
    with open("/proc/sys/net/vsock/child_ns_mode", "w", encoding="ascii") as f:
        f.write("local")
    for name, _ in inside:
        sh("ip", "netns", "add", name)
    write(settings)
    began = time.time()
    sh("systemctl", "restart", UNIT, status=1)
    assert f"network namespace /run/netns/{inside[0][0]}: entering it needs CAP_SYS_ADMIN" in journal(began), (
        journal(began))
    sh("systemctl", "stop", UNIT)
    sh("systemctl", "reset-failed", UNIT)

    folder = f"/etc/systemd/system/{UNIT}.service.d"
    os.mkdir(folder)
    with open(f"{folder}/netns.conf", "w", encoding="ascii") as f:
        f.write(drop_in)
    sh("systemctl", "daemon-reload")
    sh("systemctl", "restart", UNIT)
    assert is_active(), journal(began)
    runs_without_rights()
    # One CID, three VMs.
    cid = 3
    with FakeGuest() as fg:
        assert send_from(fg, rp.report(cid, packages=1), cid) == rp.ACCEPTED
    name, number = inside[0]
    with GuestInside(Named(name)) as fg:
        assert send_from(fg, rp.report(cid, packages=2), cid) == rp.ACCEPTED
    for number, packages in ((0, 1), (number, 2)):
        path = f"{REPORTS}/{number}-{cid}.pb"
        wait_for(lambda path=path: os.path.exists(path), 20, path)
        with open(path, "rb") as f:
            assert f.read() == rp.report(cid, packages=packages), path
    checks = json.loads(sh("vsock-relayctl", "-j", "doctor", status=None))["checks"]
    results = {check["name"]: check["result"] for check in checks}
    assert [results.get(f"listener {number}") for _, number in inside] == ["ok", "ok"], checks


def pod_has_the_capabilities_it_needs():
    """Root with the DaemonSet's capabilities and no others starts, with BPF; without any of them not."""
    with open("/run/vsr/pod.json", encoding="utf-8") as f:
        pod = json.load(f)
    sh("systemctl", "stop", UNIT)
    with open("/run/vsr/pod.yaml", "w", encoding="utf-8") as f:
        f.write(pod["settings"])
    started = {"all": start_pod(pod["capabilities"])}
    for without in pod["capabilities"]:
        started[without] = start_pod([c for c in pod["capabilities"] if c != without])
    assert started == {"all": True, **{c: False for c in pod["capabilities"]}}, started
    sh("systemctl", "start", UNIT)


def start_pod(capabilities):
    """Whether it starts, where nothing is there yet; the process is user 818 without any then."""
    folders = ["/run/pod", "/var/lib/pod", "/sys/fs/bpf/pod"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in folders[:2]:
        os.mkdir(folder)
    command = ("/usr/sbin/vsock-relayd --config /run/vsr/pod.yaml --bpf required --run-directory /run/pod "
               "--pin-directory /sys/fs/bpf/pod --admin-socket /run/pod/s --state-directory /var/lib/pod/state "
               "--upstream-file-directory /var/lib/pod/reports")  # fmt: skip
    with open("/run/systemd/system/pod.service", "w", encoding="ascii") as f:
        f.write(f"""[Service]
Type=notify
ExecStart={command}
CapabilityBoundingSet={' '.join(capabilities)}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={' '.join(folders[:2])} /sys/fs/bpf
""")
    sh("systemctl", "daemon-reload")
    sh("systemctl", "start", "pod", status=None)
    active = show("ActiveState", "pod") == "active"
    if active:
        status = open(f"/proc/{show('MainPID', 'pod')}/status", encoding="ascii").read()
        fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.M))
        assert fields["Uid"].split() == ["818"] * 4 and int(fields["CapEff"], 16) == 0, status
    else:
        print("#", journal(unit="pod").splitlines()[-4:-3], flush=True)
    sh("systemctl", "stop", "pod")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.unlink("/run/systemd/system/pod.service")
    sh("systemctl", "daemon-reload")
    return active


# ---- life ----


def watchdog_restarts_a_stopped_process():
    pid, restarts = int(show("MainPID")), int(show("NRestarts"))
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: int(show("NRestarts")) > restarts and is_active(), 120, "restart")
    assert int(show("MainPID")) != pid
    assert "Watchdog timeout" in journal(), journal()
    assert send(SECOND) == rp.ACCEPTED


def agent_reports():
    """The agent's package: its timer waits, its service sends this machine's packages."""
    (install,) = [c for c in readme_commands() if "vsock-agent" in c]
    type_in(install)
    unit_is_valid("vsock-agent.service")
    unit_is_valid("vsock-agent.timer")
    assert show("ActiveState", "vsock-agent.timer") == "active", journal(unit="vsock-agent.timer")
    with open("/etc/default/vsock-agent", "w", encoding="utf-8") as f:
        f.write('VSOCK_AGENT_OPTIONS="--host-cid 1 --cid 1"\n')
    send_now, look, timers = page_commands("Installing it in a guest", "agent")[1:]
    type_in(send_now)
    assert "accepted" in type_in(look)
    assert "vsock-agent.timer" in type_in(timers)
    stored = f"{REPORTS}/0-1.pb"
    wait_for(lambda: os.path.exists(stored), 20, "report is stored")
    names = sh("dpkg-query", "-W", "-f", "${Package}\n").split()
    shown = sh("vsock-agent", "--file", stored, "--print")
    assert all(name in shown for name in names), names
    type_in("apt purge vsock-agent")
    assert not os.path.exists("/etc/default/vsock-agent")


def upgrade_keeps_what_is_held():
    """Counters and content in custody: neither upgrade nor a long absence of the upstream loses it."""
    # A server that nobody runs: what is accepted stays in custody.
    write("upstream: {kind: grpc, grpc: {address: '127.0.0.1:9', plaintext: true}}\n")
    sh("systemctl", "restart", UNIT)
    assert send(THIRD) == rp.ACCEPTED
    seen, state = map_of("vsr_vms"), map_of("vsr_vm_state")
    assert metrics()["contents_held"] == 1 and state["custody"] == 1
    (upgrade,) = page_commands("Upgrade")
    type_in(upgrade.replace(VERSION, NEWER))
    assert is_active() and metrics()["build_info", NEWER] == 1
    assert map_of("vsr_vms") == seen, (map_of("vsr_vms"), seen)
    assert map_of("vsr_vm_state") == state, (map_of("vsr_vm_state"), state)
    assert metrics()["contents_held"] == 1, journal()
    # With the usual upstream again it is delivered.
    write()
    sh("systemctl", "restart", UNIT)
    stored = f"{REPORTS}/0-{CID}.pb"
    wait_for(lambda: open(stored, "rb").read() == THIRD, 30, "content in custody is delivered")
    wait_for(lambda: metrics()["contents_held"] == 0, 20, "its custody ends")


# ---- the end ----


def remove_keeps_purge_does_not(before):
    remove, purge = page_commands("Remove")
    type_in(remove)
    assert os.path.exists(CONFIG) and os.path.exists(f"{REPORTS}/0-{CID}.pb")
    assert show("ActiveState") == "inactive"
    type_in(purge)
    left = {path for path in files() - before if not re.match(r"/var/(log|cache|lib/(dpkg|apt))/", path)}
    assert not left, sorted(left)
    named = [p for p in files() if re.search(r"vsock[-_]relay", p)]
    assert not named, named
    for database in ("passwd", "group"):
        sh("getent", database, "vsock-relay", status=2)
    assert "vsock" not in sh("systemctl", "list-unit-files", "--no-pager")
    assert not os.path.exists(PINS)


VERSION, NEWER = sys.argv[1:3]
INSTALLED = ""  # the settings of the package
FIRST, SECOND, THIRD = (rp.report(CID, packages=n) for n in (20, 30, 40))


def main():
    tap = Tap()
    before = files()
    tap.run("the package installs and its unit starts", installs_and_starts)
    if tap.failed:
        tap.end()
    tap.run("the service has no rights left", runs_without_rights)
    if "--netns" in sys.argv:
        tap.run("listeners in network namespaces, with the drop-in of the page", listeners_with_a_drop_in)
        tap.end()
    tap.run(f"systemd-analyze security: at most {EXPOSURE_MAX}", is_not_exposed)
    tap.run("systemd-analyze verify finds nothing", unit_is_valid)
    tap.run("a guest's report arrives, seen by BPF", report_arrives)
    tap.run("the page's commands show that it works", commands_that_look_show_it)
    tap.run("reload with a broken file: says where, and the service stays", broken_file_keeps_the_service)
    tap.run("reload applies a good file", reload_applies)
    tap.run("reload with a key that needs a restart fails, and names it", key_that_needs_a_restart_fails_the_reload)
    tap.run("the journal has the fields of an event", journal_has_fields)
    tap.run("start with a broken file: says where, and is not tried for ever", broken_file_at_start)
    tap.run("hybrid sockets, with the drop-in of the page", hybrid_sockets_with_a_drop_in)
    if "--quick" not in sys.argv:
        tap.run("the DaemonSet's capabilities are enough, and each is needed", pod_has_the_capabilities_it_needs)
    tap.run("the watchdog restarts a stopped process", watchdog_restarts_a_stopped_process)
    tap.run("the agent's service reports, sandboxed", agent_reports)
    tap.run("upgrade keeps vsr_vms, vsr_vm_state and the content in custody", upgrade_keeps_what_is_held)
    tap.run("remove keeps settings and state, purge nothing", remove_keeps_purge_does_not, before)
    tap.end()


main()

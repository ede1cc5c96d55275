#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The daemon as its operator meets it: command line, start, reload, stop, and disks that fail.
Arguments: part of a test's name."""

import contextlib
import grp
import os
import pwd
import re
import resource
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import report as rp
from relay import BUILD, Relay, process_status, wait_for
from tap import Skip, Tap

BINARY = os.path.join(BUILD, "vsock-relayd")
WRAP = os.environ.get("VSR_WRAP", "").split()
EX_IOERR, EX_TEMPFAIL, EX_CONFIG = 74, 75, 78
CID = 42


def run(*args, env=None, seconds=60):
    """Exit status and what was printed."""
    done = subprocess.run(
        [*WRAP, BINARY, *args], capture_output=True, text=True, timeout=seconds,
        env=dict(os.environ, **(env or {})), stdin=subprocess.DEVNULL, check=False,
    )
    return done.returncode, done.stdout + done.stderr


def relay(settings=None, start=True, hybrid=None, **keys):
    return Relay(settings, hybrid={"vm.sock": CID} if hybrid is None else hybrid, start=start,
                 wrap=WRAP, **keys)


def send(r, seed, size=3000, name="vm.sock", cid=CID):
    return rp.send_framed(r.path(name), rp.report(cid, size, seed=seed))


def refused_start(r):
    """Starts a relay that must not start: exit status and log."""
    r.start(wait=False)
    status = r.process.wait(60)
    return status, r.log()


def as_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


# ---- the command line ----


def help_and_version():
    """--help names every key with its flag, --version the version; neither starts anything."""
    status, out = run("--help")
    assert status == 0 and "--report-deadline" in out and "--check-config" in out, out
    status, out = run("--version")
    assert status == 0 and re.fullmatch(r"vsock-relayd \d+\.\d+\.\d+\n", out), out
    # Also where the settings are no good.
    status, _ = run("--help", "--config", "/nonexistent")
    assert status == 0
    with open("/dev/full", "w", encoding="ascii") as full:
        assert subprocess.run([*WRAP, BINARY, "--help"], stdout=full, check=False).returncode == EX_IOERR


def check_config():
    """--check-config: 0 and no start, or 78 with file, line and column of each error."""
    with relay(start=False) as r:
        status, out = run("--check-config", "--config", r.config_path)
        assert status == 0 and "good" in out, out
        assert not os.path.exists(r.path("vm.sock"))
        bad = {
            "nope: 1\n": ":1:1: unknown key 'nope'",
            "report:\n  idle: 5 parsecs\n": ":2:9: report.idle",
            "report: [\n": ":2:1:",
            "log: {level: info}\nlog: {level: debug}\n": ":2:1:",
            "memory: {budget: 20MiB}\n": ":1:18: memory.budget",
        }
        path = os.path.join(r.dir, "bad.yaml")
        for text, error in bad.items():
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            for args in (["--check-config"], []):
                status, out = run(*args, "--config", path)
                assert status == EX_CONFIG, (text, status, out)
                assert path + error in out, (text, out)
        for args in (["--bogus"], ["--report-idle=x"], ["--config", os.path.join(r.dir, "no")]):
            status, out = run(*args)
            assert status == EX_CONFIG and args[-1].split("=")[0] in out, out
        status, out = run("--check-config", "--config", r.config_path,
                          env={"ROX_VIRTUAL_MACHINES_VSOCK_PORT": "many"})
        assert status == EX_CONFIG and "ROX_VIRTUAL_MACHINES_VSOCK_PORT" in out, out


def flags_over_environment_over_file():
    """Flags win over environment over file."""
    with relay({"report": {"max_kib": 16}}, start=False) as r:
        r.env["VSOCK_RELAY_REPORT_MAX_KIB"] = "8"
        r.start()
        assert send(r, 1, 9000) == rp.TOO_LARGE
        assert send(r, 1, 8000) == rp.ACCEPTED
        assert r.stop() == 0
        status, out = run("--check-config", "--config", r.config_path, "--report-max-kib=0",
                          env=r.env)
        assert status == EX_CONFIG and "--report-max-kib" in out, out


# ---- start ----


def second_instance():
    """A second instance exits 75 and names the holder; the first goes on."""
    with relay() as first, relay(start=False) as second:
        second.config["run_directory"] = first.config["run_directory"]
        second.write_config()
        status, log = refused_start(second)
        assert status == EX_TEMPFAIL, (status, log)
        # valgrind is the same process as what it runs
        assert str(first.process.pid) in log and first.config["run_directory"] in log, log
        assert send(first, 1) == rp.ACCEPTED
        assert not os.path.exists(second.path("vm.sock"))
        assert first.stop() == 0
        second.start()
        assert send(second, 1) == rp.ACCEPTED
        first.start(wait=False)
        assert first.process.wait(60) == EX_TEMPFAIL


def port_in_use():
    """A port in use is fatal at start, and named."""
    with relay(start=False) as r, socket.socket() as taken:
        taken.bind(("127.0.0.1", r.port))
        taken.listen()
        status, log = refused_start(r)
        assert status == 1 and "metrics.listen" in log and "in use" in log, (status, log)
        assert not os.path.exists(r.path("vm.sock")), "its socket was left behind"


def vsock_port_in_use():
    """So is a vsock port."""
    port = 20000 + os.getpid()
    try:
        taken = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        taken.bind((socket.VMADDR_CID_ANY, port))
        taken.listen()
    except (OSError, AttributeError) as e:
        raise Skip(f"AF_VSOCK: {e}") from None
    with taken, relay(start=False) as r:
        r.config["listen"] = {"vsock": True, "port": port}
        r.config["bpf"] = "off"
        r.config["pin_directory"] = os.path.join(r.dir, "pin")
        r.write_config()
        status, log = refused_start(r)
        assert status == 1 and f"vsock port {port}" in log, (status, log)


def socket_in_use():
    """A hybrid socket that somebody listens on is fatal and named, and left alone."""
    with relay(start=False) as r, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(r.path("vm.sock"))
        taken.listen()
        status, log = refused_start(r)
        assert status == 1 and r.path("vm.sock") in log, (status, log)
        assert os.path.exists(r.path("vm.sock"))


def missing_directories():
    """A directory that is missing is fatal and named."""
    for change in (
        {"hybrid": {"sockets": [{"path": "/nonexistent/vm.sock", "cid": CID}]}},
        {"hybrid": {"sockets": [{"pattern": "/nonexistent/vm-{cid}.sock"}]}},
        {"upstream": {"file": {"directory": "/nonexistent/reports"}}},
        {"run_directory": "/nonexistent/run"},
        {"admin_socket": "/nonexistent/admin.sock"},
    ):
        with relay(change, start=False) as r:
            status, log = refused_start(r)
            assert status == 1, (change, status, log)
            assert "/nonexistent" in log or "admin_socket" in log, log
            assert ("make that, or name another" in log) == ("upstream" in change), log
    with relay(start=False) as r:
        os.rmdir(r.stored_dir)
        r.start()
        assert send(r, 1) == rp.ACCEPTED
        r.wait_stored(CID, rp.report(CID, 3000, seed=1))


def killed_and_started_again():
    """What a killed relay left behind is in nobody's way."""
    with relay() as r:
        r.kill()
        assert os.path.exists(r.path("vm.sock"))
        r.start()
        assert send(r, 1) == rp.ACCEPTED


# ---- the service's user ----


def service_user(r, **settings):
    """The relay's directory for a service user: its own but for what the start makes."""
    r.config.update(user="nobody", group="nogroup", **settings)
    r.config["hybrid"]["allowed_uids"] = "any"
    r.write_config()
    os.chmod(r.dir, 0o755)


def drops_privileges():
    """The service's user receives and stores; what the start makes is made for it."""
    as_root()
    if WRAP:
        raise Skip("the wrapper needs its privileges")
    nobody = pwd.getpwnam("nobody")
    with relay({"sandbox": "auto"}, start=False) as r:
        service_user(r)
        os.rmdir(r.stored_dir)
        r.start()
        status = process_status(r.process.pid)
        assert status["Uid"].split() == [str(nobody.pw_uid)] * 4, status
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, status
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", status
        assert send(r, 1) == rp.ACCEPTED
        r.wait_stored(CID, rp.report(CID, 3000, seed=1))
        m = r.check()  # the disk worker too
        assert m["sandbox", "seccomp"] == 1 and m["sandbox", "landlock"] >= 1
        with open(f"/proc/{r.process.pid}/limits", encoding="ascii") as f:
            assert re.search(r"^Max core file size +0 +0 ", f.read(), re.M)
        assert os.stat(r.stored_dir).st_uid == nobody.pw_uid
        r.config["log"] = {"level": "debug"}
        r.write_config()
        assert "reloaded" in r.reload()
        assert r.stop() == 0


def sandbox_settings():
    """sandbox: off and core_dumps: true do as they say; required starts where all is there."""
    if WRAP:
        raise Skip("the wrapper makes system calls of its own")
    with relay({"sandbox": "required"}) as r:
        assert send(r, 1) == rp.ACCEPTED
        r.check()
        assert r.stop() == 0
    with relay({"sandbox": "off", "core_dumps": True}) as r:
        assert send(r, 1) == rp.ACCEPTED
        m = r.metrics()
        assert m["sandbox", "seccomp"] == 0 and m["sandbox", "landlock"] == 0
        status = process_status(r.process.pid)
        assert status["Seccomp"] == "0" and status["NoNewPrivs"] == "1", status
        limit = re.compile(r"^Max core file size.*$", re.M)
        with open(f"/proc/{r.process.pid}/limits", encoding="ascii") as f, \
                open("/proc/self/limits", encoding="ascii") as ours:
            assert limit.search(f.read())[0] == limit.search(ours.read())[0]


def needs_access():
    """What the service's user cannot read or write later is an error at the start, and named."""
    as_root()
    with relay(start=False) as r:
        service_user(r)
        os.chmod(r.config_path, 0o600)
        status, log = refused_start(r)
        assert status == 1 and r.config_path in log, (status, log)
    with relay(start=False) as r:
        service_user(r)
        os.chown(r.stored_dir, 0, 0)
        os.chmod(r.stored_dir, 0o700)
        status, log = refused_start(r)
        assert status == 1 and r.stored_dir in log, (status, log)
    with relay({"user": "no-such-user"}, start=False) as r:
        status, log = refused_start(r)
        assert status == 1 and "no-such-user" in log, (status, log)


# ---- hybrid patterns ----


def pattern():
    """VMs of a pattern come and go while the relay runs; each is known by its name."""
    with relay(start=False) as r:
        vms = os.path.join(r.dir, "vms")
        os.mkdir(vms)
        r.config["hybrid"]["sockets"] = [{"pattern": os.path.join(vms, "{cid}/root/v.sock")}]
        r.write_config()
        r.start()
        for cid in (1000, 1001):
            os.makedirs(os.path.join(vms, str(cid), "root"))
            r.give(os.path.join(vms, str(cid), "root"))
            address = os.path.join(vms, str(cid), "root", "v.sock_818")
            r.wait_metric("listeners", "hybrid", value=cid - 999)  # a path may not listen yet
            payload = rp.report(cid, 3000)
            assert rp.send_framed(address, payload) == rp.ACCEPTED
            r.wait_stored(cid, payload)
            assert rp.send_framed(address, rp.report(7, 3000)) == rp.CID_MISMATCH
        os.remove(address)
        os.removedirs(os.path.dirname(address))
        r.wait_metric("listeners", "hybrid", value=1)
        assert r.stop() == 0
        assert os.listdir(os.path.join(vms, "1000", "root")) == []


def many_vms():
    """More VMs in one directory than one turn of the loop looks at: they come, go and come back."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        with relay(start=False) as r:
            vms = os.path.join(r.dir, "vms")
            os.mkdir(vms)
            r.give(vms)
            r.config["hybrid"]["sockets"] = [{"pattern": os.path.join(vms, "vm-{cid}")}]
            r.write_config()
            names = [os.path.join(vms, f"vm-{cid}") for cid in range(1000, 2400)]
            for path in names[:700]:
                open(path, "w", encoding="ascii").close()
            r.start()
            assert r.metric("listeners", "hybrid") == 700
            # More than one turn makes; and some that have a socket go meanwhile.
            for path in names[700:]:
                open(path, "w", encoding="ascii").close()
            for path in names[:100]:
                os.remove(path)
            r.wait_metric("listeners", "hybrid", value=1300)
            wait_for(lambda: not os.path.exists(names[0] + "_818"), 20, "a socket to go")
            for path in names[:100]:
                open(path, "w", encoding="ascii").close()
            r.wait_metric("listeners", "hybrid", value=1400)
            for cid in (1000, 1099, 1100, 2399):
                payload = rp.report(cid, 3000)
                assert rp.send_framed(f"{vms}/vm-{cid}_818", payload) == rp.ACCEPTED
                r.wait_stored(cid, payload)
            assert len(os.listdir(f"/proc/{r.process.pid}/fd")) < 1500  # one for each
            assert r.stop() == 0
            assert len(os.listdir(vms)) == 1400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def group_of_later_vms():
    """Sockets of VMs that come after the drop of privileges are given to their group too."""
    as_root()
    if WRAP:
        raise Skip("the wrapper needs its privileges")
    for user in ({"user": "", "group": ""}, {"user": "nobody", "group": "nogroup"}):
        with relay(start=False) as r:
            vms = os.path.join(r.dir, "vms")
            os.mkdir(vms)
            os.chmod(r.dir, 0o755)
            for directory in (vms, r.stored_dir):
                os.chown(directory, pwd.getpwnam(user["user"] or "root").pw_uid, -1)
            r.config.update(user)
            r.config["hybrid"] = {"group": "daemon", "allowed_uids": "any",
                                  "sockets": [{"pattern": os.path.join(vms, "{cid}.sock")}]}
            r.write_config()
            r.start()
            with open(os.path.join(vms, "1000.sock"), "w", encoding="ascii"):
                pass
            address = os.path.join(vms, "1000.sock_818")
            wait_for(lambda: os.path.exists(address), 20, address)
            wait_for(lambda: os.stat(address).st_gid == grp.getgrnam("daemon").gr_gid, 20, "group")
            payload = rp.report(1000, 3000)
            assert rp.send_framed(address, payload) == rp.ACCEPTED
            r.wait_stored(1000, payload)
            assert r.stop() == 0
            assert not os.path.exists(address)


# ---- stop and reload ----


def stop_with_waiters():
    """SIGTERM: who waits is refused, who has a place finishes, and the socket is removed."""
    settings = {"admission": {"places": 1, "wait": "1m"}, "report": {"deadline": "1m"}}
    hybrid = {f"vm{n}.sock": 100 + n for n in range(3)}
    with relay(settings, hybrid=hybrid) as r, contextlib.ExitStack() as stack:
        payload = rp.report(100, 50000)
        first = stack.enter_context(rp.connect(r.path("vm0.sock")))
        first.sendall(rp.header(payload) + payload[:1000])
        r.wait_metric("sem_holding_size", value=1)
        waiters = [stack.enter_context(rp.connect(r.path(f"vm{n}.sock"))) for n in (1, 2)]
        waiters[0].sendall(b"VSR2")
        r.wait_metric("sem_queue_size", value=2)
        r.signal(signal.SIGTERM)
        assert rp.read_answer(waiters[0]) == rp.BUSY
        assert rp.read_answer(waiters[1]) is None
        assert r.process.poll() is None
        assert not os.path.exists(r.path("vm0.sock"))
        first.sendall(payload[1000:])
        assert rp.read_answer(first) == rp.ACCEPTED
        assert r.process.wait(60) == 0, r.log()
        assert r.stored(100) == payload


def reload_is_whole():
    """SIGHUP applies all of the new settings, or none and says why."""
    with relay() as r:
        assert send(r, 1) == rp.ACCEPTED
        r.wait_metric("contents_held", value=0)
        r.config["unchanged"] = "forward"
        r.config["listen"]["port"] = 819
        r.write_config()
        log = r.reload()
        r.config["listen"]["port"] = 818
        assert "listen.port needs a restart" in log and "refused" in log, log
        assert "unchanged" not in log, "says what it did not do: " + log
        assert send(r, 1) == rp.NOTHING_TO_DO
        r.config["report"] = {"idle": "-3s"}
        r.write_config()
        log = r.reload()
        assert re.search(r"relay\.yaml:\d+:\d+: report\.idle", log) and "refused" in log, log
        assert send(r, 1) == rp.NOTHING_TO_DO
        del r.config["report"]
        r.write_config()
        log = r.reload()
        assert "unchanged: suppress -> forward" in log, log
        assert send(r, 1) == rp.ACCEPTED


def signals_in_a_row():
    """Many SIGHUPs and a second SIGTERM do no harm."""
    with relay() as r:
        for _ in range(20):
            r.signal(signal.SIGHUP)
        assert send(r, 1) == rp.ACCEPTED
        with rp.connect(r.path("vm.sock")) as s:
            s.sendall(b"VSR1")
            r.wait_metric("sem_holding_size", value=1)
            r.signal(signal.SIGTERM)
            r.signal(signal.SIGTERM)
            r.signal(signal.SIGHUP)
        assert r.process.wait(60) == 0, r.log()


# ---- disks that fail ----


@contextlib.contextmanager
def mounted(r, *args):
    """A file system of its own at the upstream's directory."""
    as_root()
    done = subprocess.run(["mount", *args, r.stored_dir], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise Skip(f"mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        r.kill()
        subprocess.run(["umount", "-l", r.stored_dir], check=True)


def kept_and_retried(r, repair):
    """New content cannot be written now: it is held, said once, and stored after the repair."""
    old = [rp.report(100 + n, 20000, seed="old") for n in range(2)]
    new = [rp.report(100 + n, 40000, seed="new") for n in range(2)]
    for n in range(2):
        assert rp.send_framed(r.path(f"vm{n}.sock"), new[n]) == rp.ACCEPTED
    r.wait_metric("index_report_send_attempts_total", "failure", at_least=6)
    m = r.metrics()
    assert m["contents_held"] == 2 and m["conservation_difference"] == 0, m["contents_held"]
    for n in range(2):
        assert r.stored(100 + n) == old[n], "the old report was damaged"
        assert rp.send_framed(r.path(f"vm{n}.sock"), new[n]) == rp.NOTHING_TO_DO
    assert len(re.findall("cannot write the report", r.log())) == 1, r.log()
    repair()
    for n in range(2):
        r.wait_stored(100 + n, new[n])
    r.wait_metric("contents_held", value=0)
    assert len(re.findall("reports are written again", r.log())) == 1, r.log()
    assert sorted(os.listdir(r.stored_dir)) == ["0-100.pb", "0-101.pb"]
    r.check()


def failing_disk(size, fail, repair):
    settings = {"retry": {"base": "100ms"}, "admission": {"grant_rate": 0}}
    hybrid = {f"vm{n}.sock": 100 + n for n in range(2)}
    with relay(settings, hybrid=hybrid, start=False) as r:
        with mounted(r, "-t", "tmpfs", "-o", f"size={size}", "none"):
            r.start()
            for n in range(2):
                payload = rp.report(100 + n, 20000, seed="old")
                assert rp.send_framed(r.path(f"vm{n}.sock"), payload) == rp.ACCEPTED
                r.wait_stored(100 + n, payload)
            fail(r)
            kept_and_retried(r, lambda: repair(r))


def disk_full():
    """A full disk: content stays in custody and is retried, nothing is lost, said once."""
    def fill(r):
        with open(os.path.join(r.stored_dir, "hog"), "wb", buffering=0) as f:
            with contextlib.suppress(OSError):
                while True:
                    f.write(bytes(4096))

    failing_disk("256k", fill, lambda r: os.remove(os.path.join(r.stored_dir, "hog")))


def disk_read_only():
    """A disk that turns read-only: likewise."""
    def remount(how):
        return lambda r: subprocess.run(["mount", "-o", f"remount,{how}", r.stored_dir],
                                        check=True)

    failing_disk("1m", remount("ro"), remount("rw"))


def read_only_at_start():
    """A disk that is read-only at the start does not keep the relay from accepting."""
    with relay({"retry": {"base": "100ms"}}, start=False) as r:
        with mounted(r, "-t", "tmpfs", "-o", "size=1m,ro", "none"):
            r.start()
            assert send(r, 1) == rp.ACCEPTED
            r.wait_metric("index_report_send_attempts_total", "failure", at_least=2)
            subprocess.run(["mount", "-o", "remount,rw", r.stored_dir], check=True)
            r.wait_stored(CID, rp.report(CID, 3000, seed=1))


def disk_hung():
    """A disk that hangs holds up nothing but what is written to it."""
    with relay(start=False, hybrid={f"vm{n}.sock": 100 + n for n in range(12)}) as r:
        image = os.path.join(r.dir, "image")
        with open(image, "wb") as f:
            f.truncate(8 << 20)
        if subprocess.run(["mkfs.ext4", "-q", image], capture_output=True, check=False).returncode:
            raise Skip("no mkfs.ext4")
        with mounted(r, "-o", "loop", image):
            os.rmdir(os.path.join(r.stored_dir, "lost+found"))
            r.give(r.stored_dir)
            r.start()
            if subprocess.run(["fsfreeze", "-f", r.stored_dir], check=False).returncode:
                raise Skip("no fsfreeze")
            try:
                start = time.monotonic()
                payloads = [rp.report(100 + n, 3000) for n in range(12)]
                for n in range(12):
                    status = rp.send_framed(r.path(f"vm{n}.sock"), payloads[n], timeout=20)
                    assert status == rp.ACCEPTED, (n, status)
                m = r.metrics()
                assert m["contents_held"] == 12 and m["contents_in_flight"] == 8, m
                assert time.monotonic() - start < 20
                assert r.stored(100) is None
                wait_for(lambda: "the disk has not answered" in r.log(), 60, "said so")
            finally:
                subprocess.run(["fsfreeze", "-u", r.stored_dir], check=True)
            for n in range(12):
                r.wait_stored(100 + n, payloads[n])
            r.wait_metric("contents_held", value=0)
            wait_for(lambda: "the disk answers again" in r.log(), 20, "said so")
            assert len(re.findall("the disk has not answered", r.log())) == 1, r.log()
            assert r.stop() == 0


ALL = (
    help_and_version, check_config, flags_over_environment_over_file,
    second_instance, port_in_use, vsock_port_in_use, socket_in_use, missing_directories,
    killed_and_started_again, drops_privileges, sandbox_settings, needs_access, pattern,
    many_vms, group_of_later_vms,
    stop_with_waiters, reload_is_whole, signals_in_a_row,
    disk_full, disk_read_only, read_only_at_start, disk_hung,
)


def main():
    tap = Tap(only=sys.argv[1] if len(sys.argv) > 1 else None)
    for test in ALL:
        tap.run(f"daemon: {test.__name__}: {' '.join(test.__doc__.split())}", test)
    tap.end()


main()

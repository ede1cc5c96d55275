#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The programs while each of their calls of the system, the allocator and libraries fails once
(tests/lib/faults.c): nothing dies or hangs, what cannot go on says why, and what goes on loses no
report. Arguments: part of a test's name, or --quick: without what waits most."""

import contextlib
import errno
import glob
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import agent as an_agent
import ctl as a_ctl
import grpc_server as gs
import report as rp
from faults import Faults, storm
from relay import BUILD, Relay, merge, wait_for
from tap import Tap

DAEMON, CTL, AGENT = (os.path.join(BUILD, f"vsock-{name}") for name in ("relayd", "relayctl", "agent"))
CIDS = {"a.sock": 42, "b.sock": 43}
COMER = 1000  # of a pattern
# What a daemon ends with that cannot start.
STATUSES = (1, 71, 75, 78)


def faults_of(program, code=errno.EIO, limit=10**6, spare=None, known={}):
    """One for all tests of a program: what failed in one of them does not fail again in the next."""
    if (program, code) not in known:
        known[program, code] = Faults(program, code, spare=spare)
    faults = known[program, code]
    faults.env["VSR_FAULTS_LIMIT"] = str(limit)
    return faults


# ---- the daemon ----


class Daemon(Relay):
    """Reports go through sockets of its own and through one of a pattern; metrics come over the admin
    socket, as those over TCP are a test's own business."""

    def __init__(self, **more):
        settings = {
            "rate": {"reports_per_minute": 0},
            "retry": {"base": "200ms"},
            "admission": {"grant_rate": 0},
            "shutdown_grace": "3s",
        }
        merge(settings, more)
        super().__init__(settings, hybrid=CIDS, start=False)
        self.config["state_directory"] = os.path.join(self.dir, "state")
        self.vms = os.path.join(self.dir, "vms")
        os.mkdir(self.vms)
        self.give(self.vms)
        self.config["hybrid"]["sockets"].append({"pattern": f"{self.vms}/{{cid}}/v.sock"})
        self.write_config()

    def metrics_text(self):
        status, text = self.page("/metrics")
        if status != 200:
            raise OSError(f"/metrics: {status}")
        return text

    def delivered(self, cid, payload):
        return self.stored(cid) == payload

    def started(self):
        """Whether it serves. If not, it says why, with a status that says what kind of thing it is."""

        def known():
            if self.process.poll() is not None:
                return True
            with contextlib.suppress(OSError, ValueError, IndexError):
                return self.metrics()

        wait_for(known, 30, "start or end")
        status = self.process.poll()
        if status is None:
            return True
        assert status in STATUSES, f"status {status}"
        assert self.log().strip(), "it says nothing"
        return False

    def insist(self, address, cid, payload):
        """What an agent does: until it hears that the relay has it."""

        def taken():
            with contextlib.suppress(OSError):
                return rp.send_framed(address, payload) in (rp.ACCEPTED, rp.NOTHING_TO_DO)

        wait_for(taken, 20, f"VM {cid} is heard")
        wait_for(lambda: self.delivered(cid, payload), 40, f"the report of VM {cid} upstream")

    def comer(self, n):
        """A VM whose directory is new. What could not be watched is there after a restart."""
        directory = os.path.join(self.vms, str(COMER + n))
        os.mkdir(directory)
        self.give(directory)
        address = os.path.join(directory, f"v.sock_{self.config['listen'].get('port', 818)}")
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: os.path.exists(address), 1)
            self.insist(address, COMER + n, rp.report(COMER + n, 3000, seed=n))
        shutil.rmtree(directory)

    def odd(self, n):
        """What is no good report, or none at all: whatever fails besides, it is not taken for one."""
        with contextlib.suppress(OSError):
            rp.send_raw(self.path("b.sock"), rp.report(7, 3000, seed=n))
        with contextlib.suppress(OSError):
            rp.send_offer(self.path("b.sock"), rp.report(43, 9000, seed=n), digest=1)
        with contextlib.suppress(OSError), rp.connect(self.path("b.sock")) as s:
            s.sendall(rp.header(bytes(5000))[:9])

    def ask(self, *pages):
        """Answers may fail, and the daemon may not."""
        for page, method in pages:
            with contextlib.suppress(OSError, ValueError, IndexError):
                self.page(page, method)

    def live(self, env, n):
        """Starts, serves, ends. Nothing that was accepted is lost."""
        # What a start that fails has made and cannot remove either, the administrator removes.
        shutil.rmtree(self.config["state_directory"], ignore_errors=True)
        self.prepare()
        open(self.log_path, "w", encoding="ascii").close()
        self.env.update(env)
        try:
            self.start(wait=False)
            return self.started() and self.serve(n)
        except Exception as e:
            e.detail = "log of the relay:\n" + self.log()[-8000:]
            raise
        finally:
            self.kill()

    def prepare(self):
        """What is there when it starts."""

    def serve(self, n):
        for name, cid in CIDS.items():
            self.insist(self.path(name), cid, rp.report(cid, 70000, seed=n))
        self.insist(self.path("a.sock"), 42, rp.report(42, 3_000_000, seed=n))
        self.comer(n)
        self.odd(n)
        self.ask(("/status.json", "GET"), ("/vms.json", "GET"), ("/cache.json", "GET"),
                 ("/readyz", "GET"), ("/loglevel?level=debug", "POST"), ("/retry?cid=42", "POST"),
                 ("/flush", "POST"), ("/no-such-page", "GET"))  # fmt: skip
        self.reload()
        wait_for(self.drained, 40, "all is delivered")
        self.check()
        assert self.stop() == 0
        return True

    def drained(self):
        with contextlib.suppress(OSError, ValueError, IndexError):
            return self.metric("contents_held") == 0


class DaemonWithCustody(Daemon):
    """One that finds in its state directory what an earlier one left there, and damage."""

    def __init__(self):
        super().__init__()
        self.saved = os.path.join(self.dir, "saved")
        upstream, self.config["upstream"] = self.config["upstream"], {
            "kind": "grpc", "grpc": {"address": "127.0.0.1:1", "plaintext": True}}  # fmt: skip
        self.write_config()
        self.start()
        self.payloads = {cid: rp.report(cid, 5000, seed="kept") for cid in CIDS.values()}
        for name, cid in CIDS.items():
            assert rp.send_framed(self.path(name), self.payloads[cid]) == rp.ACCEPTED
        assert self.stop() == 0
        os.rename(self.config["state_directory"], self.saved)
        for name, text in (("0-77-1.vsr", "cut"), ("notes.txt", "mine"), (".0-42-9.vsr.tmp", "")):
            with open(os.path.join(self.saved, "spool", name), "w", encoding="ascii") as f:
                f.write(text)
        self.config["upstream"] = upstream
        self.write_config()

    def prepare(self):
        state = self.config["state_directory"]
        shutil.copytree(self.saved, state)
        for top, _, files in os.walk(state):
            self.give(top, *(os.path.join(top, name) for name in files))
        for name in os.listdir(self.stored_dir):
            os.remove(os.path.join(self.stored_dir, name))

    def serve(self, n):
        def missing():
            return [cid for cid, p in self.payloads.items() if not self.delivered(cid, p)]

        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not missing(), 5)
        self.check()
        assert self.stop() == 0
        spool = os.path.join(self.config["state_directory"], "spool")
        for cid in missing():
            assert glob.glob(f"{spool}/0-{cid}-*.vsr"), f"the report of VM {cid} is gone"
        return not missing()


class DaemonWithSensor(Daemon):
    """Reports go to a gRPC server."""

    def __init__(self, server, **more):
        self.server = server
        super().__init__(node_name="node-1", **more)

    def delivered(self, cid, payload):
        return payload in self.server.payloads(cid)


class DaemonWithTls(DaemonWithSensor):
    """Certificates on both sides, a name that is looked up, ACKs on a stream. Scrapers use HTTPS."""

    def __init__(self, server, ca):
        self.ca = ca
        own = ca.issue("relay", "DNS:relay,IP:127.0.0.1")
        grpc = {"address": f"localhost:{server.port}", "plaintext": False, "ca": ca.cert,
                "certificate": own[0], "key": own[1], "acks": "communicate"}  # fmt: skip
        super().__init__(server, upstream={"kind": "grpc", "grpc": grpc},
                         metrics={"certificate": own[0], "key": own[1]})  # fmt: skip

    def serve(self, n):
        context = ssl.create_default_context(cafile=self.ca.cert)
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"https://127.0.0.1:{self.port}/metrics", timeout=30,
                                   context=context).close()  # fmt: skip
        return super().serve(n)


@contextlib.contextmanager
def vsock():
    """Settings for a listener on vsock and the BPF program, where the kernel has them. Nobody connects:
    that is for VMs (tests/vm/inside.py)."""
    port = 300000 + os.getpid()
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
            s.bind((socket.VMADDR_CID_ANY, port))
    except OSError:
        yield {}
        return
    with a_ctl.bpffs() as pins:
        yield {"listen": {"vsock": True, "port": port}, "pin_directory": pins}


def daemon_and_files():
    """The daemon with upstream file."""
    with vsock() as more, Daemon(**more) as r:
        storm(faults_of(DAEMON), r.live)


def daemon_restored():
    """The daemon that takes up what an earlier one left: it is delivered, or still there at the end."""
    with DaemonWithCustody() as r:
        storm(faults_of(DAEMON), r.live)


def daemon_interrupted():
    """The daemon while each of its system calls is interrupted once."""
    with Daemon() as r:
        storm(faults_of(DAEMON, errno.EINTR), r.live)


def second_daemon():
    """A daemon whose directory is in use: it ends with 75 once nothing else is wrong."""
    with Daemon() as r, Relay(hybrid={"c.sock": 44}) as holder:
        r.config["run_directory"] = holder.config["run_directory"]
        r.write_config()

        def live(env, n):
            status, _, err = run(DAEMON, "--config", r.config_path, env=env)
            assert status in STATUSES and err.strip(), status
            # Who cannot find out who it is says less.
            return status == 75 and "in use by another vsock-relayd" in err

        storm(faults_of(DAEMON), live)
        holder.check()


def daemon_words():
    """--check-config and --help of the daemon: all of it, or a status that says that it is not."""
    with Daemon() as r:
        for args, last in ((["--check-config", "-c", r.config_path], "are good"), (["--help"], "Default")):

            def live(env, n, args=args, last=last):
                status, out, err = run(DAEMON, *args, env=env)
                assert status in (0, 71, 74, 78) and (out + err).strip(), status
                return status == 0 and last in out

            storm(faults_of(DAEMON), live)


def daemon_and_plain_sensor():
    """The daemon with upstream grpc without TLS, where the answer is the ACK."""
    with gs.Server(default=gs.succeed) as server:
        grpc = {"address": server.address, "plaintext": True, "acks": "response"}
        with DaemonWithSensor(server, upstream={"kind": "grpc", "grpc": grpc}) as r:
            storm(faults_of(DAEMON, limit=4), r.live)


def daemon_and_sensor():
    """The daemon with upstream grpc over TLS, and ACKs on a stream."""
    directory = tempfile.mkdtemp(prefix="vsr-ca-")
    os.chmod(directory, 0o755)
    ca = gs.Authority(directory)
    credentials = gs.server_credentials(ca.issue("sensor", "DNS:localhost"), ca.cert)
    try:
        with gs.Server(credentials=credentials) as server, DaemonWithTls(server, ca) as r:
            # Each failure of a connection makes the daemon wait longer before the next one.
            storm(faults_of(DAEMON, limit=4), r.live)
    finally:
        shutil.rmtree(directory)


# ---- the programs that end by themselves ----


def run(*args, env):
    """Exit status, standard output and standard error of one that ended by itself."""
    done = subprocess.run(args, env=dict(a_ctl.ENV, **env), capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    assert done.returncode >= 0, f"signal {-done.returncode}"
    return done.returncode, done.stdout, done.stderr


def ctl_commands():
    """vsock-relayctl: each command either answers in full or says why not."""
    # What jansson cannot allocate ends the program by itself.
    with a_ctl.relay(a_ctl.away()) as r:
        faults = faults_of(CTL, spare="json_")
        a_ctl.send(r)
        bundle, again = os.path.join(r.dir, "bundle.tar"), []
        for words, (_, keys, *_) in a_ctl.EVERYTHING.items():
            args = [*words, bundle] if words == ("bundle",) else words

            def live(env, n, args=args, keys=keys, how=()):
                status, out, err = run(CTL, *how, "-c", r.config_path, *args, env=env)
                assert status in range(5), (args, status)
                if status not in (a_ctl.OK, a_ctl.FAILED) or not out:
                    assert out + err or args[0] in ("retry", "bundle"), (args, status)
                elif how and status == a_ctl.OK:
                    value = json.loads(out)
                    some = value[0] if isinstance(value, list) and value else value
                    assert not some or set(some) == keys, (args, some)
                with contextlib.suppress(FileNotFoundError):
                    os.remove(bundle)
                return True

            storm(faults, live)
            storm(faults, lambda env, n, live=live: live(env, n, how=("-j",)))
            again.append(live)
        r.check()
        # What there is to see when the daemon is gone: its maps.
        r.kill()
        for live in again:
            storm(faults, live)


def agent_sends(code=errno.EIO):
    """vsock-agent: it collects what can be read, and the relay has the report or it says why not."""
    with an_agent.relay() as r, tempfile.TemporaryDirectory() as top:
        faults = faults_of(AGENT, code)
        roots = [os.path.join(top, name) for name in ("debian", "rpm")]
        an_agent.machine(roots[0])
        rpm = an_agent.machine_with_rpm(roots[1])
        for root, mode in itertools.product(roots, ("vsr2", "vsr1", "raw")):

            def live(env, n, root=root, mode=mode):
                own = f"{os.path.basename(root)}-{mode}-{n}"
                status, _, err = run(AGENT, "--once", "--start-within", "0", "--cid", "42",
                                     "--retries", "0", "--root", root, "--mode", mode, "--vm-id", own,
                                     "--rpm-command", rpm, "--unix", r.path("vm.sock"), env=env)  # fmt: skip
                if status == 0:
                    wait_for(lambda: own.encode() in (r.stored(42) or b""), 20, own)
                else:
                    assert err.strip(), f"status {status}, and it says nothing"
                return status == 0

            storm(faults, live)
        storm(faults, lambda env, n: run(AGENT, "--print", "--cid", "42", "--root", roots[0],
                                         env=env)[0] == 0)  # fmt: skip
        r.check()


def agent_interrupted():
    """vsock-agent while each of its system calls is interrupted once."""
    agent_sends(errno.EINTR)


def main():
    os.umask(0)
    words = [word for word in sys.argv[1:] if word != "--quick"]
    tap = Tap(words[0] if words else None)
    tests = [daemon_and_files, daemon_restored, second_daemon, daemon_words, ctl_commands, agent_sends, agent_interrupted]
    if "--quick" not in sys.argv:
        tests += [daemon_and_plain_sensor, daemon_and_sensor, daemon_interrupted]
    for test in tests:
        tap.run(f"{test.__name__}: {' '.join(test.__doc__.split())}", test)
    tap.end()


if __name__ == "__main__":
    main()

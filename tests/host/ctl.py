#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vsock-relayctl, and the pages that it reads: against a daemon that lives, hangs, is dead or was never
there, and maps of another layout. Every command: its text, and its JSON with stable keys.
Arguments: part of a test's name."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import report as rp
from relay import BUILD, SERVICE, Relay, process_status, wait_for
from tap import Skip, Tap

CTL = os.path.join(BUILD, "vsock-relayctl")
TOP = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
OK, FAILED, USAGE, NO_DAEMON, NOT_FOUND = range(5)
HYBRID = {"a.sock": 42, "b.sock": 43}
# No daemon of this machine, no settings of it.
ENV = {key: value for key, value in os.environ.items() if not key.startswith("VSOCK_RELAY_")}

VM_KEYS = {"ns", "cid", "name", "state", "daemon", "kernel", "now"}
DAEMON_KEYS = {"received", "accepted", "duplicates", "refused", "record_length", "record_digest",
               "generation", "custody", "last_accepted_age", "last_ack_age", "debt"}  # fmt: skip
KERNEL_KEYS = {"first_seen_age", "last_seen_age", "connections", "packets", "bytes", "bytes_known",
               "duplicates", "zero_length", "bad_header", "too_large", "bad_packet", "over_budget",
               "unread_updates"}  # fmt: skip
NOW_KEYS = {"connections", "waiting", "in_flight", "next_retry_in", "last_length", "offender",
            "last_used_age"}  # fmt: skip
STATUS_KEYS = {"version", "pid", "uptime", "ready", "checks", "bpf_mode", "listen", "upstream",
               "reports", "contents", "cache", "admission", "sandbox", "spool", "vms", "log_level",
               "pin_directory", "layout", "settings_file"}  # fmt: skip
CACHE_KEYS = {"ns", "cid", "generation", "length", "cost", "custody", "age", "first_seen_age"}


class Answer:
    def __init__(self, done):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self):
        return f"status {self.status}\n{self.out}{self.err}"


def run(*args, status=OK, env=None, seconds=60):
    done = subprocess.run([CTL, *args], capture_output=True, text=True, timeout=seconds,
                          env=env or ENV, stdin=subprocess.DEVNULL, check=False)
    answer = Answer(done)
    assert status is None or answer.status == status, (args, status, answer)
    return answer


def ctl(r, *args, **keys):
    """The command's text."""
    return run("--config", r.config_path, *args, **keys).out


def ctl_json(r, *args, **keys):
    """The command's JSON, which must be one value and nothing else."""
    answer = run("--config", r.config_path, "--json", *args, **keys)
    assert answer.err == "", answer
    return json.loads(answer.out)


@contextlib.contextmanager
def bpffs():
    """A BPF file system of our own, so that no relay of this machine is touched."""
    directory = tempfile.mkdtemp(prefix="vsr-bpffs-")
    done = subprocess.run(["mount", "-t", "bpf", "bpf", directory], capture_output=True, text=True,
                          check=False)
    try:
        if done.returncode:
            raise Skip(f"mount: {done.stderr.strip()}")
        yield os.path.join(directory, "vsock_relay")
    finally:
        if not done.returncode:
            subprocess.run(["umount", directory], check=True)
        os.rmdir(directory)


@contextlib.contextmanager
def relay(settings=None, start=True):
    """A relay with pinned maps and names for its VMs."""
    with bpffs() as pins, Relay(settings, hybrid=HYBRID, start=False) as r:
        names = os.path.join(r.dir, "names")
        with open(names, "w", encoding="utf-8") as f:
            f.write("# of the test\n42 web-1\n0:43 a-name-longer-than-its-column\n")
        r.config.update(pin_directory=pins, vm_names=names)
        r.write_config()
        if start:
            r.start()
        yield r
        if r.process and r.process.poll() is None and not r.config["metrics"].get("certificate"):
            r.check()


def away(**more):
    """Settings of a relay whose upstream is not there: everything stays in custody."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    grpc = {"address": f"127.0.0.1:{port}", "plaintext": True}
    return {"upstream": {"kind": "grpc", "grpc": grpc}, "rate": {"reports_per_minute": 0}, **more}


def send(r, name="a.sock", cid=42, seed=1, size=3000):
    return rp.send_framed(r.path(name), rp.report(cid, size, seed=seed))


def traffic(r):
    """VM 42 reports, and again; VM 43 lies."""
    assert send(r) == rp.ACCEPTED
    r.wait_metric("contents_held", value=0)
    assert send(r) == rp.NOTHING_TO_DO
    assert send(r, "b.sock") == rp.CID_MISMATCH


http = Relay.page


# ---- the command line ----


def help_of_everything():
    """Every object and command has its help; the table is there as JSON for completion."""
    text = run("help").out
    assert run("--help").out == text
    table = json.loads(run("-j", "help").out)
    assert {o["name"] for o in table} >= {
        "status", "vm", "top", "cache", "retry", "flush", "reload", "loglevel", "doctor", "maps",
        "bundle", "trace", "version", "help"}  # fmt: skip
    for o in table:
        assert set(o) == {"name", "help", "commands"} and o["help"] and o["commands"]
        assert f"\n  {o['name']} " in text, o["name"]
        shown = run("help", o["name"]).out
        assert run(o["name"], "help").out == shown
        assert run(o["name"], "--help").out == shown
        for c in o["commands"]:
            assert set(c) == {"name", "args", "help"} and c["help"]
            assert " ".join(filter(None, ("vsock-relayctl", o["name"], c["name"]))) in shown, c
    answer = run(status=USAGE)
    assert answer.err == text and answer.out == "", "no words: the same on stderr"


def version():
    """version and --version, as text and JSON; they need no daemon and no settings."""
    assert re.fullmatch(r"vsock-relayctl \d+\.\d+\.\d+, map layout \d+\n", run("version").out)
    assert run("--version").out == run("version").out
    assert set(json.loads(run("-j", "version").out)) == {"version", "layout"}


def words_may_be_shortened():
    """A prefix does as long as it is unique; options may stand anywhere before --."""
    assert run("vers").out == run("version").out
    assert "may be" in run("r", status=USAGE).err
    assert "no such object" in run("nonsense", status=USAGE).err
    assert "no such command" in run("vm", "nonsense", status=USAGE).err
    assert json.loads(run("version", "--json").out) == json.loads(run("-j", "version").out)
    assert run("-p", "version").out.count("\n") > 2


def usage_errors():
    """What makes no sense is said, with the usage, and exits with 2; with --json in JSON."""
    with Relay(hybrid=HYBRID, start=False) as r:
        for args in (["vm", "show"], ["vm", "show", "1", "2"], ["vm", "show", "no-such-name"],
                     ["vm", "show", "4294967296"], ["vm", "list", "x"], ["cache", "drop"],
                     ["retry"], ["flush", "x"], ["loglevel", "LOUD"], ["top", "-s", "colour"],
                     ["top", "-i", "0"], ["top", "-x"], ["status", "x"], ["maps", "x"],
                     ["bundle", "a", "b"], ["version", "x"], ["--no-such"], ["--socket"],
                     ["trace", "flows", "x"], ["trace", "flows", "--count", "1x"],
                     ["trace", "flows", "--count", "18446744073709551616"],
                     ["trace", "flows", "--count", "-1"], ["trace", "flows", "--port"],
                     ["trace", "flows", "--op", "rw"], ["trace", "latency", "--count", "1"],
                     ["trace", "packets", "--op", "rw,sneeze"], ["trace", "packets", "--op", ""],
                     ["trace", "alarms", "--cid", "4294967296"], ["trace", "alarms", "--cid", ""],
                     ["trace", "alarms", "--cid", "no-such-name"],
                     ["trace", "alarms", "--buffer", "999999999"],
                     ["trace", "alarms", "--duration", "soon"], ["trace", "alarms", "-x"]):  # fmt: skip
            answer = run("--config", r.config_path, *args, status=USAGE)
            assert answer.out == "" and answer.err.startswith("vsock-relayctl: "), answer
            error = run("--config", r.config_path, "-j", *args, status=USAGE)
            assert set(json.loads(error.out)) == {"error"} and error.err == "", error
        with open(r.config_path, "w", encoding="utf-8") as f:
            f.write("nope: 1\n")
        assert f"{r.config_path}:1:1" in run("--config", r.config_path, "vm", status=USAGE).err


def output_that_cannot_be_written():
    """An answer that finds no room is an error, in text and in JSON."""
    with Relay(hybrid=HYBRID, start=False) as r, open("/dev/full", "w", encoding="ascii") as full:
        for args in (["version"], ["-j", "version"], ["help"], ["-j", "-p", "help"]):
            done = subprocess.run([CTL, "-c", r.config_path, *args], stdout=full, stderr=subprocess.PIPE,
                                  text=True, env=ENV, check=False)  # fmt: skip
            assert done.returncode == FAILED and done.stderr.startswith("vsock-relayctl: "), done


def trace_without_vsock():
    """trace ends after --duration or --count, also where there is nothing to see; what cannot be
    seen is said. (What it shows of guests: tests/vm/trace.py.)"""
    wanted = ["--cid", "4000000042", "--port", "4000000818", "--buffer", "64"]
    for command in ("packets", "flows", "latency", "alarms"):
        answer = run("trace", command, *wanted, "--duration", "100ms", status=None)
        if answer.status == FAILED:
            assert "cannot trace: " in answer.err, answer
            continue
        assert answer.status == OK and "0 events seen, 0 lost\n" in answer.err, answer
        assert f"tracing {command}; Ctrl-C ends\n" in answer.err, answer
        assert bool(answer.out) == (command == "latency"), answer
        for line in run("-j", "trace", command, *wanted, "--duration", "100ms").out.splitlines():
            assert json.loads(line)["event"], line
        if command != "latency":
            # Without --count it would go on for ever.
            assert run("trace", command, *wanted, "--count", "0").out == ""


# ---- a daemon that lives ----


def status_of_a_live_daemon():
    """status: is it well, what has it done."""
    with relay() as r:
        traffic(r)
        text = ctl(r, "status")
        for line in (r"vsock-relayd \d+\.\d+\.\d+, process \d+, up \d+ s: ready",
                     r"  ok   listening   2 hybrid sockets", r"  ok   upstream    file",
                     r"  verdict     user space", r"  upstream    file, connected",
                     r"  VMs         2",
                     r"  reports     \d received, 2 valid, 0 duplicates, 1 suppressed, 1 refused",
                     r"  contents    0 in custody, 0 being sent, .* 1 ACKed",
                     r"  maps        pinned at /.*, layout \d+"):  # fmt: skip
            assert re.search(f"^{line}$", text, re.M), (line, text)
        value = ctl_json(r, "status")
        assert set(value) == {"running", "why", "daemon", "maps"}
        assert value["running"] is True and value["why"] is None
        assert set(value["daemon"]) == STATUS_KEYS, set(value["daemon"]) ^ STATUS_KEYS
        assert value["daemon"]["pid"] == r.process.pid and value["daemon"]["ready"] is True
        assert set(value["maps"]) == {"directory", "pinned", "layout", "says"}
        assert value["maps"]["pinned"] is True


def vms():
    """vm list and vm show: state, generation, custody, both sides' counters, names."""
    with relay() as r:
        traffic(r)
        text = ctl(r, "vm", "list")
        def ageless(lines):
            return re.sub(r" +\d+ s ", " ", lines)

        assert ageless(ctl(r, "vm")) == ageless(text)
        lines = text.splitlines()
        assert len(lines) == 3 and all(len(line) <= 80 for line in lines), text
        assert re.match(r"0:42 +web-1 +acked +1 +\d+ s +\d+ s +2 +1 +0$", lines[1]), text
        assert re.match(r"0:43 +a-name-longer-t +refused +0 +- +- +0 +0 +1$", lines[2]), text

        values = ctl_json(r, "vm", "list")
        assert [v["cid"] for v in values] == [42, 43]
        for v in values:
            assert set(v) == VM_KEYS and set(v["daemon"]) == DAEMON_KEYS, v
            assert set(v["kernel"]) == KERNEL_KEYS and set(v["now"]) == NOW_KEYS, v
        assert values[0]["name"] == "web-1" and values[0]["state"] == "acked"
        assert values[0]["daemon"]["received"] == 2 and values[0]["daemon"]["accepted"] == 1
        assert values[0]["kernel"]["connections"] == 2

        text = ctl(r, "vm", "show", "42")
        assert ctl(r, "vm", "show", "0:42").splitlines()[0] == text.splitlines()[0]
        assert ctl(r, "vm", "show", "web-1").splitlines()[0] == "VM 0:42 (web-1)"
        for line in ("state +acked", "generation +1", "custody +no", r"last ACK +\d+ s ago",
                     "content of record +3000 bytes, digest [0-9a-f]{16}",
                     "counted by +the kernel +the daemon", "connections with bytes +2 +-",
                     "reports received +- +2", "duplicates +1 +1", "  zero_length +0 +-"):  # fmt: skip
            assert re.search(f"^  {line}$", text, re.M), (line, text)
        value = ctl_json(r, "vm", "show", "web-1")
        assert set(value) == VM_KEYS and value["cid"] == 42
        assert "VM 0:99" in run("-c", r.config_path, "vm", "show", "99", status=NOT_FOUND).err


def contents_in_custody():
    """cache list and drop, retry, flush: while the upstream is away."""
    with relay(away()) as r:
        assert send(r) == rp.ACCEPTED
        assert send(r, "b.sock", 43) == rp.ACCEPTED
        text = ctl(r, "cache")
        assert re.search(r"^0:42 +1 +2\.9K +\d+ s +\d+ s +answered$", text, re.M), text
        values = ctl_json(r, "cache", "list")
        assert len(values) == 2 and all(set(v) == CACHE_KEYS for v in values), values
        assert values[0]["length"] == 3000 and values[0]["custody"] == "answered"
        assert "custody" in ctl(r, "vm").splitlines()[1]

        assert "as soon as the upstream" in ctl(r, "retry", "web-1")
        assert set(ctl_json(r, "retry", "42")) == {"done"}
        assert ctl(r, "flush").startswith("2 contents ")
        assert ctl_json(r, "flush")["contents"] == 2

        answer = run("-c", r.config_path, "cache", "drop", "42", status=FAILED)
        assert "would be lost" in answer.err, answer
        assert set(ctl_json(r, "cache", "drop", "42", status=FAILED)) == {"error"}
        assert ctl(r, "cache", "drop", "42", "--lose") == "dropped\n"
        assert set(ctl_json(r, "cache", "drop", "--lose", "43")) == {"done"}
        assert ctl_json(r, "cache", "list") == []
        assert r.metric("contents_ended_total", "operator") == 2
        for args in (["cache", "drop", "42"], ["retry", "42"], ["retry", "99"]):
            assert run("-c", r.config_path, *args, status=NOT_FOUND).err, args
            assert set(ctl_json(r, *args, status=NOT_FOUND)) == {"error"}
        # The same report is new.
        assert send(r) == rp.ACCEPTED


def reload_says_what_came_of_it():
    """reload: what changed, or what is wrong; as SIGHUP, all or nothing."""
    with relay() as r:
        assert ctl(r, "reload") == "reloaded\n"
        r.config["unchanged"] = "forward"
        r.write_config()
        assert ctl(r, "reload") == "reload: unchanged: suppress -> forward\nreloaded\n"
        value = ctl_json(r, "reload")
        assert value == {"done": "reloaded", "log": ["reloaded"]}, value
        good = r.config_path + ".good"
        shutil.copy(r.config_path, good)
        r.config["report"] = {"idle": "-3s"}
        r.write_config()
        answer = run("-c", good, "reload", status=FAILED)
        assert f"{r.config_path}:" in answer.err and "report.idle" in answer.err, answer
        assert answer.err.endswith("vsock-relayctl: reload refused\n"), answer
        value = json.loads(run("-j", "-c", good, "reload", status=FAILED).out)
        assert set(value) == {"error", "log"} and "report.idle" in value["log"][0], value


def reload_of_a_process():
    """reload --pid: this process and no other; SIGHUP where nobody can be asked; and a refusal is one."""
    with relay() as r:
        pid = str(r.process.pid)
        r.config["unchanged"] = "forward"
        r.write_config()
        assert ctl(r, "reload", "--pid", pid) == "reload: unchanged: suppress -> forward\nreloaded\n"
        assert ctl_json(r, "reload", "--pid", pid) == {"done": "reloaded", "log": ["reloaded"]}
        # A key that needs a restart: named, and the status says so.
        r.config["admission"] = {"places": 7}
        r.write_config()
        answer = run("-c", r.config_path, "reload", "--pid", pid, status=FAILED)
        assert "admission.places needs a restart (50 -> 7)" in answer.err, answer
        value = ctl_json(r, "reload", "--pid", pid, status=FAILED)
        assert value["error"] == "reload refused" and "admission.places" in value["log"][0], value
        del r.config["admission"]
        r.write_config()
        # Another process than the daemon's is left alone.
        answer = run("-c", r.config_path, "reload", "--pid", str(os.getpid()), status=FAILED)
        assert f"is process {pid}, not {os.getpid()}" in answer.err, answer
        # The settings name another admin socket by now: the daemon refuses that, in its log.
        before = len(r.log())
        r.config["admin_socket"] = os.path.join(r.dir, "other.sock")
        r.write_config()
        answer = run("-c", r.config_path, "reload", "--pid", pid, status=FAILED)
        assert "other.sock" in answer.err and f"process {pid} got SIGHUP" in answer.err, answer
        wait_for(lambda: "admin_socket needs a restart" in r.log()[before:], 10, "the log says it")
        # None at all.
        before = len(r.log())
        answer = run("-c", r.config_path, "-s", "", "reload", "--pid", pid)
        assert "there is no admin_socket to ask" in answer.out, answer
        wait_for(lambda: "reload refused" in r.log()[before:], 10, "the log says it")
        for bad in ("0", "-1", "x", "", "99999999999999999999"):
            answer = run("-c", r.config_path, "reload", "--pid", bad, status=USAGE)
            assert "expected a process id" in answer.err, answer
        run("-c", r.config_path, "reload", "--pid", status=USAGE)
        run("-c", r.config_path, "reload", "now", status=USAGE)
    with relay(start=False) as r:
        gone = subprocess.Popen(["true"])
        gone.wait()
        answer = run("-c", r.config_path, "reload", "--pid", str(gone.pid), status=NO_DAEMON)
        assert "No such process" in answer.err, answer


def loglevel():
    """loglevel says and sets the level, until the next reload."""
    with relay() as r:
        assert ctl(r, "loglevel") == "info\n"
        assert ctl(r, "loglevel", "debug") == "debug\n"
        assert ctl_json(r, "loglevel") == {"level": "debug", "before": "debug"}
        assert ctl_json(r, "loglevel", "error") == {"level": "error", "before": "debug"}
        before = len(r.log())
        assert send(r, "b.sock") == rp.CID_MISMATCH
        assert r.log()[before:] == ""
        run("-c", r.config_path, "loglevel", "loud", status=FAILED)
        ctl(r, "reload")
        assert ctl(r, "loglevel") == "info\n"


# ---- top ----


def top_without_a_terminal():
    """top prints a snapshot where there is no terminal; JSON one object a refresh."""
    with relay() as r:
        traffic(r)
        text = ctl(r, "top")
        assert "\033" not in text and all(len(line) <= 80 for line in text.splitlines()), text
        assert re.search(r"^0:42 +web-1 +acked ", text, re.M), text
        answer = run("-c", r.config_path, "-j", "top", "-n", "2", "-i", "0.2", "-s", "vm")
        first, second = map(json.loads, answer.out.splitlines())
        assert set(first) == {"status", "vms"} and set(first["status"]) == STATUS_KEYS
        assert all(set(v) == VM_KEYS | {"bytes_per_second"} for v in first["vms"])
        assert first["vms"][0]["bytes_per_second"] is None
        assert second["vms"][0]["bytes_per_second"] == 0
        for key, cids in {"vm": [42, 43], "received": [42, 43], "refused": [43, 42],
                          "name": [43, 42]}.items():  # fmt: skip
            values = ctl_json(r, "top", "-s", key)["vms"]
            assert [v["cid"] for v in values] == cids, (key, values)


class Terminal:
    """A command in tmux, on a screen of a given size."""

    def __init__(self, columns, rows, *command):
        self.name = f"vsr-test-{os.getpid()}"
        if not shutil.which("tmux"):
            raise Skip("no tmux")
        env = dict(ENV, TERM="xterm", LC_ALL="C.UTF-8")
        self.env = {k: v for k, v in env.items() if k not in ("TMUX", "TMUX_PANE")}
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "sh")
        self.tmux("set-option", "-g", "status", "off")
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))
        self.keys("PS1='$ '; clear", "Enter")
        wait_for(lambda: self.screen()[0].startswith("$"), 20, "shell")
        self.keys(" ".join(command), "Enter")

    def tmux(self, *args):
        return subprocess.run(["tmux", "-L", self.name, *args], env=self.env, check=True, timeout=30,
                              capture_output=True, text=True).stdout

    def keys(self, *keys):
        self.tmux("send-keys", *keys)

    def screen(self):
        return self.tmux("capture-pane", "-p").split("\n")[:-1]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        subprocess.run(["tmux", "-L", self.name, "kill-server"], env=self.env, check=False,
                       capture_output=True)


SCREEN = [
    r"vsock-relayd \d+\.\d+\.\d+, up \d+ s, ready; verdict in user space; upstream file",
    r"reports: 2 valid, 0 duplicate, 1 suppressed, 1 refused",
    r"places 0/50, 0 wait; custody 0, oldest 0 s; cache 0/100, \d\S*",
    r"VM           name           state       \*B/s  bytes  recv   dup refus    seen",
    r"0:42         web-1          acked          0   5\.9K     2     1     0 +\d+ s",
    r"0:43         a-name-longer- refused        0   2\.9K     0     0     1 +\d+ s",
    *[""] * 17,
    r"q quit  s sort: rate  r reverse  space now   2 VMs",
]


def top_on_a_terminal():
    """top at 80x24: the screen, line by line; keys; the terminal is given back as it was."""
    with relay() as r:
        traffic(r)
        with Terminal(80, 24, CTL, "-c", r.config_path, "top", "-i", "0.3") as t:

            def shows(line):
                return lambda: any(re.search(line, x) for x in t.screen())

            def settled():
                screen = t.screen()
                return len(screen) == 24 and all(
                    re.fullmatch(want, got.rstrip()) for want, got in zip(SCREEN, screen))

            try:
                wait_for(settled, 20, "the screen")
            except Exception:
                got = [f"{'  ' if re.fullmatch(w, g.rstrip()) else '! '}{g}"
                       for w, g in zip(SCREEN, t.screen())]
                raise AssertionError("\n".join(["the screen is:", *got])) from None
            t.keys("s")
            wait_for(shows(r"s sort: bytes"), 20, "another order")
            assert any("*bytes" in line for line in t.screen()), t.screen()
            t.keys("S", "S", "r")
            wait_for(shows(r"s sort: vm"), 20, "the order before")
            wait_for(shows(r"^\^VM "), 20, "reverse")
            order = [line[:4] for line in t.screen() if re.match(r"0:4[23] ", line)]
            assert order == ["0:43", "0:42"], order
            # A smaller screen: nothing is wrapped.
            t.tmux("resize-window", "-x", "50", "-y", "6")
            wait_for(lambda: len(t.screen()) == 6 and "quit" in t.screen()[5], 20, "small")
            wait_for(lambda: t.screen()[4].startswith("0:43"), 20, "one VM fits")
            r.kill()
            t.tmux("resize-window", "-x", "80", "-y", "24")
            wait_for(shows(r"^the daemon is dead"), 20, "a dead daemon")
            wait_for(shows(r"^0:42 "), 20, "the maps")
            r.start()
            wait_for(shows(r", ready; "), 20, "the daemon again")
            t.keys("q")
            # Not only top's screen is gone, the shell asks for more: what is typed while top still
            # ends (ASan looks for leaks) is shown before the prompt, and its output behind that one.
            wait_for(lambda: "".join(t.screen()).rstrip().endswith("$"), 20, "the end")
            t.keys("echo st''ty $(stty -a | grep -o '[-]*echo ') $?", "Enter")
            wait_for(shows(r"^stty echo 0"), 20, "the terminal as it was")


# ---- doctor, maps, bundle ----


def doctor_finds_nothing():
    """doctor on a healthy node: every check by name, exit 0."""
    with relay() as r:
        value = ctl_json(r, "doctor")
        assert set(value) == {"problems", "checks"} and value["problems"] == 0, value
        for check in value["checks"]:
            assert set(check) == {"name", "result", "says", "advice"}, check
            assert check["result"] in ("ok", "note", "skipped"), check
        names = {check["name"] for check in value["checks"]}
        assert names >= {"settings", "daemon", "ready: listening", "ready: upstream", "kernel",
                         "AF_VSOCK", "namespaces", "port", "capabilities", "BTF",
                         "BPF file system", "pinned maps", "BPF program", "upstream",
                         "privileges", "sandbox"}  # fmt: skip
        text = ctl(r, "doctor")
        assert text.endswith("\n0 problems\n"), text
        for check in value["checks"]:
            assert re.search(rf"^{check['result']} +{re.escape(check['name'])} ", text, re.M), text


def doctor_and_the_sandbox():
    """doctor and status say what the running daemon may still do, as /proc has it, and what is missing
    of it."""
    with relay() as r:
        proc = process_status(r.process.pid)
        said = ctl_json(r, "status")["daemon"]["sandbox"]
        assert said["uid"] == int(proc["Uid"].split()[1]) and said["gid"] == int(proc["Gid"].split()[1])
        for key, name in (("effective", "Eff"), ("permitted", "Prm"), ("inheritable", "Inh"),
                          ("bounding", "Bnd"), ("ambient", "Amb")):  # fmt: skip
            assert said["capabilities"][key] == proc[f"Cap{name}"], (key, said, proc)
        assert said["no_new_privs"] and proc["NoNewPrivs"] == "1"
        assert said["seccomp"] == int(proc["Seccomp"])
        checks = {c["name"]: c for c in ctl_json(r, "doctor")["checks"]}
        text = ctl(r, "doctor")
        if os.geteuid() == 0:
            assert f"user {SERVICE}; effective, permitted" in checks["privileges"]["says"], checks
            assert re.search(rf"^ok +privileges +user {SERVICE}; ", text, re.M), text
        if said["landlock"]:
            assert checks["sandbox"]["says"] == f"seccomp filter; Landlock ABI {said['landlock']}"
    with relay(settings={"sandbox": "off"}) as r:
        checks = {c["name"]: c for c in ctl_json(r, "doctor")["checks"]}
        assert checks["sandbox"]["result"] == "note", checks["sandbox"]
        assert checks["sandbox"]["says"].startswith("sandbox: off")
        r.kill()  # or its sandbox would be looked for
    with relay(start=False) as r:
        checks = {c["name"]: c for c in ctl_json(r, "doctor")["checks"]}
        assert checks["privileges"]["result"] == checks["sandbox"]["result"] == "skipped"
    if os.geteuid() == 0:
        with relay(settings={"user": "", "group": ""}, start=False) as r:
            for path in (r.dir, r.stored_dir):  # root without capabilities opens what is its own
                os.chown(path, 0, 0)
            r.start()
            checks = {c["name"]: c for c in ctl_json(r, "doctor", status=FAILED)["checks"]}
            assert checks["privileges"]["result"] == "problem", checks["privileges"]
            assert "is root" in checks["privileges"]["says"]


def doctor_finds_problems():
    """doctor says what is wrong, and what to do about it; exit 1."""
    with relay(away(metrics={"certificate": "", "key": ""}), start=False) as r:
        r.config["pin_directory"] = os.path.join(r.dir, "pins", "vsock_relay")
        r.config["upstream"]["grpc"]["plaintext"] = False
        for name in ("ca", "certificate", "key"):
            r.config["upstream"]["grpc"][name] = os.path.join(r.dir, name + ".pem")
        r.write_config()
        value = ctl_json(r, "doctor", status=FAILED)
        found = {c["name"]: c for c in value["checks"] if c["result"] == "problem"}
        assert value["problems"] == len(found) == 3, found
        assert "mount -t bpf" in found["BPF file system"]["advice"]
        assert "ca.pem" in found["upstream TLS"]["says"]
        assert "Connection refused" in found["upstream"]["says"], found
        assert found["upstream"]["advice"]
        daemon = next(c for c in value["checks"] if c["name"] == "daemon")
        assert daemon["result"] == "note" and "systemctl start" in daemon["advice"], daemon
        text = run("-c", r.config_path, "doctor", status=FAILED).out
        assert re.search(r"^problem +upstream +cannot connect .*\n +-> is it up\?", text, re.M), text
        assert text.endswith("\n3 problems\n"), text


def doctor_and_a_taken_port():
    """doctor names a vsock port that somebody else has, and explains namespaces."""
    port = 21000 + os.getpid()
    try:
        taken = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        taken.bind((socket.VMADDR_CID_ANY, port))
    except OSError as e:
        raise Skip(f"AF_VSOCK: {e}") from None
    with taken, relay(start=False) as r:
        r.config["listen"] = {"vsock": True, "port": port}
        r.write_config()
        checks = {c["name"]: c for c in ctl_json(r, "doctor", status=FAILED)["checks"]}
        assert checks["port"]["result"] == "problem" and str(port) in checks["port"]["says"]
        assert "ss --vsock" in checks["port"]["advice"]
        assert checks["AF_VSOCK"]["result"] == "ok"
        assert "namespace" in checks["namespaces"]["says"]


def maps():
    """maps: where they are pinned, and which layout they have."""
    with relay() as r:
        pins = r.config["pin_directory"]
        text = ctl(r, "maps")
        assert text.startswith(f"Pinned at {pins}, layout "), text
        assert re.search(r"^vsr_vms +lru_hash +8 +\d+ +16384 +\d+  yes$", text, re.M), text
        assert re.search(r"^vsr_stats +percpu_array .* no$", text, re.M), text
        value = ctl_json(r, "maps")
        assert set(value) == {"directory", "layout", "layout_known", "maps"}
        assert value["layout"] == value["layout_known"]
        assert {m["name"] for m in value["maps"]} == set(os.listdir(pins))
        for m in value["maps"]:
            assert set(m) == {"name", "type", "id", "key_size", "value_size", "max_entries",
                              "survives"}  # fmt: skip
        # What it advises works.
        command = re.search(r"^(bpftool map dump pinned \S+) ", text, re.M).group(1)
        assert b"" == subprocess.run(command.split(), capture_output=True, check=True).stderr


def bundle():
    """bundle: an archive with all that a helper asks for, and no secret."""
    with relay() as r:
        with open(r.config_path, "a", encoding="utf-8") as f:
            f.write("\n# password: hunter2\n")
        traffic(r)
        path = os.path.join(r.dir, "b.tar")
        text = ctl(r, "bundle", path)
        assert text.startswith(f"{path}: 12 files. "), text
        assert os.stat(path).st_mode & 0o777 == 0o600
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            files = {os.path.basename(m.name): tar.extractfile(m).read().decode() for m in members}
        assert len({os.path.dirname(m.name) for m in members}) == 1
        assert set(files) == {"version.txt", "settings.txt", "doctor.json", "status.json",
                              "readyz.txt", "metrics.txt", "cache.json", "vms.json", "maps.json",
                              "journal.txt", "unit.txt", "sockets.txt"}  # fmt: skip
        for name, content in files.items():
            assert "hunter2" not in content, name
            if name.endswith(".json"):
                json.loads(content)
        assert set(json.loads(files["status.json"])) == STATUS_KEYS
        assert "vsock_relay_reports_valid_total 2" in files["metrics.txt"]
        assert f"pin_directory: {r.config['pin_directory']}\n" in files["settings.txt"]
        # tar itself reads it, and nothing is overwritten.
        assert subprocess.run(["tar", "tf", path], capture_output=True, check=True,
                              text=True).stdout.count("\n") == 12  # fmt: skip
        assert "exists" in run("-c", r.config_path, "bundle", path, status=FAILED).err
        os.remove(path)
        value = ctl_json(r, "bundle", path)
        assert set(value) == {"file", "contents"} and set(value["contents"]) == set(files)
        r.kill()
        os.remove(path)
        assert ctl_json(r, "bundle", path)["file"] == path
        with tarfile.open(path) as tar:
            status = next(m for m in tar.getmembers() if m.name.endswith("status.json"))
            assert b"the daemon is dead" in tar.extractfile(status).read()


# ---- a daemon that does not live ----


def dead_daemon():
    """A dead daemon: its maps are read, with the same keys; what needs it says so and exits 3."""
    with relay() as r:
        traffic(r)
        live = ctl_json(r, "vm", "list")
        r.kill()
        answer = run("-c", r.config_path, "vm", "list")
        assert "the daemon is dead" in answer.err and "From the maps" in answer.err, answer
        assert re.search(r"^0:42 +web-1 +acked ", answer.out, re.M), answer
        dead = ctl_json(r, "vm", "list")
        for a, b in zip(live, dead, strict=True):
            assert set(b) == VM_KEYS and b["now"] is None
            for side, keys in (("daemon", DAEMON_KEYS), ("kernel", KERNEL_KEYS)):
                assert set(b[side]) == keys
                same = {k for k in keys if not k.endswith("_age")}
                assert {k: a[side][k] for k in same} == {k: b[side][k] for k in same}
        assert ctl_json(r, "vm", "show", "42")["daemon"]["accepted"] == 1
        assert "0:42" in ctl(r, "top")
        assert ctl_json(r, "top")["status"] is None
        assert "vsr_vms" in ctl(r, "maps")
        assert run("-c", r.config_path, "vm", "show", "99", status=NOT_FOUND).out == ""
        assert "the daemon is dead" in ctl(r, "status", status=NO_DAEMON)
        value = ctl_json(r, "status", status=NO_DAEMON)
        assert value["running"] is False and value["daemon"] is None and value["why"]
        assert value["maps"]["pinned"] is True
        for args in (["cache", "list"], ["cache", "drop", "42"], ["retry", "42"], ["flush"],
                     ["reload"], ["loglevel"]):  # fmt: skip
            answer = run("-c", r.config_path, *args, status=NO_DAEMON)
            assert answer.out == "" and "systemctl restart" in answer.err, answer
            assert set(ctl_json(r, *args, status=NO_DAEMON)) == {"error"}
        checks = {c["name"]: c for c in ctl_json(r, "doctor", status=FAILED)["checks"]}
        assert checks["daemon"]["result"] == "problem"


def no_daemon():
    """No daemon and no maps: said so, with what to do."""
    with relay(start=False) as r:
        for args in (["vm", "list"], ["vm", "show", "42"], ["top"], ["cache", "list"], ["flush"]):
            answer = run("-c", r.config_path, *args, status=NO_DAEMON)
            assert "no daemon runs" in answer.err and "systemctl start" in answer.err, answer
            assert set(ctl_json(r, *args, status=NO_DAEMON)) == {"error"}
        assert "no daemon runs" in ctl(r, "status", status=NO_DAEMON)
        assert ctl_json(r, "status", status=NO_DAEMON)["maps"]["pinned"] is False
        assert "no maps are pinned" in run("-c", r.config_path, "maps", status=NOT_FOUND).err
        assert set(ctl_json(r, "maps", status=NOT_FOUND)) == {"error"}
        # The defaults are looked at where no settings are given.
        missing = os.path.join(r.dir, "none")
        assert missing in run("-s", missing, "flush", status=NO_DAEMON).err
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(missing)
            s.listen()
            os.set_blocking(s.fileno(), True)
            child = os.fork()
            if child == 0:
                peer, _ = s.accept()
                peer.recv(1000)
                peer.sendall(b"SSH-2.0-nonsense\r\n")
                os._exit(0)
            assert "is no vsock-relayd" in run("-s", missing, "cache", status=NO_DAEMON).err
            os.waitpid(child, 0)


class Sayer:
    """A socket that gives prepared answers: {page without its query: JSON, or the bytes as they are}."""

    def __init__(self, directory, pages):
        self.path, self.pages = os.path.join(directory, "sayer"), pages
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.path)
        self.socket.listen(16)
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(30)
        self.socket.close()

    def serve(self):
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                page = peer.recv(4096).decode().split()[1].partition("?")[0]
                answer = self.pages.get(page, b"HTTP/1.0 404 Not Found\r\n\r\nno such page\n")
                if not isinstance(answer, bytes):
                    answer = b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(answer).encode()
                peer.sendall(answer)

    def run(self, *args, status=OK):
        return run("-s", self.path, *args, status=status)


# In the order of `vm list`: what a daemon says of a VM, and what is shown of it. The later ones would be
# the earlier state, if that were not told apart first.
VMS_SAID = [
    ("seen", {}, {"bytes": 999}, {}, ["0:1", "-", "seen"]),
    ("refused", {"refused": 3}, {"bytes": 1024 * 999}, {}, ["999K"]),
    ("ended", {"accepted": 1, "refused": 3, "record_length": 0}, {"bytes": 1024 * 1024}, {}, ["1.0M"]),
    ("acked", {"accepted": 1, "last_ack_age": 119.0, "record_length": 9, "record_digest": "0a"},
     {"bytes": 5 * 2**30, "last_seen_age": 200}, {}, ["5.0G", "3 min"]),
    ("custody", {"custody": True, "last_ack_age": 7200, "record_length": 9}, {"last_seen_age": 7300.5}, {},
     ["2 h"]),
    ("waiting", {"custody": True}, {"last_seen_age": 200000}, {"waiting": 2}, ["2 d"]),
    ("receiving", {}, None, {"waiting": 2, "connections": 1, "offender": True}, ["-"]),
    ("sending", {}, None, {"connections": 1, "in_flight": True, "next_retry_in": 90}, ["-"]),
]  # fmt: skip


def states_and_units():
    """What a daemon says of VMs and of itself is shown in words, and in units that people read."""
    listed = [{"ns": n // 7, "cid": n + 1, "daemon": d, "kernel": k, "now": now}
              for n, (_, d, k, now, _) in enumerate(VMS_SAID)]  # fmt: skip
    status = {"version": "9.9.9", "pid": 1, "uptime": 86400 * 3, "ready": False, "bpf_mode": "kernel",
              "checks": [{"name": "upstream", "good": False, "says": "away"}],
              "listen": {"vsock": True, "ns_mode": "none", "listeners": []},
              "upstream": {"kind": "grpc", "ready": False, "paused": True},
              "cache": {"bytes": 2**60, "capacity_bytes": 0}}  # fmt: skip
    pages = {"/vms.json": list(reversed(listed)), "/status.json": status}
    with tempfile.TemporaryDirectory() as d, Sayer(d, pages) as sayer:
        text = sayer.run("vm", "list").out.splitlines()[1:]
        assert len(text) == len(VMS_SAID), text
        top = {line.split()[0]: line for line in sayer.run("top", "-s", "vm").out.splitlines()}
        for line, vm, (state, *_, shown) in zip(text, listed, VMS_SAID):
            name = f"{vm['ns']}:{vm['cid']}"
            assert line.split()[0] == name and f" {state} " in line, (line, state)
            for part in shown:
                assert part in top[name], (part, top[name])
        for key in ("seen", "name", "bytes", "duplicates", "rate"):
            shown = [(v["ns"], v["cid"]) for v in json.loads(sayer.run("-j", "top", "-s", key).out)["vms"]]
            assert sorted(shown) == [(v["ns"], v["cid"]) for v in listed], (key, shown)
            assert key != "seen" or shown[:3] == [(0, 4), (0, 5), (0, 6)], shown
            assert key != "bytes" or shown[0] == (0, 4), shown
        for n, says in ((3, "9 bytes, digest 0a"), (3, "last ACK          119 s ago"),
                        (6, "the next waits last"), (7, "next retry        in 90 s")):  # fmt: skip
            pages["/vms.json"] = [listed[n]]
            vm = f"{listed[n]['ns']}:{listed[n]['cid']}"
            assert says in sayer.run("vm", "show", vm).out, (says, sayer.run("vm", "show", vm))
        text = sayer.run("status").out
        for says in ("up 3 d: NOT READY", "BPF, in the kernel", "not connected, paused: it refuses",
                     "1.0E of 0", "without network namespaces"):  # fmt: skip
            assert says in text, (says, text)
        status["listen"] = {"vsock": False, "ns_mode": "local", "listeners": [
            {"namespace": 5, "port": 818, "netns": "/run/netns/x", "ns_mode": "local"}]}  # fmt: skip
        text = sayer.run("status").out
        assert "ns_mode local\n    VMs 5:*  port 818 inside /run/netns/x, ns_mode local\n" in text, text
        assert "verdict in the kernel; upstream grpc AWAY PAUSED" in sayer.run("top").out


def bad_answers():
    """What is no answer, or half of one, is never shown as one; a refusal comes with its reason."""
    refusal = b"HTTP/1.1 %b\r\n\r\n%b"
    with tempfile.TemporaryDirectory() as d, Sayer(d, {}) as sayer:
        for answer in (b"", b"\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 x\r\n\r\n[]",
                       b"HTTP/1.0 200 OK\r\n\r\n[{\"ns\":", b"HTTP/2 200\r\n\r\n[]",
                       refusal % (b"503 Stopping", b"[]")):  # fmt: skip
            sayer.pages = dict.fromkeys(["/vms.json", "/cache.json", "/status.json"], answer)
            for args in (["cache", "list"], ["status"]):
                said = sayer.run(*args, status=NO_DAEMON)
                assert "is no vsock-relayd of this version" in said.out + said.err, (answer, said)
        # What changes something: the daemon's words, and a status that tells "no such thing" apart.
        for answer, status, says in (
            (refusal % (b"404 Not Found", b'{"error":"no such VM"}'), NOT_FOUND, "no such VM"),
            (refusal % (b"409 Conflict", b'{"error":"not now"}'), FAILED, "not now"),
            (refusal % (b"500 Internal", b"plain words\nand more"), FAILED, "plain words"),
            (refusal % (b"200 OK", b"no JSON"), FAILED, "no JSON"),
            (b"nothing", NO_DAEMON, "is no vsock-relayd"),
        ):
            sayer.pages = {"/retry": answer, "/loglevel": answer, "/flush": answer}
            for args in (["retry", "42"], ["loglevel", "debug"], ["flush"]):
                said = sayer.run(*args, status=status)
                assert said.out == "" and said.err == f"vsock-relayctl: {said.err[16:]}", said
                assert says in said.err and "more" not in said.err, (says, said)
                value = json.loads(sayer.run("-j", *args, status=status).out)
                assert says in value["error"], value
        sayer.pages = {"/reload": refusal % (b"400 Bad", b'{"error":"refused","log":["a: bad","b: bad"]}')}
        said = sayer.run("reload", status=FAILED)
        assert said.err == "a: bad\nb: bad\nvsock-relayctl: refused\n", said
        assert json.loads(sayer.run("-j", "reload", status=FAILED).out)["log"] == ["a: bad", "b: bad"]
        sayer.pages = {"/status.json": b"?"}
        assert "is no vsock-relayd" in sayer.run("reload", "--pid", "1", status=NO_DAEMON).err
    too_long = "/" + "x" * 200
    assert too_long in run("-s", too_long, "flush", status=NO_DAEMON).err
    assert "name no admin_socket" in run("-s", "", "flush", status=NO_DAEMON).err
    for pid in ("0", "x", "1x", "99999999999999999999", "4294967296", "-1"):
        assert "expected a process id" in run("reload", "--pid", pid, status=USAGE).err


def hanging_daemon():
    """A stopped daemon: after 5 s its maps are read, and it is said to hang."""
    with relay() as r:
        assert send(r) == rp.ACCEPTED
        r.wait_metric("contents_held", value=0)
        r.signal(signal.SIGSTOP)
        begin = time.monotonic()
        answer = run("-c", r.config_path, "vm", "list")
        assert "does not answer within" in answer.err and "0:42" in answer.out, answer
        assert time.monotonic() - begin > 4
        assert "does not answer" in run("-c", r.config_path, "flush", status=NO_DAEMON).err
        r.signal(signal.SIGCONT)
        assert ctl(r, "flush").startswith("0 ")


def older_layout():
    """Maps of another layout are not misread: which one it is, and what to use."""
    with relay() as r:
        traffic(r)
        pins = r.config["pin_directory"]
        r.kill()
        known = ctl_json(r, "maps")["layout_known"]
        for version in (known - 1, known + 1, None):
            os.remove(f"{pins}/vsr_abi")
            if version is not None:
                subprocess.run(["bpftool", "map", "create", f"{pins}/vsr_abi", "type", "array", "key",
                                "4", "value", "8", "entries", "1", "name", "vsr_abi"], check=True)  # fmt: skip
                subprocess.run(["bpftool", "map", "update", "pinned", f"{pins}/vsr_abi", "key", "0", "0",
                                "0", "0", "value", str(version), *"0000000"], check=True)  # fmt: skip
            says = f"layout {version or 0}"
            answer = run("-c", r.config_path, "vm", "list", status=NO_DAEMON)
            assert f"have {says}" in answer.err and f"knows {known}" in answer.err, answer
            assert "bpftool map dump" in answer.err
            assert says in ctl_json(r, "vm", "show", "42", status=NO_DAEMON)["error"]
            assert f"{says} (this program" in ctl(r, "maps")
            assert ctl_json(r, "maps")["layout"] == (version or 0)
            value = ctl_json(r, "status", status=NO_DAEMON)["maps"]
            assert value["layout"] == (version or 0) and "does not know" in value["says"], value
            checks = {c["name"]: c for c in ctl_json(r, "doctor", status=FAILED)["checks"]}
            assert checks["pinned maps"]["result"] == "note", checks
            if version is None:
                break
        # A map of another size under the right number is seen, too.
        r.start()
        r.kill()
        os.remove(f"{pins}/vsr_vms")
        subprocess.run(["bpftool", "map", "create", f"{pins}/vsr_vms", "type", "hash", "key", "8",
                        "value", "96", "entries", "4", "name", "vsr_vms"], check=True)  # fmt: skip
        run("-c", r.config_path, "vm", "list", status=NO_DAEMON)
        # The daemon replaces what it does not know, and all is well.
        r.start()
        assert send(r, seed=2) == rp.ACCEPTED
        assert ctl_json(r, "vm", "show", "42")["kernel"]["connections"] == 1


# Each command: what a live daemon's text begins with, and the JSON's keys (of a list: of its entries).
# Then the exit statuses with a dead daemon, with maps of an older layout besides, and with nothing.
# "trace" has tests/vm/trace.py.
EVERYTHING = {
    ("status",): ("vsock-relayd ", {"running", "daemon", "maps", "why"}, NO_DAEMON, NO_DAEMON, NO_DAEMON),
    ("vm", "list"): ("VM ", VM_KEYS, OK, NO_DAEMON, NO_DAEMON),
    ("vm", "show", "42"): ("VM 0:42 (web-1)\n", VM_KEYS, OK, NO_DAEMON, NO_DAEMON),
    ("top",): ("vsock-relayd ", {"status", "vms"}, OK, NO_DAEMON, NO_DAEMON),
    ("cache", "list"): ("VM ", CACHE_KEYS, NO_DAEMON, NO_DAEMON, NO_DAEMON),
    ("retry", "42"): ("", {"done"}, NO_DAEMON, NO_DAEMON, NO_DAEMON),
    ("flush",): ("1 contents are sent", {"done", "contents"}, NO_DAEMON, NO_DAEMON, NO_DAEMON),
    ("reload",): ("reloaded\n", {"done", "log"}, NO_DAEMON, NO_DAEMON, NO_DAEMON),
    ("loglevel",): ("info\n", {"level", "before"}, NO_DAEMON, NO_DAEMON, NO_DAEMON),
    ("doctor",): ("", {"problems", "checks"}, FAILED, FAILED, OK),
    ("maps",): ("Pinned at ", {"directory", "layout", "layout_known", "maps"}, OK, OK, NOT_FOUND),
    ("bundle",): ("", {"file", "contents"}, OK, OK, OK),
    ("version",): ("vsock-relayctl ", {"version", "layout"}, OK, OK, OK),
    ("help",): ("Usage: ", {"name", "help", "commands"}, OK, OK, OK),
    ("cache", "drop", "42", "--lose"): ("dropped\n", {"done"}, NO_DAEMON, NO_DAEMON, NO_DAEMON),
}  # fmt: skip
SAYS = {"dead": "the daemon is dead", "older": "the daemon is dead", "none": "no daemon runs"}


def try_everything(r, state):
    number = {"live": None, "dead": 2, "older": 3, "none": 4}[state]
    for words, (begins, keys, *_) in EVERYTHING.items():
        wanted = EVERYTHING[words][number] if number else OK
        if words[0] == "doctor" and state == "live":
            wanted = FAILED  # the upstream is away
        args = [*words, os.path.join(r.dir, f"{state}.tar")] if words[0] == "bundle" else words
        # What changes something is asked for once, in JSON.
        if words[-1] != "--lose":
            answer = run("-c", r.config_path, *args, status=wanted)
            if wanted == OK:
                assert state != "live" or answer.out.startswith(begins), (words, answer)
                assert answer.out, words
            elif words[0] == "maps":
                assert "no maps are pinned" in answer.err, answer
            elif words[0] not in ("doctor",):
                said = answer.out + answer.err
                assert SAYS[state] in said and "Traceback" not in said, (words, answer)
        if words[0] == "bundle":
            os.remove(args[-1])
        value = ctl_json(r, *args, status=wanted)
        failed = wanted not in (OK, FAILED) and words[0] != "status"
        some = value[0] if isinstance(value, list) else value
        assert set(some) == ({"error"} if failed else keys), (state, words, value)


def everything_in_every_state():
    """Every command, text and JSON with its keys: a live daemon, a dead one, maps of an older layout,
    nothing."""
    table = {(o["name"], c["name"]) for o in json.loads(run("-j", "help").out) for c in o["commands"]}
    tried = {(w[0], w[1] if w[0] in ("vm", "cache") else "") for w in EVERYTHING}
    assert {pair for pair in table if pair[0] != "trace"} == tried, table ^ tried
    with relay(away()) as r:
        assert send(r) == rp.ACCEPTED
        try_everything(r, "live")
        r.kill()
        try_everything(r, "dead")
        os.remove(f"{r.config['pin_directory']}/vsr_abi")  # as before there was a number
        try_everything(r, "older")
    with relay(start=False) as r:
        try_everything(r, "none")


# ---- the pages ----


def pages_and_who_may_see_them():
    """What names a VM, and what changes anything, is on the unix socket alone."""
    with relay() as r:
        for page in ("/metrics", "/healthz", "/readyz", "/status.json"):
            for port in (None, r.port):
                assert http(r, page, port=port)[0] == 200, (page, port)
        assert http(r, "/healthz") == (200, "ok\n")
        for page in ("/vms.json", "/cache.json"):
            assert http(r, page)[0] == 200 and http(r, page, port=r.port)[0] == 404, page
        for page in ("/retry?cid=42", "/flush", "/drop?cid=42", "/reload", "/loglevel"):
            assert http(r, page, "POST", r.port)[0] == 405, page
            assert http(r, page)[0] == 405, page
        assert http(r, "/flush", "POST")[0] == 200
        for query in ("", "?cid=", "?cid=x", "?cid=-1", "?cid=42&ns=x", "?cid=4294967296", "?cid=42x",
                      "?cid=%2B42", "?cid=42&ns=", "?cid=99999999999999999999", "?ns=0"):  # fmt: skip
            assert http(r, "/retry" + query, "POST")[0] == 400, query
        assert http(r, "/vms.json?cid=x")[0] == 400
        status = json.loads(http(r, "/status.json", port=r.port)[1])
        assert set(status) == STATUS_KEYS and "cid" not in json.dumps(status)


def readiness():
    """/readyz: ready while there is room to hold what cannot be delivered, and which check fails."""
    with relay(away(cache={"slots": 1, "ttl": "1h"})) as r:
        status, text = http(r, "/readyz", port=r.port)
        assert status == 200 and text.startswith("ready\n[+] listening: 2 hybrid sockets\n"), text
        assert "[+] upstream: grpc not connected, room to hold more" in text, text
        assert send(r) == rp.ACCEPTED
        status, text = http(r, "/readyz", port=r.port)
        assert status == 503 and text.startswith("not ready\n"), text
        assert "[-] upstream: grpc not connected, and no room to hold more; held: 1 of 1" in text
        assert "NOT READY" in ctl(r, "status") and "  BAD  upstream " in ctl(r, "status")
        assert http(r, "/healthz")[0] == 200
        checks = {c["name"]: c for c in ctl_json(r, "doctor", status=FAILED)["checks"]}
        assert checks["ready: upstream"]["result"] == "problem"


def readiness_while_it_stops():
    """/readyz: not ready once it stops, while what is in progress is still finished."""
    with relay({"report": {"deadline": "1m", "idle": "1m"}, "shutdown_grace": "30s"}) as r:
        payload = rp.report(42, 9000)
        with rp.connect(r.path("a.sock")) as s:
            s.sendall(rp.header(payload) + payload[:5000])
            r.wait_metric("sem_holding_size", value=1)
            r.signal(signal.SIGTERM)
            wait_for(lambda: http(r, "/readyz")[0] == 503, 20, "not ready")
            assert "[-] listening: the relay stops\n" in http(r, "/readyz", port=r.port)[1]
            assert http(r, "/healthz")[0] == 200
            s.sendall(payload[5000:])
            assert rp.read_answer(s) == rp.ACCEPTED
        assert r.process.wait(60) == 0
        assert r.stored(42) == payload


def readiness_of_the_spool():
    """/readyz: not ready while the spool takes nothing more, and why."""
    with relay(away(spool={"max_files": 1}), start=False) as r:
        r.config["state_directory"] = os.path.join(r.dir, "state")
        r.write_config()
        r.start()
        assert "[+] spool: ok\n" in http(r, "/readyz", port=r.port)[1]
        assert ctl_json(r, "status")["daemon"]["spool"] == "ok"
        assert send(r) == rp.ACCEPTED
        assert send(r, "b.sock", 43) == rp.BUSY
        status, text = http(r, "/readyz", port=r.port)
        assert status == 503 and "[-] spool: full" in text, text
        assert "  BAD  spool " in ctl(r, "status")
        # What is on the disk may leave memory: nothing is lost.
        assert ctl_json(r, "cache", "list")[0]["custody"] == "none"
        assert ctl(r, "cache", "drop", "42") == "dropped\n"
        assert ctl_json(r, "vm", "show", "42")["daemon"]["custody"] is True


def certificate(directory, name):
    """A certificate of our own for 127.0.0.1; both paths."""
    paths = [os.path.join(directory, f"{name}.{kind}.pem") for kind in ("cert", "key")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
                    "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]],
                   check=True, capture_output=True)  # fmt: skip
    return paths


def metrics_over_https():
    """metrics.certificate: HTTPS and nothing else; a reload takes a new pair, and never half of one."""
    with relay(start=False) as r:
        first, second = (certificate(r.dir, name) for name in ("one", "two"))
        used = [os.path.join(r.dir, name) for name in ("cert.pem", "key.pem")]

        def install(cert, key):
            for source, target in zip((cert, key), used):
                shutil.copy(source, target)
                os.chmod(target, 0o644)  # the service's user reads them again, too

        def scrape(ca):
            context = ssl.create_default_context(cafile=ca)
            url = f"https://127.0.0.1:{r.port}/metrics"
            with urllib.request.urlopen(url, timeout=30, context=context) as answer:
                return answer.read().decode()

        install(*first)
        r.config["metrics"].update(certificate=used[0], key=used[1])
        r.write_config()
        r.start(wait=False)
        wait_for(lambda: os.path.exists(r.config["admin_socket"]), 20, "admin socket")
        wait_for(lambda: http(r, "/readyz")[0] == 200, 20, "ready")
        assert "vsock_relay_build_info" in scrape(first[0])
        for bad in (lambda: scrape(second[0]), r.metrics_text):
            try:
                bad()
            except (OSError, urllib.error.URLError):
                continue
            raise AssertionError("it was answered")
        # A pair that is none changes nothing.
        install(second[0], first[1])
        ctl(r, "reload")
        assert "is not the key of the certificate" in r.log(), r.log()
        scrape(first[0])
        install(*second)
        assert "new certificate and key" in ctl(r, "reload")
        scrape(second[0])
        r.kill()
        install(second[0], first[1])
        r.start(wait=False)
        assert r.process.wait(60) == 1 and "is not the key" in r.log()
        r.config["metrics"]["key"] = ""
        r.write_config()
        r.start(wait=False)
        assert r.process.wait(60) == 78 and "metrics.key" in r.log()


# ---- the log ----


def log_as_json():
    """log.format json: every line is an object; a VM is named, its reason, and what was held back."""
    with relay({"log": {"format": "json"}}) as r:
        for _ in range(3):
            assert send(r, "b.sock") == rp.CID_MISMATCH
        assert r.metric("log_held_back_total") == 2
        wait_for(lambda: "held_back" in r.log(), 20, "what was held back")
        r.signal(signal.SIGTERM)
        assert r.process.wait(30) == 0
        lines = [json.loads(line) for line in r.log().splitlines()]
        for line in lines:
            assert set(line) >= {"time", "level", "message"}, line
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"]), line
        said = [line for line in lines if line.get("reason") == "cid_mismatch"]
        assert [line.get("held_back") for line in said] == [None, 2], said
        assert all(line["vm"] == "0:43" and line["level"] == "notice" for line in said), said


def log_with_fields_of_the_journal():
    """log.format auto: where standard error is the journal, entries with fields of their own."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        raise Skip("no mount namespace")
    with relay(start=False) as r, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        directory = os.path.join(r.dir, "journal")
        os.mkdir(directory)
        journal.bind(os.path.join(directory, "socket"))
        os.chmod(os.path.join(directory, "socket"), 0o666)  # as journald's
        journal.settimeout(20)
        # The journal of this namespace is ours.
        r.wrap = ["unshare", "-m", "sh", "-c",
                  "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && "
                  f"mount --bind {directory} /run/systemd/journal && exec \"$@\"", "sh"]  # fmt: skip
        with open(r.log_path, "ab") as f:
            st = os.fstat(f.fileno())
        r.env["JOURNAL_STREAM"] = f"{st.st_dev}:{st.st_ino}"
        r.start()
        assert send(r, "b.sock") == rp.CID_MISMATCH
        entries = []
        while not any("VSR_REASON" in e for e in entries):
            text = journal.recv(65536).decode()
            entries.append(dict(line.split("=", 1) for line in text.splitlines()))
        assert r.log() == "", "also on standard error"
        last = entries[-1]
        assert last["VSR_VM"] == "0:43" and last["VSR_NS"] == "0" and last["VSR_CID"] == "43", last
        assert last["VSR_REASON"] == "cid_mismatch" and last["PRIORITY"] == "5", last
        assert last["MESSAGE"].startswith("refused VM 0:43: "), last
        assert any("is ready" in e["MESSAGE"] for e in entries), entries
        # Changeable while it runs.
        r.config["log"] = {"format": "json"}
        r.write_config()
        ctl(r, "reload")
        assert json.loads(r.log().splitlines()[-1])["message"] == "reloaded"


# ---- names ----


def names_from_qemu():
    """A VM's name comes from the command line of its QEMU, unless the file has one."""
    with relay() as r:
        traffic(r)
        r.config["vm_names"] = ""
        r.write_config()
        # Any process with such arguments: the file says nothing of VM 43 now.
        args = ["qemu-system-x86_64", "-name", "guest=db-2,debug-threads=on", "-device",
                "vhost-vsock-pci,id=v0,guest-cid=43"]  # fmt: skip
        qemu = subprocess.Popen(["sh", "-c", "exec 3>&1; cat", *args], stdin=subprocess.PIPE)
        try:
            names = {v["cid"]: v["name"] for v in ctl_json(r, "vm", "list")}
            assert names == {42: None, 43: "db-2"}, names
            assert ctl(r, "vm", "show", "db-2").startswith("VM 0:43 (db-2)\n")
            with open(os.path.join(r.dir, "names"), "a", encoding="utf-8") as f:
                f.write("43 mine\n")
        finally:
            qemu.stdin.close()
            qemu.wait(30)
        bad = os.path.join(r.dir, "bad-names")
        with open(bad, "w", encoding="utf-8") as f:
            f.write("42 web\nforty-three db\n")
        answer = run("-c", r.config_path, "-n", bad, "vm", "list")
        assert f"{bad}:2: expected" in answer.err and " web " in answer.out, answer


# ---- completion and man pages ----


def complete(*words, config=None):
    """What bash offers for the last word."""
    script = f"""
        . /usr/share/bash-completion/bash_completion
        . {TOP}/scripts/deploy/vsock-relayctl.bash-completion
        COMP_WORDS=({CTL} "$@") COMP_CWORD=$# 
        COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
        _vsock_relayctl && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True,
                          timeout=30, env=ENV, check=True)  # fmt: skip
    assert done.stderr == "", done
    return set(done.stdout.split())


def completion():
    """bash completes every object and command of the table, options, CIDs and names."""
    table = {o["name"]: o for o in json.loads(run("-j", "help").out)}
    assert complete("") == set(table)
    assert complete("help", "") == set(table)
    for name, o in table.items():
        commands = {c["name"] for c in o["commands"]} - {""}
        if commands:
            assert complete(name, "") == commands, name
    assert complete("b") == {"bundle"} and complete("vm", "s") == {"show"}
    assert "--json" in complete("--j") and complete("vm", "--j") == {"--json"}
    assert complete("cache", "drop", "--l") == {"--lose"}
    assert complete("top", "-s", "ra") == {"rate"}
    assert complete("reload", "--p") == {"--pid", "--pretty"}
    assert complete("loglevel", "d") == {"debug"}
    with relay() as r:
        traffic(r)
        vms_known = {"42", "web-1", "43", "a-name-longer-than-its-column"}
        for words in (("vm", "show"), ("retry",), ("cache", "drop"), ("trace", "flows", "--cid")):
            assert complete("-c", r.config_path, *words, "") == vms_known, words
        assert complete("-c", r.config_path, "vm", "show", "w") == {"web-1"}


def man_pages():
    """Every program has its page, which man reads without complaint and which names every option,
    command and key."""
    pages = {}
    for name in ("vsock-relayd.8", "vsock-relayctl.8", "vsock-agent.8", "vsock-relayd.yaml.5"):
        done = subprocess.run(["man", "--warnings", "-l", os.path.join(BUILD, "man", name)], check=True,
                              capture_output=True, text=True, env=dict(ENV, MANWIDTH="400", LC_ALL="C"))  # fmt: skip
        assert done.stderr == "", (name, done.stderr)
        pages[name] = done.stdout
    for o in json.loads(run("-j", "help").out):
        for c in o["commands"]:
            words = " ".join(filter(None, (o["name"], c["name"], c["args"].split(" --buffer")[0])))
            assert words in pages["vsock-relayctl.8"], words
            assert c["help"] in pages["vsock-relayctl.8"], c["help"]
    text = subprocess.run([os.path.join(BUILD, "vsock-agent"), "--help"], check=True,
                          capture_output=True, text=True).stdout
    for option in re.findall(r"--[a-z-]+", text):
        assert option in pages["vsock-agent.8"], option
    with open(os.path.join(TOP, "docs/settings.md"), encoding="utf-8") as f:
        keys = re.findall(r"^\| `([a-z_.]+)` \|", f.read(), re.M)
    assert len(keys) > 40
    for key in keys:
        assert re.search(rf"^ +{re.escape(key)}( |$)", pages["vsock-relayd.yaml.5"], re.M), key
    for option in ("--config", "--check-config", "--help", "--version"):
        assert option in pages["vsock-relayd.8"], option


def main():
    if os.geteuid() != 0:
        print("1..0 # SKIP needs root")
        return
    tap = Tap(sys.argv[1] if len(sys.argv) > 1 else None)
    for test in (help_of_everything, version, words_may_be_shortened, usage_errors,
                 output_that_cannot_be_written,
                 trace_without_vsock,
                 status_of_a_live_daemon, vms, contents_in_custody, reload_says_what_came_of_it,
                 reload_of_a_process, loglevel, top_without_a_terminal, top_on_a_terminal,
                 doctor_finds_nothing, doctor_and_the_sandbox, doctor_finds_problems,
                 doctor_and_a_taken_port, maps, bundle, everything_in_every_state, dead_daemon, no_daemon,
                 states_and_units, bad_answers, hanging_daemon, older_layout, pages_and_who_may_see_them, readiness,
                 readiness_while_it_stops,
                 readiness_of_the_spool, metrics_over_https, log_as_json, log_with_fields_of_the_journal,
                 names_from_qemu, completion, man_pages):  # fmt: skip
        tap.run(f"{test.__name__}: {' '.join(test.__doc__.split())}", test)
    tap.end()


if __name__ == "__main__":
    main()

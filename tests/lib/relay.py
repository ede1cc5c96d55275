# SPDX-License-Identifier: Apache-2.0
"""A vsock-relayd under test: one process in a directory of its own."""

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# For daemons that check at run time what ran of them: the sandbox forbids that.
SANDBOX_OFF = "VSR_SANDBOX_OFF" in os.environ
# Daemons that write at their end what ran of them, and so are not killed before.
COUNTED = SANDBOX_OFF or "VSR_COVERAGE" in os.environ
BUILD = os.environ.get("VSR_BUILD", os.path.join(TOP, "build"))
_SERIES = re.compile(r'^(\w+)(?:\{(.*)\})? (\S+)$')

BPF_FS = "/sys/fs/bpf"

# Counters that must stay 0 whatever a guest does.
MUST_STAY_ZERO = ("digest_mismatch_bpf_total", "bpf_errors_total", "conservation_difference")


class Metrics(dict):
    """Values by name and label, as in m["reports_refused_total", "malformed"]; a metric without
    labels by its name, one with labels also by its name: then the sum. Without the prefix."""

    def __missing__(self, key):
        raise KeyError(f"no such metric: {key}")


def parse_metrics(text, prefix="vsock_relay_"):
    metrics = Metrics()
    for line in text.splitlines():
        match = _SERIES.match(line)
        if not match:
            continue
        name, labels, value = match.groups()
        name = name.removeprefix(prefix)
        values = re.findall(r'"((?:[^"\\]|\\.)*)"', labels or "")
        if values:
            metrics[(name, *values)] = float(value)
            metrics[name] = metrics.get(name, 0) + float(value)
        else:
            metrics[name] = float(value)
    return metrics


def wait_for(condition, seconds=10, what="condition"):
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        value = condition()
        now = time.monotonic()
        if value:
            return value
        if now > deadline:
            raise TimeoutError(f"{what} not within {seconds} s")
        # At most half of the time goes into asking: in a VM that takes what is waited for its processor.
        time.sleep(max(0.02, now - asked))


def process_status(pid):
    """/proc/PID/status by key, without the blanks around a value."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in f)}


def scrape_text(port, timeout=30):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout) as response:
        return response.read().decode()


def scrape(port, timeout=30):
    """The metrics of a relay that listens for scrapers at that port of the loopback address."""
    return parse_metrics(scrape_text(port, timeout))


_port_lock = threading.Lock()
_port_claims = []  # as long as this process lives, no other test takes these


def free_port():
    """A port of the loopback address that nobody has, another one each time, in all threads and in
    all test processes of this machine."""
    with _port_lock:
        while True:
            Relay._port += 1
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0vsr-test-port-{Relay._port}")
                with socket.socket() as s:
                    s.bind(("127.0.0.1", Relay._port))
            except OSError:
                claim.close()
                continue
            _port_claims.append(claim)
            return Relay._port


# Whom the daemon becomes in tests that root runs: no account is needed for a number.
SERVICE = 65534


class Relay:
    """settings: keys as in the configuration file, nested dicts. hybrid: {name: cid} makes hybrid
    sockets in the directory; path(name) is where a VMM connects.

    As root the daemon runs as it does in the field: as a service user, who owns what it writes to,
    unless settings have a user, or a tracer wraps it that needs its privileges."""

    # Below the ports that the kernel gives away by itself (32768 and up), to servers in tests too.
    _port = 20000 + os.getpid() % 10000

    def __init__(self, settings=None, hybrid=None, binary=None, start=True, wrap=(), env=None):
        self.dir = tempfile.mkdtemp(prefix="vsr-", dir=os.environ.get("VSR_TMP"))
        self.binary = binary or os.path.join(BUILD, "vsock-relayd")
        self.wrap = list(wrap)
        self.env = dict(os.environ, **(env or {}))
        self.traced = self.wrap[:1] in (["valgrind"], ["strace"])
        if self.traced:
            # What runs in the relay's process makes system calls of its own.
            self.env["VSOCK_RELAY_SANDBOX"] = "off"
        self.port = free_port()
        self.stored_dir = os.path.join(self.dir, "reports")
        os.mkdir(self.stored_dir)
        self.log_path = os.path.join(self.dir, "log")
        self.process = None
        # Beside a relay of this machine, and beside each other: VMs alone are all ours.
        self.pins = f"{BPF_FS}/{os.path.basename(self.dir) if hybrid else 'vsock_relay'}"
        self.config = {
            "listen": {"vsock": not hybrid},
            "pin_directory": self.pins,
            "run_directory": os.path.join(self.dir, "run"),
            "upstream": {"kind": "file", "file": {"directory": self.stored_dir}},
            "metrics": {"listen": f"127.0.0.1:{self.port}"},
            "admin_socket": os.path.join(self.dir, "admin.sock"),
        }
        if hybrid:
            self.config["hybrid"] = {
                "sockets": [
                    {"path": os.path.join(self.dir, name), "cid": cid}
                    for name, cid in hybrid.items()
                ]
            }
        if os.geteuid() == 0 and not self.traced:
            self.config.update(user=str(SERVICE), group=str(SERVICE))
            self.give(self.dir, self.stored_dir)
        if SANDBOX_OFF:
            self.config["sandbox"] = "off"
        merge(self.config, settings or {})
        self.write_config()
        if start:
            self.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if value is not None and not getattr(value, "detail", None):
            try:
                value.detail = "log of the relay:\n" + self.log()[-4000:]
            except (AttributeError, OSError):
                pass
        if COUNTED and self.process and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(5)
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
        if not self.pins.endswith("/vsock_relay"):
            shutil.rmtree(self.pins, ignore_errors=True)

    def give(self, *paths):
        """Makes the service user their owner, if there is one."""
        for path in paths:
            if "user" in self.config:
                os.chown(path, SERVICE, SERVICE)

    # ---- the process ----

    def write_config(self):
        # JSON is YAML.
        self.config_path = os.path.join(self.dir, "relay.yaml")
        with open(self.config_path, "w", encoding="utf-8") as f:
            json.dump(self.config, f, indent=1)

    def start(self, wait=True, seconds=60):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.wrap, self.binary, "--config", self.config_path],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env,
            )
        if wait:
            wait_for(self._ready, seconds, "relay is ready")

    def _ready(self):
        status = self.process.poll()
        if status is not None:
            raise RuntimeError(f"relay ended with status {status}: {self.log()}")
        try:
            return self.metrics()
        except OSError:
            return None

    def signal(self, signo):
        self.process.send_signal(signo)
        if signo == signal.SIGSTOP:
            wait_for(lambda: self.state() == "T", what="the stop")

    def state(self):
        """Of its main thread, as in ps."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(") ")[2][0]

    def reload(self):
        """SIGHUP, and what the log says of it."""
        before = len(self.log())
        self.signal(signal.SIGHUP)
        wait_for(lambda: re.search("reload(ed|.* refused)", self.log()[before:]), 10, "reload")
        return self.log()[before:]

    def stop(self, seconds=30):
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def rss(self):
        """Resident memory, bytes."""
        return int(process_status(self.process.pid)["VmRSS"].split()[0]) * 1024

    def keep_acked(self, wanted):
        self.config.setdefault("cache", {})["keep_acked"] = wanted
        self.write_config()
        self.reload()

    def own_memory(self):
        """Resident bytes of its own when it holds no content: nothing may be in custody, and what is
        kept after its delivery goes. So that a process can be compared with itself earlier."""
        self.keep_acked(False)
        self.wait_metric("cache_bytes", value=0)
        # What streams were compared with is let go of behind them, and given back by a reload.
        time.sleep(1)
        self.reload()
        own = int(process_status(self.process.pid)["RssAnon"].split()[0]) * 1024
        self.keep_acked(True)
        return own

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # ---- what it did ----

    def path(self, name):
        return os.path.join(self.dir, name) + f"_{self.config['listen'].get('port', 818)}"

    def page(self, page, method="GET", port=None):
        """Status and body, over TCP or the admin socket."""
        if port:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{page}", method=method)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as e:
                return e.code, e.read().decode()
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.config["admin_socket"])
            s.sendall(f"{method} {page} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            data = b"".join(iter(lambda: s.recv(65536), b"")).decode()
        head, _, body = data.partition("\r\n\r\n")
        return int(head.split()[1]), body

    def metrics_text(self):
        return scrape_text(self.port)

    def metrics(self):
        return parse_metrics(self.metrics_text())

    def metric(self, *key):
        return self.metrics()[key if len(key) > 1 else key[0]]

    def wait_metric(self, *key, value=None, at_least=None, seconds=20):
        now = None

        def reached():
            nonlocal now
            now = self.metric(*key)
            return now >= at_least if value is None else now == value

        try:
            wait_for(reached, seconds, f"{key} {value if at_least is None else at_least}")
        except TimeoutError as e:
            raise TimeoutError(f"{e}; it is {now}") from None

    def stored(self, cid, ns=0):
        """The bytes of the VM's newest report upstream, None if there is none."""
        try:
            with open(os.path.join(self.stored_dir, f"{ns}-{cid}.pb"), "rb") as f:
                return f.read()
        except FileNotFoundError:
            return None

    def wait_stored(self, cid, payload, seconds=20):
        wait_for(lambda: self.stored(cid) == payload, seconds, f"report of {cid} stored")

    def refused(self, metrics=None):
        """Refusals by reason, without zeros."""
        metrics = metrics or self.metrics()
        return {
            key[1]: int(value)
            for key, value in metrics.items()
            if isinstance(key, tuple) and key[0] == "reports_refused_total" and value
        }

    def check_privileges(self):
        """Each thread is the service user, if there is one, has no capability and a filter, and no
        descriptor would survive an exec."""
        pid = self.process.pid
        for thread in os.listdir(f"/proc/{pid}/task"):
            status = process_status(f"{pid}/task/{thread}")
            if self.config.get("user"):
                assert "0" not in status["Uid"].split() + status["Gid"].split(), status
            assert status["NoNewPrivs"] == "1", status["NoNewPrivs"]
            filtered = "0" if self.config.get("sandbox") == "off" else "2"
            assert status["Seccomp"] == filtered, status["Seccomp"]
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                # Who is not root cannot clear the bounding set; no_new_privs makes it void.
                if name != "CapBnd" or os.geteuid() == 0:
                    assert int(status[name], 16) == 0, (name, status[name])
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as f:
                    flags = int(re.search(r"^flags:\s*(\d+)", f.read(), re.M)[1], 8)
                assert int(fd) <= 2 or flags & os.O_CLOEXEC, f"fd {fd} survives an exec"

    def check(self):
        """What holds at the end of every test: nothing got lost uncounted, and the counters that
        must stay 0 did."""
        assert self.process.poll() is None, f"relay died: {self.log()}"
        if not self.traced:
            self.check_privileges()
        metrics = self.metrics()
        for name in MUST_STAY_ZERO:
            assert metrics[name] == 0, f"{name} is {metrics[name]}"
        return metrics


def merge(into, other):
    """Adds nested settings; other stays as it is."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
